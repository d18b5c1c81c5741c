//! A compression driven in slices gives what it gives in one go, keeps to its leave, and leaves behind what is finished.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kvsculpt::Error;
use kvsculpt::cache::{Capture, Dtype, Generator};
use kvsculpt::compressor::{Compressor, Ended, Step};
use kvsculpt::gpu::Gpu;
use kvsculpt::kernels::GpuEngine;
use kvsculpt::machine::Machine;
use kvsculpt::options::{Options, Tail};
use kvsculpt::solver::{Compression, Finished, FinishedHead, Observer, Request, compress};

const TOKENS: usize = 400;
const DIM: usize = 16;
const LAYERS: usize = 3;
const HEADS: usize = 2;
const GROUP: usize = 2;

fn capture() -> Arc<Capture> {
    let mut generator = Generator::default();
    (generator.layers, generator.kv_heads, generator.group) = (LAYERS, HEADS, GROUP);
    (generator.dim, generator.tokens, generator.probes, generator.seed) = (DIM, TOKENS, 0, 11);
    Arc::new(generator.capture(Dtype::F32).unwrap())
}

/// Few rows, so that a software driver is done soon; chunks and biases, so that every operation is there.
fn request(at_once: Option<usize>) -> Request {
    let mut options = Options::default();
    (options.context_rows, options.validation_rows, options.recent_rows) = (40, 16, Some(16));
    (options.tail, options.chunk, options.bias, options.steps) = (Tail::Pairs(20), 180, true, 2);
    Request {
        options,
        at_once,
        ..Request::default()
    }
}

/// What must be the same, however the work was driven.
fn assert_same(found: &Compression, wanted: &Compression) {
    assert!(found.compressed == wanted.compressed, "other pairs");
    assert_eq!(found.outcomes, wanted.outcomes);
    assert_eq!(found.budgets, wanted.budgets);
}

/// Steps to the end; how many it took.
fn drive<M: kvsculpt::compressor::Driven>(mut compressor: Compressor<M>, at_most: Duration) -> (Compression, usize) {
    let mut steps = 1;
    let mut last = 0.0;
    while let Step::Working(progress) = compressor.step(at_most) {
        assert!((last..=1.0).contains(&progress.fraction), "{progress:?} after {last}");
        last = progress.fraction;
        steps += 1;
    }
    (compressor.finish().unwrap(), steps)
}

fn gpu() -> GpuEngine {
    let gpu = Gpu::open(&kvsculpt::gpu::Selection::default())
        .unwrap_or_else(|error| panic!("no adapter ({error}); install mesa-vulkan-drivers, or run the tests by `cargo xtask test`"));
    GpuEngine::new(gpu).unwrap()
}

#[test]
fn a_gpu_driven_in_slices_gives_the_bytes_of_one_go() {
    let (capture, request) = (capture(), request(None));
    let mut engine = gpu();
    let wanted = compress(&mut engine, &capture, &request, &mut ()).unwrap();
    // The same engine all the time: its kernels are compiled.
    let mut machine = Machine::Gpu(Box::new(engine));
    for at_most in [Duration::from_millis(5), Duration::from_millis(50)] {
        let mut compressor = Compressor::new(machine, Arc::clone(&capture), request.clone()).unwrap();
        while compressor.step(at_most) != Step::Ended {}
        let ended = compressor.end();
        assert_same(&ended.result.unwrap(), &wanted);
        machine = ended.machine.unwrap();
    }
    let compressor = Compressor::new(machine, Arc::clone(&capture), request).unwrap();
    assert_same(&compressor.finish().unwrap(), &wanted);
}

#[test]
fn compressors_move_between_threads() {
    fn moves<T: Send>() {}
    moves::<Compressor<GpuEngine>>();
    moves::<Compressor<Machine>>();
    moves::<Ended<Machine>>();
}

#[cfg(feature = "cpu")]
mod cpu {
    use super::*;
    use kvsculpt::cpu::CpuEngine;

    /// Heads that were finished.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicUsize>);

    impl Observer for Count {
        fn finished(&mut self, _: &FinishedHead) -> kvsculpt::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn in_one_go(request: &Request) -> Compression {
        compress(&mut CpuEngine::new(), &capture(), request, &mut ()).unwrap()
    }

    fn compressor(request: &Request) -> Compressor<CpuEngine> {
        Compressor::new(CpuEngine::new(), capture(), request.clone()).unwrap()
    }

    #[test]
    fn slices_of_any_length_give_the_bytes_of_one_go() {
        let request = request(None);
        let wanted = in_one_go(&request);
        let mut fewest = usize::MAX;
        for microseconds in [0, 200, 3_000, 60_000_000] {
            let (found, steps) = drive(compressor(&request), Duration::from_micros(microseconds));
            assert_same(&found, &wanted);
            assert!(steps < fewest, "{steps} steps of {microseconds} µs, {fewest} shorter ones");
            fewest = steps;
        }
        assert_eq!(fewest, 1);
        assert_same(&compressor(&request).finish().unwrap(), &wanted);
        let elsewhere = compressor(&request);
        let moved = std::thread::spawn(move || elsewhere.finish().unwrap()).join().unwrap();
        assert_same(&moved, &wanted);
    }

    #[test]
    fn a_step_without_time_begins_one_portion_and_nothing_goes_on_after_it() {
        let mut compressor = compressor(&request(None));
        compressor.settle();
        assert_eq!(compressor.portions(), 0);
        for portions in 1..200 {
            assert_ne!(compressor.step(Duration::ZERO), Step::Ended);
            compressor.settle();
            assert_eq!(compressor.portions(), portions);
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(compressor.portions(), 199);
    }

    /// Portions are no longer than the time allows, as soon as it is known how long they take: in the middle of the work a step
    /// of 2 ms gets several done, and a long one has them larger.
    #[test]
    fn portions_are_cut_to_the_time_there_is() {
        let request = request(None);
        let portions = |at_most| {
            let mut compressor = compressor(&request);
            while compressor.step(at_most) != Step::Ended {}
            compressor.portions()
        };
        let (short, long) = (portions(Duration::from_micros(100)), portions(Duration::from_secs(60)));
        assert!(short > long + long / 2, "{short} portions in short steps, {long} in long ones");
    }

    #[test]
    fn ended_in_the_middle_it_leaves_finished_heads_and_goes_on_from_them() {
        // A head is in two chunks, so batches of five end at different heads.
        let request = request(Some(5));
        let wanted = in_one_go(&request);
        let count = Count::default();
        let (engine, observer) = (CpuEngine::new(), count.clone());
        let mut compressor = Compressor::resume(engine, capture(), request.clone(), Finished::default(), observer).unwrap();
        while count.0.load(Ordering::Relaxed) == 0 {
            assert_ne!(compressor.step(Duration::from_millis(2)), Step::Ended);
        }
        let ended = compressor.end();
        assert!(matches!(ended.result, Err(Error::Cancelled)));
        let finished = ended.finished;
        let heads = finished.heads.len();
        assert!(heads > 0 && heads < LAYERS * HEADS, "{heads} heads finished");
        for head in &finished.heads {
            assert!(wanted.outcomes.contains(&head.outcome));
            let layer = wanted
                .compressed
                .layers
                .iter()
                .find(|layer| layer.index == head.outcome.layer)
                .unwrap();
            let before: usize = layer.lengths[..head.outcome.head].iter().sum();
            let pairs = before * DIM..(before + head.outcome.kept) * DIM;
            assert_eq!(head.key, layer.key[pairs.clone()]);
            assert_eq!(head.value, layer.value[pairs]);
        }
        let again = Count::default();
        let (engine, observer) = (ended.machine.unwrap(), again.clone());
        let compressor = Compressor::resume(engine, capture(), request, finished, observer).unwrap();
        assert_same(&drive(compressor, Duration::from_millis(20)).0, &wanted);
        assert_eq!(heads + again.0.load(Ordering::Relaxed), LAYERS * HEADS);
    }

    #[test]
    fn dropped_while_it_works_it_ends() {
        let count = Count::default();
        let observer = count.clone();
        let mut compressor = Compressor::resume(CpuEngine::new(), capture(), request(None), Finished::default(), observer).unwrap();
        let _ = compressor.step(Duration::from_millis(1));
        drop(compressor);
        // The thread is gone, and the observer with it.
        assert_eq!(Arc::strong_count(&count.0), 1);
        // Never begun, it ends as well.
        drop(super::cpu::compressor(&request(None)));
    }

    struct Breaks;

    impl Observer for Breaks {
        fn progress(&mut self, _: usize, _: usize, fraction: f64) -> bool {
            assert!(fraction < 0.1, "broken on purpose");
            true
        }
    }

    struct Refuses;

    impl Observer for Refuses {
        fn progress(&mut self, _: usize, _: usize, fraction: f64) -> bool {
            fraction < 0.1
        }
    }

    #[test]
    fn what_goes_wrong_is_an_error_of_the_end() {
        let resume = |observer: Box<dyn Observer + Send>| {
            let mut compressor = Compressor::resume(CpuEngine::new(), capture(), request(None), Finished::default(), observer).unwrap();
            while compressor.step(Duration::from_millis(50)) != Step::Ended {}
            compressor.end()
        };
        let ended = resume(Box::new(Breaks));
        assert!(ended.machine.is_none());
        assert!(
            matches!(&ended.result, Err(Error::Panicked(said)) if said.contains("on purpose")),
            "{:?}",
            ended.result.err()
        );
        let ended = resume(Box::new(Refuses));
        assert!(ended.machine.is_some());
        assert!(matches!(ended.result, Err(Error::Cancelled)));
        // Before any thread.
        let mut wrong = request(None);
        wrong.options.keep = 2.0;
        assert!(matches!(
            Compressor::new(CpuEngine::new(), capture(), wrong),
            Err(Error::Options { option: "--keep", .. })
        ));
    }
}
