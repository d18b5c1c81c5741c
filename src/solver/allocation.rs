//! Lengths by error curves, for every kind of target: arithmetic on what was measured.

use crate::budget::{self, Curve, Scope};
use crate::error::{Error, Result};
use crate::options::{Options, Split, Target};

/// The lengths of heads of these curves and weights that serve the target best. `split` is that of a head where all lengths are the same;
/// of a target in bytes all pairs may take `room` together, and a pair of each head takes `pair_bytes`.
pub(super) fn lengths(
    split: Split,
    (room, pair_bytes): (u64, &[u64]),
    curves: &[Curve],
    weights: &[f64],
    options: &Options,
) -> Result<Vec<usize>> {
    let allocate = |total: usize| budget::allocate(curves, weights, options.budget, options.page, total);
    match options.target {
        Some(Target::MaxError(error)) => within_error(curves, weights, options, error),
        Some(Target::Bytes(_)) => within_bytes(room, split.tokens, pair_bytes, allocate),
        _ => allocate(split.kept() * curves.len()),
    }
}

/// The curves of heads from those of their chunks, `chunks` a head.
pub(super) fn heads_of(parts: &[Curve], chunks: usize) -> Result<Vec<Curve>> {
    parts.chunks(chunks).map(budget::joined).collect()
}

/// Free pairs of every head's chunks: a head's length, shared out so that the sum of its chunks' errors is least.
pub(super) fn shared(chunks: &[Split], parts: &[Curve], lengths: &[usize]) -> Result<Vec<Vec<usize>>> {
    let count = chunks.len();
    let of_head = |(parts, &length): (&[Curve], &usize)| {
        let lengths = if count == 1 {
            vec![length]
        } else {
            budget::allocate(parts, &vec![1.0; count], Scope::Head, 1, length)?
        };
        let chunks = chunks.iter().zip(lengths);
        Ok(chunks.map(|(chunk, length)| length - chunk.sinks - chunk.tail).collect())
    };
    parts.chunks(count).zip(lengths).map(of_head).collect()
}

/// The smallest cache whose error by the curves themselves is at most this. Lengths are shared out by the curves' convex hulls,
/// which lie below them: where the curves are above the bound, the hulls get a smaller one.
pub(super) fn within_error(curves: &[Curve], weights: &[f64], options: &Options, error: f64) -> Result<Vec<usize>> {
    const MOST_TRIES: u32 = 50;
    let mut bound = error;
    for _ in 0..MOST_TRIES {
        let lengths = budget::least_total(curves, weights, options.budget, options.page, bound)?;
        let found = mean_error(curves, weights, &lengths);
        if found <= error {
            return Ok(lengths);
        }
        bound *= (error / found).min(0.95);
    }
    budget::least_total(curves, weights, options.budget, options.page, 0.0)
}

/// The mean error of heads of these lengths, by their curves and weights.
pub(super) fn mean_error(curves: &[Curve], weights: &[f64], lengths: &[usize]) -> f64 {
    let errors = curves.iter().zip(lengths).map(|(curve, &length)| curve.error(length));
    errors.zip(weights).map(|(error, weight)| weight * error).sum::<f64>() / weights.iter().sum::<f64>()
}

/// The most pairs that take at most `room` bytes, of caches of so many tokens a head: found by bisection, for where layers differ in what
/// a pair takes the bytes of a total depend on where it goes.
pub(super) fn within_bytes(room: u64, tokens: usize, bytes: &[u64], allocate: impl Fn(usize) -> Result<Vec<usize>>) -> Result<Vec<usize>> {
    let spent = |lengths: &[usize]| -> u64 { lengths.iter().zip(bytes).map(|(&length, bytes)| length as u64 * bytes).sum() };
    let pair = bytes.iter().copied().min().unwrap_or(1).max(1);
    let most = usize::try_from(room / pair).unwrap_or(usize::MAX).min(tokens * bytes.len());
    let (mut low, mut high) = (0, most);
    let mut best = None;
    while low <= high {
        let middle = low + (high - low) / 2;
        match allocate(middle) {
            Ok(lengths) if spent(&lengths) > room => {
                if middle == 0 {
                    break;
                }
                high = middle - 1;
            }
            Ok(lengths) => {
                best = Some(lengths);
                low = middle + 1;
            }
            // Too few for the least lengths; more may be possible.
            Err(error) if middle == most => return best.ok_or(error),
            Err(_) => low = middle + 1,
        }
    }
    best.ok_or_else(|| {
        Error::option(
            "--bytes",
            "is too little for the least length of every head, in whole pages; give more, or use a smaller --page, --tail or --sinks",
        )
    })
}
