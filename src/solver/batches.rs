//! Heads packed into batches that fit the machine, worked on one batch after the other.

use std::sync::mpsc::Sender;
use std::time::Instant;

use super::Timings;
use super::ahead::Ahead;
use super::chunks;
use super::coming::{Coming, First, Uploading};
use super::fit::{Fitted, fit, timed};
use super::inputs::Inputs;
use super::jobs::Task;
use super::problem::Problem;
use super::slices::Slice;
use super::supply::{Stage, Supply};
use super::waves::{Beginning, Packing, Wave};
use crate::batch::{Budget, Shape, layout};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Method, Options};

/// Told what part of a batch's work is done; its error ends the work.
pub(super) type Watch<'a> = dyn FnMut(f64) -> Result<()> + 'a;

/// The problems of a batch, and what it begins with, if that is on the engine already.
pub(super) type Members<'a, E> = (&'a [&'a Problem], Option<Inputs<<E as Engine>::Array>>);

/// One machine at work on the heads of a task.
pub(super) struct Work<'e, 't, E: Engine> {
    pub(super) engine: &'e mut E,
    pub(super) task: Task<'t>,
    /// The heads in memory.
    slice: Slice,
    /// What the slice's first batch begins with, if that was uploaded.
    first: Option<Inputs<E::Array>>,
    /// What of the next slice waits for room.
    waiting: Option<Waiting>,
}

/// What waits for room: bytes of it, and what is dropped when it has.
struct Waiting {
    bytes: u64,
    _room: Sender<()>,
}

/// Heads of the next slice.
enum Next<A, R> {
    Read(Ahead<Vec<Problem>, R>),
    Uploaded(Coming<A>),
}

/// Curvature pairs that the method needs.
pub(super) fn history(options: &Options) -> u32 {
    if options.method == Method::Kvsculpt { options.history } else { 0 }
}

impl<'e, 't, E: Engine> Work<'e, 't, E> {
    pub(super) fn new(engine: &'e mut E, task: Task<'t>) -> Self {
        Self {
            engine,
            task,
            slice: Slice::NONE,
            first: None,
            waiting: None,
        }
    }

    /// Does `work` slice by slice, on all chunks of a slice's heads, while the next slice is read where there is room for it, and what its
    /// first batch begins with uploaded; what it gives is put together in the order of heads. Heads that are `done` are left out.
    pub(super) fn in_slices<T>(
        &mut self,
        stage: Stage<'_>,
        done: &[bool],
        timings: &mut Timings,
        mut work: impl FnMut(&mut Self, &[Problem], &mut Timings) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let (engine, supply) = (&*self.engine, self.task.supply);
        let slices = supply.slices(stage, |shapes| scratch(engine, shapes))?;
        let open = |slice: &Slice| {
            slice
                .heads
                .clone()
                .filter(|&head| done.get(head) != Some(&true))
                .collect::<Vec<usize>>()
        };
        let read = move |head| supply.read(head, stage);
        std::thread::scope(|scope| {
            let mut found = Vec::new();
            let mut coming = None;
            for (slice, next) in slices.iter().zip(slices.iter().skip(1).map(Some).chain([None])) {
                tracing::debug!(heads = ?slice.heads, bytes = slice.bytes, ahead = slice.ahead, "slice");
                self.slice = slice.clone();
                // The slice before is done, so there is room.
                self.waiting = None;
                let started = Instant::now();
                let (mut heads, first) = match coming.take() {
                    Some(Next::Uploaded(coming)) => Coming::all(coming, || self.go_on())?,
                    Some(Next::Read(reading)) => (reading.all(|| self.go_on())?, None),
                    None => {
                        let reading = Ahead::start(scope, open(slice), supply.readers(slice, false), read);
                        (reading.all(|| self.go_on())?, None)
                    }
                };
                self.first = first;
                timings.read += started.elapsed().as_secs_f64();
                let started = Instant::now();
                for chunks in &mut heads {
                    self.go_on()?;
                    chunks::introduce(self.engine, chunks, self.task.scale)?;
                }
                timings.teacher += started.elapsed().as_secs_f64();
                let problems: Vec<Problem> = heads.into_iter().flatten().collect();
                if let Some(next) = next.filter(|_| slice.ahead > 0) {
                    let first = self.first_of(next, &open(next), stage)?;
                    let reading = Ahead::start(scope, open(next), supply.readers(next, true), read);
                    coming = match first {
                        Some((first, bytes)) => Coming::start(scope, reading, first).map(|(coming, room)| {
                            self.waiting = Some(Waiting { bytes, _room: room });
                            Next::Uploaded(coming)
                        }),
                        None => Some(Next::Read(reading)),
                    };
                }
                if !problems.is_empty() {
                    found.extend(work(self, &problems, timings)?);
                }
            }
            Ok(found)
        })
    }

    /// The first batch of a slice that is still to be read, of which these heads are open, and bytes of what it begins with. What chunks
    /// know of each other is not among it: the engine tells them when they are there.
    fn first_of(&self, slice: &Slice, open: &[usize], stage: Stage<'_>) -> Result<Option<(First<E::Array>, u64)>> {
        let (engine, supply) = (&*self.engine, self.task.supply);
        let Some(by) = engine.uploader() else {
            return Ok(None);
        };
        let mut shapes = Vec::with_capacity(open.len());
        for &head in open {
            shapes.extend(supply.shapes(head, stage)?.into_iter().filter(|shape| stage.works_on(shape)));
        }
        // What does not fit says so when its time comes, and then the slices before it are finished.
        let waves = self
            .packing(slice, stage.history())
            .waves(&shapes, |shapes| scratch(engine, shapes));
        let Some(wave) = waves.unwrap_or_default().into_iter().next() else {
            return Ok(None);
        };
        let members: Vec<Shape> = wave.heads.iter().map(|&member| shapes[member]).collect();
        let first = First {
            by,
            members: wave.heads,
            is_open: match stage {
                Stage::Curves { .. } => |_| true,
                Stage::Fit { .. } => |problem| !problem.is_whole(),
            },
        };
        Ok(Some((first, Beginning::of(&members, false).bytes())))
    }

    fn packing(&self, slice: &Slice, history: u32) -> Packing {
        packing(&*self.engine, self.task.supply, self.task.at_once, slice, history)
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
        let stage = |engine: &mut E, members: Members<'_, E>, scale, timings: &mut Timings, watch: &mut Watch<'_>| {
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

    /// Does `stage` batch by batch, while what the next one begins with is uploaded where there is room, and gives what it found of a
    /// batch's problems to `hand_over`. `finished` problems of the slice are done before it.
    pub(super) fn in_batches<T>(
        &mut self,
        problems: &[&Problem],
        history: u32,
        finished: usize,
        timings: &mut Timings,
        mut stage: impl FnMut(&mut E, Members<'_, E>, f32, &mut Timings, &mut Watch<'_>) -> Result<Vec<T>>,
        mut hand_over: impl FnMut(&mut Self, &[usize], Vec<T>, &mut Timings) -> Result<()>,
    ) -> Result<()> {
        let shapes = problems.iter().map(|problem| problem.shape()).collect::<Result<Vec<Shape>>>()?;
        let packing = self.packing(&self.slice, history);
        let waves = packing.waves(&shapes, |shapes| scratch(&*self.engine, shapes))?;
        let work_of = |wave: &Wave| wave.heads.iter().map(|&head| shapes[head].work()).sum::<u64>();
        let work = waves.iter().map(work_of).sum::<u64>().max(1);
        let (mut done, mut work_done) = (finished, 0);
        let (heads, chunks) = (self.task.supply.places.len(), self.task.supply.chunks.len());
        // The slice's part of the stage, by its heads.
        let part = |count: usize| count as f64 / heads as f64 * self.task.stage.1;
        let (begin, share) = (self.task.stage.0 + part(self.slice.heads.start), part(self.slice.heads.len()));
        let members = |wave: &Wave| wave.heads.iter().map(|&head| problems[head]).collect::<Vec<&Problem>>();
        std::thread::scope(|scope| {
            let mut inputs = self.first.take();
            for (wave, next) in waves.iter().zip(waves.iter().skip(1).map(Some).chain([None])) {
                let of_batch = work_of(wave);
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
                let fits = |waiting: &Waiting| wave.bytes.saturating_add(waiting.bytes) <= packing.budget.total;
                if next.is_none() && self.waiting.as_ref().is_some_and(fits) {
                    self.waiting = None;
                }
                let uploading = next
                    .filter(|_| wave.ahead != Beginning::default())
                    .and_then(|next| Uploading::start(scope, self.engine.uploader()?, members(next)));
                let members = members(wave);
                let inputs_now = inputs.take().filter(|inputs| inputs.is_of(&members));
                let (bytes, ahead, is_uploaded) = (wave.bytes, wave.ahead.bytes(), inputs_now.is_some());
                tracing::debug!(heads = members.len(), bytes, ahead, is_uploaded, "batch");
                let found = stage(self.engine, (&members, inputs_now), self.task.scale, timings, &mut watch)?;
                hand_over(self, &wave.heads, found, timings)?;
                done += wave.heads.len();
                work_done += of_batch;
                if let Some(uploading) = uploading {
                    inputs = timed(&mut timings.teacher, || Ok(uploading.finish()))?;
                }
            }
            Ok(())
        })
    }
}

/// How the heads of a slice are packed into batches.
pub(super) fn packing<E: Engine>(engine: &E, supply: &Supply<'_>, at_once: Option<usize>, slice: &Slice, history: u32) -> Packing {
    Packing {
        history,
        budget: budget(engine, supply.memory, slice),
        at_once,
        chunks: supply.chunks.len() > 1,
        uploads: engine.uploader().is_some(),
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
