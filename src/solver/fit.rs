//! The life of a batch of heads, in one direction: teacher, seed, values ⇄ keys, judgement.

use std::time::Instant;

use super::batches::Members;
use super::candidates::{Batch, Order};
use super::descent::{Allowance, Descent, Rest};
use super::keys::{Cycle, KeySteps};
use super::problem::Problem;
use super::track::{Track, stop};
use super::values::ValueSolve;
use super::{Errors, Judged, Outcome, Stop, Timings};
use crate::engine::{Engine, Head};
use crate::error::{Error, Result};
use crate::options::{Method, Options, Strength};

/// Free pairs, keys as the engine sees them.
#[derive(Clone, Debug)]
pub(crate) struct Pairs {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

/// The free pairs of a head or chunk, and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Fitted {
    pub(crate) pairs: Pairs,
    /// Of a chunk: what it started from, select and, where the method has it, select-fit.
    pub(crate) starts: Vec<Pairs>,
    pub(crate) outcome: Outcome,
}

impl Fitted {
    /// A head that keeps every pair as it is: there is nothing to fit, and no error.
    pub(crate) fn whole(problem: &Problem, method: Method) -> Self {
        let none = |rows: &[f32]| {
            let exact = Errors {
                output: 0.0,
                mass: 0.0,
                merged: 0.0,
            };
            (!rows.is_empty()).then_some(exact)
        };
        let exact = Judged {
            loss: 0.0,
            output: 0.0,
            mass: 0.0,
            validation: none(&problem.rows.validation),
            probe: none(&problem.rows.probe),
        };
        let select_fit = matches!(method, Method::SelectFit | Method::Kvsculpt);
        let mut keys = Vec::new();
        problem.push_keys(problem.zone_pairs(&problem.keys, problem.key_dim), &mut keys);
        let values = problem.zone_pairs(&problem.values, problem.dims.value_dim as usize).to_vec();
        let pairs = Pairs { keys, values };
        let starts = if problem.part.is_none() { 0 } else { 1 + usize::from(select_fit) };
        Self {
            starts: vec![pairs.clone(); starts],
            pairs,
            outcome: Outcome {
                layer: problem.layer,
                head: problem.head,
                tokens: problem.split.tokens,
                kept: problem.split.kept(),
                free: problem.split.free,
                result: exact,
                select: exact,
                select_fit: select_fit.then_some(exact),
                chunks: 1,
                iterations: 0,
                evaluations: 0,
                stop: Stop::Whole,
            },
        }
    }
}

/// Fits a batch of heads of the same dims. `watch` gets the share of the work that is done; its error ends the work.
pub(crate) fn fit<E: Engine>(
    engine: &mut E,
    (problems, inputs): Members<'_, E>,
    scale: f32,
    options: &Options,
    timings: &mut Timings,
    watch: &mut dyn FnMut(f64) -> Result<()>,
) -> Result<Vec<Fitted>> {
    let Some(first) = problems.first() else { return Ok(Vec::new()) };
    let dims = first.dims;
    let started = Instant::now();
    let mut batch = Batch::new(engine, (problems, inputs), dims, scale, options, Order::Position)?;
    timings.teacher += started.elapsed().as_secs_f64();

    let select = timed(&mut timings.judge, || batch.judge(engine))?;
    if let Some(head) = select.iter().position(|judged| !judged.loss.is_finite()) {
        return Err(Error::shape(
            format!("layer {} head {}", problems[head].layer, problems[head].head),
            "attention over the capture itself leaves single precision; check softmax_scale, keys, queries and values",
        ));
    }
    let mut starts = vec![Vec::new(); problems.len()];
    batch.remember(engine, problems, &mut starts)?;
    let mut track = Track::new(&select);
    let mut select_fit = None;
    let mut descents = None;
    if matches!(options.method, Method::SelectFit | Method::Kvsculpt) {
        let mut solve = ValueSolve::new(engine, dims, problems, &batch.training.heads, &batch.sizes, options)?;
        let all = batch.training.heads.clone();
        timed(&mut timings.values, || {
            batch.refit(engine, &mut solve, &all)?;
            if options.ridge_search && batch.validation.is_some() {
                batch.choose_ridge(engine, &mut solve, &all)?;
            }
            Ok(())
        })?;
        let judged = timed(&mut timings.judge, || batch.judge(engine))?;
        batch.remember(engine, problems, &mut starts)?;
        // Who asks for select-fit by name gets it, better or not.
        if options.method == Method::Kvsculpt {
            let validation: Vec<_> = judged.iter().map(|judged| judged.validation).collect();
            batch.consider(engine, &mut track, &all, &validation)?;
        }
        if options.has_bias() {
            timed(&mut timings.values, || {
                batch.fit_bias(engine, &mut solve, problems, &all)?;
                batch.refit(engine, &mut solve, &all)
            })?;
            if options.method == Method::Kvsculpt {
                let validation = timed(&mut timings.judge, || batch.validate(engine))?;
                batch.consider(engine, &mut track, &all, &validation)?;
                batch.restore_best(engine, &track)?;
            }
        }
        if options.method == Method::Kvsculpt {
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
    let pairs = batch.pairs(engine)?;
    let fitted = pairs.into_iter().zip(starts).enumerate().map(|(index, (pairs, starts))| {
        let descent = descents.as_ref().map(|descents| &descents[index]);
        Fitted {
            pairs,
            starts,
            outcome: Outcome {
                layer: problems[index].layer,
                head: problems[index].head,
                tokens: problems[index].split.tokens,
                kept: problems[index].split.kept(),
                free: problems[index].split.free,
                result: result[index],
                select: select[index],
                select_fit: select_fit.as_ref().map(|judged| judged[index]),
                chunks: 1,
                iterations: descent.map_or(0, |descent| descent.iterations),
                evaluations: descent.map_or(0, |descent| descent.evaluations),
                stop: track.stops[index],
            },
        }
    });
    Ok(fitted.collect())
}

/// Runs a stage and adds its seconds.
pub(super) fn timed<T>(seconds: &mut f64, stage: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let outcome = stage();
    *seconds += started.elapsed().as_secs_f64();
    outcome
}

impl<E: Engine> Batch<'_, E> {
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
        // The starts were no refits.
        track.without_gain.fill(0);
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
