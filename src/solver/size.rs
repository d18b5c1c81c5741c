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
            let kept = pairs_in(bytes, size(capture, layers, request)?, capture.tokens, options)?;
            Split::of(capture.tokens, kept, options)
        }
        Some(Target::MaxError(_)) => Split::least(capture.tokens, options),
        _ => Split::uniform(capture.tokens, options),
    }
}

/// Pairs a head of the largest file of at most `bytes` bytes whose heads are all of one length.
pub(super) fn pairs_in(bytes: u64, size: Size, tokens: usize, options: &Options) -> Result<usize> {
    let Size { beside, pair, cell } = size;
    let pair = (pair + cell).max(1);
    let kept = usize::try_from(bytes.saturating_sub(beside) / pair).unwrap_or(usize::MAX);
    match Split::fewest(tokens, options) {
        Some(fewest) if kept < fewest => Err(Error::option(
            "--bytes",
            format!(
                "{bytes} bytes hold {kept} pairs a head beside a header of up to {beside}, and sinks and tail leave a free pair from {fewest} a head on; give at least {}, or use a smaller --tail or --sinks",
                beside + fewest as u64 * pair
            ),
        )),
        _ => Ok(kept.min(tokens)),
    }
}

/// The bytes that all pairs together may take, where so many `bytes` are the target; `split` is that where all lengths are the same, and
/// `pair_bytes` what a pair of each head takes.
pub(super) fn room(capture: &Capture, layers: &[usize], request: &Request, split: Split, pair_bytes: &[u64]) -> Result<u64> {
    // In other formats more than the pairs themselves goes with a length.
    let own = request.written_as.is_none_or(|target| target.format == Format::Compressed);
    Ok(match request.options.target {
        Some(Target::Bytes(bytes)) if own => bytes.saturating_sub(size(capture, layers, request)?.beside),
        _ => pair_bytes.iter().sum::<u64>() * split.kept() as u64,
    })
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
    // However the size is written that is asked for: a refusal names one that will do.
    let target = request.options.target.map(|target| match target {
        Target::Bytes(_) => Target::Bytes(u64::MAX),
        other => other,
    });
    let options = Options {
        target,
        ..request.options.clone()
    };
    Ok(Compressed {
        metadata: metadata(capture, &options, split, &outcomes)?,
        layers: forms,
    })
}
