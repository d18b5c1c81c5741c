//! A whole compression of the bundled capture (one layer of SmolLM2-135M, three heads, 2048 tokens) at keep 0.3.
//!
//! `cargo bench --bench compress`. The GPU engine is measured where there is an adapter.

#![allow(clippy::expect_used, reason = "a bench that cannot run should say so and end")]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvsculpt::cache::Capture;
use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::Engine;
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::options::Method;
use kvsculpt::solver::{Request, compress};

fn methods<E: Engine>(criterion: &mut Criterion, engine: &mut E) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-layer20.safetensors");
    let capture = Capture::open(&path).expect("the bundled capture");
    let mut group = criterion.benchmark_group(engine.name());
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(20))
        .throughput(Throughput::Elements(3));
    for (name, method) in [
        ("select", Method::Select),
        ("select-fit", Method::SelectFit),
        ("kvsculpt", Method::Kvsculpt),
    ] {
        let mut request = Request::default();
        request.options.method = method;
        // Heads a second.
        group.bench_function(name, |bencher| {
            bencher.iter(|| compress(engine, &capture, &request, &mut ()).expect("a compression"));
        });
    }
    group.finish();
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
