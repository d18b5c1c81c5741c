//! `A_qj = e^{s q·c_j − l̂_q}`.

use std::ops::Range;

use kvsculpt::engine::{Engine, WEIGHT_ROWS};
use kvsculpt::reference::{self, State};

use crate::batch::{rows, weights};
use crate::compare::{SLACK, close, largest, poison, untouched};
use crate::problem::{Problem, hard_problems, usual_problems};

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for problem in usual_problems() {
        check(engine, &problem, 0..WEIGHT_ROWS);
    }
}

/// A block that ends inside some heads, begins inside others, and leaves the shortest out.
pub fn a_later_block<E: Engine>(engine: &mut E) {
    for problem in usual_problems() {
        check(engine, &problem, 32..97);
    }
}

pub fn hard_inputs<E: Engine>(engine: &mut E) {
    for problem in hard_problems() {
        check(engine, &problem, 0..WEIGHT_ROWS);
    }
}

fn check<E: Engine>(engine: &mut E, problem: &Problem, block: Range<u32>) {
    let batch = &problem.batch;
    let student = problem.student();
    let table = batch.table(engine);
    let queries = engine.upload("queries", &problem.queries).unwrap();
    let keys = engine.upload("keys", &problem.keys).unwrap();
    let state = engine.upload("state", &student).unwrap();
    let mut array = engine.upload("weights", &poison(batch.weights())).unwrap();
    engine
        .weights(&table, &queries, &keys, &state, problem.scale, block.clone(), &mut array)
        .unwrap();

    let actual = engine.read(&array).unwrap();
    for (head, active) in batch.each() {
        let actual = weights(head, &actual);
        let (first, end) = (block.start.min(head.rows) as usize, block.end.min(head.rows) as usize);
        let written = if active { (end - first) * head.pairs as usize } else { 0 };
        untouched("weights", head, &actual[written..]);
        if written == 0 {
            continue;
        }
        let single = problem.single(head);
        let mass = State::from_array(rows(head, &student, batch.state_row()), batch.value_dim()).mass;
        let queries = &single.queries[first * single.dim..end * single.dim];
        let expected = reference::weights(queries, &single.keys, single.dim, &mass[first..end], single.scale);
        let bound = single.weight_error(&mass[first..end]) * largest(&expected);
        close("weights", head, &actual[..written], &expected, SLACK * bound);
    }
}
