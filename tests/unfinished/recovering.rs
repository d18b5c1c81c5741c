//! Devices that are lost and memory that is refused, at every place of a compression.

use kvsculpt::cpu::CpuEngine;
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::solver::{Finished, FinishedHead, Observer, compress, compress_recovering};
use kvsculpt::{Error, Result};

use crate::faulty::Faulty;
use crate::problem::{assert_same, capture, requests};

/// What the observer was told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) retried: Vec<String>,
    pub(crate) finished: usize,
}

impl Observer for Told {
    fn retried(&mut self, why: &Error) {
        self.retried.push(why.to_string());
    }

    fn finished(&mut self, _: &FinishedHead) -> Result<()> {
        self.finished += 1;
        Ok(())
    }
}

#[test]
fn a_device_lost_once_costs_a_batch_and_changes_no_byte() {
    let capture = capture();
    for (what, request) in requests() {
        let mut engine = Faulty::new(CpuEngine::new());
        let whole = compress(&mut engine, &capture, &request, &mut ()).unwrap();
        let all = engine.operations;
        for part in 0..7 {
            let mut engine = Faulty::new(CpuEngine::new());
            engine.lost_at = vec![part * (all - 1) / 6];
            let mut told = Told::default();
            let found = compress_recovering(&mut engine, &capture, &request, &mut Finished::default(), &mut told).unwrap();
            assert_same(what, &found, &whole);
            assert_eq!((engine.reopened, told.retried.len()), (1, 1), "{what}");
            assert!(told.retried[0].contains("pulled out"), "{:?}", told.retried);
            if what != "an error" {
                assert_eq!(told.finished, whole.outcomes.len(), "{what}: no head is finished twice");
            }
        }
    }
}

#[test]
fn a_device_lost_twice_is_an_error_that_leaves_what_is_finished() {
    let capture = capture();
    let (what, request) = requests().remove(0);
    let mut engine = Faulty::new(CpuEngine::new());
    let whole = compress(&mut engine, &capture, &request, &mut ()).unwrap();
    let all = engine.operations;
    let mut engine = Faulty::new(CpuEngine::new());
    engine.lost_at = vec![all / 2, all - 1];
    let mut finished = Finished::default();
    let lost = compress_recovering(&mut engine, &capture, &request, &mut finished, &mut ());
    match lost {
        Err(Error::DeviceLost(reason)) => assert!(reason.contains("second time"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(!finished.heads.is_empty() && finished.heads.len() < whole.outcomes.len());
    let found = compress_recovering(&mut CpuEngine::new(), &capture, &request, &mut finished, &mut ()).unwrap();
    assert_same(what, &found, &whole);
}

#[test]
fn without_any_memory_there_is_nothing_to_try() {
    let (_, mut request) = requests().remove(0);
    request.memory = Some(0);
    let mut engine = Faulty::new(CpuEngine::new());
    let refused = compress_recovering(&mut engine, &capture(), &request, &mut Finished::default(), &mut ());
    assert!(matches!(refused, Err(Error::Options { option: "--memory", .. })), "{refused:?}");
}

#[test]
fn an_engine_that_cannot_be_opened_again_says_what_was_lost() {
    let capture = capture();
    let (_, request) = requests().remove(0);
    let mut engine = Faulty::new(CpuEngine::new());
    (engine.lost_at, engine.opens) = (vec![5], false);
    let lost = compress_recovering(&mut engine, &capture, &request, &mut Finished::default(), &mut ());
    let message = lost.unwrap_err().to_string();
    assert!(message.contains("pulled out") && message.contains("no fresh one"), "{message}");
}

#[test]
fn memory_that_is_refused_is_done_without() {
    let capture = capture();
    for (what, request) in requests() {
        let whole = compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap();
        // What it asks for with all the memory there is, and the least that it gets along with.
        let free = kvsculpt::solver::Request {
            memory: None,
            ..request.clone()
        };
        let asks = |request| {
            let mut engine = Faulty::new(CpuEngine::new());
            compress(&mut engine, &capture, request, &mut ()).unwrap();
            engine.largest
        };
        let (most, least) = (asks(&free), asks(&request));
        let room = if request.memory.is_some() { least } else { most * 2 / 3 };
        assert!(room < most, "{what}: {room} of {most}");
        let mut engine = Faulty::new(CpuEngine::new());
        engine.room = room;
        let mut told = Told::default();
        let found = compress_recovering(&mut engine, &capture, &free, &mut Finished::default(), &mut told).unwrap();
        assert_same(what, &found, &whole);
        assert!(!told.retried.is_empty(), "{what}");
        assert!(told.retried.iter().all(|why| why.contains("refused it")), "{:?}", told.retried);
    }
}

#[test]
fn where_not_even_one_head_finds_room_the_refusal_is_the_error() {
    let capture = capture();
    for (what, request) in requests() {
        let mut engine = Faulty::new(CpuEngine::new());
        engine.room = 100;
        let mut finished = Finished::default();
        match compress_recovering(&mut engine, &capture, &request, &mut finished, &mut ()) {
            Err(Error::OutOfMemory { bytes, available: 0, .. }) => assert!(bytes > 400, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        assert!(engine.refused < 40, "{what}: {} tries", engine.refused);
        assert!(finished.heads.is_empty(), "{what}");
    }
}

/// Pulls a real device out once a head is finished.
struct Pull {
    device: wgpu::Device,
    told: Told,
}

impl Observer for Pull {
    fn progress(&mut self, _: usize, _: usize, fraction: f64) -> bool {
        if self.told.finished > 0 && fraction < 1.0 {
            self.device.destroy();
        }
        true
    }

    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        self.told.finished(head)
    }

    fn retried(&mut self, why: &Error) {
        self.told.retried(why);
    }
}

#[test]
fn on_the_gpu_a_lost_device_is_opened_afresh() {
    let capture = capture();
    let gpu = Gpu::open(&Selection::default())
        .unwrap_or_else(|error| panic!("no adapter ({error}); install mesa-vulkan-drivers, or run the tests by `cargo xtask test`"));
    let mut engine = GpuEngine::new(gpu).unwrap();
    let mut request = requests().remove(0).1;
    let whole = loop {
        match compress(&mut engine, &capture, &request, &mut ()) {
            Ok(whole) => break whole,
            Err(Error::OutOfMemory { bytes, .. }) => request.memory = Some(bytes),
            Err(error) => panic!("{error}"),
        }
    };
    let mut pull = Pull {
        device: engine.gpu().device().clone(),
        told: Told::default(),
    };
    let mut finished = Finished::default();
    let found = compress_recovering(&mut engine, &capture, &request, &mut finished, &mut pull).unwrap();
    assert_same("the GPU", &found, &whole);
    assert_eq!((pull.told.retried.len(), pull.told.finished), (1, whole.outcomes.len()));
    // The engine goes on with the fresh one.
    assert_same(
        "the fresh GPU",
        &compress(&mut engine, &capture, &request, &mut ()).unwrap(),
        &whole,
    );
}
