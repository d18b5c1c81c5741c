//! The life of a batch of heads, in one direction: teacher, seed, values ⇄ keys, judgement.

use std::time::Instant;

use super::descent::{Allowance, Descent, Rest};
use super::keys::{Cycle, KeySteps, loss};
use super::problem::Problem;
use super::rowset::{FullCache, Kind, RowSet, errors_on};
use super::seed::{attended, drawn};
use super::track::{Track, stop};
use super::values::{ValueSolve, length};
use super::{Errors, Judged, Outcome, Stop, Timings};
use crate::batch::{Shape, Workspace};
use crate::engine::{Dims, Engine, Head, SCALARS, scalar};
use crate::error::{Error, Result};
use crate::options::{Anchor, Method, Options, Strength};

/// A head's free pairs and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Fitted {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    pub(crate) outcome: Outcome,
}

/// Fits a batch of heads of the same dims. `watch` gets the share of the work that is done; its error ends the work.
pub(crate) fn fit<E: Engine>(
    engine: &mut E,
    problems: &[&Problem],
    scale: f32,
    options: &Options,
    timings: &mut Timings,
    watch: &mut dyn FnMut(f64) -> Result<()>,
) -> Result<Vec<Fitted>> {
    let Some(first) = problems.first() else { return Ok(Vec::new()) };
    let dims = first.dims;
    let started = Instant::now();
    let mut batch = Batch::new(engine, problems, dims, scale, options)?;
    timings.teacher += started.elapsed().as_secs_f64();

    let select = timed(&mut timings.judge, || batch.judge(engine))?;
    if let Some(head) = select.iter().position(|judged| !judged.loss.is_finite()) {
        return Err(Error::shape(
            format!("layer {} head {}", problems[head].layer, problems[head].head),
            "attention over the capture itself leaves single precision; check softmax_scale, keys and queries",
        ));
    }
    let mut track = Track::new(&select);
    let mut select_fit = None;
    let mut descents = None;
    if matches!(options.method, Method::SelectFit | Method::Kvsculpt) {
        let mut solve = ValueSolve::new(engine, dims, problems, &batch.training.heads, &batch.sizes, options)?;
        let all = batch.training.heads.clone();
        timed(&mut timings.values, || batch.refit(engine, &mut solve, &all))?;
        let judged = timed(&mut timings.judge, || batch.judge(engine))?;
        // Who asks for select-fit by name gets it, better or not.
        if options.method == Method::Kvsculpt {
            let validation: Vec<_> = judged.iter().map(|judged| judged.validation).collect();
            batch.consider(engine, &mut track, &all, &validation)?;
            descents = Some(batch.sculpt(engine, &mut solve, &mut track, timings, watch)?);
        }
        select_fit = Some(judged);
    }
    batch.restore_best(engine, &track)?;
    let mut result = timed(&mut timings.judge, || batch.judge(engine))?;
    if track.reject_broken(&result) {
        batch.restore_best(engine, &track)?;
        result = timed(&mut timings.judge, || batch.judge(engine))?;
    }
    watch(1.0)?;
    let (keys, values) = (engine.read(&batch.keys)?, engine.read(&batch.values)?);
    let fitted = batch.training.heads.iter().map(|head| {
        let index = head.index as usize;
        let descent = descents.as_ref().map(|descents| &descents[index]);
        let slice = |array: &[f32], width: u32| array[(head.pair * width) as usize..((head.pair + head.pairs) * width) as usize].to_vec();
        Fitted {
            keys: slice(&keys, dims.dim),
            values: slice(&values, dims.value_dim),
            outcome: Outcome {
                layer: problems[index].layer,
                head: problems[index].head,
                tokens: problems[index].split.tokens,
                kept: problems[index].split.kept(),
                free: problems[index].split.free,
                result: result[index],
                select: select[index],
                select_fit: select_fit.as_ref().map(|judged| judged[index]),
                iterations: descent.map_or(0, |descent| descent.iterations),
                evaluations: descent.map_or(0, |descent| descent.evaluations),
                stop: track.stops[index],
            },
        }
    });
    Ok(fitted.collect())
}

/// Runs a stage and adds its seconds.
fn timed<T>(seconds: &mut f64, stage: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let outcome = stage();
    *seconds += started.elapsed().as_secs_f64();
    outcome
}

/// The arrays of a batch through its life.
#[derive(Debug)]
struct Batch<'a, E: Engine> {
    options: &'a Options,
    dims: Dims,
    scale: f32,
    sizes: Workspace,
    training: RowSet<E>,
    validation: Option<RowSet<E>>,
    probe: Option<RowSet<E>>,
    mass_weights: Vec<f32>,
    mass_weight: E::Array,
    /// The teacher's mean squared output of each head.
    scales: Vec<f64>,
    /// What the ridge pulls toward.
    anchor: E::Array,
    keys: E::Array,
    values: E::Array,
    best_keys: E::Array,
    best_values: E::Array,
    error: E::Array,
    scalars: E::Array,
    /// Heads of a change in hand.
    chosen: E::Table,
}

impl<'a, E: Engine> Batch<'a, E> {
    /// Uploads, asks the teacher, and seeds.
    fn new(engine: &mut E, problems: &[&Problem], dims: Dims, scale: f32, options: &'a Options) -> Result<Self> {
        let shapes = problems.iter().map(|problem| problem.shape()).collect::<Result<Vec<Shape>>>()?;
        let sizes = Workspace::new(&shapes, options.history);
        let cache = FullCache::upload(engine, problems, dims)?;
        let mut sets = [Kind::Training, Kind::Validation, Kind::Probe]
            .map(|kind| RowSet::new(engine, problems, &shapes, kind, &cache, scale))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let (probe, validation, training) = (sets.pop().flatten(), sets.pop().flatten(), sets.pop().flatten());
        let training = training.ok_or_else(|| Error::shape("batch", "no training rows"))?;

        let chosen = match options.method {
            Method::Random => problems.iter().map(|problem| drawn(problem, options.seed)).collect(),
            _ => attended(engine, problems, &shapes, &training, &cache, scale)?,
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (problem, pairs) in problems.iter().zip(&chosen) {
            let (dim, value_dim) = (dims.dim as usize, dims.value_dim as usize);
            for &pair in pairs {
                keys.extend_from_slice(&problem.keys[pair * dim..(pair + 1) * dim]);
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
    fn judge(&mut self, engine: &mut E) -> Result<Vec<Judged>> {
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

    /// The validation errors of the keys and values in hand.
    fn validate(&mut self, engine: &mut E) -> Result<Vec<Option<Errors>>> {
        let heads = self.training.heads.len();
        errors_on(&mut self.validation, engine, &self.keys, &self.values, self.scale, heads)
    }

    /// Solves the values of these heads for the keys in hand.
    fn refit(&mut self, engine: &mut E, solve: &mut ValueSolve<E>, heads: &[Head]) -> Result<()> {
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

    /// Keeps the candidates in hand of those heads where they are the best so far by their validation errors.
    fn consider(&mut self, engine: &mut E, track: &mut Track, heads: &[Head], validation: &[Option<Errors>]) -> Result<()> {
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
    fn save(&mut self, engine: &mut E, heads: &[Head]) -> Result<()> {
        engine.set_table(&mut self.chosen, heads)?;
        engine.copy_pairs(&self.chosen, self.dims.dim, &self.keys, &mut self.best_keys)?;
        engine.copy_pairs(&self.chosen, self.dims.value_dim, &self.values, &mut self.best_values)
    }

    /// The best keys and values of these heads come back in hand.
    fn restore(&mut self, engine: &mut E, heads: &[Head]) -> Result<()> {
        engine.set_table(&mut self.chosen, heads)?;
        engine.copy_pairs(&self.chosen, self.dims.dim, &self.best_keys, &mut self.keys)?;
        engine.copy_pairs(&self.chosen, self.dims.value_dim, &self.best_values, &mut self.values)
    }

    /// Puts the best candidate of every head back in hand.
    fn restore_best(&mut self, engine: &mut E, track: &Track) -> Result<()> {
        let mut worse = self.training.heads.clone();
        worse.retain(|head| !track.in_hand[head.index as usize]);
        self.restore(engine, &worse)
    }

    /// Keys and values in turn until every head has stopped.
    fn sculpt(
        &mut self,
        engine: &mut E,
        solve: &mut ValueSolve<E>,
        track: &mut Track,
        timings: &mut Timings,
        watch: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<Vec<Descent>> {
        let options = self.options;
        let cycles = options.steps.div_ceil(options.refit_every);
        let mut heads = self.training.heads.clone();
        let mut keys = KeySteps::new(engine, self.dims, &heads, &self.sizes, allowance(options, options.refit_every))?;
        track.stops.fill(Stop::OutOfSteps);
        for head in &heads {
            let index = head.index as usize;
            if matches!(self.options.mass_weight, Strength::Relative(_)) {
                // Losses are in units of the teacher's mean squared output then.
                keys.descents[index].unit = self.scales[index];
            }
        }
        heads.retain(|head| !track.good_enough(head.index as usize, options.tolerance));
        for cycle in 0..cycles {
            if heads.is_empty() {
                break;
            }
            let steps = options.refit_every.min(options.steps - cycle * options.refit_every);
            let allowance = allowance(options, steps);
            keys.allow(allowance);
            timed(&mut timings.keys, || {
                let on = Cycle {
                    rows: &mut self.training,
                    keys: &mut self.keys,
                    values: &self.values,
                    mass_weight: &self.mass_weight,
                    mass_weights: &self.mass_weights,
                    error: &mut self.error,
                    scalars: &mut self.scalars,
                    scale: self.scale,
                };
                keys.cycle(engine, &heads, on, allowance.evaluations, |share| {
                    watch((f64::from(cycle) + share) / f64::from(cycles))
                })
            })?;
            self.drop_broken(engine, &keys, track, &mut heads)?;
            if self.validation.is_none() {
                // With its old values every accepted point is finite: what a broken refit falls back to.
                self.save(engine, &heads)?;
            }
            timed(&mut timings.values, || self.refit(engine, solve, &heads))?;
            timed(&mut timings.judge, || {
                let validation = self.validate(engine)?;
                self.consider(engine, track, &heads, &validation)
            })?;
            heads.retain(|head| {
                let index = head.index as usize;
                let stop = stop(&keys.descents[index], track, index, options.tolerance);
                if let Some(stop) = stop {
                    track.stops[index] = stop;
                }
                stop.is_none()
            });
        }
        Ok(keys.descents)
    }

    /// Takes heads whose point is not finite out of the work and gives them their best candidate back.
    fn drop_broken(&mut self, engine: &mut E, keys: &KeySteps<E>, track: &mut Track, heads: &mut Vec<Head>) -> Result<()> {
        let broken = |head: &Head| keys.descents[head.index as usize].rest == Some(Rest::NotFinite);
        let lost: Vec<Head> = heads.iter().filter(|head| broken(head)).copied().collect();
        heads.retain(|head| !broken(head));
        for head in &lost {
            track.stops[head.index as usize] = Stop::NotFinite;
            track.in_hand[head.index as usize] = false;
        }
        self.restore(engine, &lost)
    }
}

/// What so many outer steps allow: their iterations, and a quarter more evaluations (as the published optimiser does).
fn allowance(options: &Options, steps: u32) -> Allowance {
    Allowance {
        iterations: steps.saturating_mul(options.iterations),
        evaluations: steps.saturating_mul(options.iterations.saturating_add((options.iterations / 4).max(1))),
        learning_rate: options.learning_rate,
        capacity: options.history,
    }
}
