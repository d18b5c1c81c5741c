//! Who gets how many pairs: error curves or a pilot, and the target they are shared out for.

use std::collections::BTreeMap;

use super::batches::{Work, history};
use super::chunks::even;
use super::curves::{self, Grid};
use super::supply::{Stage, Supply};
use super::{Decided, Lengths, Request, Timings};
use crate::budget::{self, Budgets, Curve, Scope};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Allocator, Method, Options, Split, Target};

/// The fewest free pairs of a head, as published; a quarter of the mean where that is fewer.
const LEAST: usize = 16;
/// Steps of the paper's pilot where layers share a length, and where heads have their own.
const PILOT_STEPS: (u32, u32) = (60, 30);

/// Every head's length, how its chunks share it, and what it was decided by.
#[derive(Debug)]
pub(super) struct Plan {
    /// Free pairs of every head's chunks.
    pub(super) free: Vec<Vec<usize>>,
    /// The error curves of heads, where lengths were decided by them.
    pub(super) curves: Vec<Curve>,
    /// Those of their chunks, and what each head's error weighs.
    pub(super) parts: Vec<Curve>,
    pub(super) weights: Vec<f64>,
}

impl Plan {
    /// The lengths that were decided before.
    ///
    /// # Errors
    /// Where they are of other heads.
    pub(super) fn decided(lengths: &Lengths, supply: &Supply<'_>, request: &Request) -> Result<Self> {
        lengths.check(supply)?;
        Ok(Self {
            free: lengths.free.clone(),
            curves: lengths.curves.clone(),
            parts: lengths.parts.clone(),
            weights: match request.decided() {
                Decided::Curves => weights(&supply.heads(), request)?,
                _ => Vec::new(),
            },
        })
    }

    /// Lengths that measure nothing.
    fn of(free: Vec<Vec<usize>>) -> Self {
        Self {
            free,
            curves: Vec::new(),
            parts: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// The free pairs of the smallest cache whose error by the curves is at most this.
    pub(super) fn within(&self, supply: &Supply<'_>, options: &Options, error: f64) -> Result<Vec<Vec<usize>>> {
        let lengths = within_error(&self.curves, &self.weights, options, error)?;
        shared(supply, &self.parts, &lengths)
    }
}

/// Whether anything has to be measured before lengths are known: those of heads, or how their chunks share them.
///
/// Lengths that are given say nothing of chunks. By the curves of these they are shared as they were where lengths were decided
/// so, and a saved budget gives the same cache again (one of `--max-error` nearly, whose curves begin at shorter lengths); without curves, in proportion to the zones.
pub(super) fn measures(request: &Request, chunks: usize) -> bool {
    let options = &request.options;
    let shares = request.budgets.is_some() && chunks > 1 && options.allocator == Allocator::Curves && options.budget != Scope::Uniform;
    request.decided() != Decided::Beforehand || shares
}

/// Decides the lengths.
pub(super) fn plan<E: Engine>(work: &mut Work<'_, E>, request: &Request) -> Result<Plan> {
    let options = &request.options;
    let supply = work.supply;
    let (heads, split, count) = (supply.heads(), supply.split, supply.chunks.len());
    let fixed = split.sinks + split.tail;
    let lengths = match (request.decided(), &request.budgets) {
        (Decided::Curves, _) => return by_curves(work, &heads, request),
        (Decided::Pilot, _) => by_pilot(work, &heads, options)?,
        (Decided::Beforehand, Some(budgets)) => {
            let lengths = given(budgets, &heads, split, count)?;
            if measures(request, count) {
                let mean = lengths.iter().sum::<usize>() / lengths.len().max(1);
                let split = Split {
                    free: mean.saturating_sub(fixed).max(count),
                    ..split
                };
                // A length may be shorter than any that would have been decided.
                let shortest = lengths.iter().min().map_or(1, |length| length - fixed);
                let parts = parts(work, least(split).min(shortest / count * count).max(1), options)?;
                return Ok(Plan::of(shared(supply, &parts, &lengths)?));
            }
            lengths
        }
        (Decided::Beforehand, None) => vec![uniform(split, options.page, count)?; heads.len()],
    };
    Ok(Plan::of(lengths.into_iter().map(|length| even(length - fixed, count)).collect()))
}

/// Refuses what [`plan`] would for these heads of so many chunks, as far as can be told before anything is measured.
pub(super) fn check(heads: &[(usize, usize)], split: Split, chunks: usize, request: &Request) -> Result<()> {
    let options = &request.options;
    if let Some(budgets) = &request.budgets {
        return given(budgets, heads, split, chunks).map(drop);
    }
    if split.free < chunks && !matches!(options.target, Some(Target::MaxError(_))) {
        return Err(Error::option(
            "--chunk",
            format!(
                "{} free pairs a head are too few for its {chunks} chunks; keep more, or use a larger --chunk",
                split.free
            ),
        ));
    }
    match request.decided() {
        Decided::Curves => weights(heads, request).map(drop),
        Decided::Pilot if options.budget == Scope::Layer => heads_of_a_layer(heads).map(drop),
        Decided::Pilot => Ok(()),
        Decided::Beforehand => uniform(split, options.page, chunks).map(drop),
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
fn given(budgets: &Budgets, heads: &[(usize, usize)], split: Split, chunks: usize) -> Result<Vec<usize>> {
    let least = split.sinks + split.tail + chunks;
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
fn uniform(split: Split, page: usize, chunks: usize) -> Result<usize> {
    if split.kept() == split.tokens {
        return Ok(split.tokens);
    }
    let length = split.kept() / page * page;
    if length < split.sinks + split.tail + chunks {
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

/// The curves of all chunks, those of a head one after the other, for heads of at least so many free pairs.
fn parts<E: Engine>(work: &mut Work<'_, E>, least: usize, options: &Options) -> Result<Vec<Curve>> {
    let chunks = &work.supply.chunks;
    let grid = Grid::new(chunks, least.div_ceil(chunks.len()));
    let mut timings = Timings::default();
    work.in_slices(grid.stage(), &[], &mut timings, |work, problems, _| {
        curves::of_slice(work, problems, &grid, options)
    })
}

/// Free pairs of every head's chunks: a head's length, shared out so that the sum of its chunks' errors is least.
fn shared(supply: &Supply<'_>, parts: &[Curve], lengths: &[usize]) -> Result<Vec<Vec<usize>>> {
    let count = supply.chunks.len();
    let of_head = |(parts, &length): (&[Curve], &usize)| {
        let lengths = if count == 1 {
            vec![length]
        } else {
            budget::allocate(parts, &vec![1.0; count], Scope::Head, 1, length)?
        };
        let chunks = supply.chunks.iter().zip(lengths);
        Ok(chunks.map(|(chunk, length)| length - chunk.sinks - chunk.tail).collect())
    };
    parts.chunks(count).zip(lengths).map(of_head).collect()
}

/// The paper's rule: a pilot of the whole method at the uniform length, shares by the square root of its loss.
fn by_pilot<E: Engine>(work: &mut Work<'_, E>, heads: &[(usize, usize)], options: &Options) -> Result<Vec<usize>> {
    let scope = options.budget;
    let pilot = Options {
        method: Method::Kvsculpt,
        steps: if scope == Scope::Layer { PILOT_STEPS.0 } else { PILOT_STEPS.1 },
        ..options.clone()
    };
    let (split, count) = (work.supply.split, work.supply.chunks.len());
    let free = vec![even(split.free, count); heads.len()];
    let stage = Stage::Fit {
        free: &free,
        history: history(&pilot),
    };
    let mut timings = Timings::default();
    let losses = work.in_slices(stage, &[], &mut timings, |work, problems, timings| {
        work.fit(problems, &pilot, timings, |_, _, chunks, _| {
            // A chunk's loss is what it alone does to the head.
            Ok(chunks.iter().map(|chunk| chunk.outcome.result.loss).sum::<f64>())
        })
    })?;
    let (least, zone, fixed) = (least(split).max(count), split.zone(), split.sinks + split.tail);
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
        Some(Target::Bytes(_)) => within_bytes(work.supply, allocate),
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
fn by_curves<E: Engine>(work: &mut Work<'_, E>, heads: &[(usize, usize)], request: &Request) -> Result<Plan> {
    let options = &request.options;
    let supply = work.supply;
    let weights = weights(heads, request)?;
    let parts = parts(work, least(supply.split), options)?;
    let curves = parts.chunks(supply.chunks.len()).map(budget::joined).collect::<Result<Vec<_>>>()?;
    let allocate = |total: usize| budget::allocate(&curves, &weights, options.budget, options.page, total);
    let lengths = match options.target {
        Some(Target::MaxError(error)) => within_error(&curves, &weights, options, error)?,
        Some(Target::Bytes(_)) => within_bytes(supply, allocate)?,
        _ => allocate(supply.split.kept() * heads.len())?,
    };
    Ok(Plan {
        free: shared(supply, &parts, &lengths)?,
        curves,
        parts,
        weights,
    })
}

/// The smallest cache whose error by the curves themselves is at most this. Lengths are shared out by the curves' convex hulls,
/// which lie below them: where the curves are above the bound, the hulls get a smaller one.
fn within_error(curves: &[Curve], weights: &[f64], options: &Options, error: f64) -> Result<Vec<usize>> {
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

/// The most pairs whose bytes are at most those of the uniform split: found by bisection, for where layers differ in what a pair takes
/// the bytes of a total depend on where it goes.
fn within_bytes(supply: &Supply<'_>, allocate: impl Fn(usize) -> Result<Vec<usize>>) -> Result<Vec<usize>> {
    let split = supply.split;
    let bytes: Vec<u64> = (0..supply.places.len()).map(|head| supply.pair_bytes(head)).collect();
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
