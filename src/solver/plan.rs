//! Who gets how many pairs: error curves or a pilot, and the target they are shared out for.

use std::collections::BTreeMap;

use super::batches::Work;
use super::curves;
use super::problem::Problem;
use super::{Request, Timings};
use crate::budget::{self, Budgets, Curve, Scope};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Allocator, Method, Options, Split, Target};

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
    /// Whether anything was measured for it.
    pub(super) measured: bool,
}

/// Decides the lengths. The problems come in with the uniform split.
pub(super) fn plan<E: Engine>(work: &mut Work<'_, E>, problems: &[Problem], split: Split, request: &Request) -> Result<Plan> {
    let options = &request.options;
    let plain = |lengths, measured| {
        Ok(Plan {
            lengths,
            curves: Vec::new(),
            measured,
        })
    };
    if let Some(budgets) = &request.budgets {
        return plain(given(budgets, problems, split)?, false);
    }
    let by_error = matches!(options.target, Some(Target::MaxError(_)));
    if !by_error {
        match (options.budget, options.allocator) {
            (Scope::Uniform, _) => return plain(uniform(problems, split, options.page)?, false),
            (scope, Allocator::Published) => return plain(by_pilot(work, problems, split, scope, options)?, true),
            (_, Allocator::Curves) => {}
        }
    }
    by_curves(work, problems, split, request)
}

/// The lengths of a file of budgets.
fn given(budgets: &Budgets, problems: &[Problem], split: Split) -> Result<Vec<usize>> {
    if budgets.tokens() != split.tokens {
        return Err(Error::option(
            "--budgets",
            format!(
                "is for a cache of {} tokens, and this one has {}; make budgets of this cache",
                budgets.tokens(),
                split.tokens
            ),
        ));
    }
    let least = split.sinks + split.tail + 1;
    let length = |problem: &Problem| {
        let (layer, head) = (problem.layer, problem.head);
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
    problems.iter().map(length).collect()
}

/// The same length for all, whole pages of it.
fn uniform(problems: &[Problem], split: Split, page: usize) -> Result<Vec<usize>> {
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
    Ok(vec![length; problems.len()])
}

/// The fewest free pairs a head may get.
fn least(split: Split) -> usize {
    LEAST.min(split.free.div_ceil(4)).clamp(1, split.zone().max(1))
}

/// The paper's rule: a pilot of the whole method at the uniform length, shares by the square root of its loss.
fn by_pilot<E: Engine>(work: &mut Work<'_, E>, problems: &[Problem], split: Split, scope: Scope, options: &Options) -> Result<Vec<usize>> {
    let pilot = Options {
        method: Method::Kvsculpt,
        steps: if scope == Scope::Layer { PILOT_STEPS.0 } else { PILOT_STEPS.1 },
        ..options.clone()
    };
    let mut timings = Timings::default();
    let fitted = work.fit(&problems.iter().collect::<Vec<_>>(), &pilot, &mut timings)?;
    let losses: Vec<f64> = fitted.iter().map(|head| head.outcome.result.loss).collect();
    let layers: Vec<usize> = problems.iter().map(|problem| problem.layer).collect();
    let (least, zone, fixed) = (least(split), split.zone(), split.sinks + split.tail);
    let free = if scope == Scope::Layer {
        let mut of_layer: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (layer, loss) in layers.iter().zip(&losses) {
            of_layer.entry(*layer).or_default().push(*loss);
        }
        let means: Vec<f64> = of_layer
            .values()
            .map(|losses| losses.iter().sum::<f64>() / losses.len() as f64)
            .collect();
        let names: Vec<usize> = of_layer.keys().copied().collect();
        let shares = budget::published(&names, &means, least, zone, split.free * names.len())?;
        let shares: BTreeMap<usize, usize> = names.into_iter().zip(shares).collect();
        layers.iter().map(|layer| shares[layer]).collect()
    } else {
        budget::published(&layers, &losses, least, zone, split.free * problems.len())?
    };
    Ok(free.into_iter().map(|free: usize| fixed + free).collect())
}

/// Curves of every head, and the lengths that serve the target best by them.
fn by_curves<E: Engine>(work: &mut Work<'_, E>, problems: &[Problem], split: Split, request: &Request) -> Result<Plan> {
    let options = &request.options;
    let weights = weights(problems, request)?;
    let fixed = split.sinks + split.tail;
    let curves = curves::all(work, problems, least(split), fixed, options)?;
    let allocate = |total: usize| budget::allocate(&curves, &weights, options.budget, options.page, total);
    let lengths = match options.target {
        Some(Target::MaxError(error)) => budget::least_total(&curves, &weights, options.budget, options.page, error)?,
        Some(Target::Bytes(_)) => {
            let bytes: Vec<u64> = problems.iter().map(|problem| work.pair_bytes(problem)).collect();
            within_bytes(&bytes, split, allocate)?
        }
        _ => allocate(split.kept() * problems.len())?,
    };
    Ok(Plan {
        lengths,
        curves,
        measured: true,
    })
}

/// The most pairs whose bytes are at most those of the uniform split: found by bisection, for where layers differ in what a pair takes
/// the bytes of a total depend on where it goes.
fn within_bytes(bytes: &[u64], split: Split, allocate: impl Fn(usize) -> Result<Vec<usize>>) -> Result<Vec<usize>> {
    let budget: u64 = bytes.iter().map(|bytes| bytes * split.kept() as u64).sum();
    let spent = |lengths: &[usize]| -> u64 { lengths.iter().zip(bytes).map(|(&length, bytes)| length as u64 * bytes).sum() };
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
    best.map_or_else(|| allocate(most), Ok)
}

/// The weight of each head's error.
fn weights(problems: &[Problem], request: &Request) -> Result<Vec<f64>> {
    let Some(weights) = &request.weights else {
        return Ok(vec![1.0; problems.len()]);
    };
    let weight = |problem: &Problem| {
        weights.weight(problem.layer, problem.head).ok_or_else(|| {
            Error::option(
                "--sensitivities",
                format!(
                    "says nothing of layer {} head {}; is the file of another model?",
                    problem.layer, problem.head
                ),
            )
        })
    };
    problems.iter().map(weight).collect()
}
