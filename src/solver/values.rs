//! The value solve: `W = argmin ‖A W + rest − Y‖² + ρ ‖W − anchor‖²`, for many heads at once.
//!
//! Solved for `W − anchor`: with `e = ŷ(anchor) − y` the normal equations are `(AᵀA + ρ I)(W − anchor) = −Aᵀ e`, which
//! needs the constant part of sinks and tail nowhere by itself and loses less to rounding.

use super::problem::Problem;
use super::rowset::RowSet;
use crate::batch::Workspace;
use crate::engine::{Dims, Engine, Head, SCALARS, WEIGHT_ROWS, scalar};
use crate::error::Result;
use crate::options::{Options, Strength};

/// A head whose Gram cannot be factored gets ten times the ridge, at most so often.
const MOST_RAISES: u32 = 8;
/// What a raise starts from where the ridge itself is smaller. Absolute, for a Gram may be zero: where sinks and tail hold
/// all the mass the free pairs have none, and any ridge at all leaves them at their anchor.
const LEAST_RAISE: f32 = 1e-9;

/// The arrays of the value solve.
#[derive(Debug)]
pub(crate) struct ValueSolve<E: Engine> {
    weights: E::Array,
    gram: E::Array,
    factor: E::Array,
    rhs: E::Array,
    /// Floats that are solved for, of all heads.
    solved: usize,
    ridge: E::Array,
    /// Of each head: absolute, and times its Gram's mean diagonal.
    strengths: Vec<f32>,
    /// The same as the options have it, for every head.
    given: [f32; 2],
    /// The heads of the solve in hand.
    table: E::Table,
    /// Heads to factor again.
    again: E::Table,
}

impl<E: Engine> ValueSolve<E> {
    pub(crate) fn new(
        engine: &mut E,
        dims: Dims,
        problems: &[&Problem],
        heads: &[Head],
        sizes: &Workspace,
        options: &Options,
    ) -> Result<Self> {
        #[allow(clippy::cast_possible_truncation, reason = "a strength needs no more than single precision")]
        let ridge = match options.ridge {
            Strength::Absolute(strength) => [strength as f32, 0.0],
            Strength::Relative(strength) => [0.0, strength as f32],
        };
        let strengths = ridge.repeat(problems.len());
        let solved = length(sizes.free_values);
        Ok(Self {
            weights: engine.zeros("weights", length(sizes.weights))?,
            gram: engine.zeros("gram", length(sizes.squares))?,
            factor: engine.zeros("factor", length(sizes.squares))?,
            rhs: engine.zeros("right-hand side", solved)?,
            solved,
            ridge: engine.upload("ridge", &strengths)?,
            strengths,
            given: ridge,
            table: engine.table(dims, heads)?,
            again: engine.table(dims, heads)?,
        })
    }

    /// Solves the values of `heads` for these keys. A head that resists every ridge keeps its anchor's values.
    #[allow(clippy::too_many_arguments, reason = "an operation of mathematics, named after its operands")]
    pub(crate) fn solve(
        &mut self,
        engine: &mut E,
        rows: &mut RowSet<E>,
        heads: &[Head],
        keys: &E::Array,
        anchor: &E::Array,
        mass_weight: &E::Array,
        error: &mut E::Array,
        scalars: &mut E::Array,
        scale: f32,
        values: &mut E::Array,
    ) -> Result<()> {
        engine.set_table(&mut self.table, heads)?;
        engine.attention(&self.table, &rows.queries, keys, anchor, Some(&rows.base), scale, &mut rows.state)?;
        engine.loss(&self.table, &rows.state, &rows.teacher, mass_weight, error, scalars)?;
        self.normal_equations(engine, &rows.queries, heads, keys, &rows.state, error, scale)?;
        self.solve_again(engine, heads, rows.value_dim(), anchor, scalars, values)
    }

    /// Each of these heads gets its ridge times a factor of its own, from the next solve on.
    pub(crate) fn scale_ridge(&mut self, engine: &mut E, heads: &[Head], factor: impl Fn(usize) -> f32) -> Result<()> {
        for head in heads {
            let index = head.index as usize;
            for place in [2 * index, 2 * index + 1] {
                self.strengths[place] = self.given[place % 2] * factor(index);
            }
        }
        engine.write(&mut self.ridge, &self.strengths)
    }

    /// Solves the equations of the last [`solve`](Self::solve) once more, with the ridge of now.
    pub(crate) fn solve_again(
        &mut self,
        engine: &mut E,
        heads: &[Head],
        value_dim: u32,
        anchor: &E::Array,
        scalars: &mut E::Array,
        values: &mut E::Array,
    ) -> Result<()> {
        let strengths = self.strengths.clone();
        self.finish(engine, heads, value_dim, &strengths, anchor, scalars, values)
    }

    /// `values ← anchor + (G + ρ I)⁻¹ R` with the ridge that is in the array, `strengths`.
    #[allow(clippy::too_many_arguments, reason = "an operation of mathematics, named after its operands")]
    fn finish(
        &mut self,
        engine: &mut E,
        heads: &[Head],
        value_dim: u32,
        strengths: &[f32],
        anchor: &E::Array,
        scalars: &mut E::Array,
        values: &mut E::Array,
    ) -> Result<()> {
        let failed = self.factor(engine, heads, strengths, scalars)?;
        engine.solve(&self.table, &self.factor, &self.rhs, anchor, values)?;
        if !failed.is_empty() {
            engine.set_table(&mut self.again, &failed)?;
            engine.copy_pairs(&self.again, value_dim, anchor, values)?;
        }
        Ok(())
    }

    /// By how much each free pair's weight is to be multiplied so that the student's mass is the teacher's, in the first value
    /// channel of the array that is returned: `argmin ‖B u + e^{l_base − l} − 1‖² + ρ ‖u − 1‖²` with `B_qj = e^{s q·c_j − l_q}`.
    #[allow(clippy::too_many_arguments, reason = "an operation of mathematics, named after its operands")]
    pub(crate) fn masses(
        &mut self,
        engine: &mut E,
        rows: &mut RowSet<E>,
        heads: &[Head],
        keys: &E::Array,
        anchor: &E::Array,
        ridge: f64,
        error: &mut E::Array,
        scalars: &mut E::Array,
        scale: f32,
    ) -> Result<Vec<f32>> {
        engine.set_table(&mut self.table, heads)?;
        engine.attention(&self.table, &rows.queries, keys, anchor, Some(&rows.base), scale, &mut rows.state)?;
        // The excess of the student's mass over the teacher's stands where the value solve has an output's error.
        let student = engine.read(&rows.state)?;
        let teacher = engine.read(&rows.teacher)?;
        let mut excess = vec![0.0; student.len()];
        let value_dim = rows.value_dim() as usize;
        for head in heads {
            for row in head.row as usize..(head.row + head.rows) as usize {
                let at = row * (value_dim + 4);
                excess[at] = (student[at + value_dim] - teacher[at + value_dim]).exp() - 1.0;
            }
        }
        engine.write(error, &excess)?;
        self.normal_equations(engine, &rows.queries, heads, keys, &rows.teacher, error, scale)?;
        #[allow(clippy::cast_possible_truncation, reason = "a strength needs no more than single precision")]
        let strengths = [0.0, ridge as f32].repeat(self.strengths.len() / 2);
        engine.write(&mut self.ridge, &strengths)?;
        let ones = engine.upload("ones", &vec![1.0; self.solved])?;
        let mut solved = engine.zeros("multipliers", self.solved)?;
        self.finish(engine, heads, rows.value_dim(), &strengths, &ones, scalars, &mut solved)?;
        engine.write(&mut self.ridge, &self.strengths)?;
        engine.read(&solved)
    }

    /// `G = AᵀA` and `R = −Aᵀ e` over all rows, with weights against the masses in `state`.
    #[allow(clippy::too_many_arguments, reason = "an operation of mathematics, named after its operands")]
    fn normal_equations(
        &mut self,
        engine: &mut E,
        queries: &E::Array,
        heads: &[Head],
        keys: &E::Array,
        state: &E::Array,
        error: &E::Array,
        scale: f32,
    ) -> Result<()> {
        let most = heads.iter().map(|head| head.rows).max().unwrap_or(0);
        for first in (0..most).step_by(WEIGHT_ROWS as usize) {
            let block = first..(first + WEIGHT_ROWS).min(most);
            engine.weights(&self.table, queries, keys, state, scale, block.clone(), &mut self.weights)?;
            engine.gram(&self.table, &self.weights, block.clone(), &mut self.gram)?;
            engine.rhs(&self.table, &self.weights, error, block, &mut self.rhs)?;
        }
        Ok(())
    }

    /// Factors every head, raising the ridge of those that fail; returns the heads that resisted every raise.
    fn factor(&mut self, engine: &mut E, heads: &[Head], given: &[f32], scalars: &mut E::Array) -> Result<Vec<Head>> {
        let mut open = heads.to_vec();
        let mut strengths = given.to_vec();
        let mut raised = false;
        for _ in 0..=MOST_RAISES {
            engine.set_table(&mut self.again, &open)?;
            engine.cholesky(&self.again, &self.gram, &self.ridge, &mut self.factor, scalars)?;
            let found = engine.read(scalars)?;
            open.retain(|head| found[head.index as usize * SCALARS + scalar::FACTORED] != 1.0);
            if open.is_empty() {
                break;
            }
            raised = true;
            for head in &open {
                let [absolute, relative] = [2 * head.index as usize, 2 * head.index as usize + 1];
                strengths[absolute] = (strengths[absolute] * 10.0).max(LEAST_RAISE);
                strengths[relative] *= 10.0;
                tracing::debug!(head = head.index, "raised the ridge of a Gram that cannot be factored");
            }
            engine.write(&mut self.ridge, &strengths)?;
        }
        if raised {
            engine.write(&mut self.ridge, given)?;
        }
        Ok(open)
    }
}

/// A count of floats as a length; counts are checked against the machine before anything is allocated.
pub(crate) fn length(floats: u64) -> usize {
    usize::try_from(floats).unwrap_or(usize::MAX)
}
