//! Who gets how many pairs: error curves or a pilot, and the target they are shared out for.

use std::collections::BTreeMap;

use super::allocation::{heads_of, lengths, shared, within_bytes, within_error};
use super::chunks::even;
use super::curves::Grid;
use super::jobs::Course;
use super::supply::Supply;
use super::{Decided, Lengths, Request};
use crate::budget::{self, Budgets, Curve, Scope, Weights};
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
                Decided::Curves => weights(&supply.heads(), request.weights.as_ref())?,
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
        shared(&supply.chunks, &self.parts, &lengths)
    }
}

/// Whether anything has to be measured before lengths are known: those of heads, or how their chunks share them.
///
/// Lengths that are given say nothing of chunks. By the curves of these they are shared as they were where lengths were decided
/// so, and a saved budget gives the same cache again (one of `--max-error` nearly, whose curves begin at shorter lengths); without curves, in proportion to the zones.
pub(super) fn measures(request: &Request, chunks: usize) -> bool {
    let options = &request.options;
    let unshared = request.budgets.as_ref().is_some_and(|budgets| !budgets.is_shared());
    let shares = unshared && chunks > 1 && options.allocator == Allocator::Curves && options.budget != Scope::Uniform;
    request.decided() != Decided::Beforehand || shares
}

/// Decides the lengths.
pub(super) fn plan(course: &mut Course<'_>, request: &Request) -> Result<Plan> {
    let options = &request.options;
    let supply = course.supply;
    let (heads, split, count) = (supply.heads(), supply.split, supply.chunks.len());
    let fixed = split.sinks + split.tail;
    if request.budgets.is_none() && keeps_all(split, options) {
        // Nothing is measured where nothing is to be decided.
        let whole = supply.chunks.iter().map(|chunk| chunk.zone()).collect();
        return Ok(Plan::of(vec![whole; heads.len()]));
    }
    let lengths = match (request.decided(), &request.budgets) {
        (Decided::Curves, _) => return by_curves(course, &heads, request),
        (Decided::Pilot, _) => by_pilot(course, &heads, options)?,
        (Decided::Beforehand, Some(budgets)) => {
            let lengths = given(budgets, &heads, split, count)?;
            if let Some(free) = shares(budgets, &heads, &supply.chunks)? {
                return Ok(Plan::of(free));
            }
            if measures(request, count) {
                // Of all heads, so that a shard's are measured as they would be among all.
                let all = given(budgets, &supply.all, split, count)?;
                let mean = all.iter().sum::<usize>() / all.len().max(1);
                let split = Split {
                    free: mean.saturating_sub(fixed).max(count),
                    ..split
                };
                // A length may be shorter than any that would have been decided.
                let shortest = all.iter().min().map_or(1, |length| length - fixed);
                let parts = parts(course, least(split).min(shortest / count * count).max(1), options)?;
                return Ok(Plan::of(shared(&supply.chunks, &parts, &lengths)?));
            }
            lengths
        }
        (Decided::Beforehand, None) => vec![uniform(split, options.page, count)?; heads.len()],
    };
    Ok(Plan::of(lengths.into_iter().map(|length| even(length - fixed, count)).collect()))
}

/// Refuses what [`plan`] would for these heads of so many chunks, as far as can be told before anything is measured.
pub(super) fn check(heads: &[(usize, usize)], split: Split, chunks: &[Split], request: &Request) -> Result<()> {
    let options = &request.options;
    if let Some(budgets) = &request.budgets {
        none_too_many(budgets, heads)?;
        given(budgets, heads, split, chunks.len())?;
        return shares(budgets, heads, chunks).map(drop);
    }
    let chunks = chunks.len();
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
        Decided::Curves => {
            paged(split, chunks, options)?;
            weights(heads, request.weights.as_ref()).map(drop)
        }
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

/// Refuses lengths of heads that their layers do not have; `heads` are all of the request.
fn none_too_many(budgets: &Budgets, heads: &[(usize, usize)]) -> Result<()> {
    for (layer, lengths) in budgets.layers() {
        let count = heads.iter().filter(|head| head.0 == layer).count();
        // Layers that are not asked for may be named.
        if count > 0 && lengths.len() > count {
            return Err(Error::option(
                "--budgets",
                format!(
                    "has lengths of {} heads for layer {layer}, which has {count}; take out those too many",
                    lengths.len()
                ),
            ));
        }
    }
    Ok(())
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

/// The free pairs of every head's chunks, where the file of budgets has them.
fn shares(budgets: &Budgets, heads: &[(usize, usize)], chunks: &[Split]) -> Result<Option<Vec<Vec<usize>>>> {
    if !budgets.is_shared() || chunks.len() == 1 {
        return Ok(None);
    }
    let of_head = |&(layer, head): &(usize, usize)| {
        let free = budgets.free_pairs(layer, head).unwrap_or_default();
        let fits = free.len() == chunks.len() && free.iter().zip(chunks).all(|(pairs, chunk)| (1..=chunk.zone()).contains(pairs));
        if fits {
            return Ok(free.to_vec());
        }
        Err(Error::option(
            "--budgets",
            format!(
                "has {free:?} as the free pairs of the chunks of layer {layer} head {head}, and its {} chunks take 1 to {} each; use the --chunk that the file was made with, or take `chunks` out of it",
                chunks.len(),
                chunks.iter().map(|chunk| chunk.zone()).min().unwrap_or(0)
            ),
        ))
    };
    heads.iter().map(of_head).collect::<Result<_>>().map(Some)
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

/// Whether the target is all pairs of every head.
fn keeps_all(split: Split, options: &Options) -> bool {
    split.kept() == split.tokens && !matches!(options.target, Some(Target::MaxError(_)))
}

/// Refuses pages that even the least lengths by curves, rounded up to them, take more than is to be kept.
fn paged(split: Split, chunks: usize, options: &Options) -> Result<()> {
    if options.page == 1 || matches!(options.target, Some(Target::MaxError(_))) {
        return Ok(());
    }
    let (fixed, kept) = (split.sinks + split.tail, split.kept());
    let shortest = fixed + least(split).div_ceil(chunks) * chunks;
    let least = shortest
        .checked_next_multiple_of(options.page)
        .map_or(split.tokens, |least| least.min(split.tokens));
    if least <= kept {
        return Ok(());
    }
    Err(Error::option(
        "--page",
        format!(
            "{kept} pairs a head are to be kept on the mean, and {least} are the fewest in whole pages of {}, for sinks, tail and free pairs make {shortest} at least; use a smaller --page, or keep {least} a head or more",
            options.page
        ),
    ))
}

/// The fewest free pairs a head may get.
fn least(split: Split) -> usize {
    LEAST.min(split.free.div_ceil(4)).clamp(1, split.zone().max(1))
}

/// The curves of all chunks, those of a head one after the other, for heads of at least so many free pairs.
fn parts(course: &mut Course<'_>, least: usize, options: &Options) -> Result<Vec<Curve>> {
    let chunks = &course.supply.chunks;
    let grid = Grid::new(chunks, least.div_ceil(chunks.len()));
    course.ask(|hands, task| hands.curves(task, &grid, options))
}

/// The paper's rule: a pilot of the whole method at the uniform length, shares by the square root of its loss.
fn by_pilot(course: &mut Course<'_>, heads: &[(usize, usize)], options: &Options) -> Result<Vec<usize>> {
    let scope = options.budget;
    let pilot = Options {
        method: Method::Kvsculpt,
        steps: if scope == Scope::Layer { PILOT_STEPS.0 } else { PILOT_STEPS.1 },
        ..options.clone()
    };
    let supply = course.supply;
    let (split, count) = (supply.split, supply.chunks.len());
    let free = vec![even(split.free, count); heads.len()];
    let losses = course.ask(|hands, task| hands.losses(task, &free, &pilot))?;
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
        Some(Target::Bytes(_)) => within_bytes(supply.room()?, split.tokens, &supply.all_pair_bytes(), allocate),
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
fn by_curves(course: &mut Course<'_>, heads: &[(usize, usize)], request: &Request) -> Result<Plan> {
    let options = &request.options;
    let supply = course.supply;
    let weights = weights(heads, request.weights.as_ref())?;
    let parts = measured(course, options)?;
    let curves = heads_of(&parts, supply.chunks.len())?;
    let bytes = (supply.room()?, &supply.all_pair_bytes()[..]);
    let lengths = lengths(supply.split, bytes, &curves, &weights, options)?;
    Ok(Plan {
        free: shared(&supply.chunks, &parts, &lengths)?,
        curves,
        parts,
        weights,
    })
}

/// The curves of all chunks by which lengths are decided.
pub(super) fn measured(course: &mut Course<'_>, options: &Options) -> Result<Vec<Curve>> {
    parts(course, least(course.supply.split), options)
}

/// The weight of each head's error.
pub(super) fn weights(heads: &[(usize, usize)], weights: Option<&Weights>) -> Result<Vec<f64>> {
    let Some(weights) = weights else {
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
