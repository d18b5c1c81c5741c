//! Whole compressions at keep 0.3: the bundled capture (one layer of SmolLM2-135M, three heads, 2048 tokens) and a generated one, in heads
//! and in tokens of the cache a second.
//!
//! `cargo bench --bench compress`. The GPU engine is measured where there is an adapter.

#![allow(clippy::expect_used, reason = "a bench that cannot run should say so and end")]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvsculpt::cache::{Capture, Dtype, Generator};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::Engine;
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::options::Method;
use kvsculpt::solver::{Request, compress};

/// The captures by name.
fn captures() -> [(&'static str, Capture); 2] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-layer20.safetensors");
    // A layer of Qwen2.5-0.5B's shape.
    let mut generator = Generator::default();
    generator.dim = 64;
    generator.group = 7;
    [
        ("bundled", Capture::open(&path).expect("the bundled capture")),
        ("generated", generator.capture(Dtype::F16).expect("a generated capture")),
    ]
}

fn methods<E: Engine>(criterion: &mut Criterion, engine: &mut E) {
    let mut told = Vec::new();
    for (source, capture) in captures() {
        let mut group = criterion.benchmark_group(format!("{}, {source}", engine.name()));
        let heads: usize = capture
            .layers
            .iter()
            .map(|&layer| capture.shape(layer).expect("a layer").kv_heads)
            .sum();
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(20))
            .throughput(Throughput::Elements(heads as u64));
        for (name, method) in [
            ("select", Method::Select),
            ("select-fit", Method::SelectFit),
            ("kvsculpt", Method::Kvsculpt),
        ] {
            let mut request = Request::default();
            request.options.method = method;
            let best = Cell::new(f64::INFINITY);
            // Heads a second.
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|iterations| {
                    let started = Instant::now();
                    for _ in 0..iterations {
                        compress(engine, &capture, &request, &mut ()).expect("a compression");
                    }
                    let elapsed = started.elapsed();
                    best.set(best.get().min(elapsed.as_secs_f64() / iterations as f64));
                    elapsed
                });
            });
            if best.get().is_finite() {
                told.push((source, name, heads, capture.tokens, best.get()));
            }
        }
        group.finish();
    }
    if !told.is_empty() {
        println!(
            "\n{}\n\n| capture | method | seconds | heads/s | tokens/s |\n|---|---|---:|---:|---:|",
            engine.name()
        );
    }
    for (source, name, heads, tokens, seconds) in told {
        let (heads, tokens) = (heads as f64 / seconds, tokens as f64 / seconds);
        println!("| {source} | {name} | {seconds:.3} | {heads:.2} | {tokens:.0} |");
    }
}

fn benches(criterion: &mut Criterion) {
    methods(criterion, &mut CpuEngine::new());
    match Gpu::open(&Selection::default()).and_then(GpuEngine::new) {
        Ok(mut engine) => methods(criterion, &mut engine),
        Err(error) => eprintln!("the GPU engine is left out: {error}"),
    }
}

criterion_group!(all, benches);
criterion_main!(all);
