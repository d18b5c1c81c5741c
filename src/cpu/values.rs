//! The value solve: Gram matrix, right-hand side, Cholesky factor, triangular solves.

use std::ops::Range;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltParams, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{MatMut, Par, Spec};
use rayon::prelude::*;

use super::layout::{self, runs};
use super::product::{Rows, gram_strip, target, transpose_product};
use super::{Array, Table, scratch};
use crate::engine::{Head, scalar};
use crate::error::Result;

/// Rows of a Gram matrix or right-hand side a task computes.
const STRIP: usize = 128;
/// Value channels a task solves for.
const SOLVE_COLUMNS: usize = 64;

/// Every head's pairs in strips, longest work first, for the heads that have rows in the block.
fn strips(table: &Table, rows: &Range<u32>) -> Vec<(Head, Range<usize>)> {
    let mut strips: Vec<(Head, Range<usize>)> = table
        .heads
        .iter()
        .filter(|head| layout::cut(head, rows) > 0)
        .flat_map(|head| runs(head.pairs as usize, STRIP).map(|strip| (*head, strip)))
        .collect();
    strips.sort_by_key(|(_, strip)| std::cmp::Reverse(strip.end));
    strips
}

/// See [`Engine::gram`](crate::engine::Engine::gram).
pub(super) fn gram(table: &Table, weights: &Array, rows: Range<u32>, gram: &mut Array) -> Result<()> {
    let strips = strips(table, &rows);
    let outputs = gram.parts(strips.iter().map(|(head, strip)| {
        let (first, pairs) = (head.square as usize, head.pairs as usize);
        first + strip.start * pairs..first + strip.end * pairs
    }))?;
    let mut tasks = Vec::with_capacity(strips.len());
    for ((head, strip), output) in strips.into_iter().zip(outputs) {
        let weights = weights.part(layout::weights(&head, layout::cut(&head, &rows)))?;
        tasks.push((Rows::new(weights, head.pairs as usize), strip, output));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(weights, strip, output)| {
        gram_strip(output, rows.start > 0, weights, strip);
    });
    Ok(())
}

/// See [`Engine::rhs`](crate::engine::Engine::rhs).
pub(super) fn rhs(table: &Table, weights: &Array, error: &Array, rows: Range<u32>, rhs: &mut Array) -> Result<()> {
    let value_dim = table.widths().1;
    let width = value_dim + 4;
    let strips = strips(table, &rows);
    let outputs = rhs.parts(strips.iter().map(|(head, strip)| {
        let first = head.pair as usize;
        (first + strip.start) * value_dim..(first + strip.end) * value_dim
    }))?;
    let mut tasks = Vec::with_capacity(strips.len());
    for ((head, strip), output) in strips.into_iter().zip(outputs) {
        let count = layout::cut(&head, &rows);
        let first = head.row as usize + rows.start as usize;
        let weights = Rows::new(weights.part(layout::weights(&head, count))?, head.pairs as usize);
        let error = Rows::strided(error.part(first * width..(first + count) * width)?, value_dim, width);
        tasks.push((weights.columns(strip), error, output));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(weights, error, output)| {
        transpose_product(target(output, value_dim, value_dim), rows.start > 0, -1.0, weights, error);
    });
    Ok(())
}

/// See [`Engine::cholesky`](crate::engine::Engine::cholesky).
pub(super) fn cholesky(table: &Table, gram: &Array, ridge: &Array, factor: &mut Array, scalars: &mut Array) -> Result<()> {
    let factors = factor.parts(table.heads.iter().map(layout::square))?;
    let scalars = scalars.parts(table.heads.iter().map(layout::scalars))?;
    let mut tasks = Vec::with_capacity(table.heads.len());
    for (head, (factor, scalars)) in table.heads.iter().zip(factors.into_iter().zip(scalars)) {
        let gram = gram.part(layout::square(head))?;
        let ridge = ridge.part(layout::own(head, 2))?;
        tasks.push((head.pairs as usize, gram, [ridge[0], ridge[1]], factor, scalars));
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(pairs, gram, ridge, factor, scalars)| {
            let (factored, diagonal) = factor_head(pairs, gram, ridge, factor);
            scalars[scalar::FACTORED] = if factored { 1.0 } else { 0.0 };
            scalars[scalar::DIAGONAL] = diagonal;
        });
    Ok(())
}

/// Factors one head's matrix; tells whether every pivot was good, and the mean of the Gram's diagonal.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a mean of f32 numbers, pairs far below 2^24"
)]
fn factor_head(pairs: usize, gram: &[f32], ridge: [f32; 2], factor: &mut [f32]) -> (bool, f32) {
    let sum: f64 = gram.iter().step_by(pairs + 1).map(|&x| f64::from(x)).sum();
    let mean = (sum / pairs.max(1) as f64) as f32;
    let added = ridge[0] + ridge[1] * mean;
    // A copy of its own starts at the same alignment wherever the head lies in its batch, and a column-major one is
    // what the factorisation is fastest on.
    scratch::with_two(pairs * pairs, 0, |square, _| {
        transpose_lower(pairs, gram, square);
        for i in 0..pairs {
            square[i * (pairs + 1)] += added;
        }
        let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f32>(pairs, Par::Seq, Spec::<LltParams, f32>::default()));
        let matrix = MatMut::from_column_major_slice_mut(square, pairs, pairs);
        let outcome = cholesky_in_place(
            matrix,
            faer::linalg::cholesky::llt::factor::LltRegularization::default(),
            Par::Seq,
            MemStack::new(&mut memory),
            Spec::default(),
        );
        let factored = outcome.is_ok() && square.iter().step_by(pairs + 1).all(|&x| x > 0.0 && x.is_finite());
        transpose_upper(pairs, square, factor);
        (factored, mean)
    })
}

/// Rows and columns moved at once, so that both sides of a transposition stay in the cache.
const TILE: usize = 32;

/// `target_ji ← source_ij` for `j ≤ i`.
fn transpose_lower(size: usize, source: &[f32], target: &mut [f32]) {
    for rows in runs(size, TILE) {
        for columns in runs(rows.end, TILE) {
            for i in rows.clone() {
                for j in columns.start..columns.end.min(i + 1) {
                    target[j * size + i] = source[i * size + j];
                }
            }
        }
    }
}

/// `target_ij ← source_ji` for `j ≤ i`.
fn transpose_upper(size: usize, source: &[f32], target: &mut [f32]) {
    for rows in runs(size, TILE) {
        for columns in runs(rows.end, TILE) {
            for i in rows.clone() {
                for j in columns.start..columns.end.min(i + 1) {
                    target[i * size + j] = source[j * size + i];
                }
            }
        }
    }
}

/// See [`Engine::solve`](crate::engine::Engine::solve).
pub(super) fn solve(table: &Table, factor: &Array, rhs: &Array, anchor: &Array, values: &mut Array) -> Result<()> {
    let value_dim = table.widths().1;
    let mut tasks = Vec::new();
    for head in &table.heads {
        let factor = factor.part(layout::square(head))?;
        let rhs = rhs.part(layout::pairs(head, value_dim))?;
        tasks.extend(runs(value_dim, SOLVE_COLUMNS).map(|columns| (head.pairs as usize, factor, rhs, columns)));
    }
    let solved: Vec<Vec<f32>> = tasks
        .into_par_iter()
        .with_max_len(1)
        .map(|(pairs, factor, rhs, columns)| solve_columns(pairs, factor, rhs, value_dim, columns))
        .collect();
    let anchors = table
        .heads
        .iter()
        .map(|head| anchor.part(layout::pairs(head, value_dim)))
        .collect::<Result<Vec<_>>>()?;
    let values = values.parts(table.heads.iter().map(|head| layout::pairs(head, value_dim)))?;
    let parts = solved.par_chunks(value_dim.div_ceil(SOLVE_COLUMNS).max(1));
    values
        .into_par_iter()
        .zip(anchors)
        .zip(parts)
        .for_each(|((values, anchor), parts)| {
            let rows = values.chunks_exact_mut(value_dim).zip(anchor.chunks_exact(value_dim));
            for (pair, (value, anchor)) in rows.enumerate() {
                for (channel, (value, anchor)) in value.iter_mut().zip(anchor).enumerate() {
                    let part = &parts[channel / SOLVE_COLUMNS];
                    let columns = SOLVE_COLUMNS.min(value_dim - channel / SOLVE_COLUMNS * SOLVE_COLUMNS);
                    *value = anchor + part[pair * columns + channel % SOLVE_COLUMNS];
                }
            }
        });
    Ok(())
}

/// `(L Lᵀ)⁻¹ R` for some of R's columns, row-major.
fn solve_columns(pairs: usize, factor: &[f32], rhs: &[f32], value_dim: usize, columns: Range<usize>) -> Vec<f32> {
    let mut solution = Vec::with_capacity(pairs * columns.len());
    for row in rhs.chunks_exact(value_dim) {
        solution.extend_from_slice(&row[columns.clone()]);
    }
    if pairs > 0 {
        let factor = Rows::new(factor, pairs).view();
        let mut right = target(&mut solution, columns.len(), columns.len());
        solve_lower_triangular_in_place(factor, right.as_mut(), Par::Seq);
        solve_upper_triangular_in_place(factor.transpose(), right.as_mut(), Par::Seq);
    }
    solution
}
