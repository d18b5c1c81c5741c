//! Heads packed into batches that fit the machine, worked on one batch after the other.

use super::fit::{Fitted, fit};
use super::problem::Problem;
use super::{Observer, Request, Timings};
use crate::batch::{Budget, Shape, Workspace, layout, schedule};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Method, Options};

/// What every stage of a compression needs: the machine, the memory it may use, and who watches.
pub(super) struct Work<'a, E: Engine> {
    pub(super) engine: &'a mut E,
    pub(super) request: &'a Request,
    pub(super) scale: f32,
    pub(super) observer: &'a mut dyn Observer,
    /// The part of all the work that the stage in hand is: where it begins and how much it is.
    pub(super) stage: (f64, f64),
    /// Whether lengths are still to be decided: no head is finished by such work.
    pub(super) planning: bool,
    /// Heads of the whole request.
    pub(super) heads: usize,
    /// Bytes a number is stored in, by layer.
    pub(super) number_bytes: Vec<(usize, u64)>,
}

impl<E: Engine> Work<'_, E> {
    /// Bytes of a stored pair of this head.
    pub(super) fn pair_bytes(&self, problem: &Problem) -> u64 {
        let known = self.number_bytes.iter().find(|(layer, _)| *layer == problem.layer);
        let number = known.map_or(4, |&(_, bytes)| bytes);
        let bias = if problem.constant.is_some() { 4 } else { 0 };
        number * (problem.key_dim as u64 + u64::from(problem.dims.value_dim)) + bias
    }

    /// Fits these heads, those that keep everything without any work.
    pub(super) fn fit(&mut self, problems: &[&Problem], options: &Options, timings: &mut Timings) -> Result<Vec<Fitted>> {
        let history = if options.method == Method::Kvsculpt { options.history } else { 0 };
        let mut fitted: Vec<Option<Fitted>> = problems
            .iter()
            .map(|problem| problem.is_whole().then(|| Fitted::whole(problem, options.method)))
            .collect();
        let open: Vec<usize> = (0..problems.len()).filter(|&head| fitted[head].is_none()).collect();
        let members: Vec<&Problem> = open.iter().map(|&head| problems[head]).collect();
        let whole = problems.len() - open.len();
        let found = self.in_batches(&members, history, whole, |engine, members, scale, watch| {
            fit(engine, members, scale, options, timings, watch)
        })?;
        for (head, found) in open.into_iter().zip(found) {
            fitted[head] = Some(found);
        }
        // Every head is whole or in exactly one batch, so none is missing here.
        Ok(fitted.into_iter().flatten().collect())
    }

    /// Does `stage` batch by batch; what it gives is in the problems' order. `finished` heads of the request are done before it.
    pub(super) fn in_batches<T>(
        &mut self,
        problems: &[&Problem],
        history: u32,
        finished: usize,
        mut stage: impl FnMut(&mut E, &[&Problem], f32, &mut dyn FnMut(f64) -> Result<()>) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let shapes = problems.iter().map(|problem| problem.shape()).collect::<Result<Vec<Shape>>>()?;
        let array = self.engine.max_array_bytes();
        let budget = Budget {
            // A device does not say how much memory it has; its largest array is a cautious guess.
            total: self.request.memory.unwrap_or(array.max(1 << 30)),
            array,
        };
        let engine = &*self.engine;
        let scratch = |shapes: &[Shape]| {
            let heads = layout(shapes, |shape| (shape.training, shape.free));
            shapes.first().map_or(0, |shape| engine.scratch_bytes(shape.dims, &heads))
        };
        let batches = schedule(&shapes, history, budget, scratch)?;
        let work: u64 = shapes.iter().map(Shape::work).sum::<u64>().max(1);
        let mut found: Vec<Option<T>> = problems.iter().map(|_| None).collect();
        let (mut heads_done, mut work_done) = (finished, 0);
        let (begin, share) = self.stage;
        for batch in batches {
            let members: Vec<&Problem> = batch.iter().map(|&head| problems[head]).collect();
            let sizes = batch.iter().map(|&head| shapes[head]).collect::<Vec<_>>();
            tracing::debug!(heads = batch.len(), bytes = Workspace::new(&sizes, history).bytes(), "batch");
            let of_batch: u64 = sizes.iter().map(Shape::work).sum();
            let mut watch = |part: f64| {
                let fraction = (work_done as f64 + part * of_batch as f64) / work as f64;
                let heads_done = if self.planning { 0 } else { heads_done };
                if self.observer.progress(heads_done, self.heads, begin + share * fraction) {
                    Ok(())
                } else {
                    Err(Error::Cancelled)
                }
            };
            watch(0.0)?;
            for (head, outcome) in batch.iter().zip(stage(self.engine, &members, self.scale, &mut watch)?) {
                found[*head] = Some(outcome);
            }
            heads_done += batch.len();
            work_done += of_batch;
        }
        Ok(found.into_iter().flatten().collect())
    }
}
