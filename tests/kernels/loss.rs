//! Error rows, and the sums of the loss.

use kvsculpt::engine::{Engine, Head, SCALARS, scalar};
use kvsculpt::reference::{self, Loss, State};

use crate::batch::{Batch, batches, of_head, rows};
use crate::compare::{EPSILON, SLACK, close, largest, norm, other_scalars_untouched, poison, scalar_close, untouched};

const SET: [usize; 4] = [scalar::OUTPUT, scalar::MASS, scalar::SCALE, scalar::NOT_FINITE];

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for batch in batches() {
        check(engine, batch);
    }
}

/// Rows are counted once each, in their own head; the other heads' sums do not notice.
pub fn rows_that_are_not_finite<E: Engine>(engine: &mut E) {
    let mut batch = Batch::all((64, 32), &[(65, 1), (130, 1), (3, 1)]);
    let (mut state, teacher) = (states(&mut batch), states(&mut batch));
    let (first, row) = (65 * batch.state_row(), batch.state_row());
    state[first] = f32::NAN;
    state[first + 31] = f32::INFINITY;
    state[first + 64 * row + 3] = f32::NEG_INFINITY;
    state[first + 129 * row + 32] = f32::NAN;
    let (_, scalars) = run(engine, &batch, &state, &teacher, &[0.5; 3]);
    let counts: Vec<f32> = batch
        .heads
        .iter()
        .map(|head| of_head(head, &scalars, SCALARS)[scalar::NOT_FINITE])
        .collect();
    assert_eq!(counts, [0.0, 3.0, 0.0]);
    for head in [0, 2] {
        assert!(
            of_head(&batch.heads[head], &scalars, SCALARS)[..scalar::NOT_FINITE]
                .iter()
                .all(|x| x.is_finite())
        );
    }
}

fn states(batch: &mut Batch) -> Vec<f32> {
    let mut states = batch.random(batch.rows() * batch.state_row(), 1.0);
    for row in states.chunks_exact_mut(batch.state_row()) {
        let mass = batch.value_dim();
        row[mass] += 5.0;
        row[mass + 1..].fill(0.0);
    }
    states
}

fn run<E: Engine>(engine: &mut E, batch: &Batch, state: &[f32], teacher: &[f32], mass_weight: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let table = batch.table(engine);
    let state = engine.upload("state", state).unwrap();
    let teacher = engine.upload("teacher", teacher).unwrap();
    let mass_weight = engine.upload("mass weight", mass_weight).unwrap();
    let mut error = engine.upload("error", &poison(batch.rows() * batch.state_row())).unwrap();
    let mut scalars = engine.upload("scalars", &poison(batch.heads.len() * SCALARS)).unwrap();
    engine
        .loss(&table, &state, &teacher, &mass_weight, &mut error, &mut scalars)
        .unwrap();
    (engine.read(&error).unwrap(), engine.read(&scalars).unwrap())
}

fn check<E: Engine>(engine: &mut E, mut batch: Batch) {
    let (state, teacher) = (states(&mut batch), states(&mut batch));
    let mass_weight: Vec<f32> = (0..batch.heads.len()).map(|head| 0.3 + 0.2 * head as f32).collect();
    let (error, scalars) = run(engine, &batch, &state, &teacher, &mass_weight);
    let state_row = batch.state_row();
    for (head, active) in batch.each() {
        let actual = rows(head, &error, state_row);
        if !active {
            untouched("error", head, actual);
            untouched("scalars", head, of_head(head, &scalars, SCALARS));
            continue;
        }
        let (state, teacher) = (rows(head, &state, state_row), rows(head, &teacher, state_row));
        let mass_weight = f64::from(mass_weight[head.index as usize]);
        check_head(&batch, head, (state, teacher, mass_weight), actual, &scalars);
    }
}

/// A head's error rows and sums, given its rows of the student's and the teacher's state and its λ.
pub fn check_head(batch: &Batch, head: &Head, (state, teacher, mass_weight): (&[f32], &[f32], f64), error: &[f32], scalars: &[f32]) {
    let student = State::from_array(state, batch.value_dim());
    let teacher = State::from_array(teacher, batch.value_dim());
    let expected = reference::loss(&student, &teacher, mass_weight);
    // Differences are rounded once; a sum of squares has only positive terms.
    let channels = (batch.value_dim() as f64).sqrt();
    let longest = |rows: &[f64]| rows.chunks_exact(batch.value_dim()).map(norm).fold(0.0, f64::max);
    let correction = channels * longest(&expected.error) * longest(&student.output) + mass_weight * largest(&expected.mass_error);
    let scales = [largest(&expected.error), correction, 0.0, largest(&expected.mass_error)];
    close_rows(batch, head, error, &expected, scales.map(|scale| SLACK * EPSILON * scale));

    let relative = SLACK * EPSILON * ((expected.error.len() as f64).sqrt() + 4.0);
    let sums = [
        ("Σ‖ŷ − y‖²", scalar::OUTPUT, expected.output_sum),
        ("Σ(l̂ − l)²", scalar::MASS, expected.mass_sum),
        ("Σ‖y‖²", scalar::SCALE, expected.scale_sum),
        ("rows not finite", scalar::NOT_FINITE, 0.0),
    ];
    for (what, place, sum) in sums {
        scalar_close(what, head, scalars, place, sum, relative * sum);
    }
    other_scalars_untouched(head, scalars, &SET);
}

/// A head's error rows: e, `e·ŷ − λδ`, l̂ and δ, each within its own bound.
fn close_rows(batch: &Batch, head: &Head, actual: &[f32], expected: &Loss, bounds: [f64; 4]) {
    let value_dim = batch.value_dim();
    for (row, actual) in actual.chunks_exact(batch.state_row()).enumerate() {
        let (error, rest) = actual.split_at(value_dim);
        close("error", head, error, &expected.error[row * value_dim..][..value_dim], bounds[0]);
        close("e·ŷ − λδ", head, &rest[..1], &[expected.correction[row]], bounds[1]);
        close("mass", head, &rest[1..2], &[expected.mass[row]], bounds[2]);
        close("mass error", head, &rest[2..3], &[expected.mass_error[row]], bounds[3]);
        assert_eq!(rest[3], 0.0, "{head:?}");
    }
}
