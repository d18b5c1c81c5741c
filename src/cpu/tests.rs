//! What the engine promises beside each operation's own result: the same bits on any number of threads and in any
//! batch, a fused evaluation that agrees with its parts, a gradient that agrees with the loss.

use crate::engine::{Dims, Engine, Head, NO_MASS, SCALARS, scalar};

mod batch;

use batch::{Batch, Problem, SCALE, narrow};

const DIMS: Dims = Dims { dim: 32, value_dim: 48 };

fn problems() -> Vec<Problem> {
    let shapes = [(1, 1), (7, 3), (129, 1), (1, 40), (300, 77), (1500, 33), (65, 129), (700, 301)];
    shapes
        .iter()
        .zip(1..)
        .map(|(&(rows, pairs), seed)| Problem::random(DIMS, rows, pairs, seed))
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn threads_do_not_change_a_bit() {
    let problems = problems();
    let run = |threads: usize| {
        on_threads(threads, || {
            let mut batch = Batch::new(DIMS, &problems.iter().collect::<Vec<_>>());
            batch.evaluate();
            let [_, rhs, solved] = batch.solve([1e-4, 1e-3]);
            [
                batch.state.data,
                batch.error.data,
                batch.gradient.data,
                batch.scalars.data,
                rhs,
                solved,
            ]
            .map(|x| bits(&x))
        })
    };
    let one = run(1);
    for threads in [2, 5] {
        assert_eq!(one, run(threads), "{threads} threads");
    }
}

#[test]
fn a_batch_gives_what_its_heads_give_alone() {
    let problems = problems();
    let mut batch = Batch::new(DIMS, &problems.iter().collect::<Vec<_>>());
    batch.evaluate();
    let [_, _, solved] = batch.solve([1e-4, 1e-3]);
    for (head, problem) in batch.heads.iter().zip(&problems) {
        let mut alone = Batch::new(DIMS, &[problem]);
        alone.evaluate();
        let [_, _, solved_alone] = alone.solve([1e-4, 1e-3]);
        let name = format!("{} rows, {} pairs", head.rows, head.pairs);
        let pairs = |width: u32| (head.pair * width) as usize..((head.pair + head.pairs) * width) as usize;
        let rows = |width: u32| (head.row * width) as usize..((head.row + head.rows) * width) as usize;
        let width = DIMS.state_row();
        assert_eq!(bits(&batch.state.data[rows(width)]), bits(&alone.state.data), "state, {name}");
        assert_eq!(bits(&batch.error.data[rows(width)]), bits(&alone.error.data), "error, {name}");
        assert_eq!(
            bits(&batch.gradient.data[pairs(DIMS.dim)]),
            bits(&alone.gradient.data),
            "gradient, {name}"
        );
        assert_eq!(bits(&solved[pairs(DIMS.value_dim)]), bits(&solved_alone), "values, {name}");
        let scalars = head.index as usize * SCALARS..(head.index as usize + 1) * SCALARS;
        assert_eq!(bits(&batch.scalars.data[scalars]), bits(&alone.scalars.data), "scalars, {name}");
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = b.iter().map(|&b| f64::from(b).powi(2)).sum();
    (difference / size).sqrt()
}

#[test]
fn the_fused_evaluation_agrees_with_its_parts() {
    let problems = problems();
    let mut problems: Vec<&Problem> = problems.iter().collect();
    let long = Problem::random(DIMS, 40, 2500, 99);
    problems.push(&long);
    let mut fused = Batch::new(DIMS, &problems);
    let mut parts = Batch::new(DIMS, &problems);
    fused.evaluate();
    parts.evaluate_in_parts();
    assert!(distance(&fused.state.data, &parts.state.data) < 1e-6);
    assert!(distance(&fused.error.data, &parts.error.data) < 1e-6);
    assert!(distance(&fused.gradient.data, &parts.gradient.data) < 1e-5);
    for place in [scalar::OUTPUT, scalar::MASS, scalar::SCALE, scalar::NOT_FINITE] {
        for index in 0..problems.len() {
            let (a, b) = (
                fused.scalars.data[index * SCALARS + place],
                parts.scalars.data[index * SCALARS + place],
            );
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{place} of head {index}: {a} {b}");
        }
    }
}

/// The loss of one head by the formula, in f64.
fn loss(problem: &Problem, keys: &[f64], mass_weight: f64) -> f64 {
    let (dim, value_dim) = (DIMS.dim as usize, DIMS.value_dim as usize);
    let mut loss = 0.0;
    for row in 0..problem.rows {
        let query = &problem.queries[row * dim..][..dim];
        let base = &problem.base[row * (value_dim + 4)..][..value_dim + 1];
        let teacher = &problem.teacher[row * (value_dim + 4)..][..value_dim + 1];
        let logits: Vec<f64> = keys
            .chunks(dim)
            .map(|key| f64::from(SCALE) * query.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum::<f64>())
            .collect();
        let most = logits.iter().copied().fold(f64::from(base[value_dim]), f64::max);
        let base_weight = (f64::from(base[value_dim]) - most).exp();
        let sum = base_weight + logits.iter().map(|x| (x - most).exp()).sum::<f64>();
        let delta = most + sum.ln() - f64::from(teacher[value_dim]);
        loss += mass_weight * delta * delta;
        for channel in 0..value_dim {
            let mut output = base_weight * f64::from(base[channel]);
            for (pair, x) in logits.iter().enumerate() {
                output += (x - most).exp() * f64::from(problem.values[pair * value_dim + channel]);
            }
            loss += (output / sum - f64::from(teacher[channel])).powi(2);
        }
    }
    loss / f64::from(narrow(problem.rows))
}

#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let mass_weight = f64::from(0.7f32);
    for (rows, pairs) in [(1, 1), (5, 2), (150, 21)] {
        let problem = Problem::random(DIMS, rows, pairs, 5);
        let mut batch = Batch::new(DIMS, &[&problem]);
        batch.evaluate();
        let sums = &batch.scalars.data;
        let got = (f64::from(sums[scalar::OUTPUT]) + mass_weight * f64::from(sums[scalar::MASS])) / f64::from(narrow(rows));
        let keys: Vec<f64> = problem.keys.iter().map(|&x| f64::from(x)).collect();
        let exact = loss(&problem, &keys, mass_weight);
        assert!((got - exact).abs() < 1e-5 * exact, "{got} {exact}");
        let largest = batch.gradient.data.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        for place in (0..keys.len()).step_by(7) {
            let moved = |by: f64| {
                let mut keys = keys.clone();
                keys[place] += by;
                loss(&problem, &keys, mass_weight)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let error = (slope - f64::from(batch.gradient.data[place])).abs();
            assert!(
                error < 1e-4 * f64::from(largest),
                "element {place}: {slope} {}",
                batch.gradient.data[place]
            );
        }
    }
}

#[test]
fn solved_values_satisfy_the_normal_equations() {
    let problem = Problem::random(DIMS, 1500, 200, 8);
    let mut batch = Batch::new(DIMS, &[&problem]);
    batch.evaluate();
    let ridge = [1e-4f32, 1e-3];
    let [gram, rhs, solved] = batch.solve(ridge);
    assert_eq!(batch.scalars.data[scalar::FACTORED], 1.0);
    let (pairs, value_dim) = (200, DIMS.value_dim as usize);
    let mean = (0..pairs).map(|i| f64::from(gram[i * pairs + i])).sum::<f64>() / 200.0;
    assert!((f64::from(batch.scalars.data[scalar::DIAGONAL]) - mean).abs() < 1e-6 * mean);
    let shift = f64::from(ridge[0]) + f64::from(ridge[1]) * mean;
    let (mut residual, mut size) = (0.0, 0.0);
    for i in 0..pairs {
        for channel in 0..value_dim {
            let difference = |j: usize| f64::from(solved[j * value_dim + channel] - problem.values[j * value_dim + channel]);
            let mut sum = shift * difference(i);
            for j in 0..pairs {
                sum += f64::from(gram[i.max(j) * pairs + i.min(j)]) * difference(j);
            }
            residual += (sum - f64::from(rhs[i * value_dim + channel])).powi(2);
            size += f64::from(rhs[i * value_dim + channel]).powi(2);
        }
    }
    assert!(residual.sqrt() < 1e-4 * size.sqrt(), "{residual} of {size}");
}

#[test]
fn a_matrix_that_cannot_be_factored_is_reported() {
    let problems = [Problem::random(DIMS, 300, 70, 1), Problem::random(DIMS, 20, 70, 2)];
    let mut batch = Batch::new(DIMS, &[&problems[0], &problems[1]]);
    batch.evaluate();
    // The second head has fewer rows than pairs, so its Gram matrix is singular and a negative ridge spoils it.
    batch.solve([0.0, -0.5]);
    assert_eq!(batch.scalars.data[SCALARS + scalar::FACTORED], 0.0);
    batch.solve([1.0, 0.0]);
    assert_eq!(batch.scalars.data[SCALARS + scalar::FACTORED], 1.0);
    batch.state.data.fill(f32::NAN);
    batch.solve([1.0, 0.0]);
    assert_eq!(batch.scalars.data[scalar::FACTORED], 0.0);
}

#[test]
fn no_pairs_and_large_scores() {
    let mut problem = Problem::random(DIMS, 9, 4, 3);
    for x in &mut problem.queries {
        *x = x.signum() * 2.0;
    }
    for (i, x) in problem.keys.iter_mut().enumerate() {
        let sign = if (i / DIMS.dim as usize).is_multiple_of(2) { 5.0 } else { -5.0 };
        *x = problem.queries[i % DIMS.dim as usize].signum() * sign;
    }
    let mut batch = Batch::new(DIMS, &[&problem]);
    batch.evaluate();
    assert!((batch.state.data[DIMS.value_dim as usize] - (80.0 + 2.0f32.ln())).abs() < 1e-4);
    assert!(batch.gradient.data.iter().chain(&batch.error.data).all(|x| x.is_finite()));
    assert_eq!(batch.scalars.data[scalar::NOT_FINITE], 0.0);

    let heads = [Head {
        pairs: 0,
        ..batch.heads[0]
    }];
    batch.engine.set_table(&mut batch.table, &heads).unwrap();
    batch
        .engine
        .attention(
            &batch.table,
            &batch.queries,
            &batch.keys,
            &batch.values,
            None,
            SCALE,
            &mut batch.state,
        )
        .unwrap();
    for row in batch.state.data.chunks(DIMS.state_row() as usize) {
        assert!(
            row.iter()
                .enumerate()
                .all(|(i, &x)| x == if i == DIMS.value_dim as usize { NO_MASS } else { 0.0 })
        );
    }
}
