//! `effect_j = Σ_q p_qj² ‖v_j − y_q / 2‖²`.

use kvsculpt::engine::Engine;
use kvsculpt::reference::{self, State};

use crate::batch::{Batch, pairs, rows};
use crate::compare::{EPSILON, SLACK, close, largest, poison, untouched};
use crate::problem::{Kind, Problem, hard_problems, usual_problems};

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for problem in usual_problems() {
        check(engine, &problem);
    }
}

pub fn hard_inputs<E: Engine>(engine: &mut E) {
    for problem in hard_problems() {
        check(engine, &problem);
    }
}

/// So many rows that an engine may sum them in parts, beside a head of few.
pub fn many_rows<E: Engine>(engine: &mut E) {
    check(
        engine,
        &Problem::new(Batch::all((32, 32), &[(5, 3), (4500, 9), (1025, 2)]), Kind::Usual),
    );
}

fn check<E: Engine>(engine: &mut E, problem: &Problem) {
    let batch = &problem.batch;
    let student = problem.student();
    let table = batch.table(engine);
    let queries = engine.upload("queries", &problem.queries).unwrap();
    let keys = engine.upload("keys", &problem.keys).unwrap();
    let values = engine.upload("values", &problem.values).unwrap();
    let state = engine.upload("state", &student).unwrap();
    let mut effects = engine.upload("effects", &poison(batch.pairs())).unwrap();
    engine
        .effects(&table, &queries, &keys, &values, &state, problem.scale, &mut effects)
        .unwrap();

    let actual = engine.read(&effects).unwrap();
    for (head, active) in batch.each() {
        let actual = pairs(head, &actual, 1);
        if !active {
            untouched("effects", head, actual);
            continue;
        }
        let one = problem.single(head);
        let state = State::from_array(rows(head, &student, batch.state_row()), one.value_dim);
        let expected = reference::effects(&one.queries, &one.keys, &one.values, one.dim, one.value_dim, &state, one.scale);
        // A weight's error counts twice in its square. The distance may be a difference of three products; each has a part for every
        // addition, and is at most as large as what the values and outputs could give.
        let most = largest(&one.values) + largest(&state.output) / 2.0;
        let distance = EPSILON * (4.0 + (one.value_dim as f64).sqrt()) * most * most * one.value_dim as f64;
        let weights = reference::scores(&one.queries, &one.keys, one.dim, &state.mass, one.scale);
        let relative = 2.0 * one.weight_error(&state.mass) + EPSILON * f64::from(head.rows).sqrt();
        let bound = relative * largest(&expected) + distance * largest(&weights);
        close("effects", head, actual, &expected, SLACK * bound);
    }
}
