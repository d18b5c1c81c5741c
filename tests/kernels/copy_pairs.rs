//! `target ← source` for the pairs of some heads, bit for bit.

use kvsculpt::engine::Engine;

use crate::batch::{batches, pairs};
use crate::compare::{bits, poison, untouched};

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for mut batch in batches() {
        for width in [batch.dims.dim, batch.dims.value_dim, 4] {
            let floats = width as usize;
            let source = batch.random(batch.pairs() * floats, 1.0);
            let table = batch.table(engine);
            let source_array = engine.upload("source", &source).unwrap();
            let mut target = engine.upload("target", &poison(batch.pairs() * floats)).unwrap();
            engine.copy_pairs(&table, width, &source_array, &mut target).unwrap();
            let actual = engine.read(&target).unwrap();
            for (head, active) in batch.each() {
                let actual = pairs(head, &actual, floats);
                if active {
                    assert_eq!(bits(actual), bits(pairs(head, &source, floats)), "{head:?}");
                } else {
                    untouched("target", head, actual);
                }
            }
        }
    }
}
