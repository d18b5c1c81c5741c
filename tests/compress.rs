//! The whole way on a real capture: one layer of SmolLM2-135M, three heads, 2048 tokens.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

use kvsculpt::cache::{Capture, Compressed, Dtype, Generator};
use kvsculpt::engine::{Engine, Head, SCALARS};
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::machine::{Preference, choose};
use kvsculpt::options::{Method, Options, Scope, Tail};
use kvsculpt::solver::{Compression, Observer, Outcome, Request, compress};
use kvsculpt::timed::Timed;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-layer20.safetensors")
}

fn capture() -> Capture {
    Capture::open(&path()).unwrap()
}

fn gpu() -> GpuEngine {
    let gpu = Gpu::open(&Selection::default())
        .unwrap_or_else(|error| panic!("no adapter ({error}); install mesa-vulkan-drivers, or run the tests by `cargo xtask test`"));
    println!("adapter: {}", gpu.name());
    GpuEngine::new(gpu).unwrap()
}

fn run<E: Engine>(engine: &mut E, request: &Request) -> Compression {
    compress(engine, &capture(), request, &mut ()).unwrap()
}

fn request(change: impl FnOnce(&mut Options)) -> Request {
    let mut options = Options::default();
    change(&mut options);
    Request {
        options,
        ..Request::default()
    }
}

fn published(change: impl FnOnce(&mut Options)) -> Request {
    let mut options = Options::published();
    change(&mut options);
    Request {
        options,
        ..Request::default()
    }
}

fn bytes(compression: &Compression) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("short.safetensors");
    compression.compressed.write(&file).unwrap();
    std::fs::read(file).unwrap()
}

fn merged(outcome: &Outcome) -> f64 {
    outcome.result.probe.unwrap().merged
}

fn mean(compression: &Compression) -> f64 {
    compression.outcomes.iter().map(merged).sum::<f64>() / compression.outcomes.len() as f64
}

/// Both lists within a share of the second.
fn close(what: &str, found: &[f64], wanted: &[f64], share: f64) {
    assert_eq!(found.len(), wanted.len());
    for (head, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert!(
            (found - wanted).abs() <= share * wanted,
            "{what}, head {head}: {found} against {wanted}"
        );
    }
}

#[cfg(feature = "cpu")]
mod cpu {
    use super::*;
    use kvsculpt::cpu::CpuEngine;

    /// The published recipe in PyTorch, run on the same file; errors as an evaluation in f64 by numpy gives them.
    #[test]
    fn published_select_fit_is_what_pytorch_gives() {
        let short = run(&mut CpuEngine::new(), &published(|options| options.method = Method::SelectFit));
        let probe: Vec<_> = short.outcomes.iter().map(|head| head.result.probe.unwrap()).collect();
        let of = |pick: fn(&kvsculpt::solver::Errors) -> f64| probe.iter().map(pick).collect::<Vec<_>>();
        close("output", &of(|errors| errors.output), &[4.700e-3, 3.123e-2, 1.036e-1], 0.02);
        close("mass", &of(|errors| errors.mass), &[0.1237, 0.2662, 0.2188], 0.02);
        close("merged", &of(|errors| errors.merged), &[1.716e-3, 1.273e-2, 6.556e-2], 0.02);
        let losses: Vec<f64> = short.outcomes.iter().map(|head| head.result.loss).collect();
        close("loss", &losses, &[0.017_748, 0.072_999, 0.070_433], 0.02);
    }

    #[test]
    fn published_key_steps_reach_the_loss_that_pytorch_reaches() {
        let short = run(&mut CpuEngine::new(), &published(|_| ()));
        let pytorch = [7.566e-4, 2.964e-3, 2.687e-3];
        for (head, pytorch) in short.outcomes.iter().zip(pytorch) {
            assert!(
                head.result.loss <= 1.1 * pytorch,
                "head {}: {} against {pytorch}",
                head.head,
                head.result.loss
            );
        }
        assert!(mean(&short) <= 1.05 * 5.471e-2, "{}", mean(&short));
    }

    #[test]
    fn the_default_beats_published_select_and_select_fit_on_probe_rows() {
        for keep in [0.2, 0.3] {
            let ours = run(&mut CpuEngine::new(), &request(|options| options.keep = keep));
            let theirs = run(
                &mut CpuEngine::new(),
                &published(|options| (options.keep, options.steps) = (keep, 30)),
            );
            assert!(
                mean(&ours) < mean(&theirs),
                "keep {keep}: {} against {}",
                mean(&ours),
                mean(&theirs)
            );
        }
        let ours = run(&mut CpuEngine::new(), &request(|options| options.keep = 0.1));
        let over = |pick: fn(&Outcome) -> f64| ours.outcomes.iter().map(pick).sum::<f64>() / ours.outcomes.len() as f64;
        assert!(mean(&ours) < over(|head| head.select.probe.unwrap().merged));
        assert!(mean(&ours) < over(|head| head.select_fit.unwrap().probe.unwrap().merged));
    }

    #[test]
    fn no_head_is_worse_than_its_start_on_rows_held_out() {
        for (keep, bias) in [(0.05, false), (0.05, true), (0.3, false), (0.3, true), (0.8, false)] {
            let short = run(
                &mut CpuEngine::new(),
                &request(|options| (options.keep, options.steps, options.bias) = (keep, 5, bias)),
            );
            for head in &short.outcomes {
                let on = |judged: &kvsculpt::solver::Judged| judged.validation.unwrap().merged;
                let start = on(&head.select).min(on(head.select_fit.as_ref().unwrap()));
                // The same arrays judged twice give the same bits, so this is exact.
                assert!(
                    on(&head.result) <= start,
                    "keep {keep}, bias {bias}, head {}: {} against {start}",
                    head.head,
                    on(&head.result)
                );
            }
        }
    }

    #[test]
    fn methods_rank_as_they_should_and_random_follows_its_seed() {
        let by = |method, seed| {
            run(
                &mut CpuEngine::new(),
                &request(|options| (options.method, options.seed) = (method, seed)),
            )
        };
        let (random, select, sculpted) = (by(Method::Random, 1), by(Method::Select, 0), by(Method::Kvsculpt, 0));
        assert!(mean(&random) > mean(&select) && mean(&select) > mean(&sculpted));
        assert_eq!(bytes(&random), bytes(&by(Method::Random, 1)));
        assert_ne!(bytes(&random), bytes(&by(Method::Random, 2)));
    }

    #[test]
    fn sinks_and_tail_are_the_caches_own_and_lengths_are_as_asked() {
        let mut request =
            request(|options| (options.keep, options.tail, options.steps, options.budget) = (0.25, Tail::Pairs(100), 5, Scope::Uniform));
        request.dtype = Some(Dtype::F32);
        let short = run(&mut CpuEngine::new(), &request);
        let layer = capture().layer(20).unwrap();
        let (stored, width) = (&short.compressed.layers[0], layer.dim);
        assert_eq!(stored.lengths, [512; 3]);
        for head in 0..3 {
            let mine = &stored.key[head * 512 * width..(head + 1) * 512 * width];
            let full = &layer.key[head * 2048 * width..(head + 1) * 2048 * width];
            assert_eq!(mine[..4 * width], full[..4 * width]);
            assert_eq!(mine[412 * width..], full[1948 * width..]);
        }
        let (before, after) = short.bytes();
        // The capture is stored in half precision.
        assert_eq!((before, after), (2048 * 3 * 128 * 2, 512 * 3 * 128 * 4));
    }

    #[test]
    fn the_file_holds_what_was_reported() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("short.safetensors");
        let short = run(&mut CpuEngine::new(), &request(|options| options.steps = 5));
        let written = short.compressed.write(&file).unwrap();
        assert_eq!(written, std::fs::metadata(&file).unwrap().len());
        let back = Compressed::read(&file).unwrap();
        let report: Vec<Outcome> = serde_json::from_str(&back.metadata["report"]).unwrap();
        assert_eq!(report, short.outcomes);
        let options: Options = serde_json::from_str(&back.metadata["options"]).unwrap();
        assert_eq!(options.steps, 5);
        assert_eq!(back.metadata["next_position"], "2048");
        assert!(back.metadata["source"].starts_with("sha256:"));
    }

    #[test]
    fn one_head_at_a_time_gives_the_bytes_of_all_at_once() {
        one_head_at_a_time(&mut CpuEngine::new(), 10);
    }

    #[test]
    fn the_machine_that_is_the_cpu_gives_what_its_engine_gives() {
        machine_is_its_engine(Preference::Cpu, "cpu", &mut CpuEngine::new());
    }

    #[test]
    fn an_observer_follows_and_may_stop() {
        struct Watch(Vec<f64>);
        impl Observer for Watch {
            fn progress(&mut self, _: usize, heads: usize, fraction: f64) -> bool {
                assert_eq!(heads, 3);
                self.0.push(fraction);
                self.0.len() < 20
            }
        }
        let mut watch = Watch(Vec::new());
        let stopped = compress(&mut CpuEngine::new(), &capture(), &request(|_| ()), &mut watch);
        assert!(matches!(stopped, Err(kvsculpt::Error::Cancelled)));
        assert_eq!(watch.0.len(), 20);
        assert!(watch.0.is_sorted() && watch.0[19] > 0.0, "{:?}", watch.0);
    }

    #[test]
    fn both_engines_agree_head_by_head() {
        for request in [published(|options| options.method = Method::SelectFit), request(|_| ())] {
            let (gpu, cpu) = (run(&mut gpu(), &request), run(&mut CpuEngine::new(), &request));
            let probe = |short: &Compression, pick: fn(&kvsculpt::solver::Errors) -> f64| -> Vec<f64> {
                short.outcomes.iter().map(|head| pick(&head.result.probe.unwrap())).collect()
            };
            for (what, pick) in [
                ("output", (|errors| errors.output) as fn(&kvsculpt::solver::Errors) -> f64),
                ("mass", |errors| errors.mass),
                ("merged", |errors| errors.merged),
            ] {
                close(what, &probe(&gpu, pick), &probe(&cpu, pick), 0.01);
            }
        }
    }
}

/// A budget that holds one head a batch, against one that holds all; and the same run twice.
fn one_head_at_a_time<E: Engine>(engine: &mut E, steps: u32) {
    let mut request = request(|options| (options.keep, options.steps) = (0.15, steps));
    let together = bytes(&run(engine, &request));
    assert_eq!(together, bytes(&run(engine, &request)), "two runs");
    // The smallest budget that is not refused leaves room for one head only.
    let mut budget = 1 << 20;
    let alone = loop {
        request.memory = Some(budget);
        match compress(engine, &capture(), &request, &mut ()) {
            Ok(compression) => break compression,
            Err(kvsculpt::Error::OutOfMemory { bytes, .. }) => budget = bytes,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(together, bytes(&alone), "one head a batch");
}

#[test]
fn on_the_gpu_one_head_at_a_time_gives_the_bytes_of_all_at_once() {
    one_head_at_a_time(&mut gpu(), 2);
}

/// What is chosen while the program runs against the engine itself.
fn machine_is_its_engine<E: Engine>(preference: Preference, kind: &str, engine: &mut E) {
    let choice = choose(preference, &Selection::default()).unwrap();
    assert_eq!(choice.notice, None, "as asked");
    let mut machine = choice.open().unwrap();
    assert_eq!((machine.kind(), machine.name()), (kind, engine.name()));
    let request = request(|options| options.method = Method::SelectFit);
    let short = machine.compress(&capture(), &request, &mut ()).unwrap();
    assert_eq!(bytes(&short), bytes(&run(engine, &request)));
}

#[test]
fn the_machine_that_is_a_gpu_gives_what_its_engine_gives() {
    machine_is_its_engine(Preference::Gpu, "gpu", &mut gpu());
}

/// A round of key steps costs one submission of work, small uploads, and one read of a few numbers a head, nothing else.
#[test]
fn a_round_of_key_steps_is_one_small_read() {
    let mut generator = Generator::default();
    (generator.layers, generator.kv_heads, generator.group) = (1, 3, 2);
    (generator.dim, generator.tokens, generator.probes) = (16, 256, 0);
    let capture = generator.capture(Dtype::F32).unwrap();
    let mut request = request(|options| (options.budget, options.steps) = (Scope::Uniform, 4));
    for at_once in [1, 3] {
        request.at_once = Some(at_once);
        let mut engine = gpu();
        let mut timed = Timed::new(&mut engine);
        compress(&mut timed, &capture, &request, &mut ()).unwrap();
        let rounds = timed.traffic().rounds;
        let bytes = (4 * SCALARS * at_once) as u64;
        println!("{rounds}");
        assert!(rounds.count >= 4, "{rounds}");
        assert_eq!((rounds.all.reads, rounds.most.reads), (rounds.count, 1), "{rounds}");
        assert_eq!(
            (rounds.all.bytes_read, rounds.most.bytes_read),
            (bytes * rounds.count, bytes),
            "{rounds}"
        );
        // Where a cycle begins, what was recorded before it may be handed over first; each of three batches has at most four cycles.
        let beyond = rounds.all.submissions - rounds.count;
        assert!(rounds.most.submissions <= 2 && beyond <= 3 * 4, "{rounds}");
        // Three numbers or four a head, and five tables.
        let most = (16 + 5 * size_of::<Head>()) * at_once;
        assert!(rounds.most.writes <= 8 && rounds.most.bytes_written <= most as u64, "{rounds}");
    }
}
