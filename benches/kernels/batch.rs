//! A batch of equal heads with arrays for every operation.

use kvsculpt::Result;
use kvsculpt::engine::{Dims, Engine, Head, History, SCALARS, WEIGHT_ROWS};
use kvsculpt::reference;

/// Curvature pairs that L-BFGS remembers.
pub const HISTORY: u32 = 10;
/// Softmax scale.
pub const SCALE: f32 = 0.125;

/// Sizes of a head, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub dim: u32,
    pub rows: u32,
    pub pairs: u32,
    pub heads: u32,
}

impl Shape {
    /// Rows whose weights are held at once.
    pub fn block(self) -> u32 {
        self.rows.min(WEIGHT_ROWS)
    }

    pub fn dims(self) -> Dims {
        Dims {
            dim: self.dim,
            value_dim: self.dim,
        }
    }

    pub fn heads(self) -> Vec<Head> {
        let Self { rows, pairs, heads, .. } = self;
        (0..heads)
            .map(|index| Head {
                index,
                row: index * rows,
                rows,
                pair: index * pairs,
                pairs,
                square: index * pairs * pairs,
                weights: index * self.block() * pairs,
                padding: 0,
            })
            .collect()
    }

    /// Elements of an array with so many a head.
    fn all(self, each: u32) -> usize {
        (self.heads * each) as usize
    }
}

/// Everything that operations read and write.
#[derive(Debug)]
pub struct Arrays<E: Engine> {
    pub table: E::Table,
    pub queries: E::Array,
    pub keys: E::Array,
    pub values: E::Array,
    pub base: E::Array,
    pub teacher: E::Array,
    pub mass_weight: E::Array,
    pub ridge: E::Array,
    pub lengths: E::Array,
    pub state: E::Array,
    pub error: E::Array,
    pub scalars: E::Array,
    pub gradient: E::Array,
    pub new_gradient: E::Array,
    pub scores: E::Array,
    pub weights: E::Array,
    pub gram: E::Array,
    pub factor: E::Array,
    pub rhs: E::Array,
    pub solved: E::Array,
    pub direction: E::Array,
    pub origin: E::Array,
    pub history: History<E::Array>,
}

impl<E: Engine> Arrays<E> {
    /// Random inputs; what operations compute is left to them, in the order they stand in [`super::operations::ALL`].
    pub fn new(engine: &mut E, shape: Shape) -> Result<Self> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut numbers = |len: usize, size: f32| (0..len).map(|_| size * (2.0 * random.f32() - 1.0)).collect::<Vec<f32>>();
        let (rows, pairs, heads) = (shape.all(shape.rows), shape.all(shape.pairs), shape.heads as usize);
        let (dim, state) = (shape.dim as usize, shape.dims().state_row() as usize);
        let (square, block) = (shape.all(shape.pairs * shape.pairs), shape.all(shape.block() * shape.pairs));
        let history = history(engine, shape, &mut numbers)?;
        Ok(Self {
            table: engine.table(shape.dims(), &shape.heads())?,
            queries: engine.upload("queries", &numbers(rows * dim, 2.0))?,
            keys: engine.upload("keys", &numbers(pairs * dim, 2.0))?,
            values: engine.upload("values", &numbers(pairs * dim, 2.0))?,
            base: engine.upload("base", &numbers(rows * state, 2.0))?,
            teacher: engine.upload("teacher", &numbers(rows * state, 2.0))?,
            mass_weight: engine.upload("mass weight", &vec![1.0; heads])?,
            ridge: engine.upload("ridge", &[0.0, 0.1].repeat(heads))?,
            lengths: engine.upload("lengths", &vec![0.5; heads])?,
            new_gradient: engine.upload("new gradient", &numbers(pairs * dim, 1e-3))?,
            origin: engine.upload("origin", &numbers(pairs * dim, 1.0))?,
            state: engine.zeros("state", rows * state)?,
            error: engine.zeros("error", rows * state)?,
            scalars: engine.zeros("scalars", heads * SCALARS)?,
            gradient: engine.zeros("gradient", pairs * dim)?,
            scores: engine.zeros("scores", pairs)?,
            weights: engine.zeros("weights", block)?,
            gram: engine.zeros("gram", square)?,
            factor: engine.zeros("factor", square)?,
            rhs: engine.zeros("rhs", pairs * dim)?,
            solved: engine.zeros("solved", pairs * dim)?,
            direction: engine.zeros("direction", pairs * dim)?,
            history,
        })
    }
}

/// A full ring of curvature pairs of a quadratic, the newest in the last slot.
fn history<E: Engine>(engine: &mut E, shape: Shape, numbers: &mut impl FnMut(usize, f32) -> Vec<f32>) -> Result<History<E::Array>> {
    let slot = (shape.pairs * shape.dim) as usize;
    let steps = numbers(shape.all(HISTORY) * slot, 0.1);
    let changes: Vec<f32> = steps
        .iter()
        .enumerate()
        .map(|(at, step)| step * (0.5 + (at % 7) as f32 / 5.0))
        .collect();
    let wide = |part: &[f32]| part.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let mut curvatures = Vec::new();
    for (step, change) in steps.chunks_exact(slot).zip(changes.chunks_exact(slot)) {
        let curvature = reference::curvature(&wide(step), &wide(change)).expect("a usable pair");
        #[allow(clippy::cast_possible_truncation, reason = "rounded to the engine's precision")]
        curvatures.extend(curvature.map(|x| x as f32));
    }
    Ok(History {
        capacity: HISTORY,
        steps: engine.upload("steps", &steps)?,
        changes: engine.upload("changes", &changes)?,
        curvatures: engine.upload("curvatures", &curvatures)?,
        cursor: engine.upload("cursor", &[HISTORY as f32, HISTORY as f32 - 1.0].repeat(shape.heads as usize))?,
    })
}
