//! How many pairs a target is.

use super::compress::metadata;
use super::{Errors, Judged, Outcome, Request, Stop};
use crate::budget::Budgets;
use crate::cache::{Capture, Compressed, CompressedLayer};
use crate::error::{Error, Result};
use crate::formats::{Format, Size};
use crate::options::{Options, Split, Tail, Target};

/// The split of a head where all lengths are the same. Where budgets or an error decide lengths, only its sinks and tail count.
pub(super) fn split(capture: &Capture, layers: &[usize], request: &Request) -> Result<Split> {
    let options = &request.options;
    if let Some(budgets) = &request.budgets
        && budgets.tokens() != capture.tokens
    {
        return Err(Error::option(
            "--budgets",
            format!(
                "is for a cache of {} tokens, and this one has {}; make budgets of this cache",
                budgets.tokens(),
                capture.tokens
            ),
        ));
    }
    if let Some((sinks, tail)) = request.budgets.as_ref().and_then(Budgets::fixed) {
        let options = Options {
            sinks,
            tail: Tail::Pairs(tail),
            ..options.clone()
        };
        return Split::least(capture.tokens, &options);
    }
    match options.target {
        Some(Target::Bytes(bytes)) => {
            let kept = pairs_in(capture, layers, request, bytes)?;
            Split::of(capture.tokens, kept, options)
        }
        Some(Target::MaxError(_)) => Split::least(capture.tokens, options),
        _ => Split::uniform(capture.tokens, options),
    }
}

/// Pairs a head of the largest file of at most `bytes` bytes whose heads are all of one length.
fn pairs_in(capture: &Capture, layers: &[usize], request: &Request, bytes: u64) -> Result<usize> {
    let Size { beside, pair, cell } = size(capture, layers, request)?;
    let pair = pair + cell;
    let kept = usize::try_from(bytes.saturating_sub(beside) / pair.max(1)).unwrap_or(usize::MAX);
    if kept == 0 {
        return Err(Error::option(
            "--bytes",
            format!(
                "{bytes} bytes leave no pair: the file's header may take {beside} bytes and a pair in every head {pair}; give at least {}",
                beside + pair
            ),
        ));
    }
    Ok(kept.min(capture.tokens))
}

/// The bytes of the file that the request is for, where heads are all of one length.
pub(super) fn size(capture: &Capture, layers: &[usize], request: &Request) -> Result<Size> {
    if let Some(target) = request.written_as.filter(|target| target.format != Format::Compressed) {
        return target.size(capture, layers, largest(capture, layers, request)?.metadata);
    }
    let mut pair = 0;
    for &index in layers {
        let shape = capture.shape(index)?;
        let number = request.dtype.unwrap_or(shape.dtype).bytes();
        let bias = if request.options.has_bias() { 4 } else { 0 };
        pair += (shape.kv_heads * ((shape.dim + shape.value_dim) * number + bias)) as u64;
    }
    let beside = largest_header(capture, layers, request)?;
    Ok(Size { beside, pair, cell: 0 })
}

/// The bytes of a compressed cache's file beside its pairs, with every number of the report at its longest.
pub(super) fn largest_header(capture: &Capture, layers: &[usize], request: &Request) -> Result<u64> {
    // Shapes and offsets of the empty arrays are shorter than the real ones: at most 20 digits each, four numbers a tensor.
    let digits = 4 * 20 * 4 * layers.len() as u64;
    Ok(largest(capture, layers, request)?.bytes()? + digits)
}

/// A compressed cache without pairs, with every number of the report at its longest.
fn largest(capture: &Capture, layers: &[usize], request: &Request) -> Result<Compressed> {
    const LONGEST: f64 = -1.234_567_890_123_456_7e-300;
    let errors = Errors {
        output: LONGEST,
        mass: LONGEST,
        merged: LONGEST,
    };
    let judged = Judged {
        loss: LONGEST,
        output: LONGEST,
        mass: LONGEST,
        validation: Some(errors),
        probe: Some(errors),
    };
    let (mut outcomes, mut forms) = (Vec::new(), Vec::new());
    for &index in layers {
        let shape = capture.shape(index)?;
        let outcome = |head| Outcome {
            layer: index,
            head,
            tokens: capture.tokens,
            kept: capture.tokens,
            free: capture.tokens,
            result: judged,
            select: judged,
            select_fit: Some(judged),
            chunks: capture.tokens,
            iterations: u32::MAX,
            evaluations: u32::MAX,
            stop: Stop::NotOptimised,
        };
        outcomes.extend((0..shape.kv_heads).map(outcome));
        forms.push(CompressedLayer {
            index,
            dim: shape.dim,
            value_dim: shape.value_dim,
            lengths: vec![capture.tokens; shape.kv_heads],
            key: Vec::new(),
            value: Vec::new(),
            bias: request.options.has_bias().then(Vec::new),
            dtype: request.dtype.unwrap_or(shape.dtype),
        });
    }
    let split = Split {
        tokens: capture.tokens,
        sinks: capture.tokens,
        free: capture.tokens,
        tail: capture.tokens,
    };
    Ok(Compressed {
        metadata: metadata(capture, &request.options, split, &outcomes)?,
        layers: forms,
    })
}
