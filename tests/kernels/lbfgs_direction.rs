//! The two-loop recursion, `direction ← −H g`.

use kvsculpt::engine::{Engine, Head, History, SCALARS, scalar};
use kvsculpt::reference;

use crate::batch::{Batch, batches, of_head, pairs};
use crate::compare::{EPSILON, SLACK, bits, largest, narrow, norm, other_scalars_untouched, poison, scalar_close, untouched, wide};

/// Slots a head.
const CAPACITY: usize = 4;
const SET: [usize; 2] = [scalar::DIRECTION_SLOPE, scalar::DIRECTION_MAX];

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for batch in batches() {
        check(engine, batch, |head| [3, 4, 1, 0, 2][head % 5]);
    }
}

/// Steepest descent.
pub fn no_history<E: Engine>(engine: &mut E) {
    check(engine, Batch::all((64, 64), &[(1, 33), (1, 65), (1, 1)]), |_| 0);
}

/// A history of heads with so many filled slots: rings that wrap, one pair of no use in each longer one, NaN wherever
/// nothing must be read.
struct Filled {
    steps: Vec<f32>,
    changes: Vec<f32>,
    curvatures: Vec<f32>,
    cursor: Vec<f32>,
    /// Each head's usable pairs, oldest first.
    usable: Vec<Vec<(Vec<f64>, Vec<f64>)>>,
}

impl Filled {
    fn new(batch: &mut Batch, filled: impl Fn(usize) -> usize) -> Self {
        let dim = batch.dim();
        let mut history = Self {
            steps: poison(CAPACITY * batch.pairs() * dim),
            changes: poison(CAPACITY * batch.pairs() * dim),
            curvatures: poison(batch.heads.len() * CAPACITY * 2),
            cursor: Vec::new(),
            usable: Vec::new(),
        };
        for head in batch.heads.clone() {
            let (index, len) = (head.index as usize, head.pairs as usize * dim);
            let filled = filled(index);
            let newest = (2 * index + 1) % CAPACITY;
            history.cursor.extend([filled as f32, newest as f32]);
            let mut usable = Vec::new();
            for age in (0..filled).rev() {
                let slot = (newest + CAPACITY - age) % CAPACITY;
                let curvature = &mut history.curvatures[(index * CAPACITY + slot) * 2..][..2];
                if filled > 2 && age == index % 2 {
                    curvature.fill(0.0);
                    continue;
                }
                let at = CAPACITY * head.pair as usize * dim + slot * len;
                let (step, change) = curvature_pair(batch, len);
                history.steps[at..at + len].copy_from_slice(&step);
                history.changes[at..at + len].copy_from_slice(&change);
                let (step, change) = (wide(&step), wide(&change));
                curvature.copy_from_slice(&narrow(&reference::curvature(&step, &change).unwrap()));
                usable.push((step, change));
            }
            history.usable.push(usable);
        }
        history
    }

    fn upload<E: Engine>(&self, engine: &mut E) -> History<E::Array> {
        #[allow(clippy::cast_possible_truncation, reason = "4")]
        History {
            capacity: CAPACITY as u32,
            steps: engine.upload("steps", &self.steps).unwrap(),
            changes: engine.upload("changes", &self.changes).unwrap(),
            curvatures: engine.upload("curvatures", &self.curvatures).unwrap(),
            cursor: engine.upload("cursor", &self.cursor).unwrap(),
        }
    }
}

/// A step and the change of gradient of a quadratic whose curvature lies between ½ and 2.
pub fn curvature_pair(batch: &mut Batch, len: usize) -> (Vec<f32>, Vec<f32>) {
    let step = batch.random(len, 0.1);
    let change = step
        .iter()
        .enumerate()
        .map(|(i, s)| s * (0.5 + 1.5 * ((i * 7 % 11) as f32 / 10.0)))
        .collect();
    (step, change)
}

/// For each head by itself what it is among others, though longer ones are cut into more parts.
pub fn same_bits_alone<E: Engine>(engine: &mut E) {
    for mut batch in batches().into_iter().map(Batch::all_active) {
        let gradient = batch.random(batch.pairs() * batch.dim(), 1.0);
        let filled = Filled::new(&mut batch, |head| [3, 4, 1, 0, 2][head % 5]);
        let table = batch.table(engine);
        let (whole, scalars) = run(engine, &batch, &table, &gradient, &filled);
        for head in &batch.heads {
            let table = engine.table(batch.dims, std::slice::from_ref(head)).unwrap();
            let (alone, scalars_alone) = run(engine, &batch, &table, &gradient, &filled);
            let own = |direction| bits(pairs(head, direction, batch.dim()));
            assert_eq!(own(&alone), own(&whole), "{head:?}");
            let own = |scalars| bits(of_head(head, scalars, SCALARS));
            assert_eq!(own(&scalars_alone), own(&scalars), "{head:?}");
        }
    }
}

/// The direction and the scalars of a table's heads.
fn run<E: Engine>(engine: &mut E, batch: &Batch, table: &E::Table, gradient: &[f32], filled: &Filled) -> (Vec<f32>, Vec<f32>) {
    let history = filled.upload(engine);
    let gradient = engine.upload("gradient", gradient).unwrap();
    let mut direction = engine.upload("direction", &poison(batch.pairs() * batch.dim())).unwrap();
    let mut scalars = engine.upload("scalars", &poison(batch.heads.len() * SCALARS)).unwrap();
    engine
        .lbfgs_direction(table, &gradient, &history, &mut direction, &mut scalars)
        .unwrap();
    (engine.read(&direction).unwrap(), engine.read(&scalars).unwrap())
}

fn check<E: Engine>(engine: &mut E, mut batch: Batch, filled: impl Fn(usize) -> usize) {
    let dim = batch.dim();
    let gradient = batch.random(batch.pairs() * dim, 1.0);
    let filled = Filled::new(&mut batch, filled);
    let table = batch.table(engine);
    let (direction, scalars) = run(engine, &batch, &table, &gradient, &filled);
    for (head, active) in batch.each() {
        let actual = pairs(head, &direction, dim);
        if active {
            let gradient = wide(pairs(head, &gradient, dim));
            check_head(head, &gradient, &filled.usable[head.index as usize], actual, &scalars);
        } else {
            untouched("direction", head, actual);
            untouched("scalars", head, of_head(head, &scalars, SCALARS));
        }
    }
}

fn check_head(head: &Head, gradient: &[f64], usable: &[(Vec<f64>, Vec<f64>)], actual: &[f32], scalars: &[f32]) {
    let expected = reference::direction(gradient, usable);
    // Each of a pair's two updates costs a rounding of the vector and of a scalar product, which the update after
    // it magnifies by at most the condition of the quadratic, 4.
    let bound = SLACK * EPSILON * 4.0 * (2 * usable.len()) as f64 * norm(&expected);
    let difference: Vec<f64> = wide(actual)
        .iter()
        .zip(&expected)
        .map(|(actual, expected)| actual - expected)
        .collect();
    let error = norm(&difference);
    assert!(
        error <= bound,
        "direction of {head:?}: {error:e} of {:e}; {bound:e} is allowed",
        norm(&expected)
    );

    let products = gradient.iter().zip(&expected).map(|(g, d)| g * d);
    let terms = (gradient.len() as f64).sqrt() + 1.0;
    let sum = SLACK * EPSILON * terms * products.clone().map(f64::abs).sum::<f64>();
    let slope = products.sum::<f64>();
    scalar_close("g·d", head, scalars, scalar::DIRECTION_SLOPE, slope, sum + bound * norm(gradient));
    scalar_close("max |d|", head, scalars, scalar::DIRECTION_MAX, largest(&expected), bound);
    other_scalars_untouched(head, scalars, &SET);
}
