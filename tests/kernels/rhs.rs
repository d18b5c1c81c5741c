//! `R ← −Aᵀ e`, block by block.

use kvsculpt::engine::Engine;
use kvsculpt::reference::{self, State};

use crate::batch::{Batch, batches, pairs, rows};
use crate::compare::{EPSILON, SLACK, close, largest, poison, untouched};
use crate::gram::Blocks;

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for batch in batches() {
        check(engine, batch);
    }
}

/// Heads of one block, of two and of three, the last of one row.
pub fn several_blocks<E: Engine>(engine: &mut E) {
    check(
        engine,
        Batch::new((64, 32), &[(1500, 33), (200, 65), (2049, 7), (1024, 31)], &[0, 1, 2]),
    );
}

fn check<E: Engine>(engine: &mut E, mut batch: Batch) {
    let (value_dim, state_row) = (batch.value_dim(), batch.state_row());
    let table = batch.table(engine);
    let blocks = Blocks::new(&mut batch);
    let rows_of_errors = batch.random(batch.rows() * state_row, 1.0);
    let error = engine.upload("error", &rows_of_errors).unwrap();
    let mut rhs = engine.upload("rhs", &poison(batch.pairs() * value_dim)).unwrap();
    for (block, contents) in blocks.contents.iter().enumerate() {
        let array = engine.upload("weights", contents).unwrap();
        engine.rhs(&table, &array, &error, blocks.rows(block), &mut rhs).unwrap();
    }
    let actual = engine.read(&rhs).unwrap();
    for (head, active) in batch.each() {
        let actual = pairs(head, &actual, value_dim);
        if !active {
            untouched("rhs", head, actual);
            continue;
        }
        let weights = blocks.of(head);
        let error = State::from_array(rows(head, &rows_of_errors, state_row), value_dim).output;
        let expected = reference::rhs(&weights, &error, head.pairs as usize, value_dim);
        let magnitude = |array: &[f64]| array.iter().map(|x| x.abs()).collect::<Vec<_>>();
        let scale = largest(&reference::rhs(
            &magnitude(&weights),
            &magnitude(&error),
            head.pairs as usize,
            value_dim,
        ));
        let bound = EPSILON * (f64::from(head.rows).sqrt() + 1.0) * scale;
        close("rhs", head, actual, &expected, SLACK * bound);
    }
}
