//! Every operation of an engine: how it is called, what work it is, and whether it is right.

use kvsculpt::Result;
use kvsculpt::engine::{Engine, Evaluated, Evaluation, SCALARS, scalar};
use kvsculpt::reference::{self, State};

use super::batch::{Arrays, HISTORY, SCALE, Shape};

/// An operation of [`Engine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Attention,
    Loss,
    KeyGradient,
    Evaluate,
    Scores,
    Effects,
    Weights,
    Gram,
    Rhs,
    Cholesky,
    Solve,
    Direction,
    Slope,
    Step,
    CopyPairs,
    Push,
}

/// In an order in which each finds the results it needs.
pub const ALL: [Operation; 16] = [
    Operation::Attention,
    Operation::Loss,
    Operation::KeyGradient,
    Operation::Evaluate,
    Operation::Scores,
    Operation::Effects,
    Operation::Weights,
    Operation::Gram,
    Operation::Rhs,
    Operation::Cholesky,
    Operation::Solve,
    Operation::Direction,
    Operation::Slope,
    Operation::Step,
    Operation::CopyPairs,
    Operation::Push,
];

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Loss => "loss",
            Self::KeyGradient => "key_gradient",
            Self::Evaluate => "evaluate",
            Self::Scores => "scores",
            Self::Effects => "effects",
            Self::Weights => "weights",
            Self::Gram => "gram",
            Self::Rhs => "rhs",
            Self::Cholesky => "cholesky",
            Self::Solve => "solve",
            Self::Direction => "lbfgs_direction",
            Self::Slope => "slope",
            Self::Step => "step",
            Self::CopyPairs => "copy_pairs",
            Self::Push => "lbfgs_push",
        }
    }

    /// Operations that the formula needs, and bytes if every array were read and written once; exponentials are not counted.
    pub fn work(self, shape: Shape) -> (f64, f64) {
        let [n, k, d, h, b] = [shape.rows, shape.pairs, shape.dim, shape.heads, shape.block()].map(f64::from);
        let (m, state) = (f64::from(HISTORY), d + 4.0);
        let (product, part) = (2.0 * n * k * d, 2.0 * b * k * d);
        let (flops, floats) = match self {
            Self::Attention => (2.0 * product, n * d + 2.0 * k * d + 2.0 * n * state),
            Self::Loss => (6.0 * n * d, 3.0 * n * state),
            Self::KeyGradient => (3.0 * product, n * d + 3.0 * k * d + n * state),
            // The weights are not computed twice by the formula, though an engine may.
            Self::Evaluate => (4.0 * product, n * d + 3.0 * k * d + 4.0 * n * state),
            Self::Scores => (product, n * d + k * d + n * state),
            Self::Effects => (2.0 * product, n * d + 2.0 * k * d + n * state),
            Self::Weights => (part, b * d + k * d + b * state + b * k),
            // Half of it, by symmetry.
            Self::Gram => (b * k * k, b * k + k * k / 2.0),
            Self::Rhs => (part, b * k + b * state + k * d),
            Self::Cholesky => (k * k * k / 3.0, k * k),
            Self::Solve => (2.0 * k * k * d, k * k / 2.0 + 3.0 * k * d),
            Self::Direction => (8.0 * k * d * m, 4.0 * k * d * m),
            Self::Slope => (4.0 * k * d, 2.0 * k * d),
            Self::Step => (2.0 * k * d, 3.0 * k * d),
            Self::CopyPairs => (0.0, 2.0 * k * d),
            Self::Push => (8.0 * k * d, 8.0 * k * d),
        };
        (h * flops, 4.0 * h * floats)
    }

    pub fn run<E: Engine>(self, engine: &mut E, on: &mut Arrays<E>, shape: Shape) -> Result<()> {
        let (table, block) = (&on.table, 0..shape.block());
        match self {
            Self::Attention => engine.attention(table, &on.queries, &on.keys, &on.values, Some(&on.base), SCALE, &mut on.state),
            Self::Loss => engine.loss(table, &on.state, &on.teacher, &on.mass_weight, &mut on.error, &mut on.scalars),
            Self::KeyGradient => engine.key_gradient(table, &on.queries, &on.keys, &on.values, &on.error, SCALE, &mut on.gradient),
            Self::Evaluate => {
                let inputs = Evaluation {
                    queries: &on.queries,
                    keys: &on.keys,
                    values: &on.values,
                    base: &on.base,
                    teacher: &on.teacher,
                    mass_weight: &on.mass_weight,
                    scale: SCALE,
                };
                let outputs = Evaluated {
                    state: &mut on.state,
                    error: &mut on.error,
                    gradient: &mut on.gradient,
                    scalars: &mut on.scalars,
                };
                engine.evaluate(table, &inputs, outputs)
            }
            Self::Scores => engine.scores(table, &on.queries, &on.keys, &on.state, SCALE, &mut on.scores),
            Self::Effects => engine.effects(table, &on.queries, &on.keys, &on.values, &on.state, SCALE, &mut on.scores),
            Self::Weights => engine.weights(table, &on.queries, &on.keys, &on.state, SCALE, block, &mut on.weights),
            Self::Gram => engine.gram(table, &on.weights, block, &mut on.gram),
            Self::Rhs => engine.rhs(table, &on.weights, &on.error, block, &mut on.rhs),
            Self::Cholesky => engine.cholesky(table, &on.gram, &on.ridge, &mut on.factor, &mut on.scalars),
            Self::Solve => engine.solve(table, &on.factor, &on.rhs, &on.values, &mut on.solved),
            Self::Direction => engine.lbfgs_direction(table, &on.gradient, &on.history, &mut on.direction, &mut on.scalars),
            Self::Slope => engine.slope(table, &on.gradient, &on.direction, &mut on.scalars),
            Self::Step => engine.step(table, &on.keys, &on.direction, &on.lengths, &mut on.solved),
            Self::CopyPairs => engine.copy_pairs(table, shape.dim, &on.keys, &mut on.solved),
            Self::Push => engine.lbfgs_push(
                table,
                &on.lengths,
                &on.direction,
                &on.new_gradient,
                &mut on.gradient,
                &mut on.origin,
                &mut on.history,
                &mut on.scalars,
            ),
        }
    }

    /// Runs the operation and holds the first head's result against the reference's, computed from the engine's own inputs.
    pub fn check<E: Engine>(self, engine: &mut E, on: &mut Arrays<E>, shape: Shape) -> Result<()> {
        let head = First { shape };
        let before = head.inputs(engine, on)?;
        self.run(engine, on, shape)?;
        let after = head.inputs(engine, on)?;
        let (dim, pairs) = (shape.dim as usize, shape.pairs as usize);
        let block = shape.block() as usize;
        let scale = f64::from(SCALE);
        let student = || {
            let base = before.state_of(&before.base);
            reference::attention(&before.queries, &before.keys, &before.values, dim, dim, Some(&base), scale)
        };
        let loss = |student: &State| reference::loss(student, &before.state_of(&before.teacher), 1.0);
        let mass = before.state_of(&before.state).mass;
        let name = self.name();
        match self {
            Self::Attention => close(name, &after.state_of(&after.state).output, &student().output),
            Self::Loss => close(
                name,
                &after.state_of(&after.error).output,
                &loss(&before.state_of(&before.state)).error,
            ),
            Self::KeyGradient | Self::Evaluate => {
                let expected = reference::key_gradient(&before.queries, &before.keys, &before.values, dim, &loss(&student()), scale);
                close(name, &after.gradient, &expected);
            }
            Self::Scores => close(
                name,
                &after.scores,
                &reference::scores(&before.queries, &before.keys, dim, &mass, scale),
            ),
            Self::Effects => {
                let state = before.state_of(&before.state);
                let expected = reference::effects(&before.queries, &before.keys, &before.values, dim, dim, &state, scale);
                close(name, &after.scores, &expected);
            }
            Self::Weights => {
                let queries = &before.queries[..block * dim];
                close(
                    name,
                    &after.weights,
                    &reference::weights(queries, &before.keys, dim, &mass[..block], scale),
                );
            }
            Self::Gram => close(
                name,
                &lower(&after.gram, pairs),
                &lower(&reference::gram(&before.weights, pairs), pairs),
            ),
            Self::Rhs => {
                let error = &before.state_of(&before.error).output[..block * dim];
                close(name, &after.rhs, &reference::rhs(&before.weights, error, pairs, dim));
            }
            Self::Cholesky => {
                let expected = reference::cholesky(&symmetric(&before.gram, pairs), pairs, [0.0, 0.1]).expect("a factor");
                close(name, &lower(&after.factor, pairs), &lower(&expected, pairs));
            }
            Self::Solve => {
                let factor = lower(&before.factor, pairs);
                close(
                    name,
                    &after.solved,
                    &reference::solve(&factor, &before.rhs, &before.values, pairs, dim),
                );
            }
            Self::Direction => close(name, &after.direction, &reference::direction(&before.gradient, &before.history)),
            Self::Slope => {
                let expected = reference::slope(&before.gradient, &before.direction);
                close(name, &[after.scalars[scalar::SLOPE]], &[expected.slope]);
                close(name, &[after.scalars[scalar::GRADIENT_MAX]], &[expected.largest]);
            }
            Self::Step => close(name, &after.solved, &reference::step(&before.keys, &before.direction, 0.5)),
            Self::CopyPairs => close(name, &after.solved, &before.keys),
            Self::Push => {
                let expected = reference::push(0.5, &before.direction, &before.new_gradient, &before.gradient, &before.origin);
                close(name, &after.origin, &expected.origin);
                let (step, change) = after.history.last().expect("the newest slot");
                close(name, step, &expected.step);
                close(name, change, &expected.change);
            }
        }
        Ok(())
    }
}

/// Within a ten-thousandth of the norm: far above rounding, far below any mistake.
fn close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
    let size = norm(&mut expected.iter().copied());
    assert!(size > 0.0 && apart <= 1e-4 * size, "{what} is off by {apart:e} of {size:e}");
}

/// A square without what lies above its diagonal.
fn lower(square: &[f64], pairs: usize) -> Vec<f64> {
    let keep = |(at, &x): (usize, &f64)| if at % pairs <= at / pairs { x } else { 0.0 };
    square.iter().enumerate().map(keep).collect()
}

fn symmetric(square: &[f64], pairs: usize) -> Vec<f64> {
    let place = |at: usize| {
        let (row, column) = (at / pairs, at % pairs);
        square[row.max(column) * pairs + row.min(column)]
    };
    (0..pairs * pairs).map(place).collect()
}

/// The first head of a batch.
struct First {
    shape: Shape,
}

/// Its part of every array, widened.
struct Inputs {
    dim: usize,
    queries: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
    base: Vec<f32>,
    teacher: Vec<f32>,
    state: Vec<f32>,
    error: Vec<f32>,
    scalars: Vec<f64>,
    gradient: Vec<f64>,
    new_gradient: Vec<f64>,
    scores: Vec<f64>,
    weights: Vec<f64>,
    gram: Vec<f64>,
    factor: Vec<f64>,
    rhs: Vec<f64>,
    solved: Vec<f64>,
    direction: Vec<f64>,
    origin: Vec<f64>,
    /// Slots from the first on, each a step and a change.
    history: Vec<(Vec<f64>, Vec<f64>)>,
}

impl Inputs {
    fn state_of(&self, array: &[f32]) -> State {
        State::from_array(array, self.dim)
    }
}

impl First {
    fn inputs<E: Engine>(&self, engine: &mut E, on: &Arrays<E>) -> Result<Inputs> {
        let Shape { dim, rows, pairs, .. } = self.shape;
        let (n, k, d) = (rows as usize, pairs as usize, dim as usize);
        let state = n * self.shape.dims().state_row() as usize;
        let block = self.shape.block() as usize;
        let mut narrow = |array: &E::Array, len: usize| -> Result<Vec<f32>> {
            let mut all = engine.read(array)?;
            all.truncate(len);
            Ok(all)
        };
        let (base, teacher) = (narrow(&on.base, state)?, narrow(&on.teacher, state)?);
        let (now, error) = (narrow(&on.state, state)?, narrow(&on.error, state)?);
        let mut wide = |array: &E::Array, len: usize| -> Result<Vec<f64>> { Ok(narrow(array, len)?.into_iter().map(f64::from).collect()) };
        let slots = HISTORY as usize * k * d;
        let (steps, changes) = (wide(&on.history.steps, slots)?, wide(&on.history.changes, slots)?);
        let slot = |numbers: &[f64]| numbers.to_vec();
        Ok(Inputs {
            dim: d,
            queries: wide(&on.queries, n * d)?,
            keys: wide(&on.keys, k * d)?,
            values: wide(&on.values, k * d)?,
            base,
            teacher,
            state: now,
            error,
            scalars: wide(&on.scalars, SCALARS)?,
            gradient: wide(&on.gradient, k * d)?,
            new_gradient: wide(&on.new_gradient, k * d)?,
            scores: wide(&on.scores, k)?,
            weights: wide(&on.weights, block * k)?,
            gram: wide(&on.gram, k * k)?,
            factor: wide(&on.factor, k * k)?,
            rhs: wide(&on.rhs, k * d)?,
            solved: wide(&on.solved, k * d)?,
            direction: wide(&on.direction, k * d)?,
            origin: wide(&on.origin, k * d)?,
            history: steps
                .chunks_exact(k * d)
                .zip(changes.chunks_exact(k * d))
                .map(|(step, change)| (slot(step), slot(change)))
                .collect(),
        })
    }
}
