//! The forward pass against candle's own, on small models with random weights, and against itself over compressed caches.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on has failed; its numbers are small"
)]

mod small;

use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};
use kvsculpt::cache::{Compressed, CompressedLayer, Dtype};
use kvsculpt_llm::measure::Distributions;
use kvsculpt_llm::model::{Cache, Memory, Model, Products, Seen, Watch};
use kvsculpt_llm::reading::{Reading, follow, go_on};
use kvsculpt_llm::record::{Asked, Recorder, capture};
use small::{Small, assert_close, tokens};

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

/// One of candle's models: tokens and their position in, logits out.
type Forward = Box<dyn FnMut(&Tensor, usize) -> Tensor>;

/// Candle's logits after the last of each of these runs of tokens, which follow each other.
fn candles(model: &Small, runs: &[&[u32]]) -> Vec<Vec<f32>> {
    let (content, mut file) = model.open();
    let mut position = 0;
    let mut forward: Forward = if model.architecture == "llama" {
        let mut theirs = quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
        Box::new(move |x, position| theirs.forward(x, position).unwrap())
    } else {
        let mut theirs = quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
        Box::new(move |x, position| theirs.forward(x, position).unwrap())
    };
    let after = |run: &&[u32]| {
        let logits = forward(&Tensor::new(*run, &Device::Cpu).unwrap().unsqueeze(0).unwrap(), position);
        position += run.len();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    };
    runs.iter().map(after).collect()
}

/// Ours after the last of each.
fn ours(model: &Model, runs: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut cache = model.cache();
    let after = |run: &&[u32]| {
        let hidden = model.forward(run, &mut cache, &mut ()).unwrap();
        rows(&model.logits(&hidden).unwrap()).pop().unwrap()
    };
    runs.iter().map(after).collect()
}

#[test]
fn logits_are_those_of_candles_own_models() {
    for small in [Small::llama(), Small::qwen2()] {
        let text = tokens(61, 7);
        let runs = [&text[..40], &text[40..41], &text[41..60], &text[60..]];
        for (mine, theirs) in ours(&small.model(Products::Widened), &runs).iter().zip(&candles(&small, &runs)) {
            // Candle computes angles in single precision: at position 60 they are off by 4e-6.
            assert_close(mine, theirs, 2e-5, small.architecture);
        }
    }
}

#[test]
fn quantised_weights_give_candles_logits_too() {
    for small in [Small::llama().quantised(), Small::qwen2().quantised()] {
        let text = tokens(24, 3);
        let runs = [&text[..20], &text[20..21], &text[21..]];
        for (mine, theirs) in ours(&small.model(Products::Quantised), &runs).iter().zip(&candles(&small, &runs)) {
            // Rows are rounded to 8 bits: a last bit before may be a 127th after.
            assert_close(mine, theirs, 5e-3, small.architecture);
        }
    }
}

#[test]
fn a_text_read_in_parts_is_the_text_read_at_once() {
    let model = Small::qwen2().model(Products::Widened);
    let text = tokens(50, 1);
    let at_once = ours(&model, &[&text]);
    let in_parts = ours(&model, &[&text[..13], &text[13..14], &text[14..]]);
    assert_close(&in_parts[2], &at_once[0], 2e-6, "parts");
    let sealed = {
        let mut cache = model.cache();
        model.forward(&text[..30], &mut cache, &mut ()).unwrap();
        cache.seal().unwrap();
        let hidden = model.forward(&text[30..], &mut cache, &mut ()).unwrap();
        rows(&model.logits(&hidden).unwrap()).pop().unwrap()
    };
    assert_close(&sealed, &at_once[0], 2e-6, "sealed");
}

/// A read text's cache as a compressed one: pairs of each head in an order of its own, each pair `copies` times with a bias that
/// makes up for it, heads of one layer of different lengths.
fn rearranged(cache: &Cache, copies: impl Fn(usize, usize) -> usize) -> Compressed {
    let layers = cache.layers.iter().enumerate().map(|(index, layer)| {
        let Some(Memory::Even(pairs)) = &layer.memory else {
            panic!("not sealed")
        };
        let key: Vec<Vec<Vec<f32>>> = pairs.key.to_vec3().unwrap();
        let value: Vec<Vec<Vec<f32>>> = pairs.value.to_vec3().unwrap();
        let dim = key[0][0].len();
        let mut short = CompressedLayer {
            index,
            dim,
            value_dim: dim,
            lengths: Vec::new(),
            key: Vec::new(),
            value: Vec::new(),
            bias: Some(Vec::new()),
            dtype: Dtype::F32,
        };
        for (head, (keys, values)) in key.iter().zip(&value).enumerate() {
            let mut length = 0;
            for token in (0..keys.len()).rev() {
                let copies = copies(head, token);
                for _ in 0..copies {
                    short.key.extend(&keys[token]);
                    short.value.extend(&values[token]);
                    short.bias.as_mut().unwrap().push(-(copies as f32).ln());
                }
                length += copies;
            }
            short.lengths.push(length);
        }
        short
    });
    Compressed {
        layers: layers.collect(),
        metadata: std::collections::BTreeMap::new(),
    }
}

#[test]
fn a_ragged_cache_with_biases_that_holds_everything_loses_nothing() {
    for small in [Small::llama(), Small::qwen2()] {
        let model = small.model(Products::Widened);
        let text = tokens(48, 5);
        let reading = Reading::new(&model, &text[..40], &mut |_| ()).unwrap();
        let short = rearranged(&reading.cache, |head, token| 1 + (token + head) % (2 + head));
        assert_ne!(short.layers[0].lengths[0], short.layers[0].lengths[1]);
        let short = reading.cache.compressed(&short, &Device::Cpu).unwrap();
        assert!(short.bytes() > reading.cache.bytes());
        let full = follow(&model, &reading.cache, &text[40..], &mut ()).unwrap();
        let found = follow(&model, &short, &text[40..], &mut ()).unwrap();
        for row in 0..8 {
            let of = |found: &Distributions| -> Vec<f32> {
                (0..small.vocabulary)
                    .map(|token| found.log_probability(row, token) as f32)
                    .collect()
            };
            assert_close(&of(&found), &of(&full), 5e-6, &format!("row {row}"));
        }
        // The test above would pass if the context were not read at all.
        let without = reading
            .cache
            .compressed(&rearranged(&reading.cache, |_, token| usize::from(token < 20)), &Device::Cpu);
        let without = follow(&model, &without.unwrap(), &text[40..], &mut ()).unwrap();
        assert!((0..8).any(|row| (full.log_probability(row, 1) - without.log_probability(row, 1)).abs() > 1e-3));
    }
}

#[test]
fn what_follows_leaves_the_cache_as_it_is() {
    let model = Small::llama().model(Products::Mixed);
    let text = tokens(30, 2);
    let reading = Reading::new(&model, &text[..20], &mut |_| ()).unwrap();
    let first = follow(&model, &reading.cache, &text[20..], &mut ()).unwrap();
    let again = follow(&model, &reading.cache, &text[20..], &mut ()).unwrap();
    assert_eq!(reading.cache.position, 20);
    for row in 0..first.rows() {
        assert_eq!(first.log_probability(row, 3), again.log_probability(row, 3));
    }
}

#[test]
fn a_cache_of_another_model_is_refused_in_words() {
    let model = Small::llama().model(Products::Mixed);
    let reading = Reading::new(&model, &tokens(10, 2), &mut |_| ()).unwrap();
    let mut short = rearranged(&reading.cache, |_, _| 1);
    short.layers[1].index = 9;
    let error = reading.cache.compressed(&short, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("layer 9"), "{error}");
    let mut short = rearranged(&reading.cache, |_, _| 1);
    short.layers[1].lengths.push(0);
    assert!(
        reading
            .cache
            .compressed(&short, &Device::Cpu)
            .unwrap_err()
            .to_string()
            .contains("heads")
    );
}

/// Records queries before and after RoPE in one pass.
struct Both(Recorder, Recorder);

impl Watch for Both {
    fn layer(&mut self, layer: usize, seen: &Seen) -> anyhow::Result<()> {
        self.0.layer(layer, seen)?;
        self.1.layer(layer, seen)
    }
}

#[test]
fn a_captures_queries_turned_to_their_positions_are_those_the_model_asked_with() {
    for small in [Small::llama(), Small::qwen2()] {
        let model = small.model(Products::Widened);
        // Longer than is read at once, so that parts have to be put together in order.
        let text = tokens(700, 9);
        let mut both = Both(Recorder::before_rope(&model), Recorder::after_rope(&model));
        let mut cache = model.cache();
        let mut parts = 0;
        go_on(&model, &mut cache, &text, &mut both, &mut |_, _| {
            parts += 1;
            Ok(())
        })
        .unwrap();
        assert!(parts > 1);
        cache.seal().unwrap();
        let asked = Asked {
            context: &both.0,
            reference: Some(&both.0),
            probe: Some(&both.1),
        };
        let some = capture("text", model.config(), &cache, 1..2, asked).unwrap();
        assert_eq!(some.layers, [1]);
        let layer = some.layer(1).unwrap();
        assert_eq!(layer.reference_query, layer.query, "they are given as they are");
        let asked = Asked { reference: None, ..asked };
        assert!(
            capture("text", model.config(), &cache, 2..4, asked).is_err(),
            "there are three layers"
        );
        let capture = capture("text", model.config(), &cache, 0..3, asked).unwrap();
        assert_eq!((capture.tokens, capture.next_position), (700, 700));
        for index in 0..3 {
            let layer = capture.layer(index).unwrap();
            assert_eq!((layer.query_heads, layer.kv_heads, layer.dim), (4, 2, 16));
            let mut queries = layer.query.unwrap().data;
            for (row, query) in queries.chunks_exact_mut(16).enumerate() {
                capture.rope.rotate(query, (row % 700) as f64);
            }
            assert_close(&queries, &layer.probe_query.unwrap().data, 1e-6, "turned queries");
        }
    }
}

#[test]
fn a_text_longer_than_the_model_was_trained_for_is_refused() {
    let model = Small::llama().model(Products::Mixed);
    let error = Reading::new(&model, &tokens(1025, 1), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("1025") && error.contains("1024"), "{error}");
    let reading = Reading::new(&model, &tokens(1020, 1), &mut |_| ()).unwrap();
    assert!(follow(&model, &reading.cache, &tokens(4, 2), &mut ()).is_ok());
    assert!(follow(&model, &reading.cache, &tokens(5, 2), &mut ()).is_err());
}
