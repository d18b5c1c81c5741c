//! The sizes of a batch's arrays, as a pure function of its heads' shapes.

use crate::engine::{Dims, Head, SCALARS, WEIGHT_ROWS};

/// One head's sizes.
///
/// ```
/// use kvsculpt::{batch::Shape, engine::Dims};
///
/// let dims = Dims { dim: 64, value_dim: 64 };
/// let head = Shape { dims, tokens: 2048, fixed: 100, free: 500, solved: 500, training: 1024, validation: 256, probe: 0 };
/// // Twice the rows are twice the work of an evaluation.
/// assert_eq!(Shape { training: 2048, ..head }.work(), 2 * head.work());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Channels.
    pub dims: Dims,
    /// Pairs in the full cache, N.
    pub tokens: u32,
    /// Pairs that stay as they are: sinks and tail.
    pub fixed: u32,
    /// Free pairs, k.
    pub free: u32,
    /// The most free pairs that values are solved for: the side of the Gram.
    pub solved: u32,
    /// Training rows, n.
    pub training: u32,
    /// Validation rows.
    pub validation: u32,
    /// Probe rows.
    pub probe: u32,
}

impl Shape {
    /// Multiplications of one evaluation, by which heads are ordered.
    #[must_use]
    pub fn work(&self) -> u64 {
        u64::from(self.training) * u64::from(self.free) * u64::from(self.dims.dim + self.dims.value_dim)
    }
}

/// Floats of every array of a batch. All heads have the same dims.
///
/// ```
/// use kvsculpt::{batch::{Shape, Workspace}, engine::Dims};
///
/// let dims = Dims { dim: 64, value_dim: 64 };
/// let head = Shape { dims, tokens: 2048, fixed: 100, free: 500, solved: 500, training: 1024, validation: 256, probe: 0 };
/// let sizes = Workspace::new(&[head, head], 10);
/// assert_eq!((sizes.keys, sizes.free_keys), (2 * 2048 * 64, 2 * 500 * 64));
/// let (name, bytes) = sizes.largest();
/// println!("{name} is the largest array, {bytes} of {} bytes", sizes.bytes());
/// assert!(bytes < sizes.bytes() && sizes.host_bytes() < sizes.bytes());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Full keys, `[Σ tokens, dim]`.
    pub keys: u64,
    /// Full values, `[Σ tokens, value_dim]`.
    pub values: u64,
    /// Sinks' and tail's keys, `[Σ fixed, dim]`.
    pub fixed_keys: u64,
    /// Sinks' and tail's values, `[Σ fixed, value_dim]`.
    pub fixed_values: u64,
    /// Queries of training, validation and probe rows.
    pub queries: [u64; 3],
    /// A state or error array of training, validation and probe rows.
    pub states: [u64; 3],
    /// Free keys, or anything with their shape, `[Σ free, dim]`.
    pub free_keys: u64,
    /// Free values, `[Σ free, value_dim]`.
    pub free_values: u64,
    /// `[heads: min(training, WEIGHT_ROWS) × solved]`.
    pub weights: u64,
    /// `[heads: solved × solved]`.
    pub squares: u64,
    /// Summed weights, `[Σ tokens]`.
    pub scores: u64,
    /// One side of the curvature history, `[heads: capacity × free × dim]`.
    pub history: u64,
    /// `[heads, SCALARS]`.
    pub scalars: u64,
}

impl Workspace {
    /// The sizes for these heads with `history` curvature pairs each (0 where no keys are optimised).
    #[must_use]
    pub fn new(shapes: &[Shape], history: u32) -> Self {
        let mut sum = Self::default();
        for shape in shapes {
            let (dim, value_dim, row) = (
                u64::from(shape.dims.dim),
                u64::from(shape.dims.value_dim),
                u64::from(shape.dims.state_row()),
            );
            let (tokens, fixed, free) = (u64::from(shape.tokens), u64::from(shape.fixed), u64::from(shape.free));
            let solved = u64::from(shape.solved);
            sum.keys += tokens * dim;
            sum.values += tokens * value_dim;
            sum.fixed_keys += fixed * dim;
            sum.fixed_values += fixed * value_dim;
            for (place, rows) in [shape.training, shape.validation, shape.probe].into_iter().enumerate() {
                sum.queries[place] += u64::from(rows) * dim;
                sum.states[place] += u64::from(rows) * row;
            }
            sum.free_keys += free * dim;
            sum.free_values += free * value_dim;
            sum.scores += tokens;
            sum.weights += u64::from(shape.training.min(WEIGHT_ROWS)) * solved;
            sum.squares += solved * solved;
            sum.history += u64::from(history) * free * dim;
            sum.scalars += SCALARS as u64;
        }
        sum
    }

    /// Bytes of all arrays that a batch holds at its fullest.
    ///
    /// Of free keys there are seven (point, best, trial, direction, three gradients); of free values four (anchor, current, best,
    /// right-hand side); of training states four (teacher, base, student, error), of others three.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let rows: u64 = self.queries.iter().sum::<u64>() + 4 * self.states[0] + 3 * (self.states[1] + self.states[2]);
        let cache = self.keys + self.values + self.scores + self.fixed_keys + self.fixed_values;
        let free = 7 * self.free_keys + 4 * self.free_values;
        4 * (rows + cache + free + self.weights + 2 * self.squares + 2 * self.history + 2 * self.scalars)
    }

    /// Bytes of what the host holds of a batch beside its problems while it is worked on: what was read last of the device, and what
    /// is kept of it.
    ///
    /// Kept are the teacher's states of validation and probe rows. Read are three states of training rows while biases are fitted, or
    /// one of other rows, which is then widened together with its teacher's, or all free pairs.
    #[must_use]
    pub fn host_bytes(&self) -> u64 {
        let judged = self.states[1].max(self.states[2]);
        let free = 2 * (self.free_keys + self.free_values);
        let cache = self.keys.max(self.values);
        4 * (self.states[1] + self.states[2] + (3 * self.states[0]).max(5 * judged).max(free).max(cache))
    }

    /// The largest single array, with its name.
    #[must_use]
    pub fn largest(&self) -> (&'static str, u64) {
        let arrays = [
            ("keys", self.keys),
            ("values", self.values),
            ("queries", self.queries[0].max(self.queries[1]).max(self.queries[2])),
            ("state", self.states[0].max(self.states[1]).max(self.states[2])),
            ("free keys", self.free_keys),
            ("free values", self.free_values),
            ("weights", self.weights),
            ("gram", self.squares),
            ("history", self.history),
        ];
        let (name, floats) = arrays.into_iter().max_by_key(|&(_, floats)| floats).unwrap_or(("keys", 0));
        (name, 4 * floats)
    }
}

/// Lays heads one after the other: `count(shape)` gives a head's rows and pairs.
pub(crate) fn layout(shapes: &[Shape], count: impl Fn(&Shape) -> (u32, u32)) -> Vec<Head> {
    let (mut row, mut pair, mut square, mut weights) = (0, 0, 0, 0);
    let mut heads = Vec::with_capacity(shapes.len());
    for (index, shape) in (0u32..).zip(shapes) {
        let (rows, pairs) = count(shape);
        heads.push(Head {
            index,
            row,
            rows,
            pair,
            pairs,
            square,
            weights,
            padding: 0,
        });
        row += rows;
        pair += pairs;
        square = square.wrapping_add(shape.solved.wrapping_mul(shape.solved));
        weights = weights.wrapping_add(shape.training.min(WEIGHT_ROWS).wrapping_mul(shape.solved));
    }
    heads
}
