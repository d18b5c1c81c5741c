//! One evaluation of loss and key gradient, at the size of a real head batch: checked against the f64 reference once,
//! then timed; throughput in floating-point operations (8 n k d a head: four products).
//!
//! `cargo bench --bench kernels`. The GPU engine is measured where there is an adapter; its single kernels are timed by the
//! device's own clock with `cargo run --release --example kernel_speed`.

#![allow(clippy::expect_used, reason = "a bench that cannot run should say so and end")]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::{Dims, Engine, Evaluated, Evaluation, Head, SCALARS};
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::reference;

const SCALE: f32 = 0.125;

/// A batch of equal heads of random numbers.
struct Problem {
    dims: Dims,
    heads: Vec<Head>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    base: Vec<f32>,
    teacher: Vec<f32>,
}

impl Problem {
    fn new(dim: u32, rows: u32, pairs: u32, count: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(7);
        let mut numbers = |len: u32| (0..len).map(|_| random.f32() * 4.0 - 2.0).collect::<Vec<f32>>();
        let heads = (0..count).map(|index| Head {
            index,
            row: index * rows,
            rows,
            pair: index * pairs,
            pairs,
            ..Head::default()
        });
        let dims = Dims { dim, value_dim: dim };
        Self {
            dims,
            heads: heads.collect(),
            queries: numbers(count * rows * dim),
            keys: numbers(count * pairs * dim),
            values: numbers(count * pairs * dim),
            base: numbers(count * rows * dims.state_row()),
            teacher: numbers(count * rows * dims.state_row()),
        }
    }

    /// The first head's gradient, in f64.
    fn expected(&self) -> Vec<f64> {
        let (dim, head) = (self.dims.dim as usize, self.heads[0]);
        let widen = |part: &[f32]| part.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let queries = widen(&self.queries[..head.rows as usize * dim]);
        let keys = widen(&self.keys[..head.pairs as usize * dim]);
        let values = widen(&self.values[..head.pairs as usize * dim]);
        let state = |array: &[f32]| reference::State::from_array(&array[..(head.rows * self.dims.state_row()) as usize], dim);
        let student = reference::attention(&queries, &keys, &values, dim, dim, Some(&state(&self.base)), f64::from(SCALE));
        let loss = reference::loss(&student, &state(&self.teacher), 1.0);
        reference::key_gradient(&queries, &keys, &values, dim, &loss, f64::from(SCALE))
    }
}

fn evaluations<E: Engine>(criterion: &mut Criterion, engine: &mut E) -> kvsculpt::Result<()> {
    let mut group = criterion.benchmark_group(engine.name());
    group.sample_size(10);
    for (dim, rows, pairs, count) in [(64, 1152, 358, 4), (128, 1024, 256, 4)] {
        let problem = Problem::new(dim, rows, pairs, count);
        let table = engine.table(problem.dims, &problem.heads)?;
        let queries = engine.upload("queries", &problem.queries)?;
        let keys = engine.upload("keys", &problem.keys)?;
        let values = engine.upload("values", &problem.values)?;
        let base = engine.upload("base", &problem.base)?;
        let teacher = engine.upload("teacher", &problem.teacher)?;
        let mass_weight = engine.upload("mass weight", &vec![1.0; count as usize])?;
        let mut state = engine.zeros("state", problem.base.len())?;
        let mut error = engine.zeros("error", problem.base.len())?;
        let mut gradient = engine.zeros("gradient", problem.keys.len())?;
        let mut scalars = engine.zeros("scalars", count as usize * SCALARS)?;
        let mut evaluate = || -> kvsculpt::Result<Vec<f32>> {
            let inputs = Evaluation {
                queries: &queries,
                keys: &keys,
                values: &values,
                base: &base,
                teacher: &teacher,
                mass_weight: &mass_weight,
                scale: SCALE,
            };
            let outputs = Evaluated {
                state: &mut state,
                error: &mut error,
                gradient: &mut gradient,
                scalars: &mut scalars,
            };
            engine.evaluate(&table, &inputs, outputs)?;
            engine.read(&gradient)
        };
        let (found, expected) = (evaluate()?, problem.expected());
        let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
        let apart = norm(&mut found.iter().zip(&expected).map(|(&found, &expected)| f64::from(found) - expected));
        assert!(
            apart <= 1e-4 * norm(&mut expected.iter().copied()),
            "the gradient is off by {apart}"
        );
        group.throughput(Throughput::Elements(
            8 * u64::from(count) * u64::from(rows) * u64::from(pairs) * u64::from(dim),
        ));
        group.bench_function(
            format!("evaluate, {count} heads of {rows} rows, {pairs} pairs, dim {dim}"),
            |bencher| {
                bencher.iter(|| evaluate().expect("an evaluation"));
            },
        );
    }
    group.finish();
    Ok(())
}

fn benches(criterion: &mut Criterion) {
    evaluations(criterion, &mut CpuEngine::new()).expect("the CPU engine");
    match Gpu::open(&Selection::default()).and_then(GpuEngine::new) {
        Ok(mut engine) => evaluations(criterion, &mut engine).expect("the GPU engine"),
        Err(error) => eprintln!("the GPU engine is left out: {error}"),
    }
}

criterion_group!(all, benches);
criterion_main!(all);
