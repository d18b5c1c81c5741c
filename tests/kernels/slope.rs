//! `gradient · direction`, `max |gradient|`, `Σ |gradient|`.

use kvsculpt::engine::{Engine, SCALARS, scalar};
use kvsculpt::reference;

use crate::batch::{Batch, batches, of_head, pairs};
use crate::compare::{EPSILON, SLACK, other_scalars_untouched, poison, scalar_close, untouched, wide};

const SET: [usize; 3] = [scalar::SLOPE, scalar::GRADIENT_MAX, scalar::GRADIENT_SUM];

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for mut batch in batches() {
        let dim = batch.dim();
        let gradient = batch.random(batch.pairs() * dim, 1.0);
        let direction = batch.random(batch.pairs() * dim, 1.0);
        let scalars = run(engine, &batch, &gradient, &direction);
        for (head, active) in batch.each() {
            if !active {
                untouched("scalars", head, of_head(head, &scalars, SCALARS));
                continue;
            }
            let (gradient, direction) = (wide(pairs(head, &gradient, dim)), wide(pairs(head, &direction, dim)));
            let expected = reference::slope(&gradient, &direction);
            let terms = (gradient.len() as f64).sqrt() + 1.0;
            let products: f64 = gradient.iter().zip(&direction).map(|(g, d)| (g * d).abs()).sum();
            scalar_close(
                "slope",
                head,
                &scalars,
                scalar::SLOPE,
                expected.slope,
                SLACK * EPSILON * terms * products,
            );
            scalar_close("max |gradient|", head, &scalars, scalar::GRADIENT_MAX, expected.largest, 0.0);
            scalar_close(
                "Σ |gradient|",
                head,
                &scalars,
                scalar::GRADIENT_SUM,
                expected.sum,
                SLACK * EPSILON * terms * expected.sum,
            );
            other_scalars_untouched(head, &scalars, &SET);
        }
    }
}

/// One element anywhere is enough, and only its own head hears of it.
pub fn not_finite<E: Engine>(engine: &mut E) {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut batch = Batch::all((64, 64), &[(1, 33), (1, 65), (1, 2)]);
        let mut gradient = batch.random(batch.pairs() * 64, 1.0);
        let direction = batch.random(batch.pairs() * 64, 1.0);
        gradient[(33 + 61) * 64 + 17] = bad;
        let scalars = run(engine, &batch, &gradient, &direction);
        let finite: Vec<bool> = batch
            .heads
            .iter()
            .map(|head| of_head(head, &scalars, SCALARS)[scalar::GRADIENT_MAX].is_finite())
            .collect();
        assert_eq!(finite, [true, false, true], "{bad}");
    }
}

fn run<E: Engine>(engine: &mut E, batch: &Batch, gradient: &[f32], direction: &[f32]) -> Vec<f32> {
    let table = batch.table(engine);
    let gradient = engine.upload("gradient", gradient).unwrap();
    let direction = engine.upload("direction", direction).unwrap();
    let mut scalars = engine.upload("scalars", &poison(batch.heads.len() * SCALARS)).unwrap();
    engine.slope(&table, &gradient, &direction, &mut scalars).unwrap();
    engine.read(&scalars).unwrap()
}
