//! What a compression will need, before it is begun.

use serde::{Deserialize, Serialize};

use super::compress::{check, chosen_layers};
use super::rows::counts;
use super::{Request, bias, size};
use crate::batch::{Budget, Shape, Workspace, layout, schedule};
use crate::cache::{Capture, LayerShape};
use crate::engine::{Dims, Engine};
use crate::error::{Error, Result};
use crate::options::{Method, Split};

/// What a compression will need. Where lengths are decided by the heads' numbers all count as the mean, so that figures are near and
/// not exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Estimate {
    /// Heads.
    pub heads: usize,
    /// Pairs of all heads in the cache, and of all that are kept.
    pub pairs: (u64, u64),
    /// Bytes of the file that comes out, its header at the largest.
    pub file_bytes: u64,
    /// Bytes of host memory for caches, rows and the result of all layers at once, in single precision; on a CPU engine those of
    /// the device come on top.
    pub host_bytes: u64,
    /// Bytes of the largest batch's arrays on the machine, the engine's own among them.
    pub device_bytes: u64,
    /// Batches.
    pub batches: usize,
}

/// What [`compress`](super::compress) will need for this request on this machine. Nothing is read but the capture's header.
///
/// # Errors
/// As [`check`]; [`Error::OutOfMemory`] where a head does not fit.
pub fn estimate<E: Engine>(engine: &E, capture: &Capture, request: &Request) -> Result<Estimate> {
    let split = check(capture, request)?;
    let layers = chosen_layers(capture, request)?;
    let mut shapes = Vec::new();
    let mut found = Estimate {
        heads: 0,
        pairs: (0, 0),
        file_bytes: size::largest_header(capture, &layers, request)?,
        host_bytes: 0,
        device_bytes: 0,
        batches: 0,
    };
    for &index in &layers {
        let layer = capture.shape(index)?;
        let number = request.dtype.unwrap_or(layer.dtype).bytes();
        let bias = if request.options.has_bias() { 4 } else { 0 };
        for head in 0..layer.kv_heads {
            let given = request.budgets.as_ref().and_then(|budgets| budgets.length(index, head));
            let kept = given.unwrap_or(split.kept());
            let free = kept - split.sinks - split.tail;
            let shape = shape(capture, layer, Split { free, ..split }, request)?;
            let channels = layer.dim + layer.value_dim;
            let rows = (shape.training + shape.validation + shape.probe) as usize;
            found.heads += 1;
            found.pairs.0 += capture.tokens as u64;
            found.pairs.1 += kept as u64;
            found.file_bytes += (kept * (channels * number + bias)) as u64;
            found.host_bytes += 4 * ((capture.tokens + kept) * channels + rows * shape.dims.dim as usize) as u64;
            // A head that keeps everything is not worked on.
            if free < split.zone() {
                shapes.push(shape);
            }
        }
    }
    let history = if request.options.method == Method::Kvsculpt {
        request.options.history
    } else {
        0
    };
    let array = engine.max_array_bytes();
    let budget = Budget {
        total: request.memory.unwrap_or(array.max(1 << 30)),
        array,
    };
    let scratch = |shapes: &[Shape]| {
        let heads = layout(shapes, |shape| (shape.training, shape.free));
        shapes.first().map_or(0, |shape| engine.scratch_bytes(shape.dims, &heads))
    };
    let batches = schedule(&shapes, history, budget, scratch)?;
    let of_batch = |batch: &Vec<usize>| {
        let members: Vec<Shape> = batch.iter().map(|&head| shapes[head]).collect();
        Workspace::new(&members, history).bytes() + scratch(&members)
    };
    found.batches = batches.len();
    found.device_bytes = batches.iter().map(of_batch).max().unwrap_or(0);
    Ok(found)
}

/// The sizes of a head of this layer.
fn shape(capture: &Capture, layer: &LayerShape, split: Split, request: &Request) -> Result<Shape> {
    let count = |number: usize| u32::try_from(number).map_err(|_| Error::shape("capture", format!("{number} is more than 32 bits count")));
    let widened = if request.options.has_bias() { bias::CHANNELS } else { 0 };
    let [training, validation, probe] = counts(layer, capture.next_position, split, &request.options, None);
    Ok(Shape {
        dims: Dims {
            dim: count(layer.dim + widened)?,
            value_dim: count(layer.value_dim)?,
        },
        tokens: count(split.tokens)?,
        fixed: count(split.sinks + split.tail)?,
        free: count(split.free)?,
        solved: count(split.free)?,
        training: count(training)?,
        validation: count(validation)?,
        probe: count(probe)?,
    })
}
