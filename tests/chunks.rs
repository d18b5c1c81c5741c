//! Zones cut into chunks: nearly as good as whole, exact in their totals, and no head worse than its start. On captures drawn at random.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;

use kvsculpt::budget::Budgets;
use kvsculpt::cache::{Capture, Context, Dtype, Layer, Pairing, Queries};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::Engine;
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::options::{Allocator, Method, Options, Scope, Tail, Target};
use kvsculpt::solver::{Compression, Judged, Outcome, Request, Stop, check, compress};

const TOKENS: usize = 1024;
const DIM: usize = 16;
const HEADS: usize = 2;
const GROUP: usize = 2;
const SINKS: usize = 2;
const TAIL: usize = 24;

/// Two layers; queries look for directions that keys of some stretches of the text share, so that chunks differ in what they say.
fn capture(seed: u64) -> Capture {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut number = move || random.f32() + random.f32() + random.f32() - 1.5;
    let layers = [(3, [1.0, 4.0]), (8, [2.0, 7.0])].map(|(index, sharpness)| {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for _ in 0..HEADS {
            for stretch in 0..TOKENS / 64 {
                let topic: Vec<f32> = (0..DIM).map(|_| if stretch % 3 == 0 { number() } else { 0.0 }).collect();
                for _ in 0..64 {
                    key.extend(topic.iter().map(|common| common + number()));
                    value.extend(topic.iter().map(|common| 0.5 * common + number()));
                }
            }
        }
        let mut queries = |rows: usize| {
            let heads = (0..HEADS * GROUP).map(|head| sharpness[head / GROUP]);
            let data = heads
                .flat_map(|sharpness| vec![sharpness; rows * DIM])
                .map(|sharpness| sharpness * number())
                .collect();
            Some(Queries { data, rows })
        };
        Layer {
            index,
            kv_heads: HEADS,
            query_heads: HEADS * GROUP,
            tokens: TOKENS,
            dim: DIM,
            value_dim: DIM,
            dtype: Dtype::F32,
            key,
            value,
            query: queries(TOKENS),
            reference_query: None,
            probe_query: queries(48),
        }
    });
    let context = Context {
        tokens: TOKENS,
        next_position: TOKENS,
        scale: 1.0 / (DIM as f64).sqrt(),
        rope_theta: 10_000.0,
        rope_dim: DIM,
        pairing: Pairing::Half,
        rope_scaling: None,
        metadata: BTreeMap::new(),
    };
    Capture::from_layers("random", context, layers.into()).unwrap()
}

fn request(change: impl FnOnce(&mut Options)) -> Request {
    let mut options = Options::default();
    (options.keep, options.steps, options.tail, options.sinks) = (0.25, 2, Tail::Pairs(TAIL), SINKS);
    (options.context_rows, options.recent_rows, options.validation_rows) = (160, Some(32), 32);
    options.chunk = 256;
    change(&mut options);
    Request {
        options,
        ..Request::default()
    }
}

fn run(capture: &Capture, request: &Request) -> Compression {
    on(&mut CpuEngine::new(), capture, request)
}

fn on<E: Engine>(engine: &mut E, capture: &Capture, request: &Request) -> Compression {
    compress(engine, capture, request, &mut ()).unwrap()
}

fn lengths(short: &Compression) -> Vec<usize> {
    let lengths: Vec<usize> = short.compressed.layers.iter().flat_map(|layer| layer.lengths.clone()).collect();
    let told: Vec<usize> = short.outcomes.iter().map(|head| head.kept).collect();
    assert_eq!(lengths, told);
    lengths
}

fn probe(pick: impl Fn(&Outcome) -> Judged, short: &Compression) -> f64 {
    short.outcomes.iter().map(|head| pick(head).probe.unwrap().merged).sum()
}

#[test]
fn chunks_are_nearly_as_good_as_the_whole_and_better_than_select() {
    let (mut whole, mut cut, mut select) = (0.0, 0.0, 0.0);
    for seed in 1..4 {
        let capture = capture(seed);
        let together = run(&capture, &request(|options| options.chunk = 0));
        let apart = run(&capture, &request(|_| ()));
        assert!(together.outcomes.iter().all(|head| head.chunks == 1));
        assert!(apart.outcomes.iter().all(|head| head.chunks == 4 && head.tokens == TOKENS));
        for short in [&together, &apart] {
            assert_eq!(lengths(short).iter().sum::<usize>(), 4 * TOKENS / 4);
        }
        whole += probe(|head| head.result, &together);
        cut += probe(|head| head.result, &apart);
        select += probe(|head| head.select, &apart);
    }
    println!("whole {whole:.4}, cut {cut:.4}, select {select:.4}");
    assert!(cut <= 1.25 * whole, "{cut} in chunks, {whole} whole");
    assert!(cut <= 0.8 * select, "{cut} in chunks, {select} by select");
}

#[test]
fn no_head_is_worse_than_its_start_on_rows_held_out() {
    let validation = |judged: &Judged| judged.validation.unwrap().merged;
    for seed in 10..12 {
        let capture = capture(seed);
        for (keep, bias, steps) in [(0.1, false, 4), (0.25, true, 2), (0.8, false, 2)] {
            let short = run(
                &capture,
                &request(|options| (options.keep, options.bias, options.steps) = (keep, bias, steps)),
            );
            for head in &short.outcomes {
                let start = validation(&head.select).min(validation(head.select_fit.as_ref().unwrap()));
                assert!(validation(&head.result) <= start, "seed {seed}, keep {keep}, bias {bias}: {head:?}");
            }
        }
    }
}

/// What the file says, attended to in plain loops, is what was reported: chunks and biases are where a reader expects them.
#[test]
fn the_reported_error_is_that_of_the_pairs_and_biases_stored() {
    let capture = capture(20);
    for method in [Method::Random, Method::SelectFit, Method::Kvsculpt] {
        let short = run(&capture, &request(|options| (options.bias, options.method) = (true, method)));
        let heads = short.compressed.layers.iter().flat_map(|layer| {
            let full = capture.layer(layer.index).unwrap();
            layer.heads().enumerate().map(move |(number, head)| (full.clone(), number, head))
        });
        for ((full, number, head), outcome) in heads.zip(&short.outcomes) {
            let span = number * TOKENS * DIM..(number + 1) * TOKENS * DIM;
            let (keys, values) = (&full.key[span.clone()], &full.value[span]);
            assert_eq!(head.key[..SINKS * DIM], keys[..SINKS * DIM]);
            assert_eq!(head.key[head.key.len() - TAIL * DIM..], keys[(TOKENS - TAIL) * DIM..]);
            let queries = full.probe_query.unwrap();
            let rows = GROUP * queries.rows * DIM;
            let (mut wrong, mut size) = (0.0, 0.0);
            for query in queries.data[number * rows..(number + 1) * rows].chunks_exact(DIM) {
                let wanted = attend(query, keys, values, None, capture.scale);
                let got = attend(query, head.key, head.value, head.bias, capture.scale);
                wrong += wanted.iter().zip(&got).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                size += wanted.iter().map(|a| a * a).sum::<f64>();
            }
            let (found, told) = (wrong / size, outcome.result.probe.unwrap().output);
            assert!((found - told).abs() <= 1e-4 * found + 1e-9, "{method:?}: {found} against {told}");
        }
    }
}

fn attend(query: &[f32], keys: &[f32], values: &[f32], bias: Option<&[f32]>, scale: f64) -> Vec<f64> {
    let dot = |key: &[f32]| query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let added = |pair: usize| bias.map_or(0.0, |bias| f64::from(bias[pair]));
    let keys = keys.chunks_exact(DIM).enumerate();
    let logits: Vec<f64> = keys.map(|(pair, key)| scale * dot(key) + added(pair)).collect();
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut output = vec![0.0; DIM];
    for (value, weight) in values.chunks_exact(DIM).zip(weights) {
        for (output, value) in output.iter_mut().zip(value) {
            *output += weight / sum * f64::from(*value);
        }
    }
    output
}

#[test]
fn totals_are_those_asked_for_whatever_decides_lengths() {
    let capture = capture(30);
    for (scope, allocator, page) in [
        (Scope::Uniform, Allocator::Curves, 1),
        (Scope::Uniform, Allocator::Curves, 16),
        (Scope::Layer, Allocator::Curves, 1),
        (Scope::Head, Allocator::Curves, 16),
        (Scope::Head, Allocator::Published, 1),
        (Scope::Layer, Allocator::Published, 1),
    ] {
        let short = run(
            &capture,
            &request(|options| {
                (options.budget, options.allocator, options.page) = (scope, allocator, page);
                options.method = Method::Select;
            }),
        );
        let lengths = lengths(&short);
        let sum: usize = lengths.iter().sum();
        assert!(sum <= TOKENS && sum + HEADS * page > TOKENS, "{scope:?} {allocator:?}: {lengths:?}");
        assert!(lengths.iter().all(|length| length % page == 0));
        if scope == Scope::Uniform {
            assert!(lengths.iter().all(|&length| length == 256));
        }
    }
    let short = run(&capture, &request(|options| options.target = Some(Target::MaxError(0.05))));
    let errors = short.outcomes.iter().map(|head| head.result.validation.unwrap().merged);
    assert!(errors.sum::<f64>() / 4.0 <= 0.05);
    assert_eq!(short.curves.len(), 4);
}

#[test]
fn budgets_that_were_used_give_the_same_cache_again() {
    let capture = capture(31);
    let first = run(&capture, &request(|_| ()));
    let mut again = request(|_| ());
    again.budgets = Some(first.budgets.clone());
    assert_eq!(run(&capture, &again).compressed.layers, first.compressed.layers);
    // Without curves, in proportion: the same lengths, other pairs.
    again.options.budget = Scope::Uniform;
    let even = run(&capture, &again);
    assert_eq!(lengths(&even), lengths(&first));
    assert_ne!(even.compressed.layers, first.compressed.layers);

    let short = BTreeMap::from([(3, vec![100, 29]), (8, vec![100, 100])]);
    again.budgets = Some(Budgets::new(TOKENS, short).unwrap().with_fixed(SINKS, TAIL).unwrap());
    let message = check(&capture, &again).unwrap_err().to_string();
    assert!(message.contains("layer 3 head 1") && message.contains("at least 30"), "{message}");
}

#[test]
fn heads_and_chunks_that_keep_everything_are_the_caches_own() {
    let capture = capture(32);
    let mut all = request(|_| ());
    all.budgets = Some(Budgets::new(TOKENS, BTreeMap::from([(3, vec![TOKENS, 200]), (8, vec![200, 1000])])).unwrap());
    let short = run(&capture, &all);
    let (whole, nearly) = (&short.outcomes[0], &short.outcomes[3]);
    assert_eq!((whole.stop, whole.result.probe.unwrap().merged), (Stop::Whole, 0.0));
    assert_eq!(
        short.compressed.layers[0].heads().next().unwrap().key,
        &capture.layer(3).unwrap().key[..TOKENS * DIM]
    );
    assert!(
        nearly.stop != Stop::Whole && nearly.result.probe.unwrap().merged < 1e-2,
        "{nearly:?}"
    );
}

#[test]
fn a_size_of_chunks_that_cuts_nothing_changes_nothing() {
    let capture = capture(33);
    let never = run(&capture, &request(|options| options.chunk = 0));
    // 998 tokens of zone are less than one and a half times 666.
    let large = run(&capture, &request(|options| options.chunk = 666));
    assert_eq!(never.compressed.layers, large.compressed.layers);
    assert_eq!(never.outcomes, large.outcomes);
}

#[test]
fn chunks_without_room_are_refused() {
    let capture = capture(34);
    for scope in [Scope::Uniform, Scope::Head] {
        let few = request(|options| (options.keep, options.chunk, options.budget) = (0.04, 32, scope));
        let message = check(&capture, &few).unwrap_err().to_string();
        assert!(message.contains("--chunk") && message.contains("14 free pairs"), "{message}");
    }
    let message = check(&capture, &request(|options| options.chunk = 5)).unwrap_err().to_string();
    assert!(message.contains("--chunk") && message.contains("at least 16"), "{message}");
}

#[test]
fn both_engines_agree_head_by_head() {
    let gpu = Gpu::open(&Selection::default())
        .unwrap_or_else(|error| panic!("no adapter ({error}); install mesa-vulkan-drivers, or run the tests by `cargo xtask test`"));
    let mut gpu = GpuEngine::new(gpu).unwrap();
    let capture = capture(40);
    for (method, bias) in [(Method::SelectFit, false), (Method::Kvsculpt, true)] {
        let request = request(|options| {
            (options.method, options.bias, options.budget) = (method, bias, Scope::Uniform);
        });
        let (one, other) = (on(&mut gpu, &capture, &request), run(&capture, &request));
        for (one, other) in one.outcomes.iter().zip(&other.outcomes) {
            let (found, wanted) = (one.result.probe.unwrap(), other.result.probe.unwrap());
            for (found, wanted) in [
                (found.output, wanted.output),
                (found.mass, wanted.mass),
                (found.merged, wanted.merged),
            ] {
                assert!((found - wanted).abs() <= 0.02 * wanted, "{method:?}: {one:?} against {other:?}");
            }
        }
    }
}
