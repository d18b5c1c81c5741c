//! The arrays of a batch of heads through its life, and what the candidate in hand is worth.

use super::batches::Members;
use super::bias;
use super::fit::Pairs;
use super::inputs::{AtOnce, FullCache, Inputs};
use super::keys::loss;
use super::problem::Problem;
use super::rowset::{Kind, RowSet, errors_on};
use super::seed::{drawn, ranked};
use super::track::Track;
use super::values::{ValueSolve, length};
use super::{Errors, Judged};
use crate::batch::{Shape, Workspace};
use crate::engine::{Dims, Engine, Head, SCALARS, scalar};
use crate::error::{Error, Result};
use crate::options::{Anchor, Method, Options, Strength};
use crate::reference::merged::Sums;

/// Ridges that are tried beside the one given, as factors of it.
const RIDGE_FACTORS: [f32; 3] = [0.1, 0.3, 4.0];

/// In what order a head's seed pairs are laid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As in the cache.
    Position,
    /// The highest rank first, so that every beginning of the pairs is a seed of its own.
    Rank,
}

/// The arrays of a batch through its life.
#[derive(Debug)]
pub(crate) struct Batch<'a, E: Engine> {
    pub(crate) options: &'a Options,
    pub(crate) dims: Dims,
    pub(crate) scale: f32,
    pub(crate) sizes: Workspace,
    pub(crate) training: RowSet<E>,
    pub(crate) validation: Option<RowSet<E>>,
    probe: Option<RowSet<E>>,
    pub(crate) mass_weights: Vec<f32>,
    pub(crate) mass_weight: E::Array,
    /// The teacher's mean squared output of each head.
    pub(crate) scales: Vec<f64>,
    /// What the ridge pulls toward.
    anchor: E::Array,
    pub(crate) keys: E::Array,
    pub(crate) values: E::Array,
    best_keys: E::Array,
    best_values: E::Array,
    pub(crate) error: E::Array,
    pub(crate) scalars: E::Array,
    /// Heads of a change in hand.
    chosen: E::Table,
}

impl<'a, E: Engine> Batch<'a, E> {
    /// Uploads what is not there yet, asks the teacher, and seeds.
    pub(crate) fn new(
        engine: &mut E,
        (problems, inputs): Members<'_, E>,
        dims: Dims,
        scale: f32,
        options: &'a Options,
        order: Order,
    ) -> Result<Self> {
        let shapes = problems.iter().map(|problem| problem.shape()).collect::<Result<Vec<Shape>>>()?;
        let sizes = Workspace::new(&shapes, options.history);
        let (cache, given) = match inputs {
            Some(Inputs { cache, rows, .. }) => (cache, rows),
            None => (FullCache::upload(&mut AtOnce(engine), problems, dims)?, [None, None, None]),
        };
        let mut sets = (Kind::ALL.into_iter().zip(given))
            .map(|rows| RowSet::new(engine, problems, &shapes, rows, &cache, scale))
            .collect::<Result<Vec<_>>>()?;
        let (probe, validation, training) = (sets.pop().flatten(), sets.pop().flatten(), sets.pop().flatten());
        let training = training.ok_or_else(|| Error::shape("batch", "no training rows"))?;

        let mut chosen = match options.method {
            Method::Random => problems.iter().map(|problem| drawn(problem, options.seed)).collect(),
            _ => ranked(engine, problems, &shapes, &training, &cache, scale, options.ranking)?,
        };
        if order == Order::Position {
            chosen.iter_mut().for_each(|pairs: &mut Vec<usize>| pairs.sort_unstable());
        }
        let free: usize = chosen.iter().map(Vec::len).sum();
        let mut keys = Vec::with_capacity(free * dims.dim as usize);
        let mut values = Vec::with_capacity(free * dims.value_dim as usize);
        for (problem, pairs) in problems.iter().zip(&chosen) {
            let (dim, value_dim) = (problem.key_dim, dims.value_dim as usize);
            for &pair in pairs {
                problem.push_keys(&problem.keys[pair * dim..(pair + 1) * dim], &mut keys);
                values.extend_from_slice(&problem.values[pair * value_dim..(pair + 1) * value_dim]);
            }
        }
        let anchor = match options.anchor {
            Anchor::Zero => engine.zeros("anchor", values.len())?,
            Anchor::Seed => engine.upload("anchor", &values)?,
        };
        let mut batch = Self {
            options,
            dims,
            scale,
            mass_weights: Vec::new(),
            scales: Vec::new(),
            mass_weight: engine.zeros("mass weight", problems.len())?,
            anchor,
            keys: engine.upload("free keys", &keys)?,
            values: engine.upload("free values", &values)?,
            best_keys: engine.upload("best keys", &keys)?,
            best_values: engine.upload("best values", &values)?,
            error: engine.zeros("error", length(sizes.states[0]))?,
            scalars: engine.zeros("scalars", length(sizes.scalars))?,
            chosen: engine.table(dims, &training.heads)?,
            sizes,
            training,
            validation,
            probe,
        };
        batch.weigh_mass(engine)?;
        Ok(batch)
    }

    /// From here on heads have `pairs` free pairs, the first of their own.
    pub(crate) fn shorten(&mut self, engine: &mut E, pairs: u32) -> Result<()> {
        self.training.shorten(engine, pairs)?;
        match &mut self.validation {
            Some(rows) => rows.shorten(engine, pairs),
            None => Ok(()),
        }
    }

    /// λ of each head: as given, or times the teacher's mean squared output.
    fn weigh_mass(&mut self, engine: &mut E) -> Result<()> {
        // Of the sums only the teacher's own size is wanted, so the teacher stands in for a student.
        let rows = &self.training;
        engine.loss(
            &rows.table,
            &rows.teacher,
            &rows.teacher,
            &self.mass_weight,
            &mut self.error,
            &mut self.scalars,
        )?;
        let found = engine.read(&self.scalars)?;
        let scale = |head: &Head| f64::from(found[head.index as usize * SCALARS + scalar::SCALE]) / f64::from(head.rows);
        self.scales = self.training.heads.iter().map(scale).collect();
        #[allow(clippy::cast_possible_truncation, reason = "a weight needs no more than single precision")]
        let weights = self.scales.iter().map(|scale| match self.options.mass_weight {
            Strength::Absolute(weight) => weight as f32,
            Strength::Relative(weight) => (weight * scale) as f32,
        });
        self.mass_weights = weights.collect();
        engine.write(&mut self.mass_weight, &self.mass_weights)
    }

    /// The sums of the loss on the training rows for the keys and values in hand.
    fn training_sums(&mut self, engine: &mut E) -> Result<Vec<f32>> {
        let Self {
            training: rows,
            keys,
            values,
            error,
            scalars,
            mass_weight,
            scale,
            ..
        } = self;
        engine.attention(&rows.table, &rows.queries, keys, values, Some(&rows.base), *scale, &mut rows.state)?;
        engine.loss(&rows.table, &rows.state, &rows.teacher, mass_weight, error, scalars)?;
        engine.read(scalars)
    }

    /// What the keys and values in hand are worth, head by head.
    pub(crate) fn judge(&mut self, engine: &mut E) -> Result<Vec<Judged>> {
        let heads = self.training.heads.len();
        let found = self.training_sums(engine)?;
        let validation = self.validate(engine)?;
        let probe = errors_on(&mut self.probe, engine, &self.keys, &self.values, self.scale, heads)?;
        let judged = self
            .training
            .heads
            .iter()
            .zip(validation)
            .zip(probe)
            .map(|((head, validation), probe)| {
                let at = |place: usize| f64::from(found[head.index as usize * SCALARS + place]);
                Judged {
                    loss: loss(&found, head, &self.mass_weights),
                    output: at(scalar::OUTPUT) / at(scalar::SCALE),
                    mass: (at(scalar::MASS) / f64::from(head.rows)).sqrt(),
                    validation,
                    probe,
                }
            });
        Ok(judged.collect())
    }

    /// The error sums of the keys and values in hand on validation rows.
    pub(crate) fn sums(&mut self, engine: &mut E) -> Result<Vec<Option<Sums>>> {
        let heads = self.training.heads.len();
        match &mut self.validation {
            Some(rows) => rows.judge(engine, &self.keys, &self.values, self.scale, heads),
            None => Ok(vec![None; heads]),
        }
    }

    /// The validation errors of the keys and values in hand.
    pub(crate) fn validate(&mut self, engine: &mut E) -> Result<Vec<Option<Errors>>> {
        let heads = self.training.heads.len();
        errors_on(&mut self.validation, engine, &self.keys, &self.values, self.scale, heads)
    }

    /// Solves the values of these heads for the keys in hand.
    pub(crate) fn refit(&mut self, engine: &mut E, solve: &mut ValueSolve<E>, heads: &[Head]) -> Result<()> {
        solve.solve(
            engine,
            &mut self.training,
            heads,
            &self.keys,
            &self.anchor,
            &self.mass_weight,
            &mut self.error,
            &mut self.scalars,
            self.scale,
            &mut self.values,
        )
    }

    /// Leaves each of these heads with the ridge that serves its validation rows best, and with values solved by it. The equations are
    /// those of the last [`refit`](Self::refit), which was made with the ridge as given.
    pub(crate) fn choose_ridge(&mut self, engine: &mut E, solve: &mut ValueSolve<E>, heads: &[Head]) -> Result<()> {
        let mut best: Vec<(f64, f32)> = vec![(f64::INFINITY, 1.0); self.training.heads.len()];
        for (step, factor) in [1.0].into_iter().chain(RIDGE_FACTORS).enumerate() {
            if step > 0 {
                solve.scale_ridge(engine, heads, |_| factor)?;
                self.solve_again(engine, solve, heads)?;
            }
            for (best, found) in best.iter_mut().zip(self.validate(engine)?) {
                if let Some(found) = found.filter(|found| found.merged < best.0) {
                    *best = (found.merged, factor);
                }
            }
        }
        solve.scale_ridge(engine, heads, |index| best[index].1)?;
        self.solve_again(engine, solve, heads)
    }

    /// The values of these heads by the equations of the last refit and the ridge of now.
    fn solve_again(&mut self, engine: &mut E, solve: &mut ValueSolve<E>, heads: &[Head]) -> Result<()> {
        solve.solve_again(
            engine,
            heads,
            self.dims.value_dim,
            &self.anchor,
            &mut self.scalars,
            &mut self.values,
        )
    }

    /// Gives the free pairs of these heads the biases that fit the mass best, for the keys in hand.
    pub(crate) fn fit_bias(&mut self, engine: &mut E, solve: &mut ValueSolve<E>, problems: &[&Problem], heads: &[Head]) -> Result<()> {
        let multipliers = solve.masses(
            engine,
            &mut self.training,
            heads,
            &self.keys,
            &self.anchor,
            self.options.bias_ridge,
            &mut self.error,
            &mut self.scalars,
            self.scale,
        )?;
        let mut keys = engine.read(&self.keys)?;
        let (dim, value_dim) = (self.dims.dim as usize, self.dims.value_dim as usize);
        for head in heads {
            let problem = problems[head.index as usize];
            let Some(constant) = problem.constant else { continue };
            for pair in head.pair as usize..(head.pair + head.pairs) as usize {
                keys[pair * dim + problem.key_dim] = bias::start(multipliers[pair * value_dim]) / (self.scale * constant);
            }
        }
        engine.write(&mut self.keys, &keys)
    }

    /// Keeps the candidates in hand of those heads where they are the best so far by their validation errors.
    pub(crate) fn consider(&mut self, engine: &mut E, track: &mut Track, heads: &[Head], validation: &[Option<Errors>]) -> Result<()> {
        let mut better = Vec::new();
        for head in heads {
            let index = head.index as usize;
            let Some(found) = validation[index] else { continue };
            track.in_hand[index] = found.merged < track.best[index];
            if track.in_hand[index] {
                track.best[index] = found.merged;
                track.without_gain[index] = 0;
                better.push(*head);
            } else {
                track.without_gain[index] += 1;
            }
        }
        self.save(engine, &better)
    }

    /// The keys and values in hand of these heads become their best.
    pub(crate) fn save(&mut self, engine: &mut E, heads: &[Head]) -> Result<()> {
        engine.set_table(&mut self.chosen, heads)?;
        engine.copy_pairs(&self.chosen, self.dims.dim, &self.keys, &mut self.best_keys)?;
        engine.copy_pairs(&self.chosen, self.dims.value_dim, &self.values, &mut self.best_values)
    }

    /// The keys and values in hand, head by head.
    pub(crate) fn pairs(&self, engine: &mut E) -> Result<Vec<Pairs>> {
        let (keys, values) = (engine.read(&self.keys)?, engine.read(&self.values)?);
        let heads = self.training.heads.iter().map(|head| {
            let slice =
                |array: &[f32], width: u32| array[(head.pair * width) as usize..((head.pair + head.pairs) * width) as usize].to_vec();
            Pairs {
                keys: slice(&keys, self.dims.dim),
                values: slice(&values, self.dims.value_dim),
            }
        });
        Ok(heads.collect())
    }

    /// Adds the keys and values in hand to the starts of those that are chunks: the whole head is judged by them later.
    pub(crate) fn remember(&self, engine: &mut E, problems: &[&Problem], starts: &mut [Vec<Pairs>]) -> Result<()> {
        if problems.iter().any(|problem| problem.part.is_some()) {
            for (starts, pairs) in starts.iter_mut().zip(self.pairs(engine)?) {
                starts.push(pairs);
            }
        }
        Ok(())
    }

    /// The best keys and values of these heads come back in hand.
    pub(crate) fn restore(&mut self, engine: &mut E, heads: &[Head]) -> Result<()> {
        engine.set_table(&mut self.chosen, heads)?;
        engine.copy_pairs(&self.chosen, self.dims.dim, &self.best_keys, &mut self.keys)?;
        engine.copy_pairs(&self.chosen, self.dims.value_dim, &self.best_values, &mut self.values)
    }

    /// Puts the best candidate of every head back in hand.
    pub(crate) fn restore_best(&mut self, engine: &mut E, track: &Track) -> Result<()> {
        let mut worse = self.training.heads.clone();
        worse.retain(|head| !track.in_hand[head.index as usize]);
        self.restore(engine, &worse)
    }
}
