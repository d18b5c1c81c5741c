//! Lengths of heads: totals, targets, files, and what becomes of heads that keep everything. On small captures drawn at random, whose
//! heads differ in how far they look back.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;

use kvsculpt::Error;
use kvsculpt::budget::{Budgets, Weights};
use kvsculpt::cache::{Capture, Context, Dtype, Layer, Pairing, Queries};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::options::{Allocator, Method, Options, Scope, Tail, Target};
use kvsculpt::solver::{Compression, Decided, Errors, Judged, Observer, PLANNING, Request, Stop, check, compress};

const TOKENS: usize = 192;
const DIM: usize = 16;
const HEADS: usize = 2;
const GROUP: usize = 2;
/// Bytes of a head's report that numbers shorter than the longest leave over, and of its tensors' places in the header.
const DIGITS: u64 = 660;

/// Two layers; a head's queries point at keys the more sharply the higher its number, so that it needs the more pairs.
fn capture(seed: u64) -> Capture {
    shaped(seed, [(3, HEADS, DIM), (8, HEADS, DIM)])
}

/// The same with so many KV heads and channels in each layer.
fn shaped(seed: u64, layers: [(usize, usize, usize); 2]) -> Capture {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut number = move || random.f32() + random.f32() + random.f32() - 1.5;
    let layers = layers.map(|(index, heads, dim)| {
        let key = (0..heads * TOKENS * dim).map(|_| number()).collect();
        let value = (0..heads * TOKENS * dim).map(|_| number()).collect();
        let mut queries = |rows: usize| {
            let mut data = Vec::new();
            for head in 0..heads * GROUP {
                let sharpness = if index == 3 { [0.3, 3.0] } else { [3.0, 8.0] }[head / GROUP % 2];
                data.extend((0..rows * dim).map(|_| sharpness * number()));
            }
            Queries { data, rows }
        };
        Layer {
            index,
            kv_heads: heads,
            query_heads: heads * GROUP,
            tokens: TOKENS,
            dim,
            value_dim: dim,
            dtype: Dtype::F32,
            key,
            value,
            query: Some(queries(TOKENS)),
            reference_query: None,
            probe_query: Some(queries(32)),
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
    (options.keep, options.steps, options.tail, options.sinks) = (0.4, 1, Tail::Pairs(8), 2);
    (options.context_rows, options.recent_rows, options.validation_rows) = (96, Some(32), 24);
    change(&mut options);
    Request {
        options,
        ..Request::default()
    }
}

fn run(capture: &Capture, request: &Request) -> Compression {
    compress(&mut CpuEngine::new(), capture, request, &mut ()).unwrap()
}

fn refused(capture: &Capture, request: &Request) -> String {
    compress(&mut CpuEngine::new(), capture, request, &mut ()).unwrap_err().to_string()
}

fn lengths(short: &Compression) -> Vec<usize> {
    let lengths: Vec<usize> = short.compressed.layers.iter().flat_map(|layer| layer.lengths.clone()).collect();
    let told: Vec<usize> = short.outcomes.iter().map(|head| head.kept).collect();
    let budgets: Vec<usize> = short.budgets.layers().flat_map(|(_, lengths)| lengths.to_vec()).collect();
    assert_eq!((&lengths, &lengths), (&told, &budgets));
    lengths
}

fn written(short: &Compression) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("short.safetensors");
    short.compressed.write(&file).unwrap();
    std::fs::read(file).unwrap()
}

#[test]
fn totals_are_those_of_the_uniform_split_whatever_the_scope() {
    let capture = capture(1);
    for (keep, length) in [(0.1, 19), (0.4, 76), (0.77, 147)] {
        let total = 4 * length;
        for (scope, allocator, short_by) in [
            (Scope::Uniform, Allocator::Curves, 0),
            (Scope::Head, Allocator::Curves, 0),
            (Scope::Layer, Allocator::Curves, HEADS - 1),
            (Scope::Head, Allocator::Published, 0),
            (Scope::Layer, Allocator::Published, 0),
        ] {
            let short = run(
                &capture,
                &request(|options| (options.keep, options.budget, options.allocator) = (keep, scope, allocator)),
            );
            let lengths = lengths(&short);
            let sum: usize = lengths.iter().sum();
            assert!(
                sum <= total && sum + short_by >= total,
                "{keep} {scope:?} {allocator:?}: {lengths:?}"
            );
            match scope {
                Scope::Uniform => assert!(lengths.iter().all(|length| *length == lengths[0])),
                Scope::Layer => assert!(lengths.chunks(HEADS).all(|layer| layer[0] == layer[1]), "{lengths:?}"),
                Scope::Head => assert!(lengths[3] > lengths[0], "sharp heads need more, {keep} {allocator:?}: {lengths:?}"),
            }
        }
    }
}

#[test]
fn pairs_go_where_they_help_and_probes_see_it() {
    // The mean of three captures; each head's queries were drawn alike for fitting and probing.
    let error = |scope| -> f64 {
        let of = |seed| {
            let short = run(
                &capture(seed),
                &request(|options| (options.budget, options.method) = (scope, Method::SelectFit)),
            );
            short.outcomes.iter().map(|head| head.result.probe.unwrap().merged).sum::<f64>()
        };
        (1..=3).map(of).sum()
    };
    let (uniform, layer, head) = (error(Scope::Uniform), error(Scope::Layer), error(Scope::Head));
    assert!(head < 0.8 * uniform && layer < uniform && head < layer, "{uniform} {layer} {head}");
}

#[test]
fn a_head_that_keeps_everything_is_the_caches_own() {
    let capture = capture(2);
    let mut request = request(|options| options.bias = true);
    let lengths = BTreeMap::from([(3, vec![TOKENS, 40]), (8, vec![30, TOKENS])]);
    request.budgets = Some(Budgets::new(TOKENS, lengths).unwrap());
    let short = run(&capture, &request);
    for (layer, head) in [(3, 0), (8, 1)] {
        let full = capture.layer(layer).unwrap();
        let stored = short.compressed.layers.iter().find(|stored| stored.index == layer).unwrap();
        let stored = stored.heads().nth(head).unwrap();
        let span = head * TOKENS * DIM..(head + 1) * TOKENS * DIM;
        assert_eq!(stored.key, &full.key[span.clone()]);
        assert_eq!(stored.value, &full.value[span]);
        assert_eq!(stored.bias.unwrap(), &[0.0; TOKENS]);
        let outcome = short
            .outcomes
            .iter()
            .find(|outcome| (outcome.layer, outcome.head) == (layer, head))
            .unwrap();
        assert_eq!((outcome.stop, outcome.result.probe.unwrap().merged), (Stop::Whole, 0.0));
    }
    assert!(short.outcomes[1].result.probe.unwrap().merged > 0.0);
}

#[test]
fn no_head_is_returned_worse_than_its_start_on_rows_held_out() {
    let on = |judged: &Judged| judged.validation.unwrap().merged;
    for seed in 10..16 {
        let capture = capture(seed);
        for (keep, bias, steps) in [(0.15, false, 4), (0.15, true, 4), (0.5, true, 2), (0.85, false, 4)] {
            let short = run(
                &capture,
                &request(|options| (options.keep, options.bias, options.steps) = (keep, bias, steps)),
            );
            for head in &short.outcomes {
                let start = on(&head.select).min(on(head.select_fit.as_ref().unwrap()));
                // The same arrays judged twice give the same bits, so this is exact.
                assert!(on(&head.result) <= start, "seed {seed}, keep {keep}, bias {bias}: {head:?}");
            }
        }
    }
}

#[test]
fn a_bias_lowers_the_error_and_stands_only_where_pairs_are_free() {
    let errors = |bias| -> f64 {
        let of = |seed| {
            let options =
                |options: &mut Options| (options.bias, options.method, options.budget) = (bias, Method::SelectFit, Scope::Uniform);
            let short = run(&capture(seed), &request(options));
            for layer in &short.compressed.layers {
                assert_eq!(layer.bias.is_some(), bias);
                for head in layer.heads().filter(|_| bias) {
                    let given = head.bias.unwrap();
                    let (sinks, tail) = (&given[..2], &given[given.len() - 8..]);
                    assert!(sinks.iter().chain(tail).all(|&x| x == 0.0));
                    assert!(given[2..given.len() - 8].iter().any(|&x| x != 0.0));
                }
            }
            short.outcomes.iter().map(|head| head.result.probe.unwrap().merged).sum::<f64>()
        };
        (20..23).map(of).sum()
    };
    let (without, with) = (errors(false), errors(true));
    assert!(with < 0.95 * without, "{with} with, {without} without");
}

/// What the file says, attended to in plain loops, is what was reported: the bias is where a reader expects it.
#[test]
fn the_reported_error_is_that_of_the_pairs_and_biases_stored() {
    let capture = capture(30);
    let short = run(&capture, &request(|options| (options.bias, options.steps) = (true, 3)));
    let scale = capture.scale;
    for layer in &short.compressed.layers {
        let full = capture.layer(layer.index).unwrap();
        let probe = full.probe_query.as_ref().unwrap();
        for (number, head) in layer.heads().enumerate() {
            let queries = &probe.data[number * GROUP * probe.rows * DIM..(number + 1) * GROUP * probe.rows * DIM];
            let span = number * TOKENS * DIM..(number + 1) * TOKENS * DIM;
            let none = [0.0; TOKENS];
            let (mut wrong, mut size) = (0.0, 0.0);
            for query in queries.chunks_exact(DIM) {
                let wanted = attend(query, &full.key[span.clone()], &full.value[span.clone()], &none, scale);
                let got = attend(query, head.key, head.value, head.bias.unwrap(), scale);
                wrong += wanted.iter().zip(&got).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                size += wanted.iter().map(|a| a * a).sum::<f64>();
            }
            let outcome = short
                .outcomes
                .iter()
                .find(|outcome| (outcome.layer, outcome.head) == (layer.index, number))
                .unwrap();
            let told: Errors = outcome.result.probe.unwrap();
            let found = wrong / size;
            assert!(
                (found - told.output).abs() <= 1e-4 * found + 1e-9,
                "{found} against {}",
                told.output
            );
        }
    }
}

fn attend(query: &[f32], keys: &[f32], values: &[f32], bias: &[f32], scale: f64) -> Vec<f64> {
    let dot = |key: &[f32]| query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let logits: Vec<f64> = keys
        .chunks_exact(DIM)
        .zip(bias)
        .map(|(key, &bias)| scale * dot(key) + f64::from(bias))
        .collect();
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
fn targets_in_tokens_and_bytes_are_kept_to() {
    let capture = capture(4);
    let short = run(&capture, &request(|options| options.target = Some(Target::Tokens(77))));
    assert_eq!(lengths(&short).iter().sum::<usize>(), 4 * 77);
    for (bytes, bias) in [(40_000, false), (60_001, true), (90_007, false)] {
        for scope in [Scope::Uniform, Scope::Head] {
            let short = run(
                &capture,
                &request(|options| (options.target, options.bias, options.budget) = (Some(Target::Bytes(bytes)), bias, scope)),
            );
            let size = written(&short).len() as u64;
            // A pair, of every head where all have one length, and the digits that numbers of the report happened to be shorter than
            // they could be.
            let heads = if scope == Scope::Uniform { 4 } else { 1 };
            let slack = heads * (2 * DIM as u64 * 4 + 4) + 4 * DIGITS;
            assert!(size <= bytes && size + slack >= bytes, "{bytes} {scope:?}: {size}");
        }
    }
    let few = refused(&capture, &request(|options| options.target = Some(Target::Bytes(900))));
    assert!(few.contains("--bytes") && few.contains("at least"), "{few}");
    for (tokens, words) in [(5, "at least 11 are needed"), (193, "more than the 192")] {
        let message = refused(&capture, &request(|options| options.target = Some(Target::Tokens(tokens))));
        assert!(message.contains("--tokens") && message.contains(words), "{message}");
    }
}

#[test]
fn the_smallest_cache_for_an_error_grows_as_the_error_shrinks() {
    let capture = capture(5);
    let totals: Vec<usize> = [0.3, 0.1, 0.01, 0.0]
        .into_iter()
        .map(|error| {
            let short = run(
                &capture,
                &request(|options| (options.target, options.method) = (Some(Target::MaxError(error)), Method::SelectFit)),
            );
            let lengths = lengths(&short);
            // What is promised is of the finished cache, and what the curves give away is found again.
            let errors = short.outcomes.iter().map(|head| head.result.validation.unwrap().merged);
            let mean = errors.sum::<f64>() / 4.0;
            assert!(mean <= error, "{mean} for {error}");
            assert!(mean >= error / 2.0, "{mean} is far below {error}");
            assert_eq!(short.budgets.total(), lengths.iter().sum::<usize>());
            lengths.iter().sum()
        })
        .collect();
    assert!(totals.is_sorted() && totals[0] < totals[1] && totals[3] == 4 * TOKENS, "{totals:?}");
    let message = refused(&capture, &request(|options| options.target = Some(Target::MaxError(f64::NAN))));
    assert!(message.contains("--max-error"), "{message}");
}

#[test]
fn pages_divide_lengths_except_where_everything_is_kept() {
    let capture = capture(6);
    for scope in [Scope::Uniform, Scope::Layer, Scope::Head] {
        let short = run(
            &capture,
            &request(|options| (options.page, options.budget, options.keep) = (16, scope, 0.6)),
        );
        let lengths = lengths(&short);
        assert!(
            lengths.iter().all(|length| length % 16 == 0 || *length == TOKENS),
            "{scope:?} {lengths:?}"
        );
        let (sum, wanted) = (lengths.iter().sum::<usize>(), 4 * 115);
        assert!(sum <= wanted && sum + 4 * 16 > wanted, "{scope:?}: {sum} of {wanted}");
    }
    let message = refused(&capture, &request(|options| (options.page, options.budget) = (100, Scope::Uniform)));
    assert!(message.contains("--page"), "{message}");
}

#[test]
fn budgets_that_were_used_give_the_same_cache_again() {
    let capture = capture(7);
    let first = run(&capture, &request(|_| ()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("budgets.json");
    first.budgets.write(&file).unwrap();
    let mut again = request(|_| ());
    again.budgets = Some(Budgets::read(&file).unwrap());
    assert_eq!(run(&capture, &again).compressed.layers, first.compressed.layers);

    for (lengths, words) in [
        (BTreeMap::from([(3, vec![50, 50])]), "layer 8 head 0"),
        (BTreeMap::from([(3, vec![50, 50]), (8, vec![50])]), "layer 8 head 1"),
        (BTreeMap::from([(3, vec![50, 10]), (8, vec![50, 50])]), "at least 11"),
    ] {
        again.budgets = Some(Budgets::new(TOKENS, lengths).unwrap());
        let message = refused(&capture, &again);
        assert!(message.contains("--budgets") && message.contains(words), "{message}");
    }
    again.budgets = Some(Budgets::new(500, BTreeMap::from([(3, vec![50, 50]), (8, vec![50, 50])])).unwrap());
    assert!(refused(&capture, &again).contains("500 tokens"));
}

#[test]
fn sensitivities_draw_pairs_to_where_the_model_reacts() {
    let capture = capture(8);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sensitivities.json");
    let text = r#"{"format": "kv-sensitivity", "version": 1, "layers": [
        {"layer": 3, "kl": 1.0, "error": 0.1, "sensitivity": 100.0, "share": 0.9, "heads": []},
        {"layer": 8, "kl": 0.1, "error": 0.1, "sensitivity": 0.01, "share": 0.1, "heads": []}]}"#;
    std::fs::write(&file, text).unwrap();
    let plain = lengths(&run(&capture, &request(|_| ())));
    let mut weighted = request(|_| ());
    weighted.weights = Some(Weights::read(&file).unwrap());
    let drawn = lengths(&run(&capture, &weighted));
    assert_eq!(plain.iter().sum::<usize>(), drawn.iter().sum::<usize>());
    assert!(drawn[0] + drawn[1] > plain[0] + plain[1], "{plain:?} {drawn:?}");
}

#[test]
fn checking_refuses_what_compressing_would_and_nothing_else() {
    let capture = capture(9);
    let split = check(&capture, &request(|_| ())).unwrap();
    assert_eq!((split.sinks, split.tail, split.kept()), (2, 8, 76));
    assert!(matches!(
        check(&capture, &request(|options| options.keep = 0.03)),
        Err(Error::Options { option: "--keep", .. })
    ));
    let mut unknown = request(|_| ());
    unknown.layers = Some(vec![4]);
    assert!(check(&capture, &unknown).is_err());
}

#[test]
fn layers_of_other_shapes_keep_to_the_target_too() {
    let capture = shaped(40, [(3, 1, 16), (8, 4, 48)]);
    for allocator in [Allocator::Curves, Allocator::Published] {
        let with = |target, scope, page| {
            request(|options| (options.target, options.budget, options.allocator, options.page) = (Some(target), scope, allocator, page))
        };
        let short = run(&capture, &with(Target::Tokens(60), Scope::Head, 1));
        assert_eq!(lengths(&short).iter().sum::<usize>(), 5 * 60);
        let short = run(&capture, &with(Target::Bytes(120_000), Scope::Head, 1));
        assert!(written(&short).len() <= 120_000, "{allocator:?}");
        // The paper's rule shares out among equal layers, and knows no pages.
        let by_layer = with(Target::Tokens(60), Scope::Layer, 1);
        let paged = with(Target::Bytes(70_000), Scope::Head, 64);
        if allocator == Allocator::Published {
            assert!(check(&capture, &by_layer).unwrap_err().to_string().contains("equally many heads"));
            assert!(check(&capture, &paged).unwrap_err().to_string().contains("--page"));
        } else {
            let sum: usize = lengths(&run(&capture, &by_layer)).iter().sum();
            assert!(sum <= 300 && sum > 300 - 4, "{sum}");
            // Pages that even the least lengths do not fit into are refused before anything is measured; others are filled.
            assert!(check(&capture, &paged).unwrap_err().to_string().contains("--page"));
            let short = run(&capture, &with(Target::Bytes(200_000), Scope::Head, 32));
            assert!(written(&short).len() <= 200_000);
            assert!(lengths(&short).iter().all(|length| length % 32 == 0 || *length == TOKENS));
        }
    }
}

#[test]
fn a_head_that_says_nothing_gets_the_least_and_spoils_nothing() {
    let plain = capture(41);
    let layers: Vec<Layer> = plain
        .layers
        .iter()
        .map(|&index| {
            let mut layer = plain.layer(index).unwrap();
            layer.value[..TOKENS * DIM].fill(0.0);
            layer
        })
        .collect();
    let context = Context {
        tokens: TOKENS,
        next_position: TOKENS,
        scale: plain.scale,
        rope_theta: 10_000.0,
        rope_dim: DIM,
        pairing: Pairing::Half,
        rope_scaling: None,
        metadata: BTreeMap::new(),
    };
    let capture = Capture::from_layers("silent", context, layers).unwrap();
    let short = run(&capture, &request(|_| ()));
    let lengths = lengths(&short);
    assert_eq!(lengths.iter().sum::<usize>(), 4 * 76);
    assert!(lengths[0] < 40 && lengths[2] < 40, "{lengths:?}");
}

#[test]
fn a_bias_needs_room_beside_the_keys_channels() {
    let wide = shaped(42, [(3, 1, 256), (8, 1, 256)]);
    let message = check(&wide, &request(|options| options.bias = true)).unwrap_err().to_string();
    assert!(message.contains("--bias") && message.contains("252"), "{message}");
    // Methods that fit nothing have none.
    check(&wide, &request(|options| (options.bias, options.method) = (true, Method::Select))).unwrap();
    let short = run(
        &capture(43),
        &request(|options| (options.bias, options.method) = (true, Method::Select)),
    );
    assert!(short.compressed.layers.iter().all(|layer| layer.bias.is_none()));
}

#[test]
fn what_decides_lengths_is_what_the_request_says_first() {
    let mut request = request(|_| ());
    assert_eq!(request.decided(), Decided::Curves);
    request.options.budget = Scope::Uniform;
    assert_eq!(request.decided(), Decided::Beforehand);
    request.options.target = Some(Target::MaxError(0.1));
    assert_eq!(request.decided(), Decided::Curves);
    (request.options.target, request.options.budget, request.options.allocator) = (None, Scope::Layer, Allocator::Published);
    assert_eq!(request.decided(), Decided::Pilot);
    request.budgets = Some(Budgets::new(TOKENS, BTreeMap::from([(3, vec![50])])).unwrap());
    assert_eq!(request.decided(), Decided::Beforehand);
}

#[test]
fn who_watches_is_told_of_planning_and_may_end_it() {
    struct Watch(Vec<(usize, f64)>, f64);
    impl Observer for Watch {
        fn progress(&mut self, finished: usize, _: usize, fraction: f64) -> bool {
            self.0.push((finished, fraction));
            fraction < self.1
        }
    }
    for allocator in [Allocator::Curves, Allocator::Published] {
        let request = request(|options| options.allocator = allocator);
        let mut watch = Watch(Vec::new(), 2.0);
        compress(&mut CpuEngine::new(), &capture(44), &request, &mut watch).unwrap();
        assert!(watch.0.iter().map(|told| told.1).is_sorted(), "{:?}", watch.0);
        assert!(watch.0.iter().filter(|told| told.1 < PLANNING).all(|told| told.0 == 0));
        assert_eq!(watch.0.last().unwrap(), &(4, 1.0));
        let mut watch = Watch(Vec::new(), 0.01);
        let ended = compress(&mut CpuEngine::new(), &capture(44), &request, &mut watch);
        assert!(matches!(ended, Err(Error::Cancelled)));
        assert!(watch.0.last().unwrap().1 < PLANNING);
    }
}
