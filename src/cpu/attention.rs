//! Attention over pairs, streamed, and what follows from its weights: scores and blocks of weights.

use std::ops::Range;

use rayon::prelude::*;

use super::exponential::{absorb, add_columns, shifted};
use super::layout::{self, block_rows, runs};
use super::product::{Rows, add_product, by_transpose, target};
use super::{Array, Table, scratch};
use crate::engine::{Head, NO_MASS};
use crate::error::Result;

/// Pairs whose scores are held at once when attention streams over a long cache.
pub(super) const TILE: usize = 1024;

/// A head's pairs: keys and values, row-major.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pairs<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) dim: usize,
    pub(super) value_dim: usize,
}

impl<'a> Pairs<'a> {
    /// The pairs of one head.
    pub(super) fn of(table: &Table, head: &Head, keys: &'a Array, values: &'a Array) -> Result<Self> {
        let (dim, value_dim) = table.widths();
        Ok(Self {
            keys: keys.part(layout::pairs(head, dim))?,
            values: values.part(layout::pairs(head, value_dim))?,
            dim,
            value_dim,
        })
    }

    fn count(&self) -> usize {
        self.keys.len() / self.dim
    }
}

/// Starts a running softmax from the base's state, or from no pairs at all.
fn begin(state: &mut [f32], base: Option<&[f32]>, value_dim: usize) {
    let width = value_dim + 4;
    match base {
        Some(base) => state.copy_from_slice(base),
        None => state.fill(0.0),
    }
    for row in state.chunks_exact_mut(width) {
        let (sum, mass) = if base.is_some() { (1.0, row[value_dim]) } else { (0.0, NO_MASS) };
        row[value_dim..].copy_from_slice(&[sum, mass, 0.0, 0.0]);
    }
}

/// Ends a running softmax: outputs and mass in their places, and `1 / sum` of each row into `inverses`.
fn finish(state: &mut [f32], value_dim: usize, inverses: &mut [f32]) {
    for (row, inverse) in state.chunks_exact_mut(value_dim + 4).zip(inverses) {
        let (outputs, running) = row.split_at_mut(value_dim);
        let (sum, shift) = (running[0], running[1]);
        let (factor, mass) = if sum == 0.0 {
            (0.0, NO_MASS)
        } else {
            (sum.recip(), shift + sum.ln())
        };
        for output in outputs {
            *output *= factor;
        }
        running.copy_from_slice(&[mass, 0.0, 0.0, 0.0]);
        *inverse = factor;
    }
}

/// Attention of a block of rows over `pairs`, `tile` of them at a time, merged with `base`.
///
/// Leaves in `scores` the last tile's `e^{x − m}` and in `inverses` the factor that makes them weights.
#[allow(clippy::too_many_arguments, reason = "what a task reads, its scratch and what it writes")]
pub(super) fn attend(
    queries: &[f32],
    pairs: &Pairs<'_>,
    base: Option<&[f32]>,
    scale: f32,
    tile: usize,
    scores: &mut [f32],
    inverses: &mut [f32],
    state: &mut [f32],
) {
    let (dim, value_dim) = (pairs.dim, pairs.value_dim);
    let rows = queries.len() / dim;
    begin(state, base, value_dim);
    for run in runs(pairs.count(), tile) {
        let columns = run.len();
        let scores = &mut scores[..rows * columns];
        let keys = &pairs.keys[run.start * dim..run.end * dim];
        let values = &pairs.values[run.start * value_dim..run.end * value_dim];
        by_transpose(
            target(scores, columns, columns),
            scale,
            Rows::new(queries, dim),
            Rows::new(keys, dim),
        );
        absorb(scores, columns, state, value_dim);
        let outputs = target(state, value_dim, value_dim + 4);
        add_product(outputs, 1.0, Rows::new(scores, columns), Rows::new(values, value_dim));
    }
    finish(state, value_dim, inverses);
}

/// See [`Engine::attention`](crate::engine::Engine::attention).
pub(super) fn attention(
    table: &Table,
    queries: &Array,
    keys: &Array,
    values: &Array,
    base: Option<&Array>,
    scale: f32,
    state: &mut Array,
) -> Result<()> {
    let (dim, value_dim) = table.widths();
    let blocks: Vec<(Head, Range<usize>)> = table
        .heads
        .iter()
        .flat_map(|head| {
            let size = block_rows((head.pairs as usize).min(TILE));
            runs(head.rows as usize, size).map(|rows| (*head, head.row as usize + rows.start..head.row as usize + rows.end))
        })
        .collect();
    let width = value_dim + 4;
    let states = state.parts(blocks.iter().map(|(_, rows)| rows.start * width..rows.end * width))?;
    let mut tasks = Vec::with_capacity(blocks.len());
    for ((head, rows), state) in blocks.iter().zip(states) {
        let base = base.map(|base| base.part(rows.start * width..rows.end * width)).transpose()?;
        let queries = queries.part(rows.start * dim..rows.end * dim)?;
        tasks.push((queries, Pairs::of(table, head, keys, values)?, base, state));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(queries, pairs, base, state)| {
        let rows = queries.len() / dim;
        scratch::with_two(rows * pairs.count().min(TILE), rows, |scores, inverses| {
            attend(queries, &pairs, base, scale, TILE, scores, inverses, state);
        });
    });
    Ok(())
}

/// See [`Engine::scores`](crate::engine::Engine::scores).
pub(super) fn scores(table: &Table, queries: &Array, keys: &Array, state: &Array, scale: f32, scores: &mut Array) -> Result<()> {
    let (dim, value_dim) = table.widths();
    let width = value_dim + 4;
    let tiles = layout::pair_tiles(&table.heads);
    let totals = scores.parts(tiles.iter().map(|(_, pairs)| pairs.clone()))?;
    let mut tasks = Vec::with_capacity(tiles.len());
    for ((head, pairs), totals) in tiles.iter().zip(totals) {
        let queries = queries.part(layout::rows(head, dim))?;
        let state = state.part(layout::rows(head, width))?;
        let keys = keys.part(pairs.start * dim..pairs.end * dim)?;
        tasks.push((queries, state, keys, totals));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(queries, state, keys, totals)| {
        let columns = totals.len();
        let block = block_rows(columns);
        totals.fill(0.0);
        scratch::with_two(block * columns, columns, |weights, sums| {
            for (queries, state) in queries.chunks(block * dim).zip(state.chunks(block * width)) {
                let weights = &mut weights[..queries.len() / dim * columns];
                by_transpose(
                    target(weights, columns, columns),
                    scale,
                    Rows::new(queries, dim),
                    Rows::new(keys, dim),
                );
                sums.fill(0.0);
                add_columns(weights, columns, &state[value_dim..], width, sums);
                for (total, sum) in totals.iter_mut().zip(sums.iter()) {
                    *total += *sum;
                }
            }
        });
    });
    Ok(())
}

/// See [`Engine::weights`](crate::engine::Engine::weights).
pub(super) fn weights(
    table: &Table,
    queries: &Array,
    keys: &Array,
    state: &Array,
    scale: f32,
    rows: Range<u32>,
    weights: &mut Array,
) -> Result<()> {
    let (dim, value_dim) = table.widths();
    let width = value_dim + 4;
    let blocks: Vec<(Head, Range<usize>)> = table
        .heads
        .iter()
        .flat_map(|head| runs(layout::cut(head, &rows), block_rows(head.pairs as usize)).map(|run| (*head, run)))
        .collect();
    let outputs = weights.parts(blocks.iter().map(|(head, run)| {
        let (first, pairs) = (head.weights as usize, head.pairs as usize);
        first + run.start * pairs..first + run.end * pairs
    }))?;
    let mut tasks = Vec::with_capacity(blocks.len());
    for ((head, run), output) in blocks.iter().zip(outputs) {
        let first = head.row as usize + rows.start as usize;
        let (start, end) = (first + run.start, first + run.end);
        let queries = queries.part(start * dim..end * dim)?;
        let state = state.part(start * width..end * width)?;
        tasks.push((queries, state, keys.part(layout::pairs(head, dim))?, output));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(queries, state, keys, output)| {
        let columns = keys.len() / dim;
        if columns > 0 {
            by_transpose(
                target(output, columns, columns),
                scale,
                Rows::new(queries, dim),
                Rows::new(keys, dim),
            );
            shifted(output, columns, &state[value_dim..], width);
        }
    });
    Ok(())
}
