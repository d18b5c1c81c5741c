//! What a compression asks of its machines: three jobs on some heads, done by one machine or shared by several.

use super::assembled;
use super::batches::{Work, history};
use super::compress::assemble;
use super::curves::{self, Grid};
use super::estimate::{Needs, needs};
use super::fit::timed;
use super::supply::{Stage, Supply};
use super::{Finished, FinishedHead, Observer, PLANNING, Timings};
use crate::budget::Curve;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::Options;

/// Who hears of work on heads while it goes on.
pub(super) trait Audience {
    /// Heads finished, and how far all work is, in [0, 1]; `false` asks to stop.
    fn progress(&mut self, finished: usize, fraction: f64) -> bool;

    /// Takes a head that is finished.
    fn finished(&mut self, head: FinishedHead) -> Result<()>;

    /// Hears that a machine failed and tries again.
    fn retried(&mut self, why: Error);
}

/// Heads to be worked on, and who hears of it.
pub(super) struct Task<'a> {
    pub(super) supply: &'a Supply<'a>,
    /// Heads and chunks of a batch.
    pub(super) at_once: Option<usize>,
    pub(super) scale: f32,
    /// The part of all the work that the job is: where it begins and how much it is.
    pub(super) stage: (f64, f64),
    /// Whether lengths are still to be decided: no head is finished by such work.
    pub(super) planning: bool,
    pub(super) audience: &'a mut dyn Audience,
}

/// What can do the jobs. Whatever is given or returned by head is in the order of the task's heads.
pub(super) trait Hands {
    /// The curves of all chunks, those of a head one after the other.
    fn curves(&mut self, task: Task<'_>, grid: &Grid, options: &Options) -> Result<Vec<Curve>>;

    /// The loss that each head has where its chunks have these free pairs.
    fn losses(&mut self, task: Task<'_>, free: &[Vec<usize>], options: &Options) -> Result<Vec<f64>>;

    /// Fits the heads that are not `done`, whose chunks have these free pairs; the audience gets them.
    fn fit(&mut self, task: Task<'_>, free: &[Vec<usize>], done: &[bool], options: &Options, timings: &mut Timings) -> Result<()>;
}

/// One machine, whatever its engine is.
pub(super) trait Single: Hands {
    /// [`Engine::reopen`].
    fn reopen(&mut self) -> Result<()>;

    /// [`Engine::max_array_bytes`].
    fn max_array_bytes(&self) -> u64;

    /// What fitting these heads takes of it.
    fn needs(&self, supply: &Supply<'_>, free: &[Vec<usize>]) -> Result<Needs>;
}

/// An engine that works by itself.
#[derive(Debug)]
pub(super) struct Alone<'a, E>(pub(super) &'a mut E);

impl<E: Engine> Single for Alone<'_, E> {
    fn reopen(&mut self) -> Result<()> {
        self.0.reopen()
    }

    fn max_array_bytes(&self) -> u64 {
        self.0.max_array_bytes()
    }

    fn needs(&self, supply: &Supply<'_>, free: &[Vec<usize>]) -> Result<Needs> {
        needs(self.0, supply, free)
    }
}

impl<E: Engine> Hands for Alone<'_, E> {
    fn curves(&mut self, task: Task<'_>, grid: &Grid, options: &Options) -> Result<Vec<Curve>> {
        let mut work = Work::new(self.0, task);
        work.in_slices(grid.stage(), &[], &mut Timings::default(), |work, problems, _| {
            curves::of_slice(work, problems, grid, options)
        })
    }

    fn losses(&mut self, task: Task<'_>, free: &[Vec<usize>], options: &Options) -> Result<Vec<f64>> {
        let history = history(options);
        let mut work = Work::new(self.0, task);
        work.in_slices(
            Stage::Fit { free, history },
            &[],
            &mut Timings::default(),
            |work, problems, timings| {
                work.fit(problems, options, timings, |_, _, chunks, _| {
                    // A chunk's loss is what it alone does to the head.
                    Ok(chunks.iter().map(|chunk| chunk.outcome.result.loss).sum::<f64>())
                })
            },
        )
    }

    fn fit(&mut self, task: Task<'_>, free: &[Vec<usize>], done: &[bool], options: &Options, timings: &mut Timings) -> Result<()> {
        let history = history(options);
        let mut work = Work::new(self.0, task);
        let fitted = work.in_slices(Stage::Fit { free, history }, done, timings, |work, problems, timings| {
            work.fit(problems, options, timings, |work, chunks, mut fitted, timings| {
                let scale = work.task.scale;
                let outcome = timed(&mut timings.judge, || {
                    assembled::outcome(work.engine, chunks, &mut fitted, scale, options)
                })?;
                let head = assemble(outcome, chunks, &fitted, scale, options.has_bias());
                work.task.audience.finished(head)
            })
        });
        fitted.map(drop)
    }
}

/// A compression under way: what its stages need, whoever does the jobs.
pub(super) struct Course<'a> {
    pub(super) hands: &'a mut dyn Hands,
    pub(super) supply: &'a Supply<'a>,
    at_once: Option<usize>,
    scale: f32,
    pub(super) observer: &'a mut dyn Observer,
    /// Heads that are done; the first `given` of them were so before this run.
    pub(super) finished: &'a mut Finished,
    pub(super) given: usize,
    /// The part of all the work that the stage in hand is: where it begins and how much it is.
    pub(super) stage: (f64, f64),
    /// Whether lengths are still to be decided.
    pub(super) planning: bool,
}

impl<'a> Course<'a> {
    /// At its beginning: lengths are still to be decided.
    pub(super) fn new(
        hands: &'a mut dyn Hands,
        supply: &'a Supply<'a>,
        finished: &'a mut Finished,
        observer: &'a mut dyn Observer,
    ) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "shaders compute in single precision")]
        let scale = supply.capture.scale as f32;
        Self {
            hands,
            supply,
            at_once: supply.request.at_once,
            scale,
            observer,
            given: finished.heads.len(),
            finished,
            stage: (0.0, PLANNING),
            planning: true,
        }
    }

    /// Lengths are decided; where they had to be `measured`, that was a part of the work.
    pub(super) fn begin_fits(&mut self, measured: bool) {
        let begin = if measured { PLANNING } else { 0.0 };
        self.stage = (begin, 1.0 - begin);
        self.planning = false;
    }

    /// Has a job done on all heads.
    pub(super) fn ask<T>(&mut self, job: impl FnOnce(&mut dyn Hands, Task<'_>) -> Result<T>) -> Result<T> {
        let mut audience = Told {
            heads: self.supply.places.len(),
            observer: self.observer,
            finished: self.finished,
        };
        let task = Task {
            supply: self.supply,
            at_once: self.at_once,
            scale: self.scale,
            stage: self.stage,
            planning: self.planning,
            audience: &mut audience,
        };
        job(self.hands, task)
    }
}

/// Tells the observer, and keeps what is finished.
struct Told<'a> {
    heads: usize,
    observer: &'a mut dyn Observer,
    finished: &'a mut Finished,
}

impl Audience for Told<'_> {
    fn progress(&mut self, finished: usize, fraction: f64) -> bool {
        self.observer.progress(finished, self.heads, fraction)
    }

    fn finished(&mut self, head: FinishedHead) -> Result<()> {
        self.observer.finished(&head)?;
        self.finished.heads.push(head);
        Ok(())
    }

    fn retried(&mut self, why: Error) {
        self.observer.retried(&why);
    }
}
