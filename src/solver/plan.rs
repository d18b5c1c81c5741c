//! Who gets how many pairs: error curves or a pilot, and the target they are shared out for.

use std::collections::BTreeMap;

use super::batches::Work;
use super::curves;
use super::problem::Problem;
use super::{Decided, Request, Timings};
use crate::budget::{self, Budgets, Curve, Scope};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Method, Options, Split, Target};

/// The fewest free pairs of a head, as published; a quarter of the mean where that is fewer.
const LEAST: usize = 16;
/// Steps of the paper's pilot where layers share a length, and where heads have their own.
const PILOT_STEPS: (u32, u32) = (60, 30);

/// Every head's length, and what it was decided by.
#[derive(Debug)]
pub(super) struct Plan {
    /// Pairs stored, in the problems' order.
    pub(super) lengths: Vec<usize>,
    /// The error curves, where lengths were decided by them.
    pub(super) curves: Vec<Curve>,
}

/// Decides the lengths. The problems come in with the uniform split.
pub(super) fn plan<E: Engine>(work: &mut Work<'_, E>, problems: &[Problem], split: Split, request: &Request) -> Result<Plan> {
    let options = &request.options;
    let heads: Vec<(usize, usize)> = problems.iter().map(|problem| (problem.layer, problem.head)).collect();
    let lengths = match (request.decided(), &request.budgets) {
        (Decided::Curves, _) => return by_curves(work, problems, &heads, split, request),
        (Decided::Pilot, _) => by_pilot(work, problems, &heads, split, options)?,
        (Decided::Beforehand, Some(budgets)) => given(budgets, &heads, split)?,
        (Decided::Beforehand, None) => vec![uniform(split, options.page)?; heads.len()],
    };
    Ok(Plan {
        lengths,
        curves: Vec::new(),
    })
}

/// Refuses what [`plan`] would for these layers and heads, as far as can be told before anything is measured.
pub(super) fn check(heads: &[(usize, usize)], split: Split, request: &Request) -> Result<()> {
    let options = &request.options;
    if let Some(budgets) = &request.budgets {
        return given(budgets, heads, split).map(drop);
    }
    match request.decided() {
        Decided::Curves => weights(heads, request).map(drop),
        Decided::Pilot if options.budget == Scope::Layer => heads_of_a_layer(heads).map(drop),
        Decided::Pilot => Ok(()),
        Decided::Beforehand => uniform(split, options.page).map(drop),
    }
}

/// How many heads each layer has, where all have the same.
fn heads_of_a_layer(heads: &[(usize, usize)]) -> Result<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for (layer, _) in heads {
        *counts.entry(*layer).or_default() += 1;
    }
    let first = counts.values().next().copied().unwrap_or(1);
    if counts.values().any(|&count| count != first) {
        return Err(Error::option(
            "--allocator",
            "the paper's rule shares out among layers of equally many heads, and these differ; use --budget head, or --allocator curves",
        ));
    }
    Ok(first)
}

/// The lengths of a file of budgets.
fn given(budgets: &Budgets, heads: &[(usize, usize)], split: Split) -> Result<Vec<usize>> {
    let least = split.sinks + split.tail + 1;
    let length = |&(layer, head): &(usize, usize)| {
        let Some(length) = budgets.length(layer, head) else {
            return Err(Error::option(
                "--budgets",
                format!("names no length for layer {layer} head {head}; add it, or choose other --layers"),
            ));
        };
        if length < least {
            return Err(Error::option(
                "--budgets",
                format!(
                    "gives layer {layer} head {head} {length} pairs, which {} sinks and a tail of {} use up; give at least {least}, or use a smaller --tail or --sinks",
                    split.sinks, split.tail
                ),
            ));
        }
        Ok(length)
    };
    heads.iter().map(length).collect()
}

/// The same length for all: whole pages, or the whole cache.
fn uniform(split: Split, page: usize) -> Result<usize> {
    if split.kept() == split.tokens {
        return Ok(split.tokens);
    }
    let length = split.kept() / page * page;
    if length <= split.sinks + split.tail {
        return Err(Error::option(
            "--page",
            format!(
                "{} pairs a head are {length} in whole pages, which {} sinks and a tail of {} use up; keep more, or use a smaller --page or --tail",
                split.kept(),
                split.sinks,
                split.tail
            ),
        ));
    }
    Ok(length)
}

/// The fewest free pairs a head may get.
fn least(split: Split) -> usize {
    LEAST.min(split.free.div_ceil(4)).clamp(1, split.zone().max(1))
}

/// The paper's rule: a pilot of the whole method at the uniform length, shares by the square root of its loss.
fn by_pilot<E: Engine>(
    work: &mut Work<'_, E>,
    problems: &[Problem],
    heads: &[(usize, usize)],
    split: Split,
    options: &Options,
) -> Result<Vec<usize>> {
    let scope = options.budget;
    let pilot = Options {
        method: Method::Kvsculpt,
        steps: if scope == Scope::Layer { PILOT_STEPS.0 } else { PILOT_STEPS.1 },
        ..options.clone()
    };
    let mut timings = Timings::default();
    let fitted = work.fit(&problems.iter().collect::<Vec<_>>(), &pilot, &mut timings)?;
    let losses: Vec<f64> = fitted.iter().map(|head| head.outcome.result.loss).collect();
    let (least, zone, fixed) = (least(split), split.zone(), split.sinks + split.tail);
    let allocate = |total: usize| {
        let free = total.saturating_sub(fixed * heads.len());
        let shares = match scope {
            Scope::Layer => by_layer(heads, &losses, least, zone, free)?,
            _ => {
                let layers: Vec<usize> = heads.iter().map(|head| head.0).collect();
                budget::published(&layers, &losses, least, zone, free)?
            }
        };
        Ok(shares.into_iter().map(|free| fixed + free).collect())
    };
    match options.target {
        Some(Target::Bytes(_)) => within_bytes(work, problems, split, allocate),
        _ => allocate(split.kept() * heads.len()),
    }
}

/// Free pairs by the paper's rule where the heads of a layer share a length.
fn by_layer(heads: &[(usize, usize)], losses: &[f64], least: usize, most: usize, total: usize) -> Result<Vec<usize>> {
    let count = heads_of_a_layer(heads)?;
    let mut of_layer: BTreeMap<usize, f64> = BTreeMap::new();
    for ((layer, _), loss) in heads.iter().zip(losses) {
        *of_layer.entry(*layer).or_default() += loss / count as f64;
    }
    let (layers, means): (Vec<usize>, Vec<f64>) = of_layer.into_iter().unzip();
    let shares = budget::published(&layers, &means, least, most, total / count)?;
    let shares: BTreeMap<usize, usize> = layers.into_iter().zip(shares).collect();
    Ok(heads.iter().map(|(layer, _)| shares[layer]).collect())
}

/// Curves of every head, and the lengths that serve the target best by them.
fn by_curves<E: Engine>(
    work: &mut Work<'_, E>,
    problems: &[Problem],
    heads: &[(usize, usize)],
    split: Split,
    request: &Request,
) -> Result<Plan> {
    let options = &request.options;
    let weights = weights(heads, request)?;
    let fixed = split.sinks + split.tail;
    let curves = curves::all(work, problems, least(split), fixed, options)?;
    let allocate = |total: usize| budget::allocate(&curves, &weights, options.budget, options.page, total);
    let lengths = match options.target {
        Some(Target::MaxError(error)) => within_error(&curves, &weights, options, error)?,
        Some(Target::Bytes(_)) => within_bytes(work, problems, split, allocate)?,
        _ => allocate(split.kept() * problems.len())?,
    };
    Ok(Plan { lengths, curves })
}

/// The smallest cache whose error by the curves themselves is at most this. Lengths are shared out by the curves' convex hulls,
/// which lie below them: where the curves are above the bound, the hulls get a smaller one.
fn within_error(curves: &[Curve], weights: &[f64], options: &Options, error: f64) -> Result<Vec<usize>> {
    const MOST_TRIES: u32 = 50;
    let all: f64 = weights.iter().sum();
    let mut bound = error;
    for _ in 0..MOST_TRIES {
        let lengths = budget::least_total(curves, weights, options.budget, options.page, bound)?;
        let errors = curves.iter().zip(&lengths).map(|(curve, &length)| curve.error(length));
        let found = errors.zip(weights).map(|(error, weight)| weight * error).sum::<f64>() / all;
        if found <= error {
            return Ok(lengths);
        }
        bound *= (error / found).min(0.95);
    }
    budget::least_total(curves, weights, options.budget, options.page, 0.0)
}

/// The most pairs whose bytes are at most those of the uniform split: found by bisection, for where layers differ in what a pair takes
/// the bytes of a total depend on where it goes.
fn within_bytes<E: Engine>(
    work: &Work<'_, E>,
    problems: &[Problem],
    split: Split,
    allocate: impl Fn(usize) -> Result<Vec<usize>>,
) -> Result<Vec<usize>> {
    let bytes: Vec<u64> = problems.iter().map(|problem| work.pair_bytes(problem)).collect();
    let budget: u64 = bytes.iter().map(|bytes| bytes * split.kept() as u64).sum();
    let spent = |lengths: &[usize]| -> u64 { lengths.iter().zip(&bytes).map(|(&length, bytes)| length as u64 * bytes).sum() };
    let pair = bytes.iter().copied().min().unwrap_or(1).max(1);
    let most = usize::try_from(budget / pair).unwrap_or(usize::MAX).min(split.tokens * bytes.len());
    let (mut low, mut high) = (0, most);
    let mut best = None;
    while low <= high {
        let middle = low + (high - low) / 2;
        match allocate(middle) {
            Ok(lengths) if spent(&lengths) > budget => {
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

/// The weight of each head's error.
fn weights(heads: &[(usize, usize)], request: &Request) -> Result<Vec<f64>> {
    let Some(weights) = &request.weights else {
        return Ok(vec![1.0; heads.len()]);
    };
    let weight = |&(layer, head): &(usize, usize)| {
        weights.weight(layer, head).ok_or_else(|| {
            Error::option(
                "--sensitivities",
                format!("says nothing of layer {layer} head {head}; is the file of another model?"),
            )
        })
    };
    heads.iter().map(weight).collect()
}
