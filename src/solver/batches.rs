//! Heads packed into batches that fit the machine, worked on one batch after the other.

use std::time::Instant;

use super::chunks;
use super::fit::{Fitted, fit};
use super::problem::Problem;
use super::supply::{Slice, Stage, Supply};
use super::{Observer, Timings};
use crate::batch::{Budget, Shape, layout, need, schedule};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Method, Options};

/// What every stage of a compression needs: the machine, the heads, the memory they may use, and who watches.
pub(super) struct Work<'a, E: Engine> {
    pub(super) engine: &'a mut E,
    pub(super) supply: &'a Supply<'a>,
    /// Bytes that slices and batches may take together.
    pub(super) memory: Option<u64>,
    pub(super) scale: f32,
    pub(super) observer: &'a mut dyn Observer,
    /// The part of all the work that the stage in hand is: where it begins and how much it is.
    pub(super) stage: (f64, f64),
    /// Whether lengths are still to be decided: no head is finished by such work.
    pub(super) planning: bool,
    /// The heads in memory.
    pub(super) slice: Slice,
}

/// Curvature pairs that the method needs.
pub(super) fn history(options: &Options) -> u32 {
    if options.method == Method::Kvsculpt { options.history } else { 0 }
}

impl<E: Engine> Work<'_, E> {
    /// Does `work` slice by slice, on all chunks of a slice's heads; what it gives is put together in the order of heads.
    pub(super) fn in_slices<T>(
        &mut self,
        stage: Stage<'_>,
        timings: &mut Timings,
        mut work: impl FnMut(&mut Self, &[Problem], &mut Timings) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let engine = &*self.engine;
        let slices = self.supply.slices(stage, |shapes| scratch(engine, shapes))?;
        let mut found = Vec::new();
        for slice in slices {
            tracing::debug!(heads = ?slice.heads, bytes = slice.bytes, "slice");
            self.slice = slice.clone();
            let mut problems = Vec::new();
            for head in slice.heads {
                let started = Instant::now();
                let mut chunks = self.supply.read(head, stage)?;
                timings.read += started.elapsed().as_secs_f64();
                let started = Instant::now();
                chunks::introduce(self.engine, &mut chunks, self.scale)?;
                timings.teacher += started.elapsed().as_secs_f64();
                problems.extend(chunks);
            }
            found.extend(work(self, &problems, timings)?);
        }
        Ok(found)
    }

    /// Fits these heads and chunks, those that keep everything without any work.
    pub(super) fn fit(&mut self, problems: &[Problem], options: &Options, timings: &mut Timings) -> Result<Vec<Fitted>> {
        // What chunks of a head change add up.
        let options = &Options {
            tolerance: options.tolerance / self.supply.chunks.len() as f64,
            ..options.clone()
        };
        let mut fitted: Vec<Option<Fitted>> = problems
            .iter()
            .map(|problem| problem.is_whole().then(|| Fitted::whole(problem, options.method)))
            .collect();
        let open: Vec<usize> = (0..problems.len()).filter(|&head| fitted[head].is_none()).collect();
        let members: Vec<&Problem> = open.iter().map(|&head| &problems[head]).collect();
        let whole = problems.len() - open.len();
        let found = self.in_batches(&members, history(options), whole, |engine, members, scale, watch| {
            fit(engine, members, scale, options, timings, watch)
        })?;
        for (head, found) in open.into_iter().zip(found) {
            fitted[head] = Some(found);
        }
        // Every head is whole or in exactly one batch, so none is missing here.
        Ok(fitted.into_iter().flatten().collect())
    }

    /// Does `stage` batch by batch; what it gives is in the problems' order. `finished` problems of the slice are done before it.
    pub(super) fn in_batches<T>(
        &mut self,
        problems: &[&Problem],
        history: u32,
        finished: usize,
        mut stage: impl FnMut(&mut E, &[&Problem], f32, &mut dyn FnMut(f64) -> Result<()>) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let shapes = problems.iter().map(|problem| problem.shape()).collect::<Result<Vec<Shape>>>()?;
        let budget = budget(&*self.engine, self.memory, &self.slice);
        let engine = &*self.engine;
        let batches = schedule(&shapes, history, budget, |shapes| scratch(engine, shapes))?;
        let work: u64 = shapes.iter().map(Shape::work).sum::<u64>().max(1);
        let mut found: Vec<Option<T>> = problems.iter().map(|_| None).collect();
        let (mut done, mut work_done) = (finished, 0);
        let (heads, chunks) = (self.supply.places.len(), self.supply.chunks.len());
        // The slice's part of the stage, by its heads.
        let part = |count: usize| count as f64 / heads as f64 * self.stage.1;
        let (begin, share) = (self.stage.0 + part(self.slice.heads.start), part(self.slice.heads.len()));
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
                let finished = if self.planning { 0 } else { self.slice.heads.start + done / chunks };
                if self.observer.progress(finished, heads, begin + share * fraction) {
                    Ok(())
                } else {
                    Err(Error::Cancelled)
                }
            };
            watch(0.0)?;
            for (head, outcome) in batch.iter().zip(stage(self.engine, &members, self.scale, &mut watch)?) {
                found[*head] = Some(outcome);
            }
            done += batch.len();
            work_done += of_batch;
        }
        Ok(found.into_iter().flatten().collect())
    }
}

/// What batches may take beside a slice, of the memory there is for both.
pub(super) fn budget<E: Engine>(engine: &E, memory: Option<u64>, slice: &Slice) -> Budget {
    let array = engine.max_array_bytes();
    Budget {
        // A device does not say how much memory it has; its largest array is a cautious guess.
        total: match memory {
            Some(memory) => memory.saturating_sub(slice.bytes),
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
