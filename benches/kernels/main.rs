//! Every operation of both engines at the size of real heads: held against the f64 reference once, then timed, and set beside what the
//! machine can do at most, measured in the same run.
//!
//! `cargo bench --bench kernels`; what follows `--` chooses operations by name. The GPU engine is measured where there is an adapter, and once
//! more with products by cooperative matrices where that has them. More
//! than 100 % of the bandwidth means that an operation's arrays lie in a cache, which those of the ceiling do not fit into.

#![allow(clippy::expect_used, reason = "a bench that cannot run should say so and end")]
#![allow(missing_docs, unreachable_pub, reason = "a bench has no public surface")]

mod batch;
mod ceilings;
mod operations;

use std::cell::Cell;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::Engine;
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;

use batch::{Arrays, Shape};
use ceilings::Ceilings;
use operations::{ALL, Operation};

const SHAPES: [Shape; 2] = [
    Shape {
        dim: 64,
        rows: 1152,
        pairs: 358,
        heads: 4,
    },
    Shape {
        dim: 128,
        rows: 1024,
        pairs: 256,
        heads: 4,
    },
];

/// What was timed of an operation: the best mean of a window, in seconds.
struct Timed {
    operation: Operation,
    seconds: f64,
}

/// Ceilings are taken before and after each shape's operations, for a machine may be busier at one time than at another.
fn measure<E: Engine>(
    criterion: &mut Criterion,
    name: &str,
    engine: &mut E,
    mut ceilings_of: impl FnMut(&mut E) -> kvsculpt::Result<Ceilings>,
) -> kvsculpt::Result<()> {
    let mut ceilings = Ceilings::default();
    for shape in SHAPES {
        ceilings = ceilings.or(ceilings_of(engine)?);
        let mut on = Arrays::new(engine, shape)?;
        let Shape { dim, rows, pairs, heads } = shape;
        let title = format!("{}, {heads} heads of {rows} rows, {pairs} pairs, dim {dim}", engine.name());
        let mut group = criterion.benchmark_group(format!("{name}, dim {dim}"));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        let mut timed = Vec::new();
        for operation in ALL {
            // Each where its turn comes: the last one changes the curvature pairs that another reads.
            operation.check(engine, &mut on, shape)?;
            let best = Cell::new(f64::INFINITY);
            let (flops, bytes) = operation.work(shape);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            group.throughput(if flops > 0.0 {
                Throughput::Elements(flops as u64)
            } else {
                Throughput::Bytes(bytes as u64)
            });
            group.bench_function(operation.name(), |bencher| {
                bencher.iter_custom(|iterations| {
                    let (mut left, mut elapsed) = (iterations, Duration::ZERO);
                    while left > 0 {
                        let count = window(best.get()).min(left);
                        let started = Instant::now();
                        for _ in 0..count {
                            operation.run(engine, &mut on, shape).expect("an operation");
                        }
                        // Whatever was deferred is done now.
                        engine.read(&on.mass_weight).expect("the end of the work");
                        let seconds = started.elapsed();
                        best.set(best.get().min(seconds.as_secs_f64() / count as f64));
                        (left, elapsed) = (left - count, elapsed + seconds);
                    }
                    elapsed
                });
            });
            if best.get().is_finite() {
                timed.push(Timed {
                    operation,
                    seconds: best.get(),
                });
            }
        }
        group.finish();
        ceilings = ceilings.or(ceilings_of(engine)?);
        print(&title, shape, &timed, ceilings);
    }
    Ok(())
}

/// Iterations that are timed together: so many that they take two milliseconds, few enough that other work on the machine leaves some
/// windows alone. One where nothing is known yet.
fn window(seconds: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count; casts saturate")]
    let count = (2e-3 / seconds).ceil() as u64;
    count.max(1)
}

/// The operations beside the ceilings, as a Markdown table.
fn print(title: &str, shape: Shape, timed: &[Timed], ceilings: Ceilings) {
    if timed.is_empty() {
        return;
    }
    println!("\n{title}");
    println!(
        "ceilings: {:.1} GFLOP/s, {:.1} GB/s\n\n| operation | ms | GFLOP/s | of the ceiling | GB/s | of the ceiling |\n|---|---:|---:|---:|---:|---:|",
        ceilings.flops * 1e-9,
        ceilings.bytes * 1e-9
    );
    for Timed { operation, seconds } in timed {
        let (flops, bytes) = operation.work(shape);
        let (flops, bytes) = (flops / seconds, bytes / seconds);
        println!(
            "| {} | {:.3} | {:.1} | {:.0} % | {:.1} | {:.0} % |",
            operation.name(),
            seconds * 1e3,
            flops * 1e-9,
            100.0 * flops / ceilings.flops,
            bytes * 1e-9,
            100.0 * bytes / ceilings.bytes
        );
    }
    println!();
}

fn benches(criterion: &mut Criterion) {
    measure(criterion, "cpu", &mut CpuEngine::new(), |_| Ok(ceilings::processor())).expect("the CPU engine");
    match Gpu::open(&Selection::default()).and_then(GpuEngine::new) {
        Ok(mut engine) => {
            measure(criterion, "gpu", &mut engine, |engine| ceilings::device(engine.gpu())).expect("the GPU engine");
        }
        Err(error) => eprintln!("the GPU engine is left out: {error}"),
    }
    let by_matrices = Selection {
        cooperative_matrices: true,
        ..Selection::default()
    };
    match Gpu::open(&by_matrices).and_then(GpuEngine::new) {
        Ok(mut engine) => {
            measure(criterion, "gpu with matrices", &mut engine, |engine| ceilings::device(engine.gpu())).expect("the GPU engine");
        }
        Err(error) => eprintln!("cooperative matrices are left out: {error}"),
    }
}

criterion_group!(all, benches);
criterion_main!(all);
