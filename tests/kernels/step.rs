//! `trial ← origin + t · direction`.

use kvsculpt::engine::Engine;
use kvsculpt::reference;

use crate::batch::{batches, pairs};
use crate::compare::{EPSILON, SLACK, close, largest, poison, untouched, wide};

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for mut batch in batches() {
        let dim = batch.dim();
        let origin = batch.random(batch.pairs() * dim, 1.0);
        let direction = batch.random(batch.pairs() * dim, 0.1);
        let lengths: Vec<f32> = (0..batch.heads.len()).map(|head| 0.5 + head as f32).collect();
        let table = batch.table(engine);
        let origin_array = engine.upload("origin", &origin).unwrap();
        let direction_array = engine.upload("direction", &direction).unwrap();
        let length_array = engine.upload("lengths", &lengths).unwrap();
        let mut trial = engine.upload("trial", &poison(batch.pairs() * dim)).unwrap();
        engine
            .step(&table, &origin_array, &direction_array, &length_array, &mut trial)
            .unwrap();
        let actual = engine.read(&trial).unwrap();
        for (head, active) in batch.each() {
            let actual = pairs(head, &actual, dim);
            if !active {
                untouched("trial", head, actual);
                continue;
            }
            let (origin, direction) = (wide(pairs(head, &origin, dim)), wide(pairs(head, &direction, dim)));
            let length = f64::from(lengths[head.index as usize]);
            let expected = reference::step(&origin, &direction, length);
            let bound = EPSILON * (largest(&origin) + length * largest(&direction));
            close("trial", head, actual, &expected, SLACK * bound);
        }
    }
}
