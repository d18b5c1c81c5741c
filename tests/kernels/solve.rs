//! `W ← anchor + (L Lᵀ)⁻¹ R`, by backward error: how well `L Lᵀ (W − anchor)` is R.

use kvsculpt::engine::Engine;
use kvsculpt::reference;

use crate::batch::{Batch, batches, pairs, square};
use crate::cholesky::grams;
use crate::compare::{EPSILON, SLACK, close, largest, narrow, poison, untouched, wide};

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for batch in batches() {
        check(engine, batch);
    }
}

/// As many pairs as real heads have: more than a dozen blocks of any factorisation by blocks.
pub fn many_pairs<E: Engine>(engine: &mut E) {
    check(engine, Batch::all((64, 64), &[(2, 200), (3, 421), (1, 7)]));
}

fn check<E: Engine>(engine: &mut E, mut batch: Batch) {
    let value_dim = batch.value_dim();
    let factors = factors(&mut batch);
    let rhs = batch.random(batch.pairs() * value_dim, 1.0);
    let anchor = batch.random(batch.pairs() * value_dim, 1.0);
    let table = batch.table(engine);
    let factor = engine.upload("factor", &factors).unwrap();
    let rhs_array = engine.upload("rhs", &rhs).unwrap();
    let anchor_array = engine.upload("anchor", &anchor).unwrap();
    let mut values = engine.upload("values", &poison(batch.pairs() * value_dim)).unwrap();
    engine.solve(&table, &factor, &rhs_array, &anchor_array, &mut values).unwrap();
    let actual = engine.read(&values).unwrap();
    for (head, active) in batch.each() {
        let actual = pairs(head, &actual, value_dim);
        if !active {
            untouched("values", head, actual);
            continue;
        }
        let anchor = wide(pairs(head, &anchor, value_dim));
        let moved: Vec<f64> = wide(actual).iter().zip(&anchor).map(|(value, anchor)| value - anchor).collect();
        let (image, magnitude) = images(square(head, &factors), &moved, head.pairs as usize, value_dim);
        // √pairs additions in each triangle; and adding the anchor rounds W, which the matrix magnifies.
        let count = f64::from(head.pairs);
        let rounded = largest(&wide(actual)) * largest(&magnitude.matrix_rows);
        let bound = EPSILON * ((count.sqrt() + 2.0) * largest(&magnitude.image) + rounded);
        close(
            "L Lᵀ (W − anchor)",
            head,
            &narrow(&image),
            &wide(pairs(head, &rhs, value_dim)),
            SLACK * bound,
        );
    }
}

/// What the sums of a product would be were all terms positive.
struct Magnitude {
    /// `|L| |L|ᵀ |X|`.
    image: Vec<f64>,
    /// The sum of each row of `|L Lᵀ|`.
    matrix_rows: Vec<f64>,
}

/// `L Lᵀ X` and its magnitudes.
fn images(factor: &[f32], x: &[f64], pairs: usize, value_dim: usize) -> (Vec<f64>, Magnitude) {
    let at = |row: usize, column: usize| f64::from(factor[row * pairs + column]);
    let mut image = vec![0.0; x.len()];
    let mut magnitude = Magnitude {
        image: image.clone(),
        matrix_rows: vec![0.0; pairs],
    };
    for row in 0..pairs {
        for column in 0..pairs {
            let common = 0..=row.min(column);
            let element: f64 = common.clone().map(|i| at(row, i) * at(column, i)).sum();
            let absolute: f64 = common.map(|i| (at(row, i) * at(column, i)).abs()).sum();
            magnitude.matrix_rows[row] += element.abs();
            for channel in 0..value_dim {
                image[row * value_dim + channel] += element * x[column * value_dim + channel];
                magnitude.image[row * value_dim + channel] += absolute * x[column * value_dim + channel].abs();
            }
        }
    }
    (image, magnitude)
}

/// Factors of well- and less well-conditioned matrices, NaN above the diagonal.
fn factors(batch: &mut crate::batch::Batch) -> Vec<f32> {
    let grams = grams(batch);
    let mut factors = Vec::new();
    for head in &batch.heads {
        let pairs = head.pairs as usize;
        let ridge = if head.index % 2 == 0 { 1e-3 } else { 0.1 };
        let mut factor = reference::cholesky(&wide(square(head, &grams)), pairs, [0.0, ridge]).unwrap();
        for row in 0..pairs {
            factor[row * pairs + row + 1..(row + 1) * pairs].fill(f64::NAN);
        }
        factors.extend(narrow(&factor));
    }
    factors
}
