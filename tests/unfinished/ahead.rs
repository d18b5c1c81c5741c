//! What the next batch begins with, uploaded while the machine works on this one: the same bytes, and nothing is lost whatever fails.

use std::sync::atomic::Ordering;

use kvsculpt::cache::{Dtype, Generator};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::options::Method;
use kvsculpt::solver::{Compression, Finished, Request, compress, compress_from, compress_recovering};
use kvsculpt::timed::Timed;
use kvsculpt::{Error, Result};

use crate::faulty::{Faulty, by_cpu};
use crate::problem::{Watch, assert_same, capture, requests};

fn uploading() -> Faulty<CpuEngine> {
    let mut engine = Faulty::new(CpuEngine::new());
    engine.makes = Some(by_cpu);
    engine
}

/// Arrays that were uploaded ahead.
fn arrays(engine: &Faulty<CpuEngine>) -> u64 {
    engine.ahead.arrays.load(Ordering::Relaxed)
}

/// Every kind of request, a head or chunk at a time in memory for several, with what comes of it where nothing is uploaded ahead.
fn several_waves() -> Vec<(&'static str, Request, Compression)> {
    let mut all = Vec::new();
    for (what, mut request) in requests() {
        let Some(memory) = &mut request.memory else { continue };
        *memory *= 2;
        request.at_once = Some(1);
        let whole = compress(&mut CpuEngine::new(), &capture(), &request, &mut ()).unwrap();
        all.push((what, request, whole));
    }
    all
}

#[test]
fn what_is_uploaded_ahead_changes_no_byte() {
    for (what, request, whole) in several_waves() {
        let mut engine = uploading();
        let found = compress(&mut engine, &capture(), &request, &mut ()).unwrap();
        assert_same(what, &found, &whole);
        assert!(arrays(&engine) > 0, "{what}");
        // As many at once as find room.
        let packed = Request { at_once: None, ..request };
        let found = compress(&mut uploading(), &capture(), &packed, &mut ()).unwrap();
        assert_same(what, &found, &whole);
    }
}

#[test]
fn where_nothing_is_in_the_way_every_batch_but_the_first_finds_its_arrays() {
    let capture = capture();
    let mut request = Request {
        at_once: Some(1),
        ..requests().remove(1).1
    };
    (request.options.method, request.options.budget) = (Method::SelectFit, kvsculpt::options::Scope::Uniform);
    let mut engine = uploading();
    let mut watched = Timed::new(&mut engine);
    compress(&mut watched, &capture, &request, &mut ()).unwrap();
    let traffic = watched.traffic();
    // Keys, values and those of them that stay, three kinds of rows; five of six heads.
    assert_eq!((traffic.writes_ahead, arrays(&engine)), (5 * 7, 5 * 7));
    assert!(traffic.bytes_ahead > 5 * capture.tokens as u64 * 2 * 16 * 4 && traffic.bytes_ahead < traffic.bytes_written);
}

/// Heads of the next slice are read, and their first batch's arrays uploaded while the last batch of this one is worked on.
#[test]
fn the_first_batch_of_a_slice_is_uploaded_too() {
    let mut generator = Generator::default();
    (generator.layers, generator.kv_heads, generator.group) = (12, 2, 2);
    (generator.dim, generator.tokens, generator.probes) = (16, 256, 0);
    let capture = generator.capture(Dtype::F32).unwrap();
    let mut request = requests().remove(1).1;
    (request.options.method, request.options.budget) = (Method::Select, kvsculpt::options::Scope::Uniform);
    let whole = compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap();
    request.at_once = Some(1);
    // All heads take more than half of it on the host, so ten are read at a time.
    request.memory = Some(4_000_000);
    let mut engine = uploading();
    engine.scratch = Some(0);
    let found = compress(&mut engine, &capture, &request, &mut ()).unwrap();
    assert_same("slices", &found, &whole);
    // Every head alone, and all but the very first ahead.
    assert_eq!(arrays(&engine), 23 * 6);
}

#[test]
fn what_fails_ahead_is_done_when_its_time_comes() {
    for (what, request, whole) in several_waves() {
        for fails_from in [0, 1, 5, 12] {
            let mut engine = uploading();
            engine.ahead.fails_from.store(fails_from, Ordering::Relaxed);
            let found = compress(&mut engine, &capture(), &request, &mut ()).unwrap();
            assert_same(what, &found, &whole);
            assert!(arrays(&engine) > 0, "{what}");
        }
    }
}

#[test]
fn a_device_lost_while_something_is_uploaded_costs_a_batch() {
    for (what, request, whole) in several_waves() {
        let mut engine = uploading();
        compress(&mut engine, &capture(), &request, &mut ()).unwrap();
        let all = engine.operations;
        for part in 1..4 {
            let mut engine = uploading();
            engine.lost_at = vec![part * (all - 1) / 4];
            let found = compress_recovering(&mut engine, &capture(), &request, &mut Finished::default(), &mut ()).unwrap();
            assert_same(what, &found, &whole);
            assert_eq!(engine.reopened, 1, "{what}");
        }
    }
}

#[test]
fn who_stops_while_something_is_uploaded_keeps_what_is_finished() {
    for (what, request, whole) in several_waves() {
        for heads in 1..4 {
            let mut watch = Watch::stopping_after(heads);
            let mut finished = Finished::default();
            let stopped = compress_from(&mut uploading(), &capture(), &request, &mut finished, &mut watch);
            assert!(matches!(stopped, Err(Error::Cancelled)), "{what}: {stopped:?}");
            assert!(finished.heads.len() >= heads, "{what}");
            let found = compress_from(&mut uploading(), &capture(), &request, &mut finished, &mut ()).unwrap();
            assert_same(what, &found, &whole);
        }
    }
}

/// On a device: several waves, what comes next uploaded by another thread, in no more memory than was foretold.
#[test]
fn a_gpu_is_given_the_next_wave_while_it_works() {
    let open = || -> Result<GpuEngine> { GpuEngine::new(Gpu::open(&Selection::default())?) };
    let (mut engine, capture) = (open().unwrap(), capture());
    for (what, mut request) in requests() {
        if !["all at once", "chunks"].contains(&what) {
            continue;
        }
        request.memory = None;
        let whole = compress(&mut engine, &capture, &request, &mut ()).unwrap();
        let at_most = |engine: &mut GpuEngine| kvsculpt::engine::Engine::take_peak_bytes(engine).unwrap();
        let in_one_wave = at_most(&mut engine);
        // The least memory, and some more.
        request.memory = Some(1);
        let least = loop {
            match compress(&mut engine, &capture, &request, &mut ()) {
                Ok(_) => break request.memory.unwrap(),
                Err(Error::OutOfMemory { bytes, .. }) => request.memory = Some(bytes),
                Err(error) => panic!("{error}"),
            }
        };
        request.memory = Some(2 * least);
        at_most(&mut engine);
        let mut watched = Timed::new(&mut engine);
        let found = compress(&mut watched, &capture, &request, &mut ()).unwrap();
        let traffic = watched.traffic();
        assert_same(what, &found, &whole);
        assert!(traffic.writes_ahead > 0, "{what}");
        let peak = at_most(&mut engine);
        assert!(
            peak <= 2 * least && peak < in_one_wave,
            "{what}: {peak} bytes of {}, {in_one_wave}",
            2 * least
        );
    }
}
