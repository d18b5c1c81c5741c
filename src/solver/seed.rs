//! Which pairs of the zone a head starts from.

use super::inputs::FullCache;
use super::problem::Problem;
use super::rowset::RowSet;
use crate::batch::{Shape, layout};
use crate::engine::Engine;
use crate::error::Result;
use crate::options::Ranking;

/// The `free` pairs of each head's zone that rank highest on the training rows; the highest first.
#[allow(clippy::too_many_arguments, reason = "the heads, their rows, their cache, and how to rank")]
pub(crate) fn ranked<E: Engine>(
    engine: &mut E,
    problems: &[&Problem],
    shapes: &[Shape],
    rows: &RowSet<E>,
    cache: &FullCache<E::Array>,
    scale: f32,
    ranking: Ranking,
) -> Result<Vec<Vec<usize>>> {
    let Some(dims) = shapes.first().map(|shape| shape.dims) else {
        return Ok(Vec::new());
    };
    let heads = layout(shapes, |shape| (shape.training, shape.tokens));
    let pairs: usize = problems.iter().map(|problem| problem.split.tokens).sum();
    let table = engine.table(dims, &heads)?;
    let mut scores = engine.zeros("scores", pairs)?;
    let (queries, teacher) = (&rows.queries, &rows.teacher);
    match ranking {
        Ranking::Attention => engine.scores(&table, queries, &cache.keys, teacher, scale, &mut scores)?,
        Ranking::Effect => engine.effects(&table, queries, &cache.keys, &cache.values, teacher, scale, &mut scores)?,
    }
    let scores = engine.read(&scores)?;
    let chosen = problems.iter().zip(&heads).map(|(problem, head)| {
        let split = problem.split;
        let scores = &scores[head.pair as usize..][..split.tokens];
        let mut zone: Vec<usize> = (split.sinks..split.tokens - split.tail).collect();
        // Equal scores go to the older pair, so that the choice does not depend on the sort.
        zone.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        zone.truncate(split.free);
        zone
    });
    Ok(chosen.collect())
}

/// `free` pairs of a head's zone drawn at random, ascending: by the seed, the layer, the head and the chunk alone.
pub(crate) fn drawn(problem: &Problem, seed: u64) -> Vec<usize> {
    let split = problem.split;
    let place = ((problem.chunk as u64) << 48) | ((problem.layer as u64) << 32) | problem.head as u64;
    // The golden ratio's bits keep neighbouring places from sharing a stream.
    let mut random = fastrand::Rng::with_seed(seed ^ place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let zone: Vec<usize> = (split.sinks..split.tokens - split.tail).collect();
    let mut chosen = random.choose_multiple(zone, split.free);
    chosen.sort_unstable();
    chosen
}
