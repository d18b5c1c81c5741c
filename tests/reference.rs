//! The reference against finite differences, hand cases and textbook formulas: nothing here is compared with an engine.

use approx::assert_relative_eq;
use kvsculpt::engine::NO_MASS;
use kvsculpt::reference::{self as reference, Loss, State, merged};

const DIM: usize = 5;
const VALUE_DIM: usize = 3;
const SCALE: f64 = 0.6;
const MASS_WEIGHT: f64 = 0.7;

fn random(rng: &mut fastrand::Rng, len: usize) -> Vec<f64> {
    (0..len).map(|_| 3.0 * rng.f64() - 1.2).collect()
}

fn close(actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (place, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!((actual - expected).abs() <= tolerance, "[{place}]: {actual} is not {expected}");
    }
}

/// A head with a base of two fixed pairs and a teacher of its own.
struct Problem {
    queries: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
    base: State,
    teacher: State,
}

impl Problem {
    fn new(rows: usize, pairs: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(7);
        let queries = random(&mut rng, rows * DIM);
        let mut state = |pairs| {
            let (keys, values) = (random(&mut rng, pairs * DIM), random(&mut rng, pairs * VALUE_DIM));
            reference::attention(&queries, &keys, &values, DIM, VALUE_DIM, None, SCALE)
        };
        let (base, teacher) = (state(2), state(9));
        Self {
            keys: random(&mut rng, pairs * DIM),
            values: random(&mut rng, pairs * VALUE_DIM),
            queries,
            base,
            teacher,
        }
    }

    fn student(&self, keys: &[f64], values: &[f64]) -> State {
        reference::attention(&self.queries, keys, values, DIM, VALUE_DIM, Some(&self.base), SCALE)
    }

    fn loss(&self, keys: &[f64], values: &[f64]) -> Loss {
        reference::loss(&self.student(keys, values), &self.teacher, MASS_WEIGHT)
    }
}

/// Central differences of `function` at `point`.
fn differences(point: &[f64], function: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let h = 1e-5;
    (0..point.len())
        .map(|i| {
            let at = |offset: f64| {
                let mut moved = point.to_vec();
                moved[i] += offset;
                function(&moved)
            };
            (at(h) - at(-h)) / (2.0 * h)
        })
        .collect()
}

#[test]
fn the_key_gradient_is_the_slope_of_the_loss() {
    let problem = Problem::new(6, 4);
    let loss = problem.loss(&problem.keys, &problem.values);
    let gradient = reference::key_gradient(&problem.queries, &problem.keys, &problem.values, DIM, &loss, SCALE);
    let expected = differences(&problem.keys, |keys| problem.loss(keys, &problem.values).value());
    assert!(expected.iter().any(|g| g.abs() > 1e-2));
    close(&gradient, &expected, 1e-8);
}

#[test]
fn solved_values_are_where_the_ridge_objective_is_flat() {
    let (rows, pairs) = (11, 4);
    let problem = Problem::new(rows, pairs);
    let anchor = &problem.values;
    let ridge = [0.02, 0.3];

    let loss = problem.loss(&problem.keys, anchor);
    let weights = reference::weights(&problem.queries, &problem.keys, DIM, &loss.mass, SCALE);
    let gram = reference::gram(&weights, pairs);
    let factor = reference::cholesky(&gram, pairs, ridge).unwrap();
    let rhs = reference::rhs(&weights, &loss.error, pairs, VALUE_DIM);
    let values = reference::solve(&factor, &rhs, anchor, pairs, VALUE_DIM);

    let strength = ridge[0] + ridge[1] * reference::mean_diagonal(&gram, pairs);
    let objective = |values: &[f64]| {
        let moved: f64 = values.iter().zip(anchor).map(|(value, anchor)| (value - anchor).powi(2)).sum();
        problem.loss(&problem.keys, values).output_sum + strength * moved
    };
    close(&differences(&values, objective), &vec![0.0; values.len()], 1e-8);
    assert!(objective(&values) < 0.9 * objective(anchor));
}

#[test]
fn one_pair_is_its_value_and_its_score() {
    let state = reference::attention(&[2.0, 1.0], &[3.0, -4.0], &[5.0, 6.0, 7.0], 2, 3, None, 0.5);
    assert_eq!(state.output, [5.0, 6.0, 7.0]);
    assert_eq!(state.mass, [1.0]);
    let weights = reference::weights(&[2.0, 1.0], &[3.0, -4.0], 2, &[1.0], 0.5);
    assert_eq!(weights, [1.0]);
}

#[test]
fn two_equal_keys_share_the_weight() {
    let (query, keys, values) = ([1.0, 2.0], [0.5, 1.5, 0.5, 1.5], [2.0, -4.0]);
    let state = reference::attention(&query, &keys, &values, 2, 1, None, 1.0);
    assert_relative_eq!(state.output[0], -1.0, epsilon = 1e-14);
    assert_relative_eq!(state.mass[0], 3.5 + 2f64.ln(), epsilon = 1e-14);
    close(&reference::scores(&query, &keys, 2, &state.mass, 1.0), &[0.5, 0.5], 1e-14);
}

#[test]
fn scores_of_eighty_neither_overflow_nor_vanish() {
    let (queries, keys) = ([8.0, -8.0], [10.0, -10.0]);
    let state = reference::attention(&queries, &keys, &[1.0, 3.0], 1, 1, None, 1.0);
    close(&state.mass, &[80.0, 80.0], 1e-12);
    close(&state.output, &[1.0, 3.0], 1e-12);
    let one = reference::attention(&queries, &keys[..1], &[1.0], 1, 1, None, 1.0);
    close(&one.mass, &[80.0, -80.0], 1e-12);
    close(&one.output, &[1.0, 1.0], 1e-12);
}

#[test]
fn no_pairs_leave_the_base_or_nothing() {
    let nothing = reference::attention(&[1.0, 2.0], &[], &[], 2, 1, None, 1.0);
    assert_eq!(nothing, state(&[0.0], &[f64::from(NO_MASS)]));
    let base = state(&[4.0], &[-3.0]);
    assert_eq!(reference::attention(&[1.0, 2.0], &[], &[], 2, 1, Some(&base), 1.0), base);
    let (key, value) = ([0.5, 0.25], [9.0]);
    let with_nothing = reference::attention(&[1.0, 2.0], &key, &value, 2, 1, Some(&nothing), 1.0);
    assert_eq!(with_nothing, reference::attention(&[1.0, 2.0], &key, &value, 2, 1, None, 1.0));
}

#[test]
fn two_halves_merged_are_the_whole() {
    let problem = Problem::new(5, 8);
    let attend = |keys: &[f64], values: &[f64], base| reference::attention(&problem.queries, keys, values, DIM, VALUE_DIM, base, SCALE);
    let whole = attend(&problem.keys, &problem.values, None);
    let (keys, values) = (problem.keys.split_at(3 * DIM), problem.values.split_at(3 * VALUE_DIM));
    let merged = attend(keys.1, values.1, Some(&attend(keys.0, values.0, None)));
    close(&merged.output, &whole.output, 1e-13);
    close(&merged.mass, &whole.mass, 1e-13);
}

#[test]
fn weights_of_a_row_sum_to_what_the_base_leaves() {
    let problem = Problem::new(5, 4);
    let student = problem.student(&problem.keys, &problem.values);
    let weights = reference::weights(&problem.queries, &problem.keys, DIM, &student.mass, SCALE);
    for (row, weights) in weights.chunks_exact(4).enumerate() {
        let base = (problem.base.mass[row] - student.mass[row]).exp();
        assert_relative_eq!(weights.iter().sum::<f64>() + base, 1.0, epsilon = 1e-13);
    }
    let columns: Vec<f64> = (0..4).map(|j| weights.iter().skip(j).step_by(4).sum()).collect();
    close(
        &reference::scores(&problem.queries, &problem.keys, DIM, &student.mass, SCALE),
        &columns,
        1e-13,
    );
}

#[test]
fn the_loss_of_two_rows_by_hand() {
    let loss = reference::loss(
        &state(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0]),
        &state(&[0.0, 2.0, 3.0, 6.0], &[0.5, 2.25]),
        2.0,
    );
    assert_eq!(loss.error, [1.0, 0.0, 0.0, -2.0]);
    assert_eq!(loss.mass_error, [0.5, -0.25]);
    assert_eq!(loss.correction, [1.0 - 1.0, -8.0 + 0.5]);
    assert_eq!((loss.output_sum, loss.mass_sum, loss.scale_sum), (5.0, 0.3125, 4.0 + 45.0));
    assert_eq!((loss.value(), loss.not_finite), ((5.0 + 0.625) / 2.0, 0));
    let broken = reference::loss(
        &state(&[f64::NAN, 1.0, 1.0], &[0.0, f64::INFINITY, 0.0]),
        &state(&[0.0; 3], &[0.0; 3]),
        1.0,
    );
    assert_eq!(broken.not_finite, 2);
}

#[test]
fn the_factor_of_a_known_matrix() {
    let lower = [2.0, 0.0, 0.0, 6.0, 1.0, 0.0, -8.0, 5.0, 3.0];
    // The upper triangle must not be read.
    let gram = [4.0, f64::NAN, f64::NAN, 12.0, 37.0, f64::NAN, -16.0, -43.0, 98.0];
    assert_eq!(reference::cholesky(&gram, 3, [0.0; 2]).unwrap(), lower);
    let ridge = [0.5, 0.25];
    let mut raised = gram;
    for i in 0..3 {
        raised[4 * i] += 0.5 + 0.25 * 139.0 / 3.0;
    }
    close(
        &reference::cholesky(&gram, 3, ridge).unwrap(),
        &reference::cholesky(&raised, 3, [0.0; 2]).unwrap(),
        1e-14,
    );
    close(
        &reference::solve(&lower, &[4.0, 12.0, -16.0], &[1.0, 2.0, 3.0], 3, 1),
        &[2.0, 2.0, 3.0],
        1e-12,
    );
}

#[test]
fn a_matrix_that_is_not_positive_has_no_factor() {
    assert_eq!(reference::cholesky(&[1.0, 2.0, 2.0, 3.0], 2, [0.0; 2]), None);
    assert_eq!(reference::cholesky(&[1.0, 1.0, 1.0, 1.0], 2, [0.0; 2]), None);
    assert_eq!(reference::cholesky(&[f64::NAN], 1, [0.0; 2]), None);
    assert!(reference::cholesky(&[1.0, 1.0, 1.0, 1.0], 2, [1e-3, 0.0]).is_some());
}

/// `H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ` from `H₀ = (s·y / y·y) I` of the newest pair, as dense matrices.
fn dense_direction(gradient: &[f64], pairs: &[(Vec<f64>, Vec<f64>)]) -> Vec<f64> {
    let n = gradient.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (step, change) = &pairs[pairs.len() - 1];
    let start = dot(step, change) / dot(change, change);
    let mut inverse: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| if i == j { start } else { 0.0 }).collect()).collect();
    for (step, change) in pairs {
        let rho = 1.0 / dot(step, change);
        let image: Vec<f64> = inverse.iter().map(|row| dot(row, change)).collect();
        let curvature = dot(change, &image);
        for i in 0..n {
            for j in 0..n {
                inverse[i][j] += -rho * (step[i] * image[j] + image[i] * step[j]) + rho * (rho * curvature + 1.0) * step[i] * step[j];
            }
        }
    }
    inverse.iter().map(|row| -dot(row, gradient)).collect()
}

#[test]
fn the_two_loops_are_the_dense_update() {
    let mut rng = fastrand::Rng::with_seed(3);
    let n = 7;
    let mut pairs: Vec<(Vec<f64>, Vec<f64>)> = (0..4)
        .map(|_| {
            let step = random(&mut rng, n);
            let change = step
                .iter()
                .enumerate()
                .map(|(i, s)| s * (0.5 + i as f64) + 0.1 * (rng.f64() - 0.5))
                .collect();
            (step, change)
        })
        .collect();
    let gradient = random(&mut rng, n);
    let expected = dense_direction(&gradient, &pairs);
    close(&reference::direction(&gradient, &pairs), &expected, 1e-12);

    let useless = (pairs[0].0.clone(), pairs[0].1.iter().map(|y| -y).collect());
    pairs.insert(2, useless.clone());
    pairs.push((vec![f64::NAN; n], vec![1.0; n]));
    pairs.push(useless);
    close(&reference::direction(&gradient, &pairs), &expected, 1e-12);
}

#[test]
fn exact_pairs_of_a_quadratic_lead_to_its_minimum() {
    // f = ½ Σ h_i (x_i − 1)², with one pair along each axis.
    let curvatures = [0.5, 2.0, 7.0];
    let point = [3.0, -2.0, 0.25];
    let gradient: Vec<f64> = (0..3).map(|i| curvatures[i] * (point[i] - 1.0)).collect();
    let pairs: Vec<_> = (0..3)
        .map(|axis| {
            let mut step = vec![0.0; 3];
            step[axis] = 0.3;
            let change = step.iter().zip(&curvatures).map(|(s, h)| s * h).collect();
            (step, change)
        })
        .collect();
    let direction = reference::direction(&gradient, &pairs);
    close(&reference::step(&point, &direction, 1.0), &[1.0; 3], 1e-13);
}

#[test]
fn without_history_the_direction_is_downhill() {
    assert_eq!(reference::direction(&[1.0, -2.0], &[]), [-1.0, 2.0]);
}

#[test]
fn a_push_moves_and_remembers() {
    let pushed = reference::push(0.5, &[2.0, -4.0], &[3.0, 1.0], &[1.0, 2.0], &[10.0, 20.0]);
    assert_eq!(
        (pushed.step.as_slice(), pushed.change.as_slice()),
        (&[1.0, -2.0][..], &[2.0, -1.0][..])
    );
    assert_eq!(pushed.origin, [11.0, 18.0]);
    assert_eq!((pushed.step_change, pushed.curvature), (4.0, Some([0.25, 0.8])));
    let uphill = reference::push(0.5, &[-2.0, 4.0], &[3.0, 1.0], &[1.0, 2.0], &[10.0, 20.0]);
    assert_eq!(uphill.curvature, None);
}

#[test]
fn the_slope_keeps_what_is_not_a_number() {
    let slope = reference::slope(&[1.0, -3.0, 2.0], &[1.0, 1.0, -0.5]);
    assert_eq!((slope.slope, slope.largest, slope.sum), (-3.0, 3.0, 6.0));
    assert!(reference::slope(&[1.0, f64::NAN, 2.0], &[0.0; 3]).largest.is_nan());
}

#[test]
fn merged_errors_of_three_rows_by_hand() {
    // New mass 0. Masses ln 3, 0, −ln 3: the context holds 3/4, 1/2 and 1/4 of the row.
    let third = 3f64.ln();
    let teacher = state(&[4.0, 8.0, -4.0], &[third, 0.0, -third]);
    // m = 3/4·4 − 1/4·4, 1/2·8 + 1/2·4, −1/4·4 + 3/4·8
    let merged_norm = 2f64.powi(2) + 6f64.powi(2) + 5f64.powi(2);
    // The second row's mass grows to ln 3 and the third's output to 0: 3/4·8 + 1/4·4, 3/4·8
    let student = state(&[4.0, 8.0, 0.0], &[third, third, -third]);
    let errors = merged::errors(&student, &teacher, 1);
    assert_relative_eq!(errors.output, 16.0 / 96.0, epsilon = 1e-14);
    assert_relative_eq!(errors.mass, (third * third / 3.0).sqrt(), epsilon = 1e-14);
    assert_relative_eq!(errors.merged, (1.0 + 1.0) / merged_norm, epsilon = 1e-14);
    let nothing = merged::errors(&state(&[0.0; 3], &[f64::from(NO_MASS); 3]), &teacher, 1);
    // m̂ is the row before: −4, 4, 8.
    assert_relative_eq!(nothing.merged, (36.0 + 4.0 + 9.0) / merged_norm, epsilon = 1e-14);
    let perfect = merged::errors(&teacher, &teacher, 1);
    assert_eq!((perfect.output, perfect.mass, perfect.merged), (0.0, 0.0, 0.0));
}

#[test]
fn states_survive_the_engines_layout() {
    let original = state(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0]);
    let array = original.to_array(2);
    assert_eq!(array, [1.0, 2.0, 5.0, 0.0, 0.0, 0.0, 3.0, 4.0, 6.0, 0.0, 0.0, 0.0]);
    assert_eq!(State::from_array(&array, 2), original);
}

fn state(output: &[f64], mass: &[f64]) -> State {
    State {
        output: output.to_vec(),
        mass: mass.to_vec(),
    }
}
