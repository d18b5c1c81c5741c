//! A whole capture: its layers' heads packed into batches, fitted, put together again.

use std::collections::BTreeMap;
use std::time::Instant;

use super::batches::Work;
use super::fit::Fitted;
use super::plan::{self, plan};
use super::problem::Problem;
use super::{Compression, Decided, Observer, Outcome, PLANNING, Request, Timings, bias, size};
use crate::budget::Budgets;
use crate::cache::{Capture, Compressed, CompressedLayer, Dtype};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Options, Split};

/// Fails now as [`compress`] would for this capture, so that nothing is done in vain; what needs the heads' numbers is left to it.
/// Returns how a head's pairs are divided where all lengths are the same.
///
/// # Errors
/// Options without meaning for this cache, layers that are not there.
pub fn check(capture: &Capture, request: &Request) -> Result<Split> {
    request.options.validate()?;
    let layers = chosen_layers(capture, request)?;
    let split = size::split(capture, &layers, request)?;
    let mut heads = Vec::new();
    for &layer in &layers {
        let shape = capture.shape(layer)?;
        if request.options.has_bias() && shape.dim + bias::CHANNELS > MOST_CHANNELS {
            return Err(Error::option(
                "--bias",
                format!(
                    "layer {layer} has keys of {} channels, and a bias needs room beside at most {}; use --bias off",
                    shape.dim,
                    MOST_CHANNELS - bias::CHANNELS
                ),
            ));
        }
        heads.extend((0..shape.kv_heads).map(|head| (layer, head)));
    }
    plan::check(&heads, split, request)?;
    Ok(split)
}

/// Channels of keys and values that engines take.
const MOST_CHANNELS: usize = 256;

/// Compresses a capture.
///
/// # Errors
/// As [`check`]; a file that cannot be read; whatever the engine reports. Numeric trouble in a head is its [`Outcome`], not an
/// error.
pub fn compress<E: Engine>(engine: &mut E, capture: &Capture, request: &Request, observer: &mut dyn Observer) -> Result<Compression> {
    let options = &request.options;
    let mut split = check(capture, request)?;
    let layers = chosen_layers(capture, request)?;
    let mut timings = Timings::default();

    let started = Instant::now();
    let (mut problems, mut forms, mut source_bytes) = (Vec::new(), Vec::new(), 0);
    for &index in &layers {
        let layer = capture.layer(index)?;
        source_bytes += (layer.kv_heads * layer.tokens * (layer.dim + layer.value_dim) * layer.dtype.bytes()) as u64;
        for head in 0..layer.kv_heads {
            problems.push(Problem::new(capture, &layer, head, split, options)?);
        }
        forms.push(Form {
            index,
            kv_heads: layer.kv_heads,
            dim: layer.dim,
            value_dim: layer.value_dim,
            dtype: request.dtype.unwrap_or(layer.dtype),
        });
    }
    timings.read = started.elapsed().as_secs_f64();

    #[allow(clippy::cast_possible_truncation, reason = "shaders compute in single precision")]
    let scale = capture.scale as f32;
    let heads = problems.len();
    let mut work = Work {
        engine,
        request,
        scale,
        observer,
        stage: (0.0, PLANNING),
        planning: true,
        heads,
        number_bytes: forms.iter().map(|form| (form.index, form.dtype.bytes() as u64)).collect(),
    };
    let started = Instant::now();
    let plan = plan(&mut work, &problems, split, request)?;
    timings.budgets = started.elapsed().as_secs_f64();
    for (problem, &length) in problems.iter_mut().zip(&plan.lengths) {
        problem.split.free = length - problem.split.sinks - problem.split.tail;
    }
    split.free = plan.lengths.iter().sum::<usize>() / heads - split.sinks - split.tail;

    let begin = if request.decided() == Decided::Beforehand { 0.0 } else { PLANNING };
    work.stage = (begin, 1.0 - begin);
    work.planning = false;
    let fitted = work.fit(&problems.iter().collect::<Vec<_>>(), options, &mut timings)?;
    work.observer.progress(heads, heads, 1.0);
    let mut heads = problems.iter().zip(&fitted);
    let layers: Vec<CompressedLayer> = forms
        .into_iter()
        .map(|form| assemble(form.layer(options), heads.by_ref().take(form.kv_heads)))
        .collect();
    let outcomes: Vec<Outcome> = fitted.into_iter().map(|fitted| fitted.outcome).collect();
    let metadata = metadata(capture, options, split, &outcomes)?;
    let lengths = layers.iter().map(|layer| (layer.index, layer.lengths.clone())).collect();
    Ok(Compression {
        budgets: Budgets::new(split.tokens, lengths)?.with_fixed(split.sinks, split.tail)?,
        curves: plan.curves,
        compressed: Compressed { layers, metadata },
        outcomes,
        split,
        source_bytes,
        timings,
    })
}

/// What a layer of the short cache will look like.
#[derive(Clone, Copy, Debug)]
struct Form {
    index: usize,
    kv_heads: usize,
    dim: usize,
    value_dim: usize,
    dtype: Dtype,
}

impl Form {
    /// The layer, its heads still to come.
    fn layer(self, options: &Options) -> CompressedLayer {
        CompressedLayer {
            index: self.index,
            dim: self.dim,
            value_dim: self.value_dim,
            lengths: Vec::new(),
            key: Vec::new(),
            value: Vec::new(),
            bias: options.has_bias().then(Vec::new),
            dtype: self.dtype,
        }
    }
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

/// Puts a layer's heads together: each its sinks, free pairs and tail.
fn assemble<'a>(mut layer: CompressedLayer, heads: impl Iterator<Item = (&'a Problem, &'a Fitted)>) -> CompressedLayer {
    for (problem, fitted) in heads {
        problem.assemble(&problem.keys, &fitted.keys, layer.dim, &mut layer.key);
        problem.assemble(&problem.values, &fitted.values, layer.value_dim, &mut layer.value);
        if let (Some(biases), Some(bias)) = (&mut layer.bias, &fitted.bias) {
            biases.resize(biases.len() + problem.split.sinks, 0.0);
            biases.extend_from_slice(bias);
            biases.resize(biases.len() + problem.split.tail, 0.0);
        }
        layer.lengths.push(problem.split.kept());
    }
    layer
}

/// The fraction of all pairs that is kept.
fn share(split: Split, outcomes: &[Outcome]) -> f64 {
    let kept: usize = outcomes.iter().map(|head| head.kept).sum();
    kept as f64 / (split.tokens * outcomes.len()) as f64
}

/// The capture's metadata and what the compression adds.
pub(super) fn metadata(capture: &Capture, options: &Options, split: Split, outcomes: &[Outcome]) -> Result<BTreeMap<String, String>> {
    let json = |what: &str, text: serde_json::Result<String>| text.map_err(|error| Error::file(&capture.path, format!("{what}: {error}")));
    let mut metadata = capture.metadata.clone();
    metadata.insert("format".into(), "kv-compressed".into());
    metadata.insert("version".into(), "1".into());
    metadata.insert(
        "method".into(),
        json("method", serde_json::to_string(&options.method))?.trim_matches('"').into(),
    );
    metadata.insert("keep".into(), share(split, outcomes).to_string());
    metadata.insert("sinks".into(), split.sinks.to_string());
    metadata.insert("tail".into(), split.tail.to_string());
    metadata.insert("options".into(), json("options", serde_json::to_string(options))?);
    metadata.insert("report".into(), json("report", serde_json::to_string(outcomes))?);
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
