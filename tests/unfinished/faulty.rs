//! An engine that fails when it is told to.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::{Dims, Engine, Evaluated, Evaluation, Exchange, Head, History, Uploader};
use kvsculpt::{Error, Result};

/// Makes arrays on another thread, for an engine that has them in the host's memory.
type Makes<A> = fn() -> Box<dyn Uploader<A> + Send>;

/// The CPU engine's arrays, made as a GPU's are: while it works.
pub(crate) fn by_cpu() -> Box<dyn Uploader<<CpuEngine as Engine>::Array> + Send> {
    struct ByCpu(CpuEngine);

    impl Uploader<<CpuEngine as Engine>::Array> for ByCpu {
        fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<<CpuEngine as Engine>::Array> {
            self.0.upload(label, data)
        }
    }

    Box::new(ByCpu(CpuEngine::new()))
}

/// What other threads have uploaded, and from which array on it fails.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) arrays: AtomicU64,
    pub(crate) fails_from: AtomicU64,
}

struct Failing<A> {
    uploader: Box<dyn Uploader<A> + Send>,
    ahead: Arc<Ahead>,
}

impl<A> Uploader<A> for Failing<A> {
    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<A> {
        let number = self.ahead.arrays.fetch_add(1, Ordering::Relaxed);
        if number >= self.ahead.fails_from.load(Ordering::Relaxed) {
            return Err(Error::OutOfMemory {
                label: label.into(),
                bytes: 4 * data.len() as u64,
                available: 0,
            });
        }
        self.uploader.upload(label, data)
    }
}

/// An engine whose device is lost at some operations, counted from 0 over all devices, and has room for arrays of so many floats.
pub(crate) struct Faulty<E: Engine> {
    engine: E,
    pub(crate) operations: u64,
    pub(crate) lost_at: Vec<u64>,
    /// Set from outside, it loses the device at the next operation.
    pub(crate) pull: Arc<AtomicBool>,
    pub(crate) room: usize,
    /// Arrays that were refused.
    pub(crate) refused: u64,
    /// Fresh devices so far.
    pub(crate) reopened: u64,
    /// Whether there is a fresh device to be had.
    pub(crate) opens: bool,
    /// Floats of the largest array that was asked for.
    pub(crate) largest: usize,
    /// Uploads from other threads, where there are any.
    pub(crate) makes: Option<Makes<E::Array>>,
    pub(crate) ahead: Arc<Ahead>,
    /// What it claims to need beside the caller's arrays, where that is not to depend on the processor's threads.
    pub(crate) scratch: Option<u64>,
    is_lost: bool,
}

impl<E: Engine> Faulty<E> {
    pub(crate) fn new(engine: E) -> Self {
        Self {
            engine,
            operations: 0,
            lost_at: Vec::new(),
            pull: Arc::default(),
            room: usize::MAX,
            refused: 0,
            reopened: 0,
            opens: true,
            largest: 0,
            makes: None,
            ahead: Arc::new(Ahead {
                arrays: AtomicU64::new(0),
                fails_from: AtomicU64::new(u64::MAX),
            }),
            scratch: None,
            is_lost: false,
        }
    }

    fn operation(&mut self) -> Result<()> {
        self.is_lost |= self.lost_at.contains(&self.operations) | self.pull.swap(false, Ordering::Relaxed);
        self.operations += 1;
        // Nothing works any more on a device that is gone.
        if self.is_lost {
            return Err(Error::DeviceLost("pulled out".into()));
        }
        Ok(())
    }

    fn allocate(&mut self, label: &'static str, len: usize) -> Result<()> {
        self.operation()?;
        self.largest = self.largest.max(len);
        if len > self.room {
            self.refused += 1;
            return Err(Error::OutOfMemory {
                label: label.into(),
                bytes: 4 * len as u64,
                available: 0,
            });
        }
        Ok(())
    }
}

impl<E: Engine> Engine for Faulty<E> {
    type Array = E::Array;
    type Table = E::Table;

    fn name(&self) -> String {
        self.engine.name()
    }

    fn max_array_bytes(&self) -> u64 {
        self.engine.max_array_bytes()
    }

    fn defers(&self) -> bool {
        self.engine.defers()
    }

    fn wait(&mut self) -> Result<()> {
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

    fn reopen(&mut self) -> Result<()> {
        if !self.opens {
            return Err(Error::NoAdapter("none left".into()));
        }
        self.reopened += 1;
        self.is_lost = false;
        Ok(())
    }

    fn scratch_bytes(&self, dims: Dims, heads: &[Head]) -> u64 {
        self.scratch.unwrap_or_else(|| self.engine.scratch_bytes(dims, heads))
    }

    fn table(&mut self, dims: Dims, heads: &[Head]) -> Result<E::Table> {
        self.operation()?;
        self.engine.table(dims, heads)
    }

    fn set_table(&mut self, table: &mut E::Table, heads: &[Head]) -> Result<()> {
        self.operation()?;
        self.engine.set_table(table, heads)
    }

    fn zeros(&mut self, label: &'static str, len: usize) -> Result<E::Array> {
        self.allocate(label, len)?;
        self.engine.zeros(label, len)
    }

    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<E::Array> {
        self.allocate(label, data.len())?;
        self.engine.upload(label, data)
    }

    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<E::Array> {
        self.allocate(label, data.len())?;
        self.engine.upload_compact(label, data)
    }

    fn uploader(&self) -> Option<Box<dyn Uploader<E::Array> + Send>> {
        let uploader = self.makes.map(|make| make()).or_else(|| self.engine.uploader())?;
        let ahead = Arc::clone(&self.ahead);
        Some(Box::new(Failing { uploader, ahead }))
    }

    fn write(&mut self, array: &mut E::Array, data: &[f32]) -> Result<()> {
        self.operation()?;
        self.engine.write(array, data)
    }

    fn read(&mut self, array: &E::Array) -> Result<Vec<f32>> {
        self.operation()?;
        self.engine.read(array)
    }

    fn copy_pairs(&mut self, table: &E::Table, width: u32, source: &E::Array, target: &mut E::Array) -> Result<()> {
        self.operation()?;
        self.engine.copy_pairs(table, width, source, target)
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's operation")]
    fn attention(
        &mut self,
        table: &E::Table,
        queries: &E::Array,
        keys: &E::Array,
        values: &E::Array,
        base: Option<&E::Array>,
        scale: f32,
        state: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine.attention(table, queries, keys, values, base, scale, state)
    }

    fn scores(
        &mut self,
        table: &E::Table,
        queries: &E::Array,
        keys: &E::Array,
        state: &E::Array,
        scale: f32,
        scores: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine.scores(table, queries, keys, state, scale, scores)
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's operation")]
    fn effects(
        &mut self,
        table: &E::Table,
        queries: &E::Array,
        keys: &E::Array,
        values: &E::Array,
        state: &E::Array,
        scale: f32,
        effects: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine.effects(table, queries, keys, values, state, scale, effects)
    }

    fn loss(
        &mut self,
        table: &E::Table,
        state: &E::Array,
        teacher: &E::Array,
        mass_weight: &E::Array,
        error: &mut E::Array,
        scalars: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine.loss(table, state, teacher, mass_weight, error, scalars)
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's operation")]
    fn key_gradient(
        &mut self,
        table: &E::Table,
        queries: &E::Array,
        keys: &E::Array,
        values: &E::Array,
        error: &E::Array,
        scale: f32,
        gradient: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine.key_gradient(table, queries, keys, values, error, scale, gradient)
    }

    fn evaluate(&mut self, table: &E::Table, inputs: &Evaluation<'_, E::Array>, outputs: Evaluated<'_, E::Array>) -> Result<()> {
        self.operation()?;
        self.engine.evaluate(table, inputs, outputs)
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's operation")]
    fn weights(
        &mut self,
        table: &E::Table,
        queries: &E::Array,
        keys: &E::Array,
        state: &E::Array,
        scale: f32,
        rows: Range<u32>,
        weights: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine.weights(table, queries, keys, state, scale, rows, weights)
    }

    fn gram(&mut self, table: &E::Table, weights: &E::Array, rows: Range<u32>, gram: &mut E::Array) -> Result<()> {
        self.operation()?;
        self.engine.gram(table, weights, rows, gram)
    }

    fn rhs(&mut self, table: &E::Table, weights: &E::Array, error: &E::Array, rows: Range<u32>, rhs: &mut E::Array) -> Result<()> {
        self.operation()?;
        self.engine.rhs(table, weights, error, rows, rhs)
    }

    fn cholesky(
        &mut self,
        table: &E::Table,
        gram: &E::Array,
        ridge: &E::Array,
        factor: &mut E::Array,
        scalars: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine.cholesky(table, gram, ridge, factor, scalars)
    }

    fn solve(&mut self, table: &E::Table, factor: &E::Array, rhs: &E::Array, anchor: &E::Array, values: &mut E::Array) -> Result<()> {
        self.operation()?;
        self.engine.solve(table, factor, rhs, anchor, values)
    }

    fn step(&mut self, table: &E::Table, origin: &E::Array, direction: &E::Array, lengths: &E::Array, trial: &mut E::Array) -> Result<()> {
        self.operation()?;
        self.engine.step(table, origin, direction, lengths, trial)
    }

    fn slope(&mut self, table: &E::Table, gradient: &E::Array, direction: &E::Array, scalars: &mut E::Array) -> Result<()> {
        self.operation()?;
        self.engine.slope(table, gradient, direction, scalars)
    }

    fn lbfgs_direction(
        &mut self,
        table: &E::Table,
        gradient: &E::Array,
        history: &History<E::Array>,
        direction: &mut E::Array,
        scalars: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine.lbfgs_direction(table, gradient, history, direction, scalars)
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's operation")]
    fn lbfgs_push(
        &mut self,
        table: &E::Table,
        lengths: &E::Array,
        direction: &E::Array,
        new_gradient: &E::Array,
        gradient: &mut E::Array,
        origin: &mut E::Array,
        history: &mut History<E::Array>,
        scalars: &mut E::Array,
    ) -> Result<()> {
        self.operation()?;
        self.engine
            .lbfgs_push(table, lengths, direction, new_gradient, gradient, origin, history, scalars)
    }
}
