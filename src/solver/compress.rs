//! A whole capture: its layers' heads packed into batches, fitted, put together again.

use std::collections::BTreeMap;
use std::time::Instant;

use super::bound::fit_within;
use super::fit::Fitted;
use super::jobs::{Alone, Course, Hands};
use super::plan::{self, Plan, plan};
use super::problem::Problem;
use super::shards;
use super::supply::Supply;
use super::{Compression, Finished, FinishedHead, Lengths, Observer, Outcome, Request, Timings, bias, chunks, size};
use crate::budget::Budgets;
use crate::cache::{Capture, Compressed, CompressedLayer, share};
use crate::engine::{Dims, Engine};
use crate::error::{Error, Result};
use crate::options::{Options, Split, Target};

/// Fails now as [`compress`] would for this capture, so that nothing is done in vain; what needs the heads' numbers is left to it.
/// Returns how a head's pairs are divided where all lengths are the same.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{Error, options::{Scope, Target}, solver::{Request, check}};
///
/// let mut request = Request::default();
/// request.options.budget = Scope::Uniform;
/// request.options.target = Some(Target::Tokens(200));
/// assert_eq!(check(&capture, &request)?.kept(), 200);
/// request.layers = Some(vec![3]);
/// // The capture has layer 20 alone.
/// assert!(matches!(check(&capture, &request), Err(Error::Options { .. })));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// Options without meaning for this cache, layers that are not there, budgets that were decided for another capture.
pub fn check(capture: &Capture, request: &Request) -> Result<Split> {
    request.options.validate()?;
    if request.memory == Some(0) {
        return Err(Error::option("--memory", "leaves no room for any work; give more, or leave it out"));
    }
    let layers = chosen_layers(capture, request)?;
    let split = size::split(capture, &layers, request)?;
    let mut heads = Vec::new();
    for &layer in &layers {
        let shape = capture.shape(layer)?;
        if request.options.has_bias() && !Dims::is_served(shape.dim + bias::CHANNELS) {
            return Err(Error::option(
                "--bias",
                format!(
                    "layer {layer} has keys of {} channels, and a bias needs room beside at most {}; use --bias off",
                    shape.dim,
                    Dims::MOST as usize - bias::CHANNELS
                ),
            ));
        }
        heads.extend((0..shape.kv_heads).map(|head| (layer, head)));
    }
    plan::check(&heads, split, &chunks::cut(split, request.options.chunk), request)?;
    // Last: it reads the whole file for its digest.
    if let Some(source) = request.budgets.as_ref().and_then(Budgets::source)
        && source != shards::source(capture)?
    {
        return Err(Error::option(
            "--budgets",
            "was decided for another capture, or other queries of it; give `compress` the file, --queries and what else `curves` was given of it",
        ));
    }
    Ok(split)
}

/// Compresses a capture.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::compress};
///
/// request.options.keep = 0.2;
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
/// assert!(short.outcomes.iter().all(|head| head.kept == head.tokens / 5));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`check`]; a file that cannot be read; whatever the engine reports, or the observer. Numeric trouble in a head is its
/// [`Outcome`], not an error.
pub fn compress<E: Engine>(engine: &mut E, capture: &Capture, request: &Request, observer: &mut dyn Observer) -> Result<Compression> {
    compress_from(engine, capture, request, &mut Finished::default(), observer)
}

/// [`compress`], going on from what is finished already: the same bytes as without, and only the rest of the work. The observer is not
/// told of heads that were finished before.
///
/// Where it fails or is cancelled, `finished` has what is done, heads of unfinished batches not among it, and may be given again; so a
/// lost device costs a batch. Where all goes well it is moved into the result, and nothing is left.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{Error, cpu::CpuEngine};
/// use kvsculpt::solver::{Finished, FinishedHead, Observer, Request, compress_from};
///
/// struct First;
/// impl Observer for First {
///     fn finished(&mut self, _head: &FinishedHead) -> kvsculpt::Result<()> {
///         Err(Error::Cancelled)
///     }
/// }
///
/// let mut request = Request { at_once: Some(1), ..Request::default() };
/// # request.options.method = kvsculpt::options::Method::SelectFit;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// let (mut engine, mut finished) = (CpuEngine::new(), Finished::default());
/// assert!(compress_from(&mut engine, &capture, &request, &mut finished, &mut First).is_err());
/// let done = finished.heads.len();
/// let short = compress_from(&mut engine, &capture, &request, &mut finished, &mut ())?;
/// assert!(done < short.outcomes.len() && finished == Finished::default());
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`compress`]; [`Error::Shape`] where what is finished is not of this capture and request, as far as its sizes show it.
pub fn compress_from<E: Engine>(
    engine: &mut E,
    capture: &Capture,
    request: &Request,
    finished: &mut Finished,
    observer: &mut dyn Observer,
) -> Result<Compression> {
    run(&mut Alone(engine), capture, request, finished, observer)
}

/// [`compress_from`] by whatever does the jobs.
pub(super) fn run(
    hands: &mut dyn Hands,
    capture: &Capture,
    request: &Request,
    finished: &mut Finished,
    observer: &mut dyn Observer,
) -> Result<Compression> {
    let options = &request.options;
    let mut split = check(capture, request)?;
    let layers = chosen_layers(capture, request)?;
    let mut timings = Timings::default();

    let supply = Supply::new(capture, request, &layers, split)?;
    let measures = plan::measures(request, supply.chunks.len());
    let heads = supply.places.len();
    let mut course = Course::new(hands, &supply, finished, observer);
    let started = Instant::now();
    let mut plan = decided(&mut course, request)?;
    timings.budgets = started.elapsed().as_secs_f64();

    course.begin_fits(measures);
    let outcomes = match options.target {
        Some(Target::MaxError(bound)) if request.budgets.is_none() => fit_within(&mut course, request, &mut plan, bound, &mut timings)?,
        _ => fit(&mut course, request, &plan.free, &mut timings)?,
    };
    split.free = plan.free.iter().flatten().sum::<usize>() / heads;
    course.observer.progress(heads, heads, 1.0);
    let source_bytes = supply.places.iter().map(|place| place.source_bytes(capture.tokens));
    let mut layers = layers
        .into_iter()
        .map(|index| empty(capture, request, index))
        .collect::<Result<Vec<CompressedLayer>>>()?;
    let metadata = metadata(capture, options, split, &outcomes)?;
    // Nothing may fail from here on: what is finished would be lost.
    course.finished.take(&supply, &plan.free, &mut layers)?;
    let lengths = layers.iter().map(|layer| (layer.index, layer.lengths.clone())).collect();
    Ok(Compression {
        budgets: Budgets::new(split.tokens, lengths)?.with_fixed(split.sinks, split.tail)?,
        curves: plan.curves,
        source_bytes: source_bytes.sum(),
        compressed: Compressed { layers, metadata },
        outcomes,
        split,
        timings,
    })
}

/// The lengths of the heads: those that were decided before, else decided now, and told of where anything was measured for it.
pub(super) fn decided(course: &mut Course<'_>, request: &Request) -> Result<Plan> {
    if let Some(lengths) = &course.finished.lengths {
        return Plan::decided(lengths, course.supply, request);
    }
    let plan = plan(course, request)?;
    let lengths = Lengths::of(&plan);
    if plan::measures(request, course.supply.chunks.len()) {
        course.observer.decided(&lengths)?;
    }
    course.finished.lengths = Some(lengths);
    Ok(plan)
}

/// Fits all heads, whose chunks have these free pairs, but those that are finished already; each that is done is told of at once.
pub(super) fn fit(course: &mut Course<'_>, request: &Request, free: &[Vec<usize>], timings: &mut Timings) -> Result<Vec<Outcome>> {
    let (options, supply) = (&request.options, course.supply);
    course.finished.keep_only(course.given, supply, free);
    let done = course.finished.done(supply, free, options.has_bias())?;
    course.ask(|hands, task| hands.fit(task, free, &done, options, timings))?;
    course.finished.outcomes(supply, free)
}

/// A layer of the short cache, its heads still to come.
pub(super) fn empty(capture: &Capture, request: &Request, index: usize) -> Result<CompressedLayer> {
    let shape = capture.shape(index)?;
    Ok(CompressedLayer {
        index,
        dim: shape.dim,
        value_dim: shape.value_dim,
        lengths: Vec::new(),
        key: Vec::new(),
        value: Vec::new(),
        bias: request.options.has_bias().then(Vec::new),
        dtype: request.dtype.unwrap_or(shape.dtype),
    })
}

/// The layers asked for, all present.
pub(super) fn chosen_layers(capture: &Capture, request: &Request) -> Result<Vec<usize>> {
    let Some(wanted) = &request.layers else {
        return Ok(capture.layers.clone());
    };
    let mut layers = wanted.clone();
    layers.sort_unstable();
    layers.dedup();
    for &layer in &layers {
        capture.shape(layer)?;
    }
    if layers.is_empty() {
        return Err(Error::option("--layers", "names no layer"));
    }
    Ok(layers)
}

/// Puts a head together, chunk by chunk: the sinks of the first, free pairs, the tail of the last.
pub(super) fn assemble(outcome: Outcome, chunks: &[Problem], fitted: &[Fitted], scale: f32, has_bias: bool) -> FinishedHead {
    let (mut key, mut value, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(first) = chunks.first() {
        key.reserve_exact(outcome.kept * first.key_dim);
        value.reserve_exact(outcome.kept * first.dims.value_dim as usize);
    }
    for (problem, Fitted { pairs, .. }) in chunks.iter().zip(fitted) {
        problem.assemble(&problem.values, &pairs.values, problem.dims.value_dim as usize, &mut value);
        let Some(constant) = problem.constant else {
            problem.assemble(&problem.keys, &pairs.keys, problem.key_dim, &mut key);
            continue;
        };
        let (keys, bias) = bias::divide(&pairs.keys, problem.key_dim, scale * constant);
        problem.assemble(&problem.keys, &keys, problem.key_dim, &mut key);
        biases.resize(biases.len() + problem.split.sinks, 0.0);
        biases.extend_from_slice(&bias);
        biases.resize(biases.len() + problem.split.tail, 0.0);
    }
    FinishedHead {
        free: chunks.iter().map(|problem| problem.split.free).collect(),
        outcome,
        key,
        value,
        bias: has_bias.then_some(biases),
    }
}

/// The capture's metadata and what the compression adds.
pub(super) fn metadata(capture: &Capture, options: &Options, split: Split, outcomes: &[Outcome]) -> Result<BTreeMap<String, String>> {
    let mut metadata = common_metadata(capture, options, split)?;
    let kept: usize = outcomes.iter().map(|head| head.kept).sum();
    metadata.insert("keep".into(), share(kept, split.tokens, outcomes.len()).to_string());
    metadata.insert("report".into(), json(capture, "report", serde_json::to_string(outcomes))?);
    Ok(metadata)
}

fn json(capture: &Capture, what: &str, text: serde_json::Result<String>) -> Result<String> {
    text.map_err(|error| Error::file(&capture.path, format!("{what}: {error}")))
}

/// What is known of them before any head is fitted.
pub(super) fn common_metadata(capture: &Capture, options: &Options, split: Split) -> Result<BTreeMap<String, String>> {
    let mut metadata = capture.metadata.clone();
    metadata.insert("format".into(), "kv-compressed".into());
    metadata.insert("version".into(), "1".into());
    metadata.insert(
        "method".into(),
        json(capture, "method", serde_json::to_string(&options.method))?
            .trim_matches('"')
            .into(),
    );
    metadata.insert("sinks".into(), split.sinks.to_string());
    metadata.insert("tail".into(), split.tail.to_string());
    metadata.insert("options".into(), json(capture, "options", serde_json::to_string(options))?);
    metadata.insert("source".into(), format!("sha256:{}", capture.digest()?));
    metadata.insert("tool".into(), concat!("kvsculpt ", env!("CARGO_PKG_VERSION")).into());
    Ok(metadata)
}

/// Bytes of these layers' keys, values and biases as they are stored.
#[must_use]
pub(crate) fn stored_bytes(layers: &[CompressedLayer]) -> u64 {
    let bytes = |layer: &CompressedLayer| layer.lengths.iter().sum::<usize>() * (layer.dim + layer.value_dim) * layer.dtype.bytes();
    let biases = |layer: &CompressedLayer| layer.bias.as_ref().map_or(0, |bias| 4 * bias.len());
    layers.iter().map(|layer| (bytes(layer) + biases(layer)) as u64).sum()
}
