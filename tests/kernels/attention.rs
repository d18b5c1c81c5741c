//! `l = log(Σ_j e^{s q·k_j} + e^{l_base})`, `o = Σ_j e^{s q·k_j − l} v_j + e^{l_base − l} o_base`.

use kvsculpt::engine::{Engine, NO_MASS};
use kvsculpt::reference::State;

use crate::batch::{Batch, rows};
use crate::compare::{SLACK, close, poison, untouched};
use crate::problem::{Kind, Problem, hard_problems, usual_problems};

pub fn with_a_base<E: Engine>(engine: &mut E) {
    for problem in usual_problems() {
        check(engine, &problem, true, false);
    }
}

pub fn without_a_base<E: Engine>(engine: &mut E) {
    for problem in usual_problems() {
        check(engine, &problem, false, false);
    }
}

pub fn hard_inputs<E: Engine>(engine: &mut E) {
    for problem in hard_problems() {
        check(engine, &problem, true, false);
        check(engine, &problem, false, false);
    }
}

/// Half precision may be used only where it changes nothing: once for numbers that fit it and once for numbers that do not.
pub fn compact_arrays<E: Engine>(engine: &mut E) {
    for fits in [true, false] {
        let mut problem = Problem::new(Batch::all((64, 64), &[(33, 65), (64, 31)]), Kind::Usual);
        if fits {
            for array in [&mut problem.keys, &mut problem.values] {
                array.iter_mut().for_each(|x| *x = (*x * 64.0).round() / 64.0);
            }
        }
        check(engine, &problem, false, true);
    }
}

/// A head with nothing in the set leaves its base as it is, or nothing.
pub fn no_pairs<E: Engine>(engine: &mut E) {
    let problem = Problem::new(Batch::all((64, 64), &[(33, 0), (5, 3), (2, 0)]), Kind::Usual);
    check(engine, &problem, true, false);
    check(engine, &problem, false, false);
}

fn check<E: Engine>(engine: &mut E, problem: &Problem, with_base: bool, compact: bool) {
    let batch = &problem.batch;
    let (value_dim, state_row) = (batch.value_dim(), batch.state_row());
    let table = batch.table(engine);
    let queries = engine.upload("queries", &problem.queries).unwrap();
    let (keys, values) = if compact {
        (
            engine.upload_compact("keys", &problem.keys).unwrap(),
            engine.upload_compact("values", &problem.values).unwrap(),
        )
    } else {
        (
            engine.upload("keys", &problem.keys).unwrap(),
            engine.upload("values", &problem.values).unwrap(),
        )
    };
    let base = engine.upload("base", &problem.base).unwrap();
    let base = with_base.then_some(&base);
    let mut state = engine.upload("state", &poison(batch.rows() * state_row)).unwrap();
    engine
        .attention(&table, &queries, &keys, &values, base, problem.scale, &mut state)
        .unwrap();

    let actual = engine.read(&state).unwrap();
    for (head, active) in batch.each() {
        let actual = rows(head, &actual, state_row);
        if !active {
            untouched("state", head, actual);
            continue;
        }
        let single = problem.single(head);
        let (expected, base) = if with_base {
            (single.student(), Some(&single.base))
        } else {
            (single.without_base(), None)
        };
        close_state(problem, head, actual, &expected, base);
        assert!(
            actual.chunks_exact(state_row).all(|row| row[value_dim + 1..] == [0.0; 3]),
            "{head:?}"
        );
    }
}

/// A head's state within its bounds; rows of no mass exactly so.
pub fn close_state(problem: &Problem, head: &kvsculpt::engine::Head, actual: &[f32], expected: &State, base: Option<&State>) {
    let (value_dim, state_row) = (problem.batch.value_dim(), problem.batch.state_row());
    let (mass_bound, output_bound) = problem.single(head).state_error(expected, base);
    for (row, actual) in actual.chunks_exact(state_row).enumerate() {
        let output = &expected.output[row * value_dim..][..value_dim];
        close("output", head, &actual[..value_dim], output, SLACK * output_bound);
        let mass = expected.mass[row];
        if mass > f64::from(NO_MASS) {
            close("mass", head, &actual[value_dim..=value_dim], &[mass], SLACK * mass_bound);
        } else {
            assert_eq!(actual[value_dim], NO_MASS, "{head:?}");
        }
    }
}
