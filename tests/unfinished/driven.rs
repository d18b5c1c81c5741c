//! Devices that are lost while an application drives a compression in slices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvsculpt::compressor::{Compressor, Driven, Ended, Step};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::solver::{Finished, FinishedHead, Observer, Request, compress};
use kvsculpt::{Error, Result};

use crate::faulty::Faulty;
use crate::problem::{assert_same, capture, requests};

/// What the observer is told on the compressor's thread, and when it pulls the device out.
#[derive(Clone, Default)]
struct Told {
    retried: Arc<Mutex<Vec<String>>>,
    /// Heads in the order in which they were finished.
    finished: Arc<Mutex<Vec<(usize, usize)>>>,
    pull: Arc<AtomicBool>,
    /// After so many heads, each time.
    pulls_after: Vec<usize>,
}

impl Observer for Told {
    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        let mut finished = self.finished.lock().unwrap();
        finished.push((head.outcome.layer, head.outcome.head));
        if self.pulls_after.contains(&finished.len()) {
            self.pull.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn retried(&mut self, why: &Error) {
        self.retried.lock().unwrap().push(why.to_string());
    }
}

/// Short steps to the end.
fn drive<M: Driven>(machine: M, request: &Request, finished: Finished, observer: impl Observer + Send + 'static) -> Ended<M> {
    let mut compressor = Compressor::resume(machine, capture(), request.clone(), finished, observer).unwrap();
    while compressor.step(Duration::from_millis(2)) != Step::Ended {}
    compressor.end()
}

#[test]
fn between_steps_a_device_lost_once_is_opened_afresh_and_changes_no_byte() {
    let capture = capture();
    for (what, request) in requests().into_iter().take(2) {
        let mut whole = Faulty::new(CpuEngine::new());
        let wanted = compress(&mut whole, &capture, &request, &mut ()).unwrap();
        // In steps there are more operations, but for tables that nothing is done on, which are not set: half of these are surely reached.
        for part in [0, 1, 2] {
            let mut engine = Faulty::new(CpuEngine::new());
            engine.lost_at = vec![part * whole.operations / 4];
            let told = Told::default();
            let ended = drive(engine, &request, Finished::default(), told.clone());
            assert_same(what, &ended.result.unwrap(), &wanted);
            assert_eq!(ended.finished, Finished::default(), "{what}");
            assert_eq!(ended.machine.map(|engine| engine.reopened), Some(1), "{what}");
            let retried = told.retried.lock().unwrap();
            assert!(retried.len() == 1 && retried[0].contains("pulled out"), "{what}: {retried:?}");
            assert_eq!(
                told.finished.lock().unwrap().len(),
                wanted.outcomes.len(),
                "{what}: no head is finished twice"
            );
        }
    }
}

#[test]
fn between_steps_a_second_loss_is_an_error_that_leaves_what_is_finished() {
    let (what, request) = requests().remove(0);
    let wanted = compress(&mut CpuEngine::new(), &capture(), &request, &mut ()).unwrap();
    let told = Told {
        pulls_after: vec![1, 3],
        ..Told::default()
    };
    let mut engine = Faulty::new(CpuEngine::new());
    engine.pull = Arc::clone(&told.pull);
    let ended = drive(engine, &request, Finished::default(), told.clone());
    match ended.result {
        Err(Error::DeviceLost(reason)) => assert!(reason.contains("second time"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(ended.machine.map(|engine| engine.reopened), Some(1));
    assert_eq!(told.retried.lock().unwrap().len(), 1);
    let left = ended.finished.heads.iter().map(|head| (head.outcome.layer, head.outcome.head));
    assert_eq!(left.collect::<Vec<_>>(), *told.finished.lock().unwrap());
    assert_eq!(ended.finished.heads.len(), 3);
    // Another machine goes on from it, and does the rest alone.
    let rest = Told::default();
    let again = drive(CpuEngine::new(), &request, ended.finished, rest.clone());
    assert_same(what, &again.result.unwrap(), &wanted);
    assert_eq!(rest.finished.lock().unwrap().len(), wanted.outcomes.len() - 3);
}

/// Destroys a real device once a head is finished.
struct Pull(wgpu::Device, Told);

impl Observer for Pull {
    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        self.1.finished(head)?;
        self.0.destroy();
        Ok(())
    }

    fn retried(&mut self, why: &Error) {
        self.1.retried(why);
    }
}

#[test]
fn between_steps_a_gpu_that_is_lost_is_opened_afresh() {
    let gpu = Gpu::open(&Selection::default())
        .unwrap_or_else(|error| panic!("no adapter ({error}); install mesa-vulkan-drivers, or run the tests by `cargo xtask test`"));
    let mut engine = GpuEngine::new(gpu).unwrap();
    let request = Request {
        memory: None,
        at_once: Some(2),
        ..requests().remove(1).1
    };
    let wanted = compress(&mut engine, &capture(), &request, &mut ()).unwrap();
    let told = Told::default();
    let pull = Pull(engine.gpu().device().clone(), told.clone());
    let ended = drive(engine, &request, Finished::default(), pull);
    assert_same("the GPU in steps", &ended.result.unwrap(), &wanted);
    assert_eq!(told.retried.lock().unwrap().len(), 1);
    assert_eq!(told.finished.lock().unwrap().len(), wanted.outcomes.len());
    assert!(ended.machine.is_some());
}
