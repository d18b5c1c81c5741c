//! `∂loss/∂c_j = (2 s / rows) Σ_q p_qj (e·w_j − (e·ŷ − λδ)) q`.

use kvsculpt::engine::{Engine, Head};
use kvsculpt::reference::{self, Loss, State};

use crate::batch::{Batch, pairs, rows};
use crate::compare::{EPSILON, SLACK, close, largest, poison, untouched};
use crate::problem::{Kind, Problem, Single, hard_problems, usual_problems};

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
    let (dim, state_row) = (batch.dim(), batch.state_row());
    let rounded = error_rows(problem);
    let table = batch.table(engine);
    let queries = engine.upload("queries", &problem.queries).unwrap();
    let keys = engine.upload("keys", &problem.keys).unwrap();
    let values = engine.upload("values", &problem.values).unwrap();
    let error = engine.upload("error", &rounded).unwrap();
    let mut gradient = engine.upload("gradient", &poison(batch.pairs() * dim)).unwrap();
    engine
        .key_gradient(&table, &queries, &keys, &values, &error, problem.scale, &mut gradient)
        .unwrap();

    let actual = engine.read(&gradient).unwrap();
    for (head, active) in batch.each() {
        let actual = pairs(head, &actual, dim);
        if !active {
            untouched("gradient", head, actual);
            continue;
        }
        check_head(&problem.single(head), head, rows(head, &rounded, state_row), actual);
    }
}

/// A head's gradient, given its error rows.
pub fn check_head(single: &Single, head: &Head, error: &[f32], actual: &[f32]) {
    let loss = from_rows(error, single.value_dim, single.mass_weight);
    let expected = reference::key_gradient(&single.queries, &single.keys, &single.values, single.dim, &loss, single.scale);
    let sums = EPSILON * (f64::from(head.rows).sqrt() + (single.value_dim as f64).sqrt());
    let bound = (single.weight_error(&loss.mass) + sums) * magnitude(single, &loss);
    close("gradient", head, actual, &expected, SLACK * bound);
}

/// The largest element were every term of the gradient's sums positive.
fn magnitude(single: &Single, loss: &Loss) -> f64 {
    let (dim, value_dim) = (single.dim, single.value_dim);
    let weights = reference::weights(&single.queries, &single.keys, dim, &loss.mass, single.scale);
    let rows = loss.mass.len();
    let mut greatest = 0.0_f64;
    for (pair, value) in single.values.chunks_exact(value_dim).enumerate() {
        let mut sums = vec![0.0; dim];
        for (row, query) in single.queries.chunks_exact(dim).enumerate() {
            let error = &loss.error[row * value_dim..][..value_dim];
            let term = error.iter().zip(value).map(|(e, w)| (e * w).abs()).sum::<f64>() + loss.correction[row].abs();
            let factor = 2.0 * single.scale / rows as f64 * weights[row * single.pairs + pair] * term;
            sums.iter_mut().zip(query).for_each(|(sum, q)| *sum += factor * q.abs());
        }
        greatest = greatest.max(largest(&sums));
    }
    greatest
}

/// Error rows of the problem's student, rounded to f32.
fn error_rows(problem: &Problem) -> Vec<f32> {
    let mut array = Vec::new();
    for head in &problem.batch.heads {
        let single = problem.single(head);
        let loss = reference::loss(&single.student(), &single.teacher, single.mass_weight);
        for (row, error) in loss.error.chunks_exact(single.value_dim).enumerate() {
            array.extend_from_slice(error);
            array.extend([loss.correction[row], loss.mass[row], loss.mass_error[row], 0.0]);
        }
    }
    crate::compare::narrow(&array)
}

/// The rows of a loss as an engine holds them.
fn from_rows(array: &[f32], value_dim: usize, mass_weight: f64) -> Loss {
    let column = |place: usize| {
        array
            .chunks_exact(value_dim + 4)
            .map(|row| f64::from(row[value_dim + place]))
            .collect()
    };
    Loss {
        error: State::from_array(array, value_dim).output,
        correction: column(0),
        mass: column(1),
        mass_error: column(2),
        mass_weight,
        ..Loss::default()
    }
}
