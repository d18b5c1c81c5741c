//! Memory stays within what a request allows, as the allocator itself counts it, and slices do not change the result.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::atomic::Ordering;
use std::thread;

use kvsculpt::Error;
use kvsculpt::cache::{Capture, Dtype, Generator};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::options::{Options, Tail};
use kvsculpt::solver::{Compression, Finished, Request, Team, compress};
use peak_alloc::PeakAlloc;

#[path = "unfinished/faulty.rs"]
#[allow(dead_code, reason = "nothing fails here")]
mod faulty;

use faulty::{Faulty, by_cpu};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const TOKENS: usize = 1024;
const DIM: usize = 32;
const LAYERS: usize = 6;
const HEADS: usize = 2;
const GROUP: usize = 2;

/// A file, so that the capture itself is not in memory.
fn capture(folder: &std::path::Path) -> Capture {
    let mut generator = Generator::default();
    (generator.layers, generator.kv_heads, generator.group) = (LAYERS, HEADS, GROUP);
    (generator.dim, generator.tokens, generator.probes, generator.seed) = (DIM, TOKENS, 64, 7);
    let path = folder.join("capture.safetensors");
    generator.write(&path, Dtype::F32, &mut |_| ()).unwrap();
    Capture::open(&path).unwrap()
}

/// The result, and the bytes that were in use at most beside what was there before and the short cache.
fn run(capture: &Capture, request: &Request) -> Result<(Compression, usize), Error> {
    let mut engine = CpuEngine::new();
    watched(|| compress(&mut engine, capture, request, &mut ()))
}

/// The same where what the next batch begins with is uploaded by another thread, as to a GPU, and how many arrays were.
fn run_ahead(capture: &Capture, request: &Request) -> Result<((Compression, usize), u64), Error> {
    let mut engine = Faulty::new(CpuEngine::new());
    engine.makes = Some(by_cpu);
    let found = watched(|| compress(&mut engine, capture, request, &mut ()))?;
    Ok((found, engine.ahead.arrays.load(Ordering::Relaxed)))
}

/// The same on two machines at once.
fn run_on_two(capture: &Capture, request: &Request) -> Result<(Compression, usize), Error> {
    let (mut one, mut other) = (CpuEngine::new(), CpuEngine::new());
    let mut team = Team::new().with(&mut one).with(&mut other);
    watched(|| team.compress(capture, request, &mut Finished::default(), &mut ()))
}

fn watched(work: impl FnOnce() -> Result<Compression, Error>) -> Result<(Compression, usize), Error> {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let short = work()?;
    let peak = ALLOCATOR.peak_usage() - before;
    let kept: usize = short
        .compressed
        .layers
        .iter()
        .map(|layer| layer.key.len() + layer.value.len())
        .sum();
    Ok((short, peak - 4 * kept))
}

// The only test in this file: the allocator counts what all threads use.
#[test]
fn memory_stays_within_the_budget_and_the_result_does_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let capture = capture(folder.path());
    for (chunk, bias) in [(0, true), (256, false)] {
        let mut options = Options::default();
        (options.keep, options.steps, options.tail, options.chunk, options.bias) = (0.25, 1, Tail::Pairs(64), chunk, bias);
        let mut request = Request {
            options,
            ..Request::default()
        };
        let (together, free) = run(&capture, &request).unwrap();
        let mut memory = 1 << 20;
        let least = loop {
            request.memory = Some(memory);
            match run(&capture, &request) {
                // Once more, now that the matrix products' library has what it keeps for each thread.
                Ok(_) => break run(&capture, &request).unwrap(),
                Err(Error::OutOfMemory { bytes, available, .. }) => {
                    assert_eq!(available, memory);
                    assert!(bytes > memory, "the least that would do is more than there was");
                    memory = bytes;
                }
                Err(error) => panic!("{error}"),
            }
        };
        let mut runs = vec![(least, memory)];
        // Where there is more, heads are read while others are worked on.
        for some in [2 * memory, 3 * memory] {
            request.memory = Some(some);
            runs.push((run(&capture, &request).unwrap(), some));
            let (found, arrays) = run_ahead(&capture, &request).unwrap();
            assert!(arrays > 0, "chunk {chunk}: nothing is uploaded ahead in {some} bytes");
            runs.push((found, some));
        }
        // Each machine has a thread of its own, and what the matrix products' library keeps for it goes with the thread.
        request.memory = Some(memory);
        let fresh = thread::scope(|scope| scope.spawn(|| run(&capture, &request).unwrap()).join().unwrap());
        let kept = fresh.1.saturating_sub(runs[0].0.1);
        println!("{kept} bytes kept for a thread");
        assert!(kept < 8 << 20);
        request.memory = Some(2 * memory);
        let (short, peak) = run_on_two(&capture, &request).unwrap();
        runs.push(((short, peak.saturating_sub(2 * kept)), 2 * memory));
        let peaks: Vec<_> = runs.iter().map(|((_, peak), memory)| format!("{peak} of {memory}")).collect();
        println!("chunk {chunk}: {free} bytes without a bound; {}", peaks.join("; "));
        for ((short, peak), memory) in runs {
            assert_eq!(short.compressed, together.compressed);
            assert_eq!(short.outcomes, together.outcomes);
            assert!(peak as u64 <= memory, "chunk {chunk}: {peak} bytes of {memory}");
            assert!(peak < free / 2, "chunk {chunk}: {peak} bytes, {free} without a bound");
        }
    }
}
