//! What a compression will need, before it is begun.

use serde::{Deserialize, Serialize};

use super::batches::{history, packing, scratch};
use super::chunks::even;
use super::compress::{check, chosen_layers};
use super::supply::{Stage, Supply};
use super::waves::{Beginning, Packing};
use super::{Request, size};
use crate::batch::{Shape, Workspace};
use crate::cache::Capture;
use crate::engine::Engine;
use crate::error::Result;

/// What a compression will need. Where lengths are decided by the heads' numbers all count as the mean, so that figures are near and
/// not exact; where an error is the target, all count as the least there could be.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{cpu::CpuEngine, solver::{Estimate, Request, estimate}};
///
/// let found: Estimate = estimate(&CpuEngine::new(), &capture, &Request::default())?;
/// let one_by_one = estimate(&CpuEngine::new(), &capture, &Request { at_once: Some(1), ..Request::default() })?;
/// assert_eq!((found.heads, found.batches, one_by_one.batches), (3, 1, 3));
/// assert!(one_by_one.device_bytes < found.device_bytes && found.file_bytes == one_by_one.file_bytes);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Estimate {
    /// Heads.
    pub heads: usize,
    /// Pairs of all heads in the cache, and of all that are kept.
    pub pairs: (u64, u64),
    /// Bytes of the file that comes out, its header at the largest.
    pub file_bytes: u64,
    /// Bytes of host memory: the heads that are there together and the short cache, in single precision; on a CPU engine those of the device
    /// come on top.
    pub host_bytes: u64,
    /// Bytes of the largest batch's arrays on the machine, the engine's own among them, and what is uploaded of the next meanwhile.
    pub device_bytes: u64,
    /// Batches.
    pub batches: usize,
}

/// What [`compress`](super::compress) will need for this request on this machine. Nothing is read but the capture's header.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{cpu::CpuEngine, solver::{Request, estimate}};
///
/// let estimate = estimate(&CpuEngine::new(), &capture, &Request::default())?;
/// println!("{} bytes on the device, {} on the host", estimate.device_bytes, estimate.host_bytes);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`check`]; [`OutOfMemory`](crate::Error::OutOfMemory) where a head does not fit.
pub fn estimate<E: Engine>(engine: &E, capture: &Capture, request: &Request) -> Result<Estimate> {
    estimate_by(capture, request, |supply, free| needs(engine, supply, free))
}

/// What heads take of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Bytes of the heads that are there together.
    pub(super) host_bytes: u64,
    /// As in [`Estimate`].
    pub(super) device_bytes: u64,
    pub(super) batches: usize,
}

/// [`estimate`] by what says how much all heads need, whose chunks have these free pairs.
pub(super) fn estimate_by(
    capture: &Capture,
    request: &Request,
    needs: impl FnOnce(&Supply<'_>, &[Vec<usize>]) -> Result<Needs>,
) -> Result<Estimate> {
    let split = check(capture, request)?;
    let layers = chosen_layers(capture, request)?;
    let supply = Supply::new(capture, request, &layers, split)?;
    let count = supply.chunks.len();
    let size = size::size(capture, &layers, request)?;
    let mut found = Estimate {
        heads: supply.places.len(),
        pairs: (0, 0),
        file_bytes: size.beside,
        host_bytes: 0,
        device_bytes: 0,
        batches: 0,
    };
    let (mut free, mut longest) = (Vec::new(), 0);
    for (head, &(layer, number)) in supply.heads().iter().enumerate() {
        let given = request.budgets.as_ref().and_then(|budgets| budgets.length(layer, number));
        let kept = given.unwrap_or(split.kept());
        found.pairs.0 += capture.tokens as u64;
        found.pairs.1 += kept as u64;
        found.file_bytes += kept as u64 * supply.pair_bytes(head);
        // The short cache itself is put together in single precision.
        let shape = capture.shape(layer)?;
        found.host_bytes += 4 * (kept * (shape.dim + shape.value_dim)) as u64;
        longest = longest.max(kept);
        free.push(even(kept - split.sinks - split.tail, count));
    }
    found.file_bytes += longest as u64 * size.cell;
    let needs = needs(&supply, &free)?;
    found.host_bytes += needs.host_bytes;
    (found.device_bytes, found.batches) = (needs.device_bytes, needs.batches);
    Ok(found)
}

/// What fitting these heads takes of one machine, where their chunks have these free pairs.
pub(super) fn needs<E: Engine>(engine: &E, supply: &Supply<'_>, free: &[Vec<usize>]) -> Result<Needs> {
    let request = supply.request;
    let history = history(&request.options);
    let stage = Stage::Fit { free, history };
    let slices = supply.slices(stage, |shapes| scratch(engine, shapes))?;
    let mut found = Needs {
        host_bytes: slices.iter().map(|slice| slice.bytes + slice.ahead).max().unwrap_or(0),
        ..Needs::default()
    };
    // The last batch of the slice before: how it was packed, what it takes, and what of that on the device.
    let mut before: Option<(Packing, u64, u64)> = None;
    for slice in slices {
        let mut shapes = Vec::new();
        for head in slice.heads.clone() {
            shapes.extend(supply.shapes(head, stage)?.into_iter().filter(|shape| stage.works_on(shape)));
        }
        let packing = packing(engine, supply, request.at_once, &slice, history);
        let waves = packing.waves(&shapes, |shapes| scratch(engine, shapes))?;
        found.batches += waves.len();
        for wave in waves {
            let members: Vec<Shape> = wave.heads.iter().map(|&head| shapes[head]).collect();
            let bytes = Workspace::new(&members, history).bytes() + scratch(engine, &members);
            let beginning = Beginning::of(&members, false);
            let beside = before
                .take()
                .and_then(|(packing, taken, bytes)| Some(bytes + packing.beside(taken, beginning)?.device));
            found.device_bytes = found.device_bytes.max(bytes + wave.ahead.device).max(beside.unwrap_or(0));
            before = (slice.ahead > 0 && packing.uploads).then_some((packing, wave.bytes, bytes));
        }
    }
    Ok(found)
}
