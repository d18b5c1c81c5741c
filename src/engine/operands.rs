//! Operands that belong together.

#[cfg(doc)]
use super::Engine;

/// The curvature history of a batch's L-BFGS, a ring of `capacity` pairs a head.
///
/// A head's block starts at `capacity × head.pair × dim`; a slot in it is `head.pairs × dim` long.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{cpu::CpuEngine, engine::{Engine, History}};
///
/// let mut engine = CpuEngine::new();
/// let history = History {
///     capacity: 3,
///     steps: engine.zeros("steps", 3 * 5 * 4)?, // of 5 pairs of 4 channels
///     changes: engine.zeros("changes", 3 * 5 * 4)?,
///     curvatures: engine.zeros("curvatures", 3 * 2)?,
///     cursor: engine.zeros("cursor", 2)?,
/// };
/// // No slot is filled.
/// assert_eq!(engine.read(&history.cursor)?, [0.0, 0.0]);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
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
/// // One pair alone: its value is the output, and the error is 3 − 1.
/// assert_eq!(engine.read(&scalars)?[scalar::OUTPUT], 4.0);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
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
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # use kvsculpt::{cpu::CpuEngine, engine::{Dims, Engine, Evaluated, Evaluation, Head, NO_MASS, SCALARS}};
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
/// assert_eq!(engine.read(&state)?[..5], [3.0, 0.0, 0.0, 0.0, 0.0]);
/// assert_eq!(engine.read(&error)?[0], 2.0);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
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
