//! The key gradient, and the whole evaluation in one pass over the rows.
//!
//! Every strand of rows sums a partial gradient of its own; a head's partial gradients are then added in order.

use rayon::prelude::*;

use super::attention::{Pairs, attend};
use super::exponential::{pull, shifted};
use super::layout::{self, Strand, block_rows};
use super::loss::{self, Sums, error_rows};
use super::product::{Rows, by_transpose, target, transpose_product};
use super::{Array, Table, scratch};
use crate::engine::{Evaluated, Evaluation};
use crate::error::Result;

/// A strand's part of the gradient, summed block by block.
struct Partial<'a> {
    gradient: &'a mut [f32],
    started: bool,
    /// `2 s / rows`.
    factor: f32,
}

impl Partial<'_> {
    /// Adds `factor Σ_q p_qj c_q (e_q·w_j − r_q) q` over a block; `pulls` is scratch of the block's size.
    fn add(&mut self, queries: &[f32], pairs: &Pairs<'_>, error: &[f32], weights: &[f32], inverses: &[f32], pulls: &mut [f32]) {
        let (dim, value_dim) = (pairs.dim, pairs.value_dim);
        let (width, columns) = (value_dim + 4, pairs.keys.len() / dim);
        let errors = Rows::strided(error, value_dim, width);
        by_transpose(target(pulls, columns, columns), 1.0, errors, Rows::new(pairs.values, value_dim));
        pull(pulls, weights, columns, &error[value_dim..], width, inverses);
        let gradient = target(self.gradient, dim, dim);
        transpose_product(
            gradient,
            self.started,
            self.factor,
            Rows::new(pulls, columns),
            Rows::new(queries, dim),
        );
        self.started = true;
    }
}

#[allow(clippy::cast_precision_loss, reason = "rows are far below 2^24")]
fn factor(scale: f32, strand: &Strand) -> f32 {
    2.0 * scale / strand.head.rows as f32
}

/// Floats of partial gradients for these strands.
fn partial_floats(strands: &[Strand], dim: usize) -> usize {
    strands.iter().map(|strand| strand.head.pairs as usize * dim).sum()
}

/// One strand's partial gradient each, from the front of `memory`.
fn partials<'a>(memory: &'a mut Vec<f32>, strands: &[Strand], dim: usize) -> Vec<&'a mut [f32]> {
    let floats = partial_floats(strands, dim);
    if memory.len() < floats {
        // No more than is asked for, and the old one gone before: what a batch takes is foretold.
        *memory = Vec::new();
        *memory = vec![0.0; floats];
    }
    let mut rest = memory.as_mut_slice();
    let mut parts = Vec::with_capacity(strands.len());
    for strand in strands {
        let (part, after) = rest.split_at_mut(strand.head.pairs as usize * dim);
        parts.push(part);
        rest = after;
    }
    parts
}

/// Adds each head's partial gradients in order.
fn reduce(table: &Table, memory: &[f32], strands: &[Strand], gradient: &mut Array) -> Result<()> {
    let dim = table.widths().0;
    let mut sources: Vec<Vec<&[f32]>> = vec![Vec::new(); table.heads.len()];
    let mut rest = memory;
    for strand in strands {
        let (part, after) = rest.split_at(strand.head.pairs as usize * dim);
        sources[strand.place].push(part);
        rest = after;
    }
    let gradients = gradient.parts(table.heads.iter().map(|head| layout::pairs(head, dim)))?;
    gradients.into_par_iter().zip(sources).for_each(|(gradient, sources)| {
        let Some((first, others)) = sources.split_first() else {
            gradient.fill(0.0);
            return;
        };
        gradient.copy_from_slice(first);
        for other in others {
            for (sum, x) in gradient.iter_mut().zip(*other) {
                *sum += *x;
            }
        }
    });
    Ok(())
}

/// See [`Engine::key_gradient`](crate::engine::Engine::key_gradient).
#[allow(clippy::too_many_arguments, reason = "the operands of the operation and the engine's memory")]
pub(super) fn key_gradient(
    memory: &mut Vec<f32>,
    table: &Table,
    queries: &Array,
    keys: &Array,
    values: &Array,
    error: &Array,
    scale: f32,
    gradient: &mut Array,
) -> Result<()> {
    let (dim, value_dim) = table.widths();
    let width = value_dim + 4;
    let strands = layout::strands(table);
    let mut tasks = Vec::with_capacity(strands.len());
    for (strand, gradient) in strands.iter().zip(partials(memory, &strands, dim)) {
        let partial = Partial {
            gradient,
            started: false,
            factor: factor(scale, strand),
        };
        let pairs = Pairs::of(table, &strand.head, keys, values)?;
        tasks.push((queries.part(strand.span(dim))?, pairs, error.part(strand.span(width))?, partial));
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(queries, pairs, error, mut partial)| {
            let columns = pairs.keys.len() / dim;
            if columns == 0 {
                return;
            }
            let block = block_rows(columns);
            let ones = [1.0; 256];
            scratch::with_two(block * columns, block * columns, |weights, pulls| {
                for (queries, error) in queries.chunks(block * dim).zip(error.chunks(block * width)) {
                    let size = queries.len() / dim * columns;
                    let (weights, pulls) = (&mut weights[..size], &mut pulls[..size]);
                    by_transpose(
                        target(weights, columns, columns),
                        scale,
                        Rows::new(queries, dim),
                        Rows::new(pairs.keys, dim),
                    );
                    shifted(weights, columns, &error[value_dim + 1..], width);
                    partial.add(queries, &pairs, error, weights, &ones, pulls);
                }
            });
        });
    reduce(table, memory, &strands, gradient)
}

struct Task<'a> {
    queries: &'a [f32],
    pairs: Pairs<'a>,
    base: &'a [f32],
    teacher: &'a [f32],
    mass_weight: f32,
    state: &'a mut [f32],
    error: &'a mut [f32],
    partial: Partial<'a>,
}

impl Task<'_> {
    fn run(mut self, scale: f32) -> Sums {
        let (dim, value_dim) = (self.pairs.dim, self.pairs.value_dim);
        let (width, columns) = (value_dim + 4, self.pairs.keys.len() / dim);
        let block = block_rows(columns);
        let mut sums = Sums::default();
        let mut inverses = [0.0; 256];
        scratch::with_two(block * columns, block * columns, |weights, pulls| {
            let inputs = self.queries.chunks(block * dim).zip(self.base.chunks(block * width));
            let outputs = self.state.chunks_mut(block * width).zip(self.error.chunks_mut(block * width));
            let teachers = self.teacher.chunks(block * width);
            for (((queries, base), teacher), (state, error)) in inputs.zip(teachers).zip(outputs) {
                let size = queries.len() / dim * columns;
                let (weights, pulls) = (&mut weights[..size], &mut pulls[..size]);
                attend(queries, &self.pairs, Some(base), scale, columns, weights, &mut inverses, state);
                sums.add(error_rows(value_dim, state, teacher, self.mass_weight, error));
                if columns > 0 {
                    self.partial.add(queries, &self.pairs, error, weights, &inverses, pulls);
                }
            }
        });
        sums
    }
}

/// See [`Engine::evaluate`](crate::engine::Engine::evaluate).
pub(super) fn evaluate(memory: &mut Vec<f32>, table: &Table, inputs: &Evaluation<'_, Array>, outputs: Evaluated<'_, Array>) -> Result<()> {
    let (dim, value_dim) = table.widths();
    let width = value_dim + 4;
    let strands = layout::strands(table);
    let states = outputs.state.parts(strands.iter().map(|strand| strand.span(width)))?;
    let errors = outputs.error.parts(strands.iter().map(|strand| strand.span(width)))?;
    let mut tasks = Vec::with_capacity(strands.len());
    let written = states.into_iter().zip(errors).zip(partials(memory, &strands, dim));
    for (strand, ((state, error), gradient)) in strands.iter().zip(written) {
        tasks.push(Task {
            queries: inputs.queries.part(strand.span(dim))?,
            pairs: Pairs::of(table, &strand.head, inputs.keys, inputs.values)?,
            base: inputs.base.part(strand.span(width))?,
            teacher: inputs.teacher.part(strand.span(width))?,
            mass_weight: inputs.mass_weight.part(layout::own(&strand.head, 1))?[0],
            state,
            error,
            partial: Partial {
                gradient,
                started: false,
                factor: factor(inputs.scale, strand),
            },
        });
    }
    let sums: Vec<Sums> = tasks.into_par_iter().with_max_len(1).map(|task| task.run(inputs.scale)).collect();
    loss::store(table, &strands, &sums, outputs.scalars)?;
    reduce(table, memory, &strands, outputs.gradient)
}

/// Bytes of partial gradients for these heads.
pub(super) fn partial_bytes(table: &Table) -> u64 {
    4 * partial_floats(&layout::strands(table), table.widths().0) as u64
}
