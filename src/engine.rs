//! The trait between the method and the machine: the operations on a batch's arrays, nothing more.
//!
//! A *batch* is many heads, each with its own numbers of rows and pairs, laid one after the other in shared
//! arrays. An operation takes a [table](Engine::Table), which says where each of its heads lies, input arrays
//! as `&Array` and outputs as `&mut Array`; so the borrow checker also keeps the GPU's rule that no buffer is
//! read and written under two names in one dispatch. Heads not in the table are not touched.
//!
//! | array | shape | |
//! |---|---|---|
//! | queries | `[Σ rows, dim]` | query rows |
//! | keys, values | `[Σ pairs, dim]`, `[Σ pairs, value_dim]` | of the full cache, or the free pairs |
//! | state | `[Σ rows, value_dim + 4]` | attention's outcome: output, mass, 0, 0, 0 |
//! | error | `[Σ rows, value_dim + 4]` | `e = ŷ − y`, then `e·ŷ − λδ`, `l̂`, `δ = l̂ − l`, 0 |
//! | scores | `[Σ pairs]` | summed weight of each key |
//! | effects | `[Σ pairs]` | what is lost with each pair |
//! | weights | `[heads: min(rows, WEIGHT_ROWS) × pairs]` | one block a head |
//! | gram, factor | `[heads: pairs × pairs]` | row-major; only the lower triangle has meaning |
//! | scalars | `[heads, SCALARS]` | a few numbers a head, named in [`scalar`] |
//!
//! Every operation sums in an order fixed by the head's own shape, so two runs give the same bits, and a
//! batch gives what its heads give alone.

mod exchange;
mod layout;
mod operands;

use std::fmt::Debug;
use std::ops::Range;

use crate::error::{Error, Result};

pub use exchange::{Exchange, Uploader};
pub use layout::{Dims, Head, NO_MASS, SCALARS, WEIGHT_ROWS, scalar};
pub use operands::{Evaluated, Evaluation, History};

/// What a machine must be able to do so that the method runs on it.
///
/// The order of calls is the order of effects. An engine may defer work until [`Engine::read`]; errors of
/// deferred work surface there.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
///
/// fn mean_value<E: Engine>(engine: &mut E, values: &[f32]) -> kvsculpt::Result<Vec<f32>> {
///     let pairs = (values.len() / 4) as u32;
///     let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs, ..Head::default() }])?;
///     // A query of zeros attends to all pairs alike.
///     let (queries, keys) = (engine.zeros("queries", 4)?, engine.zeros("keys", values.len())?);
///     let values = engine.upload("values", values)?;
///     let mut state = engine.zeros("state", 8)?;
///     engine.attention(&table, &queries, &keys, &values, None, 1.0, &mut state)?;
///     engine.read(&state)
/// }
/// let state = mean_value(&mut CpuEngine::new(), &[1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0, 0.0])?;
/// assert_eq!(state[..4], [2.0; 4]);
/// assert!((state[4] - 2_f32.ln()).abs() < 1e-6);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
pub trait Engine {
    /// Floats on the machine.
    type Array: Debug + Send + 'static;
    /// Heads an operation works on.
    type Table: Debug;

    /// The machine in words: adapter and driver, or the processor.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// let mut engine = CpuEngine::new();
    /// // Journals keep it, because results of another machine differ in their last bits.
    /// assert!(!engine.name().is_empty());
    /// # }
    /// ```
    fn name(&self) -> String;

    /// The largest single array in bytes.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// let engine = CpuEngine::new();
    /// // Batches are cut so that no array is larger.
    /// assert!(engine.max_array_bytes() >= 1 << 30);
    /// # }
    /// ```
    fn max_array_bytes(&self) -> u64;

    /// A fresh machine in place of one that was lost, the same in all that decides results. Arrays and tables of the lost one are of no use
    /// any more.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// let mut engine = CpuEngine::new();
    /// // The processor is never lost, so there is nothing to open; a GPU's engine gets a fresh device.
    /// assert!(matches!(engine.reopen(), Err(kvsculpt::Error::Unsupported { .. })));
    /// # }
    /// ```
    ///
    /// # Errors
    /// Whatever opening it reports; [`Error::Unsupported`] where the engine cannot.
    fn reopen(&mut self) -> Result<()> {
        Err(Error::Unsupported {
            what: "a fresh machine".into(),
            need: "an engine that can open one".into(),
            have: self.name(),
            remedy: "open another and begin again with it".into(),
        })
    }

    /// Bytes an engine allocates beside the caller's arrays for its operations on these heads' free pairs (`heads` as in the
    /// tables of `key_gradient` and `cholesky`).
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let engine = CpuEngine::new();
    /// let dims = Dims { dim: 64, value_dim: 64 };
    /// let head = Head { rows: 512, pairs: 300, ..Head::default() };
    /// let bytes = engine.scratch_bytes(dims, &[head]);
    /// assert!(engine.scratch_bytes(dims, &[head, Head { index: 1, row: 512, pair: 300, ..head }]) >= bytes);
    /// # }
    /// ```
    fn scratch_bytes(&self, dims: Dims, heads: &[Head]) -> u64;

    /// A table of heads.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// // Two heads of one batch, their pairs and rows one after the other.
    /// let first = Head { rows: 2, pairs: 3, ..Head::default() };
    /// let second = Head { index: 1, row: 2, rows: 2, pair: 3, pairs: 5, ..Head::default() };
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[first, second])?;
    /// let source = engine.upload("source", &[1.0; 8])?;
    /// let mut target = engine.zeros("target", 8)?;
    /// engine.copy_pairs(&table, 1, &source, &mut target)?;
    /// assert_eq!(engine.read(&target)?, [1.0; 8]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Out of memory; dims the machine has no kernel for.
    fn table(&mut self, dims: Dims, heads: &[Head]) -> Result<Self::Table>;

    /// Replaces a table's heads, at most as many as it was made with. No heads: operations do nothing.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let heads = [Head { pairs: 1, ..Head::default() }, Head { index: 1, pair: 1, pairs: 1, ..Head::default() }];
    /// let mut table = engine.table(Dims { dim: 4, value_dim: 4 }, &heads)?;
    /// engine.set_table(&mut table, &heads[1..])?;
    /// let source = engine.upload("source", &[1.0; 2])?;
    /// let mut target = engine.zeros("target", 2)?;
    /// engine.copy_pairs(&table, 1, &source, &mut target)?;
    /// // The first head is not in the table any more.
    /// assert_eq!(engine.read(&target)?, [0.0, 1.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Lost device.
    fn set_table(&mut self, table: &mut Self::Table, heads: &[Head]) -> Result<()>;

    /// An array of `len` zeros.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let array = engine.zeros("values", 3)?;
    /// assert_eq!(engine.read(&array)?, [0.0; 3]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Out of memory, naming the array and its bytes.
    fn zeros(&mut self, label: &'static str, len: usize) -> Result<Self::Array>;

    /// An array with these contents.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let array = engine.upload("values", &[1.0, -2.5])?;
    /// assert_eq!(engine.read(&array)?, [1.0, -2.5]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Out of memory, naming the array and its bytes.
    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<Self::Array>;

    /// Like [`Engine::upload`] for the keys and values of a full cache: stored in half precision where the
    /// machine can and where no element changes by it. Such an array may be given to `attention`, `scores` and `effects` only.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 2, ..Head::default() }])?;
    /// // Exact in half precision, so a GPU that can stores them in half.
    /// let keys = engine.upload_compact("keys", &[0.5, 0.0, 0.0, 0.0, -0.5, 0.0, 0.0, 0.0])?;
    /// let values = engine.upload_compact("values", &[1.0; 8])?;
    /// let queries = engine.zeros("queries", 4)?;
    /// let mut state = engine.zeros("state", 8)?;
    /// engine.attention(&table, &queries, &keys, &values, None, 1.0, &mut state)?;
    /// assert_eq!(engine.read(&state)?[..4], [1.0; 4]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Out of memory, naming the array and its bytes.
    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<Self::Array> {
        self.upload(label, data)
    }

    /// Uploads arrays from another thread, while this one has the machine work: [`Uploader`]. None where that gains nothing, as where
    /// arrays are in the host's own memory.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::Engine};
    ///
    /// // There is nowhere to upload to.
    /// assert!(CpuEngine::new().uploader().is_none());
    /// # }
    /// ```
    fn uploader(&self) -> Option<Box<dyn Uploader<Self::Array> + Send>> {
        None
    }

    /// Overwrites the whole array.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let mut array = engine.zeros("ridge", 2)?;
    /// engine.write(&mut array, &[0.1, 0.2])?;
    /// assert_eq!(engine.read(&array)?, [0.1, 0.2]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Lost device.
    fn write(&mut self, array: &mut Self::Array, data: &[f32]) -> Result<()>;

    /// Finishes all work so far and returns the array's contents.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let array = engine.upload("scalars", &[4.0, 2.0])?;
    /// let numbers: Vec<f32> = engine.read(&array)?;
    /// assert_eq!(numbers, [4.0, 2.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Whatever went wrong since the last read: lost device, time-out, out of memory.
    fn read(&mut self, array: &Self::Array) -> Result<Vec<f32>>;

    /// Whether operations may return before their work is done.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// let engine = CpuEngine::new();
    /// // On the processor an operation is done when it returns; on a GPU the clock has to wait.
    /// assert!(!engine.defers());
    /// # }
    /// ```
    fn defers(&self) -> bool {
        false
    }

    /// Finishes all work so far. An engine that [defers](Self::defers) nothing has nothing to do.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine}};
    ///
    /// use std::time::Instant;
    ///
    /// let mut engine = CpuEngine::new();
    /// let started = Instant::now();
    /// let _array = engine.zeros("keys", 1000)?;
    /// // So that the time is that of the work, on a GPU too.
    /// engine.wait()?;
    /// assert!(started.elapsed().as_secs() < 60);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::read`].
    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    /// What has gone to the device and come back so far; nothing where the engine has none of its own. A fresh device begins anew.
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Engine, Exchange}};
    ///
    /// // The CPU engine's arrays are where the program's are.
    /// assert_eq!(CpuEngine::new().exchanged(), Exchange::default());
    /// # }
    /// ```
    fn exchanged(&self) -> Exchange {
        Exchange::default()
    }

    /// The most bytes that arrays and tables, the engine's own among them, took on the device at one time since this was asked last; `None`
    /// where the engine has no memory but the host's. A fresh device begins anew.
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::Engine};
    ///
    /// // Its arrays are among what the host's allocator counts.
    /// assert_eq!(CpuEngine::new().take_peak_bytes(), None);
    /// # }
    /// ```
    fn take_peak_bytes(&mut self) -> Option<u64> {
        None
    }

    /// A round of key steps begins. An engine that is watched counts what it takes, up to where it ends; others need not listen.
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::Engine, timed::Timed};
    ///
    /// let mut engine = CpuEngine::new();
    /// let mut watched = Timed::new(&mut engine);
    /// watched.round_begins();
    /// let array = watched.upload("trial", &[1.0, 2.0])?;
    /// watched.round_ends();
    /// let rounds = watched.traffic().rounds;
    /// assert_eq!((rounds.count, rounds.all.writes, rounds.all.bytes_written), (1, 1, 8));
    /// # drop(array);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    fn round_begins(&mut self) {}

    /// The round that began last has ended.
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::Engine, timed::Timed};
    ///
    /// let mut engine = CpuEngine::new();
    /// let mut watched = Timed::new(&mut engine);
    /// for _ in 0..3 {
    ///     watched.round_begins();
    ///     watched.round_ends();
    /// }
    /// assert_eq!(watched.traffic().rounds.count, 3);
    /// # }
    /// ```
    fn round_ends(&mut self) {}

    /// `target ← source` for the pairs of the table's heads, `width` floats a pair.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let second = Head { index: 1, pair: 1, pairs: 2, ..Head::default() };
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[second])?;
    /// let source = engine.upload("source", &[1.0, 1.0, 2.0, 2.0, 3.0, 3.0])?;
    /// let mut target = engine.zeros("target", 6)?;
    /// engine.copy_pairs(&table, 2, &source, &mut target)?;
    /// assert_eq!(engine.read(&target)?, [0.0, 0.0, 2.0, 2.0, 3.0, 3.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// As every operation: what the machine reports at once.
    fn copy_pairs(&mut self, table: &Self::Table, width: u32, source: &Self::Array, target: &mut Self::Array) -> Result<()>;

    /// Attention of each row over the table's pairs, merged with `base` where there is one:
    /// `l = log(Σ_j e^{s q·k_j} + e^{l_base})`, `o = Σ_j e^{s q·k_j − l} v_j + e^{l_base − l} o_base`.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 2, ..Head::default() }])?;
    /// // Scores 0 and ln 3: weights 1/4 and 3/4, mass ln 4.
    /// let queries = engine.upload("queries", &[3_f32.ln(), 0.0, 0.0, 0.0])?;
    /// let keys = engine.upload("keys", &[0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0])?;
    /// let values = engine.upload("values", &[0.0, 0.0, 0.0, 0.0, 4.0, 8.0, 0.0, 0.0])?;
    /// let mut state = engine.zeros("state", 8)?;
    /// engine.attention(&table, &queries, &keys, &values, None, 0.5, &mut state)?;
    /// let state = engine.read(&state)?;
    /// for (found, right) in state.iter().zip([3.0, 6.0, 0.0, 0.0, 4_f32.ln()]) {
    ///     assert!((found - right).abs() < 1e-5);
    /// }
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    #[allow(clippy::too_many_arguments, reason = "an operation of mathematics, named after its operands")]
    fn attention(
        &mut self,
        table: &Self::Table,
        queries: &Self::Array,
        keys: &Self::Array,
        values: &Self::Array,
        base: Option<&Self::Array>,
        scale: f32,
        state: &mut Self::Array,
    ) -> Result<()>;

    /// The summed weight of each key: `score_j = Σ_q e^{s q·k_j − l_q}`, at the same places as the keys.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 2, ..Head::default() }])?;
    /// // Two keys that a query of zeros sees alike: l = ln 2, and each gets half.
    /// let queries = engine.zeros("queries", 4)?;
    /// let keys = engine.zeros("keys", 8)?;
    /// let state = engine.upload("state", &[0.0, 0.0, 0.0, 0.0, 2_f32.ln(), 0.0, 0.0, 0.0])?;
    /// let mut scores = engine.zeros("scores", 2)?;
    /// engine.scores(&table, &queries, &keys, &state, 1.0, &mut scores)?;
    /// assert!(engine.read(&scores)?.iter().all(|score| (score - 0.5).abs() < 1e-6));
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn scores(
        &mut self,
        table: &Self::Table,
        queries: &Self::Array,
        keys: &Self::Array,
        state: &Self::Array,
        scale: f32,
        scores: &mut Self::Array,
    ) -> Result<()>;

    /// What attention would lose with each pair, were it dropped alone: `effect_j = Σ_q p_qj² ‖v_j − y_q / 2‖²`, at the same places as
    /// the keys; [`reference::effects`](crate::reference::effects) derives it. The state is that of attention over all the pairs.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 2, ..Head::default() }])?;
    /// // Weights 1/2, values 4 and 0, so y = 2: effects (4 − 1)² / 4 and (0 − 1)² / 4.
    /// let queries = engine.zeros("queries", 4)?;
    /// let keys = engine.zeros("keys", 8)?;
    /// let values = engine.upload("values", &[4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])?;
    /// let state = engine.upload("state", &[2.0, 0.0, 0.0, 0.0, 2_f32.ln(), 0.0, 0.0, 0.0])?;
    /// let mut effects = engine.zeros("effects", 2)?;
    /// engine.effects(&table, &queries, &keys, &values, &state, 1.0, &mut effects)?;
    /// let effects = engine.read(&effects)?;
    /// assert!((effects[0] - 2.25).abs() < 1e-5 && (effects[1] - 0.25).abs() < 1e-5);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    #[allow(clippy::too_many_arguments, reason = "the operands of the formula")]
    fn effects(
        &mut self,
        table: &Self::Table,
        queries: &Self::Array,
        keys: &Self::Array,
        values: &Self::Array,
        state: &Self::Array,
        scale: f32,
        effects: &mut Self::Array,
    ) -> Result<()>;

    /// Error rows and the sums [`scalar::OUTPUT`], [`scalar::MASS`], [`scalar::SCALE`], [`scalar::NOT_FINITE`].
    /// The loss is `(Σ‖e‖² + λ Σδ²) / rows`; λ is the head's element of `mass_weight`.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head, SCALARS, scalar}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// // ŷ = (3, 0, 0, 0) and l̂ = 1 where y = (1, 0, 0, 0) and l = 0.
    /// let state = engine.upload("state", &[3.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])?;
    /// let teacher = engine.upload("teacher", &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])?;
    /// let mass_weight = engine.upload("mass weight", &[0.5])?;
    /// let mut error = engine.zeros("error", 8)?;
    /// let mut scalars = engine.zeros("scalars", SCALARS)?;
    /// engine.loss(&table, &state, &teacher, &mass_weight, &mut error, &mut scalars)?;
    /// let scalars = engine.read(&scalars)?;
    /// assert_eq!([scalars[scalar::OUTPUT], scalars[scalar::MASS], scalars[scalar::SCALE]], [4.0, 1.0, 1.0]);
    /// // e, then e·ŷ − λδ = 6 − 0.5, l̂ and δ.
    /// assert_eq!(engine.read(&error)?, [2.0, 0.0, 0.0, 0.0, 5.5, 1.0, 1.0, 0.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn loss(
        &mut self,
        table: &Self::Table,
        state: &Self::Array,
        teacher: &Self::Array,
        mass_weight: &Self::Array,
        error: &mut Self::Array,
        scalars: &mut Self::Array,
    ) -> Result<()>;

    /// `∂loss/∂c_j = (2 s / rows) Σ_q p_qj (e·w_j − (e·ŷ − λδ)) q`, with `p_qj = e^{s q·c_j − l̂}`.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// let queries = engine.upload("queries", &[1.0, 0.0, 0.0, 0.0])?;
    /// let keys = engine.zeros("keys", 4)?;
    /// let values = engine.upload("values", &[3.0, 0.0, 0.0, 0.0])?;
    /// // e = 2 in the first channel, e·ŷ − λδ = 5, l̂ = 0: 2 s (2 · 3 − 5) q, with s = 1/2.
    /// let error = engine.upload("error", &[2.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0])?;
    /// let mut gradient = engine.zeros("gradient", 4)?;
    /// engine.key_gradient(&table, &queries, &keys, &values, &error, 0.5, &mut gradient)?;
    /// assert!((engine.read(&gradient)?[0] - 1.0).abs() < 1e-6);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    #[allow(clippy::too_many_arguments, reason = "an operation of mathematics, named after its operands")]
    fn key_gradient(
        &mut self,
        table: &Self::Table,
        queries: &Self::Array,
        keys: &Self::Array,
        values: &Self::Array,
        error: &Self::Array,
        scale: f32,
        gradient: &mut Self::Array,
    ) -> Result<()>;

    /// Student attention, loss and key gradient in one go. An engine may fuse the three.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Evaluated, Evaluation, Head, NO_MASS, SCALARS, scalar}};
    /// # let mut engine = CpuEngine::new();
    /// # let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// # let (queries, keys) = (engine.zeros("queries", 4)?, engine.zeros("keys", 4)?);
    /// # let values = engine.upload("values", &[3.0, 0.0, 0.0, 0.0])?;
    /// # let base = engine.upload("base", &[0.0, 0.0, 0.0, 0.0, NO_MASS, 0.0, 0.0, 0.0])?;
    /// # let teacher = engine.upload("teacher", &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])?;
    /// # let mass_weight = engine.upload("mass weight", &[1.0])?;
    /// # let (mut state, mut error) = (engine.zeros("state", 8)?, engine.zeros("error", 8)?);
    /// # let (mut gradient, mut scalars) = (engine.zeros("gradient", 4)?, engine.zeros("scalars", SCALARS)?);
    /// let inputs = Evaluation {
    ///     queries: &queries, keys: &keys, values: &values, base: &base, teacher: &teacher, mass_weight: &mass_weight, scale: 0.5,
    /// };
    /// let outputs = Evaluated { state: &mut state, error: &mut error, gradient: &mut gradient, scalars: &mut scalars };
    /// engine.evaluate(&table, &inputs, outputs)?;
    /// // ŷ = 3, y = 1, and no error in the mass: loss 4. With queries of 0 no key can change anything.
    /// assert_eq!(engine.read(&scalars)?[scalar::OUTPUT], 4.0);
    /// assert_eq!(engine.read(&gradient)?, [0.0; 4]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn evaluate(&mut self, table: &Self::Table, inputs: &Evaluation<'_, Self::Array>, outputs: Evaluated<'_, Self::Array>) -> Result<()> {
        let Evaluation {
            queries,
            keys,
            values,
            base,
            teacher,
            mass_weight,
            scale,
        } = *inputs;
        self.attention(table, queries, keys, values, Some(base), scale, outputs.state)?;
        self.loss(table, outputs.state, teacher, mass_weight, outputs.error, outputs.scalars)?;
        self.key_gradient(table, queries, keys, values, outputs.error, scale, outputs.gradient)
    }

    /// `A_qj = e^{s q·c_j − l̂_q}` for the rows `rows` of each head (at most [`WEIGHT_ROWS`], cut to the head's
    /// own number), `[rows, pairs]` from the head's first weight on. `state` holds l̂.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head, WEIGHT_ROWS}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 2, ..Head::default() }])?;
    /// let queries = engine.zeros("queries", 4)?;
    /// let keys = engine.zeros("keys", 8)?;
    /// // l̂ = ln 4: two pairs of score 0 have a quarter each, the rest is the base's.
    /// let state = engine.upload("state", &[0.0, 0.0, 0.0, 0.0, 4_f32.ln(), 0.0, 0.0, 0.0])?;
    /// let mut weights = engine.zeros("weights", 2)?;
    /// engine.weights(&table, &queries, &keys, &state, 1.0, 0..WEIGHT_ROWS, &mut weights)?;
    /// assert!(engine.read(&weights)?.iter().all(|weight| (weight - 0.25).abs() < 1e-6));
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    #[allow(clippy::too_many_arguments, reason = "an operation of mathematics, named after its operands")]
    fn weights(
        &mut self,
        table: &Self::Table,
        queries: &Self::Array,
        keys: &Self::Array,
        state: &Self::Array,
        scale: f32,
        rows: Range<u32>,
        weights: &mut Self::Array,
    ) -> Result<()>;

    /// `G ← AᵀA` over the block `rows` whose weights are given; added to G unless the block is the first.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head, WEIGHT_ROWS}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 2, pairs: 2, ..Head::default() }])?;
    /// let weights = engine.upload("weights", &[1.0, 2.0, 3.0, 4.0])?;
    /// let mut gram = engine.zeros("gram", 4)?;
    /// engine.gram(&table, &weights, 0..WEIGHT_ROWS, &mut gram)?;
    /// let gram = engine.read(&gram)?;
    /// // 1 + 9, 2 + 12 and 4 + 16; what is above the diagonal has no meaning.
    /// assert_eq!([gram[0], gram[2], gram[3]], [10.0, 14.0, 20.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn gram(&mut self, table: &Self::Table, weights: &Self::Array, rows: Range<u32>, gram: &mut Self::Array) -> Result<()>;

    /// `R ← −Aᵀ e`, `[Σ pairs, value_dim]`, over the block `rows`; added to R unless the block is the first.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head, WEIGHT_ROWS}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 2, pairs: 1, ..Head::default() }])?;
    /// let weights = engine.upload("weights", &[0.5, 0.25])?;
    /// let error = engine.upload("error", &[2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])?;
    /// let mut rhs = engine.zeros("rhs", 4)?;
    /// engine.rhs(&table, &weights, &error, 0..WEIGHT_ROWS, &mut rhs)?;
    /// // −(0.5 · 2 + 0.25 · 4) and −0.25 · 8.
    /// assert_eq!(engine.read(&rhs)?, [-2.0, -2.0, 0.0, 0.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn rhs(
        &mut self,
        table: &Self::Table,
        weights: &Self::Array,
        error: &Self::Array,
        rows: Range<u32>,
        rhs: &mut Self::Array,
    ) -> Result<()>;

    /// `L Lᵀ = G + (ridge₀ + ridge₁ · mean diag G) I`, L lower triangular, ridge `[heads, 2]`.
    /// Sets [`scalar::FACTORED`] and [`scalar::DIAGONAL`]; a head that cannot be factored leaves L undefined.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head, SCALARS, scalar}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 2, ..Head::default() }])?;
    /// let gram = engine.upload("gram", &[3.0, 0.0, 2.0, 4.0])?;
    /// let ridge = engine.upload("ridge", &[1.0, 0.0])?;
    /// let (mut factor, mut scalars) = (engine.zeros("factor", 4)?, engine.zeros("scalars", SCALARS)?);
    /// engine.cholesky(&table, &gram, &ridge, &mut factor, &mut scalars)?;
    /// // With 1 added to its diagonal it is [4, 2; 2, 5] = L Lᵀ, L = [2, 0; 1, 2].
    /// let factor = engine.read(&factor)?;
    /// assert_eq!([factor[0], factor[2], factor[3]], [2.0, 1.0, 2.0]);
    /// let scalars = engine.read(&scalars)?;
    /// assert_eq!([scalars[scalar::FACTORED], scalars[scalar::DIAGONAL]], [1.0, 3.5]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn cholesky(
        &mut self,
        table: &Self::Table,
        gram: &Self::Array,
        ridge: &Self::Array,
        factor: &mut Self::Array,
        scalars: &mut Self::Array,
    ) -> Result<()>;

    /// `W ← anchor + (L Lᵀ)⁻¹ R`, `[Σ pairs, value_dim]`.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// // L = 2, so L Lᵀ = 4.
    /// let factor = engine.upload("factor", &[2.0])?;
    /// let rhs = engine.upload("rhs", &[4.0, 8.0, 0.0, 0.0])?;
    /// let anchor = engine.upload("anchor", &[10.0; 4])?;
    /// let mut values = engine.zeros("values", 4)?;
    /// engine.solve(&table, &factor, &rhs, &anchor, &mut values)?;
    /// assert_eq!(engine.read(&values)?, [11.0, 12.0, 10.0, 10.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn solve(
        &mut self,
        table: &Self::Table,
        factor: &Self::Array,
        rhs: &Self::Array,
        anchor: &Self::Array,
        values: &mut Self::Array,
    ) -> Result<()>;

    /// `trial ← origin + t · direction`, t the head's element of `lengths`.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// let origin = engine.upload("origin", &[1.0, 1.0, 0.0, 0.0])?;
    /// let direction = engine.upload("direction", &[2.0, -4.0, 0.0, 0.0])?;
    /// let lengths = engine.upload("lengths", &[0.5])?;
    /// let mut trial = engine.zeros("trial", 4)?;
    /// engine.step(&table, &origin, &direction, &lengths, &mut trial)?;
    /// assert_eq!(engine.read(&trial)?, [2.0, -1.0, 0.0, 0.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn step(
        &mut self,
        table: &Self::Table,
        origin: &Self::Array,
        direction: &Self::Array,
        lengths: &Self::Array,
        trial: &mut Self::Array,
    ) -> Result<()>;

    /// [`scalar::SLOPE`], [`scalar::GRADIENT_MAX`], [`scalar::GRADIENT_SUM`] of the gradient at a trial point.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head, SCALARS, scalar}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// let gradient = engine.upload("gradient", &[1.0, -3.0, 0.0, 0.0])?;
    /// let direction = engine.upload("direction", &[2.0, 1.0, 0.0, 0.0])?;
    /// let mut scalars = engine.zeros("scalars", SCALARS)?;
    /// engine.slope(&table, &gradient, &direction, &mut scalars)?;
    /// let scalars = engine.read(&scalars)?;
    /// let found = [scalar::SLOPE, scalar::GRADIENT_MAX, scalar::GRADIENT_SUM].map(|place| scalars[place]);
    /// assert_eq!(found, [-1.0, 3.0, 4.0]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn slope(&mut self, table: &Self::Table, gradient: &Self::Array, direction: &Self::Array, scalars: &mut Self::Array) -> Result<()>;

    /// The two-loop recursion, `direction ← −H g`: over the `cursor`'s pairs from the newest back, pairs of no use
    /// passed over; H₀ = (s·y / y·y) I of the newest usable pair, or I where there is none.
    /// Sets [`scalar::DIRECTION_SLOPE`] and [`scalar::DIRECTION_MAX`].
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head, History, SCALARS, scalar}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// // One pair, s = 1 and y = 2: along it the curvature is 2, and H divides by it.
    /// let history = History {
    ///     capacity: 1,
    ///     steps: engine.upload("steps", &[1.0, 0.0, 0.0, 0.0])?,
    ///     changes: engine.upload("changes", &[2.0, 0.0, 0.0, 0.0])?,
    ///     curvatures: engine.upload("curvatures", &[0.5, 0.5])?,
    ///     cursor: engine.upload("cursor", &[1.0, 0.0])?,
    /// };
    /// let gradient = engine.upload("gradient", &[4.0, 6.0, 0.0, 0.0])?;
    /// let (mut direction, mut scalars) = (engine.zeros("direction", 4)?, engine.zeros("scalars", SCALARS)?);
    /// engine.lbfgs_direction(&table, &gradient, &history, &mut direction, &mut scalars)?;
    /// assert_eq!(engine.read(&direction)?, [-2.0, -3.0, 0.0, 0.0]);
    /// assert_eq!(engine.read(&scalars)?[scalar::DIRECTION_SLOPE], -26.0);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    fn lbfgs_direction(
        &mut self,
        table: &Self::Table,
        gradient: &Self::Array,
        history: &History<Self::Array>,
        direction: &mut Self::Array,
        scalars: &mut Self::Array,
    ) -> Result<()>;

    /// Moves each head to its accepted point and remembers the curvature met on the way:
    /// `s = t d`, `y = g₊ − g` into the cursor's newest slot, `origin ← origin + s`, `gradient ← g₊`.
    /// A pair with `s·y ≤ 1e-10 · y·y`, or not finite, is stored with curvature 0: of no use.
    /// Sets [`scalar::CURVATURE`].
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Head, History, SCALARS, scalar}};
    ///
    /// let mut engine = CpuEngine::new();
    /// let table = engine.table(Dims { dim: 4, value_dim: 4 }, &[Head { rows: 1, pairs: 1, ..Head::default() }])?;
    /// let mut history = History {
    ///     capacity: 1,
    ///     steps: engine.zeros("steps", 4)?,
    ///     changes: engine.zeros("changes", 4)?,
    ///     curvatures: engine.zeros("curvatures", 2)?,
    ///     cursor: engine.upload("cursor", &[1.0, 0.0])?, // where the pair is to go
    /// };
    /// let lengths = engine.upload("lengths", &[0.5])?;
    /// let direction = engine.upload("direction", &[-2.0, 0.0, 0.0, 0.0])?;
    /// let new_gradient = engine.upload("new gradient", &[1.0, 0.0, 0.0, 0.0])?;
    /// let mut gradient = engine.upload("gradient", &[3.0, 0.0, 0.0, 0.0])?;
    /// let mut origin = engine.upload("origin", &[5.0, 0.0, 0.0, 0.0])?;
    /// let mut scalars = engine.zeros("scalars", SCALARS)?;
    /// engine.lbfgs_push(&table, &lengths, &direction, &new_gradient, &mut gradient, &mut origin, &mut history, &mut scalars)?;
    /// // s = −1 and y = −2.
    /// assert_eq!((engine.read(&origin)?[0], engine.read(&gradient)?[0]), (4.0, 1.0));
    /// assert_eq!(engine.read(&scalars)?[scalar::CURVATURE], 2.0);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the machine reports at once.
    #[allow(clippy::too_many_arguments, reason = "an operation of mathematics, named after its operands")]
    fn lbfgs_push(
        &mut self,
        table: &Self::Table,
        lengths: &Self::Array,
        direction: &Self::Array,
        new_gradient: &Self::Array,
        gradient: &mut Self::Array,
        origin: &mut Self::Array,
        history: &mut History<Self::Array>,
        scalars: &mut Self::Array,
    ) -> Result<()>;
}
