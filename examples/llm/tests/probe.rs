//! What is measured piece by piece, on small models with random weights: the sensitivity of layers and heads, and retrieval.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on has failed; its numbers are small"
)]

mod small;

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use kvsculpt::Options;
use kvsculpt::cpu::CpuEngine;
use kvsculpt::options::Method;
use kvsculpt::solver::{Compression, Request, compress};
use kvsculpt_llm::measure::planting::{Needle, Planted, needles};
use kvsculpt_llm::measure::recall::ask;
use kvsculpt_llm::measure::sensitivity::Replay;
use kvsculpt_llm::measure::{Distributions, Divergence};
use kvsculpt_llm::model::{Cache, HeadPairs, Memory, Model, Products};
use kvsculpt_llm::reading::{Reading, follow};
use kvsculpt_llm::record::Recorder;
use kvsculpt_llm::text::Tokenizer;
use small::{Small, tokens};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A small model that has read a text, and the tokens that follow.
struct Read {
    model: Model,
    reading: Reading,
    following: Vec<u32>,
}

fn read(small: &Small) -> Read {
    let model = small.model(Products::Widened);
    let text = tokens(120, 13);
    Read {
        reading: Reading::new(&model, &text[..100], &mut |_| ()).unwrap(),
        following: text[100..].to_vec(),
        model,
    }
}

impl Read {
    fn replay(&self) -> Replay<'_> {
        Replay::new(&self.model, &self.reading.cache, &self.following).unwrap()
    }

    /// Mean KL of a run from the first layer on, with no state kept.
    fn divergence(&self, cache: &Cache) -> f64 {
        let full = follow(&self.model, &self.reading.cache, &self.following, &mut ()).unwrap();
        let found = follow(&self.model, cache, &self.following, &mut ()).unwrap();
        Divergence::new(&full, &found, &[]).unwrap().mean
    }

    fn select(&self) -> Compression {
        let mut probe = Recorder::after_rope(&self.model);
        follow(&self.model, &self.reading.cache, &self.following, &mut probe).unwrap();
        let capture = self.reading.capture("text", &self.model, Some(&probe)).unwrap();
        let mut options = Options::default();
        options.method = Method::Select;
        options.keep = 0.2;
        let request = Request {
            options,
            ..Request::default()
        };
        compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap()
    }
}

fn heads(cache: &Cache, layer: usize) -> Vec<HeadPairs> {
    match &cache.layers[layer].memory {
        Some(Memory::Ragged(heads)) => heads.clone(),
        Some(Memory::Even(pairs)) => {
            let head = |head| HeadPairs {
                key: pairs.key.get(head).unwrap(),
                value: pairs.value.get(head).unwrap(),
                bias: None,
            };
            (0..pairs.key.dim(0).unwrap()).map(head).collect()
        }
        None => panic!("not sealed"),
    }
}

#[test]
fn a_layer_read_again_from_its_states_is_a_whole_run() {
    for small in [Small::llama(), Small::qwen2()] {
        let read = read(&small);
        let replay = read.replay();
        let compression = read.select();
        let short = read.reading.cache.compressed(&compression.compressed, read.model.device()).unwrap();
        let mut seen = Vec::new();
        for layer in 0..read.model.config().layers {
            let outcomes = compression.outcomes.iter().filter(|outcome| outcome.layer == layer);
            let errors: Vec<f64> = outcomes.map(|outcome| outcome.result.probe.unwrap().merged).collect();
            let effect = replay.effect(layer, &heads(&short, layer), &errors, true).unwrap();
            let with = |heads: Vec<HeadPairs>| {
                let mut cache = read.reading.cache.clone();
                cache.layers[layer].memory = Some(Memory::Ragged(heads));
                read.divergence(&cache)
            };
            let mut pieces = vec![(effect.whole.kl, with(heads(&short, layer)))];
            for (head, found) in effect.heads.iter().enumerate() {
                let mut one = heads(&read.reading.cache, layer);
                one[head] = heads(&short, layer)[head].clone();
                pieces.push((found.kl, with(one)));
                assert_eq!(found.error, errors[head]);
            }
            assert_eq!(pieces.len(), 3);
            for (found, wanted) in pieces {
                assert!(wanted > 1e-5, "layer {layer}: {wanted} disturbs too little to tell");
                assert!((found - wanted).abs() < 1e-4 * wanted, "layer {layer}: {found} and {wanted}");
                seen.push(found);
            }
            assert!((effect.whole.error - f64::midpoint(errors[0], errors[1])).abs() < 1e-15);
        }
        seen.sort_by(f64::total_cmp);
        assert!(
            seen.windows(2).all(|pair| pair[1] > pair[0] * (1.0 + 1e-6)),
            "pieces are mixed up: {seen:?}"
        );
    }
}

#[test]
fn a_disturbance_of_nothing_does_not_diverge() {
    let read = read(&Small::qwen2());
    let replay = read.replay();
    for layer in 0..read.model.config().layers {
        let found = replay.divergence(layer, Memory::Ragged(heads(&read.reading.cache, layer))).unwrap();
        assert!(found.abs() < 1e-9, "layer {layer}: {found}");
    }
    let noise = replay.noise().unwrap();
    assert!(noise != 0.0 && noise.abs() < 1e-9, "{noise}");
    assert!(replay.divergence(9, Memory::Ragged(Vec::new())).is_err());
    assert!(replay.effect(0, &heads(&read.reading.cache, 0), &[0.1], true).is_err());
}

#[test]
fn asking_is_reading_on_and_leaves_the_cache_as_it_is() {
    let read = read(&Small::llama());
    let (question, answer) = (&read.following[..5], &read.following[5..9]);
    let found = ask(&read.model, &read.reading.cache, question, answer).unwrap();
    let again = ask(&read.model, &read.reading.cache, question, answer).unwrap();
    assert_eq!(found, again);
    // The whole text at once, in one forward pass of its own.
    let all = [&read.reading.tokens, &read.following[..9]].concat();
    let hidden = read.model.forward(&all, &mut read.model.cache(), &mut ()).unwrap();
    let whole = Distributions::new(&read.model.logits(&hidden).unwrap()).unwrap();
    let wanted: f64 = (0..4).map(|at| whole.log_probability(104 + at, answer[at] as usize)).sum();
    assert!(
        (found.log_probability - wanted).abs() < 1e-4,
        "{} and {wanted}",
        found.log_probability
    );
    // What the model itself goes on with is found exactly; anything else is not.
    let mut greedy = Vec::new();
    for _ in 0..3 {
        let asked = [question, &greedy].concat();
        let run = follow(&read.model, &read.reading.cache, &asked, &mut ()).unwrap();
        greedy.push(u32::try_from(run.top()[asked.len() - 1]).unwrap());
    }
    assert!(ask(&read.model, &read.reading.cache, question, &greedy).unwrap().exact());
    greedy[2] = (greedy[2] + 1) % 50;
    let wrong = ask(&read.model, &read.reading.cache, question, &greedy).unwrap();
    assert_eq!((wrong.exact(), wrong.top1), (false, 2));
}

/// The tokenizer of a vocabulary of bytes and these merges, of a family.
fn tokenizer(pre: &str, merges: &[&str]) -> Tokenizer {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let mut names: Vec<String> = bytes.into_iter().map(String::from).collect();
    names.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let metadata = [
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String(pre.to_owned())),
        ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1); names.len()])),
        ("tokenizer.ggml.tokens", texts(names)),
        (
            "tokenizer.ggml.merges",
            texts(merges.iter().map(|merge| (*merge).to_owned()).collect()),
        ),
    ];
    let content = Content {
        magic: VersionedMagic::GgufV3,
        metadata: HashMap::from(metadata.map(|(key, value)| (key.to_owned(), value))),
        tensor_infos: HashMap::new(),
        tensor_data_offset: 0,
    };
    Tokenizer::from_gguf(&content).unwrap()
}

#[test]
fn a_needle_is_cut_where_its_number_begins_and_ends() {
    let merges = ["i s", "Ġ is", "Ġ 4", "4 8", "Ġ4 8", "2 1", "3 ."];
    for (pre, question, number) in [
        // The blank goes with the number where the family joins them, and with the question where it does not.
        ("gpt-2", " The code of Marlow is", " 48213"),
        ("smollm", " The code of Marlow is ", "48213"),
        ("qwen2", " The code of Marlow is ", "48213"),
        ("llama-bpe", " The code of Marlow is ", "48213"),
    ] {
        let tokenizer = tokenizer(pre, &merges);
        let needle = Needle::new(&tokenizer, " The code of Marlow is 48213.", 48213).unwrap();
        assert_eq!(tokenizer.decode(needle.question()).unwrap(), question, "{pre}");
        assert_eq!(tokenizer.decode(needle.number()).unwrap(), number, "{pre}");
        assert_eq!(tokenizer.decode(&needle.tokens).unwrap(), " The code of Marlow is 48213.");
    }
    let tokenizer = tokenizer("qwen2", &merges);
    assert!(Needle::new(&tokenizer, " Gate 7 opens with 48213.", 48213).is_err());
    assert!(Needle::new(&tokenizer, " The code of Marlow is 48213.", 4821).is_err());
}

#[test]
fn needles_can_be_told_apart_and_answers_follow_their_questions() {
    let tokenizer = tokenizer("smollm", &["i s", "Ġ is"]);
    let drawn = |seed| needles(&tokenizer, 20, &mut fastrand::Rng::with_seed(seed)).unwrap();
    let found = drawn(3);
    assert_eq!(found, drawn(3));
    assert_ne!(found, drawn(4));
    for (index, needle) in found.iter().enumerate() {
        assert!(
            found[..index]
                .iter()
                .all(|other| other.question() != needle.question() && other.number() != needle.number())
        );
    }
    let text: Vec<u32> = tokenizer.encode(&"Nothing but words here. ".repeat(300)).unwrap();
    let full_stop = tokenizer.encode(".").unwrap()[0];
    let deep: Vec<(f64, &[u32])> = found[..4]
        .iter()
        .zip([0.1, 0.4, 0.4, 0.8])
        .map(|(needle, depth)| (depth, needle.tokens.as_slice()))
        .collect();
    let planted = Planted::new(&text, |token| Ok(token == full_stop), &deep, 4000).unwrap();
    assert_eq!(planted.tokens.len(), 4000);
    for ((needle, place), depth) in found.iter().zip(&planted.places).zip([400, 1600, 1600, 3200]) {
        assert!((depth..depth + 64 + 100).contains(&place.start), "{place:?} is not at {depth}");
        let cue = planted
            .tokens
            .windows(needle.question().len())
            .filter(|window| *window == needle.question());
        assert_eq!(cue.count(), 1);
        let after = place.start + needle.question().len();
        assert_eq!(&planted.tokens[after..after + needle.number().len()], needle.number());
    }
    assert!(needles(&tokenizer, 1000, &mut fastrand::Rng::with_seed(0)).is_err());
}
