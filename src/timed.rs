//! An engine that is watched: how long its operations take and what goes to and from the machine.

mod ahead;
mod rounds;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::engine::{Dims, Engine, Evaluated, Evaluation, Exchange, Head, History, Uploader};
use crate::error::Result;

pub use rounds::Rounds;

use ahead::{Counted, Counts};

/// What one kernel or one operation cost.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{cpu::CpuEngine, engine::Engine, timed::{Cost, Timed}};
///
/// let mut engine = CpuEngine::new();
/// let mut timed = Timed::new(&mut engine);
/// timed.zeros("states", 8)?;
/// let costs: Vec<Cost> = timed.costs();
/// assert!(costs.iter().all(|cost| cost.calls == 1 && cost.seconds >= 0.0));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Cost {
    /// The kernel, or the operation of [`Engine`].
    pub name: &'static str,
    /// How often it ran.
    pub calls: u64,
    /// Seconds, all calls together: on the device for a kernel, on the clock for an operation.
    pub seconds: f64,
}

/// What went to the machine and came back.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{cpu::CpuEngine, engine::Engine, timed::Timed};
///
/// let mut engine = CpuEngine::new();
/// let mut timed = Timed::new(&mut engine);
/// let array = timed.upload("keys", &[1.0, 2.0, 3.0])?;
/// timed.read(&array)?;
/// let traffic = timed.traffic();
/// assert_eq!((traffic.writes, traffic.bytes_written, traffic.reads, traffic.bytes_read), (1, 12, 1, 12));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Arrays read back.
    pub reads: u64,
    /// Bytes read back.
    pub bytes_read: u64,
    /// Arrays uploaded or overwritten; tables not counted.
    pub writes: u64,
    /// Bytes of those, as f32.
    pub bytes_written: u64,
    /// Those of the arrays that were uploaded while the machine worked on others.
    pub writes_ahead: u64,
    /// Bytes of those, as f32.
    pub bytes_ahead: u64,
    /// Evaluations of loss and gradient, every batch's as one.
    pub evaluations: u64,
    /// Portions of work handed to a GPU.
    pub submissions: u64,
    /// What of it the rounds of key steps took.
    pub rounds: Rounds,
}

impl Traffic {
    /// Adds that of another machine.
    pub(crate) fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.bytes_read += other.bytes_read;
        self.writes += other.writes;
        self.bytes_written += other.bytes_written;
        self.writes_ahead += other.writes_ahead;
        self.bytes_ahead += other.bytes_ahead;
        self.evaluations += other.evaluations;
        self.submissions += other.submissions;
        self.rounds.add(&other.rounds);
    }
}

/// An engine whose operations are counted and timed by the clock.
///
/// Where an engine defers work, as a GPU does, an operation's time is only that of handing it over, and the time of
/// [`Engine::read`] that of the work: there kernels are to be timed by the device ([`Gpu::enable_timings`](crate::gpu::Gpu::enable_timings)).
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::compress, timed::Timed};
///
/// let mut engine = CpuEngine::new();
/// let mut timed = Timed::new(&mut engine);
/// compress(&mut timed, &capture, &request, &mut ())?;
/// assert!(timed.costs().iter().any(|cost| cost.name == "attention"));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Timed<'a, E> {
    engine: &'a mut E,
    sums: BTreeMap<&'static str, (u64, f64)>,
    traffic: Traffic,
    /// What other threads have uploaded.
    ahead: Arc<Counts>,
    /// What had gone to and fro when the round in hand began.
    round: Option<Exchange>,
}

impl<'a, E: Engine> Timed<'a, E> {
    /// Watches an engine from here on.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::Engine, timed::Timed};
    ///
    /// let mut engine = CpuEngine::new();
    /// let timed = Timed::new(&mut engine);
    /// // It is the engine in all else.
    /// assert_eq!(timed.name(), CpuEngine::new().name());
    /// # }
    /// ```
    pub fn new(engine: &'a mut E) -> Self {
        Self {
            engine,
            sums: BTreeMap::new(),
            traffic: Traffic::default(),
            ahead: Arc::default(),
            round: None,
        }
    }

    /// What has gone to and fro so far: as the engine counts it, or where it does not, as it is seen here.
    fn so_far(&self) -> Exchange {
        let counted = self.engine.exchanged();
        if counted != Exchange::default() {
            return counted;
        }
        Exchange {
            submissions: 0,
            reads: self.traffic.reads,
            bytes_read: self.traffic.bytes_read,
            writes: self.traffic.writes,
            bytes_written: self.traffic.bytes_written,
        }
    }

    /// What each operation took by the clock, the dearest first.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}, timed::Timed};
    ///
    /// let mut engine = CpuEngine::new();
    /// let mut timed = Timed::new(&mut engine);
    /// let table = timed.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// let source = timed.upload("source", &[1.0; 4])?;
    /// let mut target = timed.zeros("target", 4)?;
    /// timed.copy_pairs(&table, 4, &source, &mut target)?;
    /// assert!(timed.costs().iter().any(|cost| cost.name == "copy_pairs" && cost.calls == 1));
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn costs(&self) -> Vec<Cost> {
        dearest_first(self.sums.iter().map(|(&name, &(calls, seconds))| Cost { name, calls, seconds }))
    }

    /// What went to the engine and came back; submissions are not known here.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::Engine, timed::Timed};
    ///
    /// let mut engine = CpuEngine::new();
    /// let mut timed = Timed::new(&mut engine);
    /// timed.upload("queries", &[0.0; 100])?;
    /// assert_eq!(timed.traffic().bytes_written, 400);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.ahead.added_to(self.traffic)
    }

    fn time<T>(&mut self, name: &'static str, operation: impl FnOnce(&mut E) -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let outcome = operation(self.engine);
        let sum = self.sums.entry(name).or_default();
        sum.0 += 1;
        sum.1 += started.elapsed().as_secs_f64();
        outcome
    }

    fn count_write(&mut self, floats: usize) {
        self.traffic.writes += 1;
        self.traffic.bytes_written += 4 * floats as u64;
    }
}

/// Costs in the order they are told in.
pub(crate) fn dearest_first(costs: impl Iterator<Item = Cost>) -> Vec<Cost> {
    let mut costs: Vec<Cost> = costs.collect();
    costs.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    costs
}

impl<E: Engine> Engine for Timed<'_, E> {
    type Array = E::Array;
    type Table = E::Table;

    fn name(&self) -> String {
        self.engine.name()
    }

    fn max_array_bytes(&self) -> u64 {
        self.engine.max_array_bytes()
    }

    fn reopen(&mut self) -> Result<()> {
        self.round = None;
        self.engine.reopen()
    }

    fn scratch_bytes(&self, dims: Dims, heads: &[Head]) -> u64 {
        self.engine.scratch_bytes(dims, heads)
    }

    fn table(&mut self, dims: Dims, heads: &[Head]) -> Result<E::Table> {
        self.engine.table(dims, heads)
    }

    fn set_table(&mut self, table: &mut E::Table, heads: &[Head]) -> Result<()> {
        self.engine.set_table(table, heads)
    }

    fn zeros(&mut self, label: &'static str, len: usize) -> Result<E::Array> {
        self.time("zeros", |engine| engine.zeros(label, len))
    }

    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<E::Array> {
        self.count_write(data.len());
        self.time("upload", |engine| engine.upload(label, data))
    }

    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<E::Array> {
        self.count_write(data.len());
        self.time("upload", |engine| engine.upload_compact(label, data))
    }

    fn uploader(&self) -> Option<Box<dyn Uploader<E::Array> + Send>> {
        let uploader = self.engine.uploader()?;
        Some(Box::new(Counted::new(uploader, Arc::clone(&self.ahead))))
    }

    fn write(&mut self, array: &mut E::Array, data: &[f32]) -> Result<()> {
        self.count_write(data.len());
        self.time("write", |engine| engine.write(array, data))
    }

    fn read(&mut self, array: &E::Array) -> Result<Vec<f32>> {
        let data = self.time("read", |engine| engine.read(array))?;
        self.traffic.reads += 1;
        self.traffic.bytes_read += 4 * data.len() as u64;
        Ok(data)
    }

    fn defers(&self) -> bool {
        self.engine.defers()
    }

    fn wait(&mut self) -> Result<()> {
        self.time("wait", Engine::wait)
    }

    fn exchanged(&self) -> Exchange {
        self.engine.exchanged()
    }

    fn take_peak_bytes(&mut self) -> Option<u64> {
        self.engine.take_peak_bytes()
    }

    fn round_begins(&mut self) {
        self.round = Some(self.so_far());
        self.engine.round_begins();
    }

    fn round_ends(&mut self) {
        self.engine.round_ends();
        let now = self.so_far();
        if let Some(before) = self.round.take() {
            self.traffic.rounds.push(now.with(before, |now, before| now - before));
        }
    }

    fn copy_pairs(&mut self, table: &E::Table, width: u32, source: &E::Array, target: &mut E::Array) -> Result<()> {
        self.time("copy_pairs", |engine| engine.copy_pairs(table, width, source, target))
    }

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
        self.time("attention", |engine| {
            engine.attention(table, queries, keys, values, base, scale, state)
        })
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
        self.time("scores", |engine| engine.scores(table, queries, keys, state, scale, scores))
    }

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
        self.time("effects", |engine| {
            engine.effects(table, queries, keys, values, state, scale, effects)
        })
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
        self.time("loss", |engine| engine.loss(table, state, teacher, mass_weight, error, scalars))
    }

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
        self.time("key_gradient", |engine| {
            engine.key_gradient(table, queries, keys, values, error, scale, gradient)
        })
    }

    fn evaluate(&mut self, table: &E::Table, inputs: &Evaluation<'_, E::Array>, outputs: Evaluated<'_, E::Array>) -> Result<()> {
        self.traffic.evaluations += 1;
        self.time("evaluate", |engine| engine.evaluate(table, inputs, outputs))
    }

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
        self.time("weights", |engine| {
            engine.weights(table, queries, keys, state, scale, rows, weights)
        })
    }

    fn gram(&mut self, table: &E::Table, weights: &E::Array, rows: Range<u32>, gram: &mut E::Array) -> Result<()> {
        self.time("gram", |engine| engine.gram(table, weights, rows, gram))
    }

    fn rhs(&mut self, table: &E::Table, weights: &E::Array, error: &E::Array, rows: Range<u32>, rhs: &mut E::Array) -> Result<()> {
        self.time("rhs", |engine| engine.rhs(table, weights, error, rows, rhs))
    }

    fn cholesky(
        &mut self,
        table: &E::Table,
        gram: &E::Array,
        ridge: &E::Array,
        factor: &mut E::Array,
        scalars: &mut E::Array,
    ) -> Result<()> {
        self.time("cholesky", |engine| engine.cholesky(table, gram, ridge, factor, scalars))
    }

    fn solve(&mut self, table: &E::Table, factor: &E::Array, rhs: &E::Array, anchor: &E::Array, values: &mut E::Array) -> Result<()> {
        self.time("solve", |engine| engine.solve(table, factor, rhs, anchor, values))
    }

    fn step(&mut self, table: &E::Table, origin: &E::Array, direction: &E::Array, lengths: &E::Array, trial: &mut E::Array) -> Result<()> {
        self.time("step", |engine| engine.step(table, origin, direction, lengths, trial))
    }

    fn slope(&mut self, table: &E::Table, gradient: &E::Array, direction: &E::Array, scalars: &mut E::Array) -> Result<()> {
        self.time("slope", |engine| engine.slope(table, gradient, direction, scalars))
    }

    fn lbfgs_direction(
        &mut self,
        table: &E::Table,
        gradient: &E::Array,
        history: &History<E::Array>,
        direction: &mut E::Array,
        scalars: &mut E::Array,
    ) -> Result<()> {
        self.time("lbfgs_direction", |engine| {
            engine.lbfgs_direction(table, gradient, history, direction, scalars)
        })
    }

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
        self.time("lbfgs_push", |engine| {
            engine.lbfgs_push(table, lengths, direction, new_gradient, gradient, origin, history, scalars)
        })
    }
}
