//! A whole capture: its layers' heads packed into batches, fitted, put together again.

use std::collections::BTreeMap;
use std::time::Instant;

use super::fit::{Fitted, fit};
use super::problem::Problem;
use super::{Compression, Observer, Outcome, Request, Timings};
use crate::batch::{Budget, Shape, Workspace, layout, schedule};
use crate::cache::{Capture, Compressed, CompressedLayer};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Method, Options, Split};

/// Compresses a capture.
///
/// # Errors
/// Options without meaning for this cache; a file that cannot be read; whatever the engine reports. Numeric trouble in a
/// head is its [`Outcome`], not an error.
pub fn compress<E: Engine>(engine: &mut E, capture: &Capture, request: &Request, observer: &mut dyn Observer) -> Result<Compression> {
    let options = &request.options;
    options.validate()?;
    let split = Split::uniform(capture.tokens, options)?;
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
        forms.push((
            index,
            layer.kv_heads,
            layer.dim,
            layer.value_dim,
            request.dtype.unwrap_or(layer.dtype),
        ));
    }
    timings.read = started.elapsed().as_secs_f64();

    let fitted = fit_all(engine, &problems, capture, request, &mut timings, observer)?;
    let mut heads = problems.iter().zip(&fitted);
    let layers = forms.into_iter().map(|(index, kv_heads, dim, value_dim, dtype)| {
        let form = CompressedLayer {
            index,
            dim,
            value_dim,
            lengths: Vec::new(),
            key: Vec::new(),
            value: Vec::new(),
            bias: None,
            dtype,
        };
        assemble(form, heads.by_ref().take(kv_heads))
    });
    let layers: Vec<CompressedLayer> = layers.collect();
    let outcomes: Vec<Outcome> = fitted.into_iter().map(|fitted| fitted.outcome).collect();
    let metadata = metadata(capture, options, split, &outcomes)?;
    Ok(Compression {
        compressed: Compressed { layers, metadata },
        outcomes,
        split,
        source_bytes,
        timings,
    })
}

/// The layers asked for, all present.
fn chosen_layers(capture: &Capture, request: &Request) -> Result<Vec<usize>> {
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

/// Fits every problem, batch by batch; the outcomes are in the problems' order.
fn fit_all<E: Engine>(
    engine: &mut E,
    problems: &[Problem],
    capture: &Capture,
    request: &Request,
    timings: &mut Timings,
    observer: &mut dyn Observer,
) -> Result<Vec<Fitted>> {
    let options = &request.options;
    let shapes = problems.iter().map(Problem::shape).collect::<Result<Vec<Shape>>>()?;
    let history = if options.method == Method::Kvsculpt { options.history } else { 0 };
    let array = engine.max_array_bytes();
    let budget = Budget {
        // A device does not say how much memory it has; its largest array is a cautious guess.
        total: request.memory.unwrap_or(array.max(1 << 30)),
        array,
    };
    let scratch = |shapes: &[Shape]| {
        let heads = layout(shapes, |shape| (shape.training, shape.free));
        shapes.first().map_or(0, |shape| engine.scratch_bytes(shape.dims, &heads))
    };
    let batches = schedule(&shapes, history, budget, scratch)?;
    let work: u64 = shapes.iter().map(Shape::work).sum::<u64>().max(1);
    #[allow(clippy::cast_possible_truncation, reason = "shaders compute in single precision")]
    let scale = capture.scale as f32;
    let mut fitted: Vec<Option<Fitted>> = problems.iter().map(|_| None).collect();
    let (mut heads_done, mut work_done) = (0, 0);
    for batch in batches {
        let members: Vec<&Problem> = batch.iter().map(|&head| &problems[head]).collect();
        let sizes = batch.iter().map(|&head| shapes[head]).collect::<Vec<_>>();
        tracing::debug!(heads = batch.len(), bytes = Workspace::new(&sizes, history).bytes(), "batch");
        let share: u64 = sizes.iter().map(Shape::work).sum();
        let mut watch = |part: f64| {
            let fraction = (work_done as f64 + part * share as f64) / work as f64;
            if observer.progress(heads_done, problems.len(), fraction) {
                Ok(())
            } else {
                Err(Error::Cancelled)
            }
        };
        watch(0.0)?;
        for (head, outcome) in batch.iter().zip(fit(engine, &members, scale, options, timings, &mut watch)?) {
            fitted[*head] = Some(outcome);
        }
        heads_done += batch.len();
        work_done += share;
    }
    observer.progress(problems.len(), problems.len(), 1.0);
    // Every head is in exactly one batch, so none is missing here.
    Ok(fitted.into_iter().flatten().collect())
}

/// Puts a layer's heads together: each its sinks, free pairs and tail.
fn assemble<'a>(mut layer: CompressedLayer, heads: impl Iterator<Item = (&'a Problem, &'a Fitted)>) -> CompressedLayer {
    for (problem, fitted) in heads {
        problem.assemble(&problem.keys, &fitted.keys, layer.dim, &mut layer.key);
        problem.assemble(&problem.values, &fitted.values, layer.value_dim, &mut layer.value);
        layer.lengths.push(problem.split.kept());
    }
    layer
}

/// The capture's metadata and what the compression adds.
fn metadata(capture: &Capture, options: &Options, split: Split, outcomes: &[Outcome]) -> Result<BTreeMap<String, String>> {
    let json = |what: &str, text: serde_json::Result<String>| text.map_err(|error| Error::file(&capture.path, format!("{what}: {error}")));
    let mut metadata = capture.metadata.clone();
    metadata.insert("format".into(), "kv-compressed".into());
    metadata.insert("version".into(), "1".into());
    metadata.insert(
        "method".into(),
        json("method", serde_json::to_string(&options.method))?.trim_matches('"').into(),
    );
    metadata.insert("keep".into(), options.keep.to_string());
    metadata.insert("sinks".into(), split.sinks.to_string());
    metadata.insert("tail".into(), split.tail.to_string());
    metadata.insert("options".into(), json("options", serde_json::to_string(options))?);
    metadata.insert("report".into(), json("report", serde_json::to_string(outcomes))?);
    metadata.insert("source".into(), format!("sha256:{}", capture.digest()?));
    metadata.insert("tool".into(), concat!("kvsculpt ", env!("CARGO_PKG_VERSION")).into());
    Ok(metadata)
}

/// Bytes of these layers' keys and values as they are stored.
#[must_use]
pub(crate) fn stored_bytes(layers: &[CompressedLayer]) -> u64 {
    let bytes = |layer: &CompressedLayer| layer.lengths.iter().sum::<usize>() * (layer.dim + layer.value_dim) * layer.dtype.bytes();
    layers.iter().map(|layer| bytes(layer) as u64).sum()
}
