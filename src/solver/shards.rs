//! The pieces that a compression on several machines is made of: the error curves of a shard, and its heads compressed.
//!
//! Heads are independent, so a shard's curves and pairs have the very bits that they have among all heads. What needs all heads is done
//! between: [`allocate`](super::allocate) decides lengths from all curves, [`merge`](crate::cache::merge) puts the parts together.

use std::collections::BTreeMap;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::compress::{check, chosen_layers, common_metadata, decided, empty, fit};
use super::curve_set::{About, CurveSet};
use super::jobs::{Alone, Course, Hands};
use super::plan;
use super::recover::{Recovering, Recovery};
use super::size::largest_header;
use super::supply::Supply;
use super::{Decided, Finished, Observer, Outcome, Request, Timings};
use crate::batch::Shard;
use crate::budget::Scope;
use crate::cache::{self, Capture, CompressedLayer, Part};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Options, Target};

/// A shard that was compressed.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{batch::Shard, cache::merge, cpu::CpuEngine};
/// use kvsculpt::solver::{CurveSet, Request, allocate, compress, compress_part, measure_curves};
///
/// let mut request = Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// let mut engine = CpuEngine::new();
/// let whole = compress(&mut engine, &capture, &request, &mut ())?;
/// // Each of these two on a machine of its own, then all curves in one place,
/// let curves = (0..2).map(|index| {
///     let curves = measure_curves(&mut engine, &capture, &request, Shard::new(index, 2)?, &mut ())?;
///     Ok((format!("curves {index}").into(), curves))
/// });
/// let curves = CurveSet::joined(curves.collect::<kvsculpt::Result<_>>()?)?;
/// request.budgets = Some(allocate(&curves, &request.options, None)?);
/// // and each part on its machine again.
/// let parts = (0..2).map(|index| {
///     let found = compress_part(&mut engine, &capture, &request, Shard::new(index, 2)?, &mut ())?;
///     Ok((format!("part {index}").into(), found.part))
/// });
/// assert_eq!(merge(parts.collect::<kvsculpt::Result<_>>()?)?, whole.compressed);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CompressedPart {
    /// Its heads' pairs, to be written and merged.
    pub part: Part,
    /// What became of each of its heads, in the order of layers and heads.
    pub outcomes: Vec<Outcome>,
    /// Bytes of its heads' keys and values as the capture holds them.
    pub source_bytes: u64,
    /// Seconds by stage.
    pub timings: Timings,
}

/// What the curves of a shard would be, but for the curves: by it those of an earlier run can be told to be the same.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{batch::Shard, options::Scope, solver::{Request, plan_curves}};
///
/// let mut request = Request::default();
/// assert_eq!(plan_curves(&capture, &request, Shard::new(0, 3)?)?.heads().len(), 1);
/// // All of one length: there is nothing to decide.
/// request.options.budget = Scope::Uniform;
/// assert!(plan_curves(&capture, &request, Shard::WHOLE).is_err());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`check`]; [`Error::Options`] where lengths are not decided by curves.
pub fn plan_curves(capture: &Capture, request: &Request, shard: Shard) -> Result<CurveSet> {
    let split = check(capture, request)?;
    match request.decided() {
        Decided::Curves => {}
        Decided::Pilot => {
            return Err(Error::option(
                "--allocator",
                "`published` decides lengths by a pilot of all heads together, which has no shards; use --allocator curves, or give `compress --shard` the --budgets that one run saved",
            ));
        }
        Decided::Beforehand => {
            return Err(Error::option(
                "--budget",
                "lengths are known without error curves here; go on with `kvsculpt compress --shard`",
            ));
        }
    }
    let layers = chosen_layers(capture, request)?;
    let supply = Supply::new(capture, request, &layers, split)?;
    // The longest that a target can be written, for files of a size that is named only later.
    let longest = Request {
        options: Options {
            keep: -1.234_567_890_123_456_7e-300,
            target: Some(Target::Bytes(u64::MAX)),
            budget: Scope::Uniform,
            page: usize::MAX,
            ..request.options.clone()
        },
        ..request.clone()
    };
    let whole = whole(&supply);
    let pair_bytes = supply.places.iter().enumerate();
    let pair_bytes = pair_bytes.map(|(head, place)| (place.layer, supply.pair_bytes(head))).collect();
    let shard_heads = supply.of_shard(shard).heads();
    Ok(CurveSet {
        about: About {
            tool: concat!("kvsculpt ", env!("CARGO_PKG_VERSION")).to_owned(),
            source: source(capture)?,
            options: request.options.clone(),
            split,
            whole: whole.into_iter().map(|(layer, (heads, _))| (layer, heads)).collect(),
            pair_bytes,
            header_bytes: largest_header(capture, &layers, &longest)?,
            room: supply.room()?,
        },
        shard,
        heads: shard_heads,
        parts: Vec::new(),
    })
}

/// Measures the error curves of a shard's heads; the curves that [`compress`](super::compress()) would measure of them. `PLANNING` of an
/// [`Observer`]'s fraction does not apply: it goes from 0 to 1.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// use kvsculpt::{batch::Shard, cpu::CpuEngine, solver::measure_curves};
///
/// let found = measure_curves(&mut CpuEngine::new(), &capture, &request, Shard::new(0, 3)?, &mut ())?;
/// let curve = &found.curves()?[0];
/// // The whole cache loses nothing.
/// assert_eq!(curve.error(capture.tokens), 0.0);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`plan_curves`] and [`compress`](super::compress()).
pub fn measure_curves<E: Engine>(
    engine: &mut E,
    capture: &Capture,
    request: &Request,
    shard: Shard,
    observer: &mut dyn Observer,
) -> Result<CurveSet> {
    curves_by(
        &mut Recovering::new(&mut Alone(engine), &mut Recovery::new(request.memory)),
        capture,
        request,
        shard,
        observer,
    )
}

/// [`measure_curves`] by whatever does the job.
pub(super) fn curves_by(
    hands: &mut dyn Hands,
    capture: &Capture,
    request: &Request,
    shard: Shard,
    observer: &mut dyn Observer,
) -> Result<CurveSet> {
    let mut set = plan_curves(capture, request, shard)?;
    if set.heads.is_empty() {
        return Ok(set);
    }
    let layers = chosen_layers(capture, request)?;
    let supply = Supply::new(capture, request, &layers, set.about.split)?.of_shard(shard);
    let mut finished = Finished::default();
    let mut course = Course::new(hands, &supply, &mut finished, observer);
    course.stage = (0.0, 1.0);
    set.parts = plan::measured(&mut course, &request.options)?;
    Ok(set)
}

/// What a shard's part would be, but for its pairs: by it that of an earlier run can be told to be the same.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{batch::Shard, solver::{Request, plan_part}};
///
/// assert_eq!(plan_part(&capture, &request, Shard::new(2, 3)?)?.heads().count(), 1);
/// // Lengths are to be decided by all heads together.
/// assert!(plan_part(&capture, &Request::default(), Shard::new(2, 3)?).is_err());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`check`]; [`Error::Options`] where lengths are still to be decided.
pub fn plan_part(capture: &Capture, request: &Request, shard: Shard) -> Result<Part> {
    let split = check(capture, request)?;
    if request.decided() != Decided::Beforehand {
        return Err(Error::option(
            "--shard",
            "the lengths of all heads have to be known before parts of them are compressed; give --budgets with what `kvsculpt allocate` made of `kvsculpt curves`, or use --budget uniform",
        ));
    }
    let layers = chosen_layers(capture, request)?;
    let supply = Supply::new(capture, request, &layers, split)?;
    let whole = whole(&supply);
    let budgets = lengths_digest(&supply, request);
    let mut heads: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (layer, head) in supply.of_shard(shard).heads() {
        heads.entry(layer).or_default().push(head);
    }
    Ok(Part {
        layers: Vec::new(),
        about: cache::About {
            shard: (shard.index(), shard.count()),
            heads,
            whole,
            tokens: capture.tokens,
            budgets,
            metadata: common_metadata(capture, &request.options, split)?,
            reports: Vec::new(),
        },
    })
}

/// Compresses a shard's heads, to the same bits as [`compress`](super::compress()) would all of them. A shard without heads is fine, and
/// its part holds none.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{batch::Shard, cpu::CpuEngine, solver::compress_part};
///
/// let found = compress_part(&mut CpuEngine::new(), &capture, &request, Shard::new(0, 2)?, &mut ())?;
/// let heads: Vec<_> = found.part.heads().collect();
/// assert_eq!(heads, [(20, 0), (20, 2)]);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`plan_part`] and [`compress_recovering`](super::compress_recovering), which tries again where the machine fails, as this does.
pub fn compress_part<E: Engine>(
    engine: &mut E,
    capture: &Capture,
    request: &Request,
    shard: Shard,
    observer: &mut dyn Observer,
) -> Result<CompressedPart> {
    compress_part_from(engine, capture, request, shard, &mut Finished::default(), observer)
}

/// [`compress_part`], going on from what is finished of this shard already, as [`compress_from`](super::compress_from) does of a whole:
/// the same bytes as without. Where it fails or is cancelled, `finished` has what is done, and may be given again.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request { at_once: Some(1), ..kvsculpt::solver::Request::default() };
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{batch::Shard, cpu::CpuEngine, solver::{Finished, Observer, compress_part, compress_part_from}};
///
/// struct UntilOne;
/// impl Observer for UntilOne {
///     fn progress(&mut self, finished: usize, _heads: usize, _fraction: f64) -> bool {
///         finished == 0
///     }
/// }
/// let (mut engine, mut finished, shard) = (CpuEngine::new(), Finished::default(), Shard::new(0, 2)?);
/// assert!(compress_part_from(&mut engine, &capture, &request, shard, &mut finished, &mut UntilOne).is_err());
/// assert_eq!(finished.heads.len(), 1);
/// let resumed = compress_part_from(&mut engine, &capture, &request, shard, &mut finished, &mut ())?;
/// assert_eq!(resumed.part, compress_part(&mut engine, &capture, &request, shard, &mut ())?.part);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`compress_part`]; [`Error::Shape`] where what is finished is not of this capture, request and shard, as far as its sizes show it.
pub fn compress_part_from<E: Engine>(
    engine: &mut E,
    capture: &Capture,
    request: &Request,
    shard: Shard,
    finished: &mut Finished,
    observer: &mut dyn Observer,
) -> Result<CompressedPart> {
    let mut recovery = Recovery::new(request.memory);
    part_by(
        &mut Recovering::new(&mut Alone(engine), &mut recovery),
        capture,
        request,
        shard,
        finished,
        observer,
    )
}

/// [`compress_part_from`] by whatever does the jobs.
pub(super) fn part_by(
    hands: &mut dyn Hands,
    capture: &Capture,
    request: &Request,
    shard: Shard,
    finished: &mut Finished,
    observer: &mut dyn Observer,
) -> Result<CompressedPart> {
    let mut found = CompressedPart {
        part: plan_part(capture, request, shard)?,
        outcomes: Vec::new(),
        source_bytes: 0,
        timings: Timings::default(),
    };
    let split = check(capture, request)?;
    let layers = chosen_layers(capture, request)?;
    let supply = Supply::new(capture, request, &layers, split)?.of_shard(shard);
    let heads = supply.places.len();
    if heads == 0 {
        return Ok(found);
    }
    let mut course = Course::new(hands, &supply, finished, observer);
    let started = Instant::now();
    let plan = decided(&mut course, request)?;
    found.timings.budgets = started.elapsed().as_secs_f64();
    course.begin_fits(plan::measures(request, supply.chunks.len()));
    let outcomes = fit(&mut course, request, &plan.free, &mut found.timings)?;
    course.observer.progress(heads, heads, 1.0);
    let mut layers = layers
        .into_iter()
        .map(|index| empty(capture, request, index))
        .collect::<Result<Vec<CompressedLayer>>>()?;
    let report = |outcome: &Outcome| serde_json::to_string(outcome).map_err(|error| Error::file(&capture.path, format!("report: {error}")));
    found.part.about.reports = outcomes.iter().map(report).collect::<Result<_>>()?;
    // Nothing may fail from here on: what is finished would be lost.
    finished.take(&supply, &plan.free, &mut layers)?;
    let some = |layer: &CompressedLayer| !layer.lengths.is_empty();
    found.part.layers = layers.into_iter().filter(some).collect();
    found.outcomes = outcomes;
    found.source_bytes = supply.places.iter().map(|place| place.source_bytes(capture.tokens)).sum();
    Ok(found)
}

/// What curves and lengths are of: the file by its digest, and by another all that is said of it, the queries put beside it too.
pub(super) fn source(capture: &Capture) -> Result<String> {
    let mut said = Sha256::new();
    for (key, text) in &capture.metadata {
        for part in [key, text] {
            said.update((part.len() as u64).to_le_bytes());
            said.update(part);
        }
    }
    let said = cache::hexadecimal(&said.finalize());
    Ok(format!("sha256:{}, metadata sha256:{said}", capture.digest()?))
}

/// KV heads of every layer of the request, and how it will be stored.
fn whole(supply: &Supply<'_>) -> BTreeMap<usize, (usize, cache::Dtype)> {
    let places = supply.places.iter();
    places
        .map(|place| (place.layer, (place.shape.kv_heads, supply.dtype(place))))
        .collect()
}

/// A digest of the lengths of all heads, by which parts of one whole can be told from those of another.
fn lengths_digest(supply: &Supply<'_>, request: &Request) -> String {
    let mut text = String::new();
    for &(layer, head) in &supply.all {
        let budgets = request.budgets.as_ref();
        let length = budgets.and_then(|budgets| budgets.length(layer, head));
        let free = budgets.and_then(|budgets| budgets.free_pairs(layer, head));
        text.push_str(&format!("{layer} {head} {length:?} {free:?}\n"));
    }
    cache::hexadecimal(&Sha256::digest(text))
}
