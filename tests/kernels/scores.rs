//! `score_j = Σ_q e^{s q·k_j − l_q}`.

use kvsculpt::engine::Engine;
use kvsculpt::reference::{self, State};

use crate::batch::{Batch, pairs, rows};
use crate::compare::{EPSILON, SLACK, bits, close, largest, poison, untouched};
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

/// For each head by itself what it is among others.
pub fn same_bits_alone<E: Engine>(engine: &mut E) {
    for problem in usual_problems() {
        let heads = &problem.batch.heads;
        let student = problem.student();
        let table = engine.table(problem.batch.dims, heads).unwrap();
        let whole = run(engine, &problem, &student, &table);
        for head in heads {
            let table = engine.table(problem.batch.dims, std::slice::from_ref(head)).unwrap();
            let alone = run(engine, &problem, &student, &table);
            assert_eq!(bits(pairs(head, &alone, 1)), bits(pairs(head, &whole, 1)), "{head:?}");
        }
    }
}

/// The scores of a table's heads.
fn run<E: Engine>(engine: &mut E, problem: &Problem, student: &[f32], table: &E::Table) -> Vec<f32> {
    let queries = engine.upload("queries", &problem.queries).unwrap();
    let keys = engine.upload("keys", &problem.keys).unwrap();
    let state = engine.upload("state", student).unwrap();
    let mut scores = engine.upload("scores", &poison(problem.batch.pairs())).unwrap();
    engine.scores(table, &queries, &keys, &state, problem.scale, &mut scores).unwrap();
    engine.read(&scores).unwrap()
}

fn check<E: Engine>(engine: &mut E, problem: &Problem) {
    let batch = &problem.batch;
    let student = problem.student();
    let table = batch.table(engine);
    let actual = run(engine, problem, &student, &table);
    for (head, active) in batch.each() {
        let actual = pairs(head, &actual, 1);
        if !active {
            untouched("scores", head, actual);
            continue;
        }
        let single = problem.single(head);
        let state = State::from_array(rows(head, &student, batch.state_row()), batch.value_dim());
        let expected = reference::scores(&single.queries, &single.keys, single.dim, &state.mass, single.scale);
        // Each weight's own error, and one part for each of the √rows additions.
        let bound = (single.weight_error(&state.mass) + EPSILON * f64::from(head.rows).sqrt()) * largest(&expected);
        close("scores", head, actual, &expected, SLACK * bound);
    }
}
