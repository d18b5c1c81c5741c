//! Heads packed into batches that fit the machine, worked on one batch after the other.

use std::time::Instant;

use super::Timings;
use super::ahead::Ahead;
use super::chunks;
use super::fit::{Fitted, fit};
use super::jobs::Task;
use super::problem::Problem;
use super::slices::Slice;
use super::supply::Stage;
use crate::batch::{Budget, Shape, layout, need, schedule};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Method, Options};

/// Told what part of a batch's work is done; its error ends the work.
pub(super) type Watch<'a> = dyn FnMut(f64) -> Result<()> + 'a;

/// One machine at work on the heads of a task.
pub(super) struct Work<'e, 't, E: Engine> {
    pub(super) engine: &'e mut E,
    pub(super) task: Task<'t>,
    /// The heads in memory.
    slice: Slice,
}

/// Curvature pairs that the method needs.
pub(super) fn history(options: &Options) -> u32 {
    if options.method == Method::Kvsculpt { options.history } else { 0 }
}

impl<'e, 't, E: Engine> Work<'e, 't, E> {
    pub(super) fn new(engine: &'e mut E, task: Task<'t>) -> Self {
        let slice = Slice::NONE;
        Self { engine, task, slice }
    }

    /// Does `work` slice by slice, on all chunks of a slice's heads, while the next slice is read where there is room for it; what it gives is put together in the order of heads. Heads that are
    /// `done` are left out.
    pub(super) fn in_slices<T>(
        &mut self,
        stage: Stage<'_>,
        done: &[bool],
        timings: &mut Timings,
        mut work: impl FnMut(&mut Self, &[Problem], &mut Timings) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let (engine, supply) = (&*self.engine, self.task.supply);
        let slices = supply.slices(stage, |shapes| scratch(engine, shapes))?;
        let open = |slice: &Slice| slice.heads.clone().filter(|&head| done.get(head) != Some(&true)).collect();
        let read = move |head| supply.read(head, stage);
        std::thread::scope(|scope| {
            let mut found = Vec::new();
            let mut ahead = None;
            for (slice, next) in slices.iter().zip(slices.iter().skip(1).map(Some).chain([None])) {
                tracing::debug!(heads = ?slice.heads, bytes = slice.bytes, ahead = slice.ahead, "slice");
                self.slice = slice.clone();
                let started = Instant::now();
                let reading = ahead
                    .take()
                    .unwrap_or_else(|| Ahead::start(scope, open(slice), supply.readers(slice, false), read));
                let mut heads = reading.all(|| self.go_on())?;
                timings.read += started.elapsed().as_secs_f64();
                let started = Instant::now();
                for chunks in &mut heads {
                    self.go_on()?;
                    chunks::introduce(self.engine, chunks, self.task.scale)?;
                }
                timings.teacher += started.elapsed().as_secs_f64();
                let problems: Vec<Problem> = heads.into_iter().flatten().collect();
                ahead = next
                    .filter(|_| slice.ahead > 0)
                    .map(|next| Ahead::start(scope, open(next), supply.readers(next, true), read));
                if !problems.is_empty() {
                    found.extend(work(self, &problems, timings)?);
                }
            }
            Ok(found)
        })
    }

    /// Asks whether to go on while heads are read, which may take long and has no share of its own in what is done.
    fn go_on(&mut self) -> Result<()> {
        let (task, before) = (&mut self.task, self.slice.heads.start);
        let fraction = task.stage.0 + task.stage.1 * before as f64 / task.supply.places.len() as f64;
        if task.audience.progress(if task.planning { 0 } else { before }, fraction) {
            Ok(())
        } else {
            Err(Error::Cancelled)
        }
    }

    /// Fits these heads and chunks, those that keep everything without any work. Each head is given to `finish` with its chunks as soon as
    /// all of them are fitted; what that gives is in the order of heads.
    pub(super) fn fit<T>(
        &mut self,
        problems: &[Problem],
        options: &Options,
        timings: &mut Timings,
        mut finish: impl FnMut(&mut Self, &[Problem], Vec<Fitted>, &mut Timings) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.task.supply.chunks.len();
        // What chunks of a head change add up.
        let options = &Options {
            tolerance: options.tolerance / count as f64,
            ..options.clone()
        };
        let mut fitted: Vec<Option<Fitted>> = problems
            .iter()
            .map(|problem| problem.is_whole().then(|| Fitted::whole(problem, options.method)))
            .collect();
        let mut finished: Vec<Option<T>> = problems.chunks(count).map(|_| None).collect();
        let mut finish_whole = |work: &mut Self, fitted: &mut [Option<Fitted>], timings: &mut Timings| {
            for (number, finished) in finished.iter_mut().enumerate() {
                let chunks = number * count..(number + 1) * count;
                if finished.is_none() && fitted[chunks.clone()].iter().all(Option::is_some) {
                    let found = fitted[chunks.clone()].iter_mut().filter_map(Option::take).collect();
                    *finished = Some(finish(work, &problems[chunks], found, timings)?);
                }
            }
            Ok(())
        };
        let open: Vec<usize> = (0..problems.len()).filter(|&head| fitted[head].is_none()).collect();
        let members: Vec<&Problem> = open.iter().map(|&head| &problems[head]).collect();
        let before = self.slice.heads.len() * count - open.len();
        finish_whole(self, &mut fitted, timings)?;
        let stage = |engine: &mut E, members: &[&Problem], scale, timings: &mut Timings, watch: &mut Watch<'_>| {
            fit(engine, members, scale, options, timings, watch)
        };
        self.in_batches(&members, history(options), before, timings, stage, |work, batch, found, timings| {
            for (&member, found) in batch.iter().zip(found) {
                fitted[open[member]] = Some(found);
            }
            finish_whole(work, &mut fitted, timings)
        })?;
        // Every chunk is whole or in exactly one batch, so no head is missing here.
        Ok(finished.into_iter().flatten().collect())
    }

    /// Does `stage` batch by batch, and gives what it found of a batch's problems to `hand_over`. `finished` problems of the slice are
    /// done before it.
    pub(super) fn in_batches<T>(
        &mut self,
        problems: &[&Problem],
        history: u32,
        finished: usize,
        timings: &mut Timings,
        mut stage: impl FnMut(&mut E, &[&Problem], f32, &mut Timings, &mut Watch<'_>) -> Result<Vec<T>>,
        mut hand_over: impl FnMut(&mut Self, &[usize], Vec<T>, &mut Timings) -> Result<()>,
    ) -> Result<()> {
        let shapes = problems.iter().map(|problem| problem.shape()).collect::<Result<Vec<Shape>>>()?;
        let budget = budget(&*self.engine, self.task.supply.memory, &self.slice);
        let engine = &*self.engine;
        let batches = schedule(&shapes, history, budget, |shapes| scratch(engine, shapes))?;
        let batches = no_larger(batches, self.task.at_once);
        let work: u64 = shapes.iter().map(Shape::work).sum::<u64>().max(1);
        let (mut done, mut work_done) = (finished, 0);
        let (heads, chunks) = (self.task.supply.places.len(), self.task.supply.chunks.len());
        // The slice's part of the stage, by its heads.
        let part = |count: usize| count as f64 / heads as f64 * self.task.stage.1;
        let (begin, share) = (self.task.stage.0 + part(self.slice.heads.start), part(self.slice.heads.len()));
        for batch in batches {
            let members: Vec<&Problem> = batch.iter().map(|&head| problems[head]).collect();
            let sizes = batch.iter().map(|&head| shapes[head]).collect::<Vec<_>>();
            tracing::debug!(
                heads = batch.len(),
                bytes = need(&sizes, history, scratch(self.engine, &sizes)),
                "batch"
            );
            let of_batch: u64 = sizes.iter().map(Shape::work).sum();
            let mut watch = |part: f64| {
                let fraction = (work_done as f64 + part * of_batch as f64) / work as f64;
                let finished = if self.task.planning {
                    0
                } else {
                    self.slice.heads.start + done / chunks
                };
                if self.task.audience.progress(finished, begin + share * fraction) {
                    Ok(())
                } else {
                    Err(Error::Cancelled)
                }
            };
            watch(0.0)?;
            let found = stage(self.engine, &members, self.task.scale, timings, &mut watch)?;
            hand_over(self, &batch, found, timings)?;
            done += batch.len();
            work_done += of_batch;
        }
        Ok(())
    }
}

/// The batches cut into pieces of at most so many heads.
pub(super) fn no_larger(batches: Vec<Vec<usize>>, at_once: Option<usize>) -> Vec<Vec<usize>> {
    let Some(most) = at_once else { return batches };
    let pieces = batches.iter().flat_map(|batch| batch.chunks(most.max(1)));
    pieces.map(<[usize]>::to_vec).collect()
}

/// What batches may take beside a slice and what is read ahead, of the memory there is for all.
pub(super) fn budget<E: Engine>(engine: &E, memory: Option<u64>, slice: &Slice) -> Budget {
    let array = engine.max_array_bytes();
    Budget {
        // A device does not say how much memory it has; its largest array is a cautious guess.
        total: match memory {
            Some(memory) => memory.saturating_sub(slice.bytes + slice.ahead),
            None => array.max(1 << 30),
        },
        array,
    }
}

/// Bytes of an engine's own for these heads.
pub(super) fn scratch<E: Engine>(engine: &E, shapes: &[Shape]) -> u64 {
    let heads = layout(shapes, |shape| (shape.training, shape.free));
    shapes.first().map_or(0, |shape| engine.scratch_bytes(shape.dims, &heads))
}
