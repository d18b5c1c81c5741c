//! An engine whose operations are done in portions: cut by heads so that each is short, and none begun without leave.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::gate::{Answer, Gate};
use super::pace::Pace;
use super::table::Table;
use crate::engine::{Dims, Engine, Evaluated, Evaluation, Exchange, Head, History, Uploader, WEIGHT_ROWS};
use crate::error::Result;

/// Operations handed over and not waited for: however little is foretold of them.
const MOST_PENDING: usize = 256;

/// An engine behind a gate.
///
/// A batch gives what its heads give alone, and heads that are not in a table are not touched; so an operation on a table is the
/// same, bit for bit, as one on each part of it.
#[derive(Debug)]
pub(super) struct Portions<'a, E> {
    engine: &'a mut E,
    gate: Arc<Gate>,
    pace: Pace,
    pending: Pending,
}

/// What was handed over to an engine that defers work, since all was done.
#[derive(Debug, Default)]
struct Pending {
    operations: Vec<&'static str>,
    /// Seconds foretold of them.
    foretold: f64,
    since: Option<Instant>,
}

impl<'a, E: Engine> Portions<'a, E> {
    pub(super) fn new(engine: &'a mut E, gate: Arc<Gate>) -> Self {
        Self {
            engine,
            gate,
            pace: Pace::default(),
            pending: Pending::default(),
        }
    }

    /// Does an operation on a table, part by part. `work` says how much it is for a head.
    fn by_parts(
        &mut self,
        operation: &'static str,
        table: &Table<E::Table>,
        work: impl Fn(&Head) -> f64,
        mut run: impl FnMut(&mut E, &E::Table) -> Result<()>,
    ) -> Result<()> {
        if table.heads.is_empty() {
            return Ok(());
        }
        let work: Vec<f64> = table.heads.iter().map(work).collect();
        let ranges = self.pace.cut(operation, &work, self.gate.portion());
        let mut parts = table.parts.borrow_mut();
        let parts = parts.of_cut(self.engine, table, &ranges)?;
        for (range, part) in ranges.into_iter().zip(parts) {
            self.portion(operation, work[range].iter().sum(), |engine| run(engine, part))?;
        }
        Ok(())
    }

    /// Runs one portion as soon as there is leave for it, and learns from how long it takes.
    fn portion<T>(&mut self, operation: &'static str, work: f64, run: impl FnOnce(&mut E) -> Result<T>) -> Result<T> {
        let foretold = self.pace.foretell(operation, work);
        if foretold.is_none() || self.pending.operations.len() >= MOST_PENDING {
            self.settle()?;
        }
        let seconds = foretold.unwrap_or(0.0);
        while self
            .gate
            .pass(self.pending.foretold + seconds, self.pending.operations.is_empty())?
            == Answer::Settle
        {
            self.settle()?;
        }
        let started = Instant::now();
        let outcome = run(self.engine)?;
        match foretold {
            Some(seconds) if self.engine.defers() => {
                self.pending.operations.push(operation);
                self.pending.foretold += seconds;
                self.pending.since.get_or_insert(started);
            }
            _ => {
                self.engine.wait()?;
                self.pace.measured(operation, work, started.elapsed().as_secs_f64());
            }
        }
        Ok(outcome)
    }

    /// Waits until all that was handed over is done.
    fn settle(&mut self) -> Result<()> {
        if !self.pending.operations.is_empty() {
            self.engine.wait()?;
        }
        self.learn();
        Ok(())
    }

    /// Learns from what was handed over, all of which is done.
    fn learn(&mut self) {
        let Pending {
            operations,
            foretold,
            since,
        } = mem::take(&mut self.pending);
        if let Some(since) = since {
            self.pace.corrected(&operations, foretold, since.elapsed().as_secs_f64());
        }
    }
}

/// Rows times pairs.
fn weights(head: &Head) -> f64 {
    f64::from(head.rows) * f64::from(head.pairs)
}

/// Elements of the head's pairs at `width` floats each.
fn elements(head: &Head, width: u32) -> f64 {
    f64::from(head.pairs) * f64::from(width)
}

/// Channels of keys, and of values.
fn channels(dims: Dims) -> (f64, f64) {
    (f64::from(dims.dim), f64::from(dims.value_dim))
}

/// The part of a head's rows that is in this block.
fn in_block(head: &Head, rows: &Range<u32>) -> f64 {
    f64::from(rows.end.min(head.rows).saturating_sub(rows.start).min(WEIGHT_ROWS))
}

impl<E: Engine> Engine for Portions<'_, E> {
    type Array = E::Array;
    type Table = Table<E::Table>;

    fn name(&self) -> String {
        self.engine.name()
    }

    fn max_array_bytes(&self) -> u64 {
        self.engine.max_array_bytes()
    }

    fn reopen(&mut self) -> Result<()> {
        // Its kernels are compiled anew, in portions whose length is not known.
        (self.pace, self.pending) = (Pace::default(), Pending::default());
        self.engine.reopen()
    }

    fn scratch_bytes(&self, dims: Dims, heads: &[Head]) -> u64 {
        self.engine.scratch_bytes(dims, heads)
    }

    fn table(&mut self, dims: Dims, heads: &[Head]) -> Result<Self::Table> {
        Table::new(self.engine, dims, heads)
    }

    fn set_table(&mut self, table: &mut Self::Table, heads: &[Head]) -> Result<()> {
        table.set(heads);
        Ok(())
    }

    fn zeros(&mut self, label: &'static str, len: usize) -> Result<E::Array> {
        self.portion("zeros", len as f64, |engine| engine.zeros(label, len))
    }

    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<E::Array> {
        self.portion("upload", data.len() as f64, |engine| engine.upload(label, data))
    }

    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<E::Array> {
        self.portion("upload_compact", data.len() as f64, |engine| engine.upload_compact(label, data))
    }

    fn uploader(&self) -> Option<Box<dyn Uploader<E::Array> + Send>> {
        // On another thread it would be at the device without leave.
        None
    }

    fn write(&mut self, array: &mut E::Array, data: &[f32]) -> Result<()> {
        self.portion("write", data.len() as f64, |engine| engine.write(array, data))
    }

    fn read(&mut self, array: &E::Array) -> Result<Vec<f32>> {
        // How much it is shows only then, and most reads are small.
        let data = self.portion("read", 1.0, |engine| engine.read(array))?;
        self.learn();
        Ok(data)
    }

    fn defers(&self) -> bool {
        self.engine.defers()
    }

    fn wait(&mut self) -> Result<()> {
        self.settle()?;
        self.engine.wait()
    }

    fn exchanged(&self) -> Exchange {
        self.engine.exchanged()
    }

    fn take_peak_bytes(&mut self) -> Option<u64> {
        self.engine.take_peak_bytes()
    }

    fn round_begins(&mut self) {
        self.engine.round_begins();
    }

    fn round_ends(&mut self) {
        self.engine.round_ends();
    }

    fn copy_pairs(&mut self, table: &Self::Table, width: u32, source: &E::Array, target: &mut E::Array) -> Result<()> {
        let work = |head: &Head| elements(head, width);
        self.by_parts("copy_pairs", table, work, |engine, part| {
            engine.copy_pairs(part, width, source, target)
        })
    }

    fn attention(
        &mut self,
        table: &Self::Table,
        queries: &E::Array,
        keys: &E::Array,
        values: &E::Array,
        base: Option<&E::Array>,
        scale: f32,
        state: &mut E::Array,
    ) -> Result<()> {
        let (dim, value_dim) = channels(table.dims);
        let work = |head: &Head| weights(head) * (dim + value_dim);
        self.by_parts("attention", table, work, |engine, part| {
            engine.attention(part, queries, keys, values, base, scale, state)
        })
    }

    fn scores(
        &mut self,
        table: &Self::Table,
        queries: &E::Array,
        keys: &E::Array,
        state: &E::Array,
        scale: f32,
        scores: &mut E::Array,
    ) -> Result<()> {
        let work = |head: &Head| weights(head) * channels(table.dims).0;
        self.by_parts("scores", table, work, |engine, part| {
            engine.scores(part, queries, keys, state, scale, scores)
        })
    }

    fn effects(
        &mut self,
        table: &Self::Table,
        queries: &E::Array,
        keys: &E::Array,
        values: &E::Array,
        state: &E::Array,
        scale: f32,
        effects: &mut E::Array,
    ) -> Result<()> {
        let (dim, value_dim) = channels(table.dims);
        let work = |head: &Head| weights(head) * (dim + value_dim);
        self.by_parts("effects", table, work, |engine, part| {
            engine.effects(part, queries, keys, values, state, scale, effects)
        })
    }

    fn loss(
        &mut self,
        table: &Self::Table,
        state: &E::Array,
        teacher: &E::Array,
        mass_weight: &E::Array,
        error: &mut E::Array,
        scalars: &mut E::Array,
    ) -> Result<()> {
        let work = |head: &Head| f64::from(head.rows) * f64::from(table.dims.state_row());
        self.by_parts("loss", table, work, |engine, part| {
            engine.loss(part, state, teacher, mass_weight, error, scalars)
        })
    }

    fn key_gradient(
        &mut self,
        table: &Self::Table,
        queries: &E::Array,
        keys: &E::Array,
        values: &E::Array,
        error: &E::Array,
        scale: f32,
        gradient: &mut E::Array,
    ) -> Result<()> {
        let (dim, value_dim) = channels(table.dims);
        let work = |head: &Head| weights(head) * (2.0 * dim + value_dim);
        self.by_parts("key_gradient", table, work, |engine, part| {
            engine.key_gradient(part, queries, keys, values, error, scale, gradient)
        })
    }

    fn evaluate(&mut self, table: &Self::Table, inputs: &Evaluation<'_, E::Array>, outputs: Evaluated<'_, E::Array>) -> Result<()> {
        let (dim, value_dim) = channels(table.dims);
        let work = |head: &Head| weights(head) * (3.0 * dim + 2.0 * value_dim);
        self.by_parts("evaluate", table, work, |engine, part| {
            let outputs = Evaluated {
                state: &mut *outputs.state,
                error: &mut *outputs.error,
                gradient: &mut *outputs.gradient,
                scalars: &mut *outputs.scalars,
            };
            engine.evaluate(part, inputs, outputs)
        })
    }

    fn weights(
        &mut self,
        table: &Self::Table,
        queries: &E::Array,
        keys: &E::Array,
        state: &E::Array,
        scale: f32,
        rows: Range<u32>,
        weights: &mut E::Array,
    ) -> Result<()> {
        let work = |head: &Head| in_block(head, &rows) * elements(head, table.dims.dim);
        self.by_parts("weights", table, work, |engine, part| {
            engine.weights(part, queries, keys, state, scale, rows.clone(), weights)
        })
    }

    fn gram(&mut self, table: &Self::Table, weights: &E::Array, rows: Range<u32>, gram: &mut E::Array) -> Result<()> {
        let work = |head: &Head| in_block(head, &rows) * elements(head, head.pairs);
        self.by_parts("gram", table, work, |engine, part| engine.gram(part, weights, rows.clone(), gram))
    }

    fn rhs(&mut self, table: &Self::Table, weights: &E::Array, error: &E::Array, rows: Range<u32>, rhs: &mut E::Array) -> Result<()> {
        let work = |head: &Head| in_block(head, &rows) * elements(head, table.dims.value_dim);
        self.by_parts("rhs", table, work, |engine, part| {
            engine.rhs(part, weights, error, rows.clone(), rhs)
        })
    }

    fn cholesky(
        &mut self,
        table: &Self::Table,
        gram: &E::Array,
        ridge: &E::Array,
        factor: &mut E::Array,
        scalars: &mut E::Array,
    ) -> Result<()> {
        let work = |head: &Head| f64::from(head.pairs).powi(3) / 3.0;
        self.by_parts("cholesky", table, work, |engine, part| {
            engine.cholesky(part, gram, ridge, factor, scalars)
        })
    }

    fn solve(&mut self, table: &Self::Table, factor: &E::Array, rhs: &E::Array, anchor: &E::Array, values: &mut E::Array) -> Result<()> {
        let work = |head: &Head| elements(head, head.pairs) * 2.0 * channels(table.dims).1;
        self.by_parts("solve", table, work, |engine, part| engine.solve(part, factor, rhs, anchor, values))
    }

    fn step(
        &mut self,
        table: &Self::Table,
        origin: &E::Array,
        direction: &E::Array,
        lengths: &E::Array,
        trial: &mut E::Array,
    ) -> Result<()> {
        let work = |head: &Head| elements(head, table.dims.dim);
        self.by_parts("step", table, work, |engine, part| {
            engine.step(part, origin, direction, lengths, trial)
        })
    }

    fn slope(&mut self, table: &Self::Table, gradient: &E::Array, direction: &E::Array, scalars: &mut E::Array) -> Result<()> {
        let work = |head: &Head| elements(head, table.dims.dim);
        self.by_parts("slope", table, work, |engine, part| {
            engine.slope(part, gradient, direction, scalars)
        })
    }

    fn lbfgs_direction(
        &mut self,
        table: &Self::Table,
        gradient: &E::Array,
        history: &History<E::Array>,
        direction: &mut E::Array,
        scalars: &mut E::Array,
    ) -> Result<()> {
        let work = |head: &Head| elements(head, table.dims.dim) * f64::from(4 * history.capacity + 1);
        self.by_parts("lbfgs_direction", table, work, |engine, part| {
            engine.lbfgs_direction(part, gradient, history, direction, scalars)
        })
    }

    fn lbfgs_push(
        &mut self,
        table: &Self::Table,
        lengths: &E::Array,
        direction: &E::Array,
        new_gradient: &E::Array,
        gradient: &mut E::Array,
        origin: &mut E::Array,
        history: &mut History<E::Array>,
        scalars: &mut E::Array,
    ) -> Result<()> {
        let work = |head: &Head| elements(head, table.dims.dim);
        self.by_parts("lbfgs_push", table, work, |engine, part| {
            engine.lbfgs_push(part, lengths, direction, new_gradient, gradient, origin, history, scalars)
        })
    }
}
