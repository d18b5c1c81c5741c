//! Error rows and the sums of the loss.

use rayon::prelude::*;

use super::layout::{self, Strand};
use super::vectorised::vectorised;
use super::{Array, Table};
use crate::engine::scalar;
use crate::error::Result;

/// Sums over rows, in the order of the rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    output: f64,
    mass: f64,
    scale: f64,
    not_finite: f64,
}

impl Sums {
    /// Adds another run's sums.
    pub(super) fn add(&mut self, other: Self) {
        self.output += other.output;
        self.mass += other.mass;
        self.scale += other.scale;
        self.not_finite += other.not_finite;
    }

    /// Puts the sums in their places in a head's scalars.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "scalars are f32; too large a sum becomes infinite, as it should"
    )]
    pub(super) fn store(self, scalars: &mut [f32]) {
        scalars[scalar::OUTPUT] = self.output as f32;
        scalars[scalar::MASS] = self.mass as f32;
        scalars[scalar::SCALE] = self.scale as f32;
        scalars[scalar::NOT_FINITE] = self.not_finite as f32;
    }
}

vectorised! {
    /// Writes the error rows of some states and returns their sums.
    pub(super) fn error_rows<'a>(value_dim: usize, state: &'a [f32], teacher: &'a [f32], mass_weight: f32, error: &'a mut [f32]) -> Sums {
        let width = value_dim + 4;
        let mut sums = Sums::default();
        let rows = state.chunks_exact(width).zip(teacher.chunks_exact(width));
        for ((state, teacher), error) in rows.zip(error.chunks_exact_mut(width)) {
            error_row(value_dim, state, teacher, mass_weight, error, &mut sums);
        }
        sums
    }
}

/// Lanes the sums along a row run in; channels are a multiple of 4.
const LANES: usize = 4;

#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the error array is f32")]
fn error_row(value_dim: usize, state: &[f32], teacher: &[f32], mass_weight: f32, error: &mut [f32], sums: &mut Sums) {
    let (mut output, mut scale, mut along) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
    let (error, tail) = error.split_at_mut(value_dim);
    let rows = state.chunks_exact(LANES).zip(teacher.chunks_exact(LANES));
    for ((s, t), e) in rows.zip(error.chunks_exact_mut(LANES)) {
        for i in 0..LANES {
            e[i] = s[i] - t[i];
            let (ei, si, ti) = (f64::from(e[i]), f64::from(s[i]), f64::from(t[i]));
            output[i] += ei * ei;
            scale[i] += ti * ti;
            along[i] += ei * si;
        }
    }
    let total = |x: [f64; LANES]| (x[0] + x[2]) + (x[1] + x[3]);
    let (mass, delta) = (state[value_dim], state[value_dim] - teacher[value_dim]);
    let (output, delta_squared) = (total(output), f64::from(delta) * f64::from(delta));
    let along = total(along) - f64::from(mass_weight) * f64::from(delta);
    tail.copy_from_slice(&[along as f32, mass, delta, 0.0]);
    sums.output += output;
    sums.mass += delta_squared;
    sums.scale += total(scale);
    if !(output + delta_squared).is_finite() {
        sums.not_finite += 1.0;
    }
}

/// See [`Engine::loss`](crate::engine::Engine::loss).
pub(super) fn loss(
    table: &Table,
    state: &Array,
    teacher: &Array,
    mass_weight: &Array,
    error: &mut Array,
    scalars: &mut Array,
) -> Result<()> {
    let value_dim = table.widths().1;
    let width = value_dim + 4;
    let strands = layout::strands(table);
    let errors = error.parts(strands.iter().map(|strand| strand.span(width)))?;
    let mut tasks = Vec::with_capacity(strands.len());
    for (strand, error) in strands.iter().zip(errors) {
        let weight = mass_weight.part(layout::own(&strand.head, 1))?[0];
        tasks.push((state.part(strand.span(width))?, teacher.part(strand.span(width))?, weight, error));
    }
    let sums: Vec<Sums> = tasks
        .into_par_iter()
        .map(|(state, teacher, weight, error)| error_rows(value_dim, state, teacher, weight, error))
        .collect();
    store(table, &strands, &sums, scalars)
}

/// Adds up each head's strands in order and stores the sums.
pub(super) fn store(table: &Table, strands: &[Strand], sums: &[Sums], scalars: &mut Array) -> Result<()> {
    let mut totals = vec![Sums::default(); table.heads.len()];
    for (strand, sums) in strands.iter().zip(sums) {
        totals[strand.place].add(*sums);
    }
    let scalars = scalars.parts(table.heads.iter().map(layout::scalars))?;
    for (total, scalars) in totals.iter().zip(scalars) {
        total.store(scalars);
    }
    Ok(())
}
