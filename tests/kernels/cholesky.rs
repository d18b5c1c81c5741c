//! `L Lᵀ = G + (ridge₀ + ridge₁ · mean diag G) I`, by backward error: what L Lᵀ is, not what L is.

use kvsculpt::engine::{Engine, Head, SCALARS, scalar};
use kvsculpt::reference;

use crate::batch::{Batch, batches, of_head, square};
use crate::compare::{EPSILON, SLACK, close, narrow, other_scalars_untouched, poison, scalar_close, untouched, wide};

const SET: [usize; 2] = [scalar::FACTORED, scalar::DIAGONAL];

/// Every pair of an absolute and a relative ridge in turn.
const RIDGES: [[f32; 2]; 4] = [[1e-2, 0.0], [0.0, 1e-3], [0.05, 0.02], [1e-4, 1e-2]];

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
    let grams = grams(&mut batch);
    let ridges: Vec<f32> = (0..batch.heads.len()).flat_map(|head| RIDGES[head % 4]).collect();
    let (factor, scalars) = run(engine, &batch, &grams, &ridges);
    for (head, active) in batch.each() {
        let factor = square(head, &factor);
        if active {
            check_head(head, square(head, &grams), of_head(head, &ridges, 2), factor, &scalars);
        } else {
            untouched("factor", head, factor);
            untouched("scalars", head, of_head(head, &scalars, SCALARS));
        }
    }
}

/// A negative pivot in the middle, one at the end, and a NaN: said of those heads and of no other.
pub fn not_positive<E: Engine>(engine: &mut E) {
    let mut batch = Batch::all((64, 64), &[(40, 65), (40, 33), (40, 31), (40, 130), (40, 1)]);
    let mut grams = grams(&mut batch);
    let diagonal = |head: usize, row: usize| batch.heads[head].square as usize + row * (batch.heads[head].pairs as usize + 1);
    grams[diagonal(0, 40)] = -1.0;
    grams[diagonal(2, 30)] = -1.0;
    grams[diagonal(3, 64)] = f32::NAN;
    let ridges = [[1e-2, 0.0]; 5].concat();
    let (factor, scalars) = run(engine, &batch, &grams, &ridges);
    let factored: Vec<f32> = batch
        .heads
        .iter()
        .map(|head| of_head(head, &scalars, SCALARS)[scalar::FACTORED])
        .collect();
    assert_eq!(factored, [0.0, 1.0, 0.0, 0.0, 1.0]);
    for head in [1, 4] {
        let head = &batch.heads[head];
        check_head(
            head,
            square(head, &grams),
            of_head(head, &ridges, 2),
            square(head, &factor),
            &scalars,
        );
    }
}

fn check_head(head: &Head, gram: &[f32], ridge: &[f32], factor: &[f32], scalars: &[f32]) {
    let (pairs, gram, factor) = (head.pairs as usize, wide(gram), wide(factor));
    let mean = reference::mean_diagonal(&gram, pairs);
    let ridge = f64::from(ridge[0]) + f64::from(ridge[1]) * mean;
    let greatest = (0..pairs).map(|i| gram[i * pairs + i]).fold(0.0, f64::max) + ridge;
    // |L| |L|ᵀ ≤ the largest diagonal element; √pairs additions, and the ridge's own rounding.
    let bound = SLACK * EPSILON * ((pairs as f64).sqrt() + 4.0) * greatest;
    for row in 0..pairs {
        let product = |column: usize| {
            (0..=column)
                .map(|i| factor[row * pairs + i] * factor[column * pairs + i])
                .sum::<f64>()
        };
        let products: Vec<f64> = (0..=row).map(product).collect();
        let mut wanted = gram[row * pairs..=row * pairs + row].to_vec();
        wanted[row] += ridge;
        for (column, (product, wanted)) in products.iter().zip(&wanted).enumerate() {
            let error = (product - wanted).abs();
            assert!(
                error <= bound,
                "L Lᵀ of {head:?} at {row}, {column}: {product} is {error:e} from {wanted}; {bound:e} is allowed"
            );
        }
    }
    scalar_close("factored", head, scalars, scalar::FACTORED, 1.0, 0.0);
    let rounding = SLACK * EPSILON * ((pairs as f64).sqrt() + 1.0) * mean;
    scalar_close("mean diagonal", head, scalars, scalar::DIAGONAL, mean, rounding);
    other_scalars_untouched(head, scalars, &SET);
}

fn run<E: Engine>(engine: &mut E, batch: &Batch, grams: &[f32], ridges: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let table = batch.table(engine);
    let gram = engine.upload("gram", grams).unwrap();
    let ridge = engine.upload("ridge", ridges).unwrap();
    let mut factor = engine.upload("factor", &poison(batch.squares())).unwrap();
    let mut scalars = engine.upload("scalars", &poison(batch.heads.len() * SCALARS)).unwrap();
    engine.cholesky(&table, &gram, &ridge, &mut factor, &mut scalars).unwrap();
    (engine.read(&factor).unwrap(), engine.read(&scalars).unwrap())
}

/// Each head's `AᵀA / 30` of 30 random rows, so singular where there are more pairs; NaN above the diagonal.
pub fn grams(batch: &mut Batch) -> Vec<f32> {
    let mut grams = Vec::new();
    for head in batch.heads.clone() {
        let pairs = head.pairs as usize;
        let weights = wide(&batch.random(30 * pairs, 1.0));
        let mut gram: Vec<f64> = reference::gram(&weights, pairs).iter().map(|g| g / 30.0).collect();
        for row in 0..pairs {
            gram[row * pairs + row + 1..(row + 1) * pairs].fill(f64::NAN);
        }
        grams.extend(narrow(&gram));
    }
    grams
}

#[test]
fn the_bound_tells_a_wrong_factor() {
    let head = Head {
        pairs: 2,
        ..Head::default()
    };
    let mut scalars = poison(SCALARS);
    scalars[scalar::FACTORED] = 1.0;
    scalars[scalar::DIAGONAL] = 6.5;
    let gram = [4.0, f32::NAN, 2.0, 9.0];
    check_head(
        &head,
        &gram,
        &[1.0, 0.0],
        &[5f32.sqrt(), f32::NAN, 2.0 / 5f32.sqrt(), 9.2f32.sqrt()],
        &scalars,
    );
    let wrong = std::panic::catch_unwind(|| check_head(&head, &gram, &[0.0, 0.0], &[2.0, f32::NAN, 1.0, 2.8285], &scalars));
    assert!(wrong.is_err());
    close("a number", &head, &[1.0], &[1.0 + EPSILON], EPSILON);
}
