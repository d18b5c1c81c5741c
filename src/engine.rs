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

use std::fmt::Debug;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};

/// Rows of a head whose weights are held at once; the normal equations are summed block by block.
pub const WEIGHT_ROWS: u32 = 1024;

/// The mass of no pairs at all: finite, so that shaders need no infinity, and `exp(NO_MASS − l)` is 0 for every real `l`.
pub const NO_MASS: f32 = -1.0e30;

/// Scalars a head, see [`scalar`].
pub const SCALARS: usize = 16;

/// The places in a head's row of `scalars`.
pub mod scalar {
    /// `Σ ‖ŷ − y‖²` over the head's rows (from `loss`).
    pub const OUTPUT: usize = 0;
    /// `Σ (l̂ − l)²` (from `loss`).
    pub const MASS: usize = 1;
    /// `Σ ‖y‖²` (from `loss`).
    pub const SCALE: usize = 2;
    /// How many rows are not finite (from `loss`).
    pub const NOT_FINITE: usize = 3;
    /// `gradient · direction` (from `slope`).
    pub const SLOPE: usize = 4;
    /// `max |gradient|` (from `slope`); not finite if any element is not.
    pub const GRADIENT_MAX: usize = 5;
    /// `Σ |gradient|` (from `slope`).
    pub const GRADIENT_SUM: usize = 6;
    /// `gradient · direction` of the new direction (from `lbfgs_direction`).
    pub const DIRECTION_SLOPE: usize = 8;
    /// `max |direction|` (from `lbfgs_direction`).
    pub const DIRECTION_MAX: usize = 9;
    /// `s·y` of the newest curvature pair, of use or not (from `lbfgs_push`).
    pub const CURVATURE: usize = 10;
    /// 1 if every pivot was positive and finite, else 0 (from `cholesky`).
    pub const FACTORED: usize = 12;
    /// The mean of the Gram's diagonal, before the ridge (from `cholesky`).
    pub const DIAGONAL: usize = 13;
}

/// Channels of keys and of values: the same for all heads of a batch, multiples of 4, at most 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Dims {
    /// Channels of a key or query.
    pub dim: u32,
    /// Channels of a value.
    pub value_dim: u32,
}

impl Dims {
    /// Floats in a row of a state or error array: the value channels and four more.
    #[must_use]
    pub fn state_row(self) -> u32 {
        self.value_dim + 4
    }
}

/// Where one head lies in the arrays of its batch; one row of a table, as the shaders read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// The head's number in its batch: its row in `scalars` and in every other array with one row a head.
    pub index: u32,
    /// First query row.
    pub row: u32,
    /// Query rows, n.
    pub rows: u32,
    /// First pair.
    pub pair: u32,
    /// Pairs, k (or N, where the table is over the full cache).
    pub pairs: u32,
    /// First element of the head's square in `gram` and `factor`.
    pub square: u32,
    /// First element of the head's block in `weights`.
    pub weights: u32,
    /// 0; makes the row 32 bytes long. An engine may keep a number of its own here in its copy of a table.
    pub padding: u32,
}

/// The curvature history of a batch's L-BFGS, a ring of `capacity` pairs a head.
///
/// A head's block starts at `capacity × head.pair × dim`; a slot in it is `head.pairs × dim` long.
#[derive(Debug)]
pub struct History<A> {
    /// Slots a head.
    pub capacity: u32,
    /// `s = x₊ − x`, `[heads: capacity × pairs × dim]`.
    pub steps: A,
    /// `y = g₊ − g`, the same shape.
    pub changes: A,
    /// `[heads, capacity, 2]`: `1 / s·y` (0 where the pair is of no use, see [`Engine::lbfgs_push`]) and `s·y / y·y`.
    pub curvatures: A,
    /// `[heads, 2]`: how many slots are filled, and the slot of the newest pair. As floats (whole numbers below 2²⁴).
    pub cursor: A,
}

/// The inputs of one evaluation of the loss and its key gradient.
#[derive(Debug)]
pub struct Evaluation<'a, A> {
    /// `[Σ rows, dim]`.
    pub queries: &'a A,
    /// Free keys, `[Σ pairs, dim]`.
    pub keys: &'a A,
    /// Free values, `[Σ pairs, value_dim]`.
    pub values: &'a A,
    /// State of the pairs that never change (sinks and tail).
    pub base: &'a A,
    /// The teacher's state.
    pub teacher: &'a A,
    /// λ of each head, `[heads]`.
    pub mass_weight: &'a A,
    /// Softmax scale s.
    pub scale: f32,
}

/// What an evaluation leaves behind.
#[derive(Debug)]
pub struct Evaluated<'a, A> {
    /// The student's state.
    pub state: &'a mut A,
    /// Error rows.
    pub error: &'a mut A,
    /// `∂loss/∂keys`, `[Σ pairs, dim]`.
    pub gradient: &'a mut A,
    /// Sums of the loss.
    pub scalars: &'a mut A,
}

/// What has gone to a device and come back, counted where it happens: tables count too, and compact arrays as they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Exchange {
    /// Portions of work handed over.
    pub submissions: u64,
    /// Waits for something to be read back.
    pub reads: u64,
    /// Bytes read back.
    pub bytes_read: u64,
    /// Uploads, of whole arrays and tables or to overwrite them.
    pub writes: u64,
    /// Bytes of those.
    pub bytes_written: u64,
}

/// What a machine must be able to do so that the method runs on it.
///
/// The order of calls is the order of effects. An engine may defer work until [`Engine::read`]; errors of
/// deferred work surface there.
pub trait Engine {
    /// Floats on the machine.
    type Array: Debug;
    /// Heads an operation works on.
    type Table: Debug;

    /// The machine in words: adapter and driver, or the processor.
    fn name(&self) -> String;

    /// The largest single array in bytes.
    fn max_array_bytes(&self) -> u64;

    /// A fresh machine in place of one that was lost, the same in all that decides results. Arrays and tables of the lost one are of no use
    /// any more.
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
    fn scratch_bytes(&self, dims: Dims, heads: &[Head]) -> u64;

    /// A table of heads.
    ///
    /// # Errors
    /// Out of memory; dims the machine has no kernel for.
    fn table(&mut self, dims: Dims, heads: &[Head]) -> Result<Self::Table>;

    /// Replaces a table's heads, at most as many as it was made with. No heads: operations do nothing.
    ///
    /// # Errors
    /// Lost device.
    fn set_table(&mut self, table: &mut Self::Table, heads: &[Head]) -> Result<()>;

    /// An array of `len` zeros.
    ///
    /// # Errors
    /// Out of memory, naming the array and its bytes.
    fn zeros(&mut self, label: &'static str, len: usize) -> Result<Self::Array>;

    /// An array with these contents.
    ///
    /// # Errors
    /// Out of memory, naming the array and its bytes.
    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<Self::Array>;

    /// Like [`Engine::upload`] for the keys and values of a full cache: stored in half precision where the
    /// machine can and where no element changes by it. Such an array may be given to `attention`, `scores` and `effects` only.
    ///
    /// # Errors
    /// Out of memory, naming the array and its bytes.
    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<Self::Array> {
        self.upload(label, data)
    }

    /// Overwrites the whole array.
    ///
    /// # Errors
    /// Lost device.
    fn write(&mut self, array: &mut Self::Array, data: &[f32]) -> Result<()>;

    /// Finishes all work so far and returns the array's contents.
    ///
    /// # Errors
    /// Whatever went wrong since the last read: lost device, time-out, out of memory.
    fn read(&mut self, array: &Self::Array) -> Result<Vec<f32>>;

    /// Whether operations may return before their work is done.
    fn defers(&self) -> bool {
        false
    }

    /// Finishes all work so far. An engine that [defers](Self::defers) nothing has nothing to do.
    ///
    /// # Errors
    /// As [`Engine::read`].
    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    /// What has gone to the device and come back so far; nothing where the engine has none of its own. A fresh device begins anew.
    fn exchanged(&self) -> Exchange {
        Exchange::default()
    }

    /// A round of key steps begins. An engine that is watched counts what it takes, up to where it ends; others need not listen.
    fn round_begins(&mut self) {}

    /// The round that began last has ended.
    fn round_ends(&mut self) {}

    /// `target ← source` for the pairs of the table's heads, `width` floats a pair.
    ///
    /// # Errors
    /// As every operation: what the machine reports at once.
    fn copy_pairs(&mut self, table: &Self::Table, width: u32, source: &Self::Array, target: &mut Self::Array) -> Result<()>;

    /// Attention of each row over the table's pairs, merged with `base` where there is one:
    /// `l = log(Σ_j e^{s q·k_j} + e^{l_base})`, `o = Σ_j e^{s q·k_j − l} v_j + e^{l_base − l} o_base`.
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
    /// # Errors
    /// What the machine reports at once.
    fn gram(&mut self, table: &Self::Table, weights: &Self::Array, rows: Range<u32>, gram: &mut Self::Array) -> Result<()>;

    /// `R ← −Aᵀ e`, `[Σ pairs, value_dim]`, over the block `rows`; added to R unless the block is the first.
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
    /// # Errors
    /// What the machine reports at once.
    fn slope(&mut self, table: &Self::Table, gradient: &Self::Array, direction: &Self::Array, scalars: &mut Self::Array) -> Result<()>;

    /// The two-loop recursion, `direction ← −H g`: over the `cursor`'s pairs from the newest back, pairs of no use
    /// passed over; H₀ = (s·y / y·y) I of the newest usable pair, or I where there is none.
    /// Sets [`scalar::DIRECTION_SLOPE`] and [`scalar::DIRECTION_MAX`].
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
