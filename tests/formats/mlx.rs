//! mlx-lm's prompt caches.

use std::collections::HashMap;

use kvsculpt::cache::Dtype;
use kvsculpt::formats::{Format, Frame, Known, MlxLayout, Target};
use safetensors::SafeTensors;

use crate::draft::{Draft, DraftTensor, encode};
use crate::{all, compressed, detected, number, numbers, open, refused, short, written};

fn tensor(name: &str, dtype: &'static str, shape: &[u64], values: &[f32]) -> DraftTensor {
    DraftTensor {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        bytes: encode(dtype, values),
    }
}

/// Two layers of 2 KV heads with 3 pairs, as mlx-lm up to 0.31 writes them: no order among tensors, none aligned.
pub(crate) fn texts() -> Draft {
    let mut draft = Draft::default();
    for (key, text) in [
        ("0.0", ""),
        ("0.1", ""),
        ("1.model", "org/name"),
        ("1.tokenizer_config", "{\"trust_remote_code\": null}"),
        ("2.0", "KVCache"),
        ("2.1", "KVCache"),
    ] {
        draft.set(key, text);
    }
    for layer in [1, 0] {
        let more = layer as f32 * 16.0;
        draft.tensors.push(tensor(
            &format!("{layer}.1"),
            "BF16",
            &[1, 2, 3, 4],
            &rounded(&numbers(&[3, 3], 4, more + 8.0)),
        ));
        draft.tensors.push(tensor(
            &format!("{layer}.0"),
            "BF16",
            &[1, 2, 3, 8],
            &rounded(&numbers(&[3, 3], 8, more)),
        ));
    }
    draft
}

/// Half numbers up to 64, so that bf16 holds them.
fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value % 64.0).collect()
}

/// The same cache as mlx-lm 0.32 writes it: room for 5 pairs, of which 3 count, the rest anything.
pub(crate) fn scalars() -> Draft {
    let mut draft = Draft::default();
    for (key, text) in [
        ("0.model", "org/name"),
        ("0.tokenizer_config", "{}"),
        ("1.0", "KVCache"),
        ("1.1", "KVCache"),
        ("2.0", ""),
        ("2.1.0", "0.2"),
        ("2.1.1", "scalar"),
        ("2.2.0", "1.2"),
        ("2.2.1", "scalar"),
    ] {
        draft.set(key, text);
    }
    for layer in 0..2 {
        for (part, channels, more) in [(0, 8, 0.0), (1, 4, 8.0)] {
            let mut values = Vec::new();
            for head in 0..2 {
                for pair in 0..5 {
                    let value = |channel| match pair {
                        0..3 => (number(head, pair, channel) + layer as f32 * 16.0 + more) % 64.0,
                        _ => 60.0,
                    };
                    values.extend((0..channels).map(value));
                }
            }
            draft
                .tensors
                .push(tensor(&format!("{layer}.{part}"), "F16", &[1, 2, 5, channels as u64], &values));
        }
        draft.tensors.push(DraftTensor {
            name: format!("{layer}.2"),
            dtype: "I32",
            shape: vec![],
            bytes: 3_i32.to_le_bytes().to_vec(),
        });
    }
    draft
}

#[test]
fn both_layouts_are_read_alike() {
    for (draft, layout, dtype) in [
        (texts(), MlxLayout::Texts, Dtype::Bf16),
        (scalars(), MlxLayout::Scalars, Dtype::F16),
    ] {
        assert_eq!(detected(&draft.bytes()).expect("known"), Format::Mlx(layout));
        let cache = open(&draft.bytes(), &Known::default()).expect("a cache");
        assert_eq!(cache.format, Format::Mlx(layout));
        assert_eq!(cache.metadata["model"], "org/name");
        assert!(cache.metadata.contains_key("mlx.tokenizer_config"));
        for (layer, (facts, pairs)) in all(&cache).iter().enumerate() {
            assert_eq!(
                (facts.index, facts.lengths.as_slice(), facts.next_position),
                (layer, &[3, 3][..], 3)
            );
            assert_eq!((facts.dim, facts.value_dim, facts.key_dtype), (8, 4, dtype));
            let more = layer as f32 * 16.0;
            assert_eq!(pairs.key, rounded(&numbers(&[3, 3], 8, more)));
            assert_eq!(pairs.value, rounded(&numbers(&[3, 3], 4, more + 8.0)));
        }
    }
}

#[test]
fn a_round_trip_keeps_every_bit_and_every_text() {
    for (draft, layout) in [(texts(), MlxLayout::Texts), (scalars(), MlxLayout::Scalars)] {
        let cache = open(&draft.bytes(), &Known::default()).expect("a cache");
        let bytes = written(&cache, &Target::new(cache.format)).expect("written");
        let again = open(&bytes, &Known::default()).expect("a cache");
        assert_eq!((all(&again), again.format), (all(&cache), cache.format));
        assert_eq!(again.metadata, cache.metadata);
        // And through our own format, and the other layout.
        let own = written(&cache, &Target::new(Format::Compressed)).expect("written");
        let own = open(&own, &Known::default()).expect("a cache");
        let other = if layout == MlxLayout::Texts {
            MlxLayout::Scalars
        } else {
            MlxLayout::Texts
        };
        let other = written(&own, &Target::new(Format::Mlx(other))).expect("written");
        let other = open(&other, &Known::default()).expect("a cache");
        assert_eq!(all(&other), all(&cache));
        assert_eq!(other.metadata, cache.metadata);
    }
}

/// What mlx-lm's own reader looks for, seen with another safetensors reader.
#[test]
fn names_shapes_and_texts_are_mlx_lms() {
    let cache = short(&[&[5, 5], &[3, 3]]);
    for layout in [MlxLayout::Texts, MlxLayout::Scalars] {
        let target = Target {
            dtype: Some(Dtype::Bf16),
            ..Target::new(Format::Mlx(layout))
        };
        let bytes = written(&cache, &target).expect("written");
        let tensors = SafeTensors::deserialize(&bytes).expect("a container");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
        let texts: &HashMap<String, String> = header.metadata().as_ref().expect("texts");
        let text = |key: &str| texts.get(key).map(String::as_str);
        let (users, classes) = if layout == MlxLayout::Texts { ("1", "2") } else { ("0", "1") };
        for (layer, pairs) in [(0, 5), (1, 3)] {
            assert_eq!(text(&format!("{classes}.{layer}")), Some("KVCache"));
            assert_eq!(tensors.tensor(&format!("{layer}.0")).expect("keys").shape(), [1, 2, pairs, 8]);
            let values = tensors.tensor(&format!("{layer}.1")).expect("values");
            assert_eq!((values.shape(), values.dtype()), (&[1, 2, pairs, 4][..], safetensors::Dtype::BF16));
        }
        assert_eq!(text(&format!("{users}.model")), Some("a/model"));
        assert_eq!(text(&format!("{users}.tokenizer_config")), Some("{}"));
        if layout == MlxLayout::Scalars {
            assert_eq!((text("2.0"), text("2.2.0"), text("2.2.1")), (Some(""), Some("1.2"), Some("scalar")));
            let count = tensors.tensor("1.2").expect("a count");
            assert_eq!((count.shape(), count.data()), (&[][..], &3_i32.to_le_bytes()[..]));
            assert_eq!(tensors.len(), 6);
        } else {
            assert_eq!((text("0.0"), text("0.1"), tensors.len()), (Some(""), Some(""), 4));
        }
    }
}

#[test]
fn what_mlx_lm_cannot_hold_is_refused() {
    let mlx = Target::new(Format::Mlx(MlxLayout::Scalars));
    refused(
        written(&short(&[&[5, 5], &[3, 4]]), &mlx),
        &["3 to 4 pairs a head in layer 1", "one length for all heads", "--budget layer"],
    );
    let mut biased = compressed(&[&[2, 2]]);
    biased.layers[0].bias = Some(vec![0.5; 4]);
    let biased = kvsculpt::formats::Cache::from_compressed("short", biased, &Known::default()).expect("a cache");
    refused(written(&biased, &mlx), &["biases", "--bias off"]);
    let mut part = compressed(&[&[2, 2], &[2, 2]]);
    part.layers.remove(0);
    let part = kvsculpt::formats::Cache::from_compressed("short", part, &Known::default()).expect("a cache");
    refused(written(&part, &mlx), &["no layer 0", "all layers"]);
    let mut nameless = short(&[&[2, 2]]);
    nameless.metadata.remove("model");
    refused(written(&nameless, &mlx), &["--model", "mlx_lm.generate"]);
    let absolute = Target {
        frame: Some(Frame::Absolute),
        ..mlx
    };
    refused(written(&short(&[&[2, 2]]), &absolute), &["--frame", "stored length", "2", "20"]);
}

#[test]
fn files_that_are_no_plain_cache_are_refused() {
    let changed = |draft: &Draft, change: fn(&mut Draft)| {
        let mut draft = draft.clone();
        change(&mut draft);
        open(&draft.bytes(), &Known::default())
    };
    for (class, word) in [
        ("QuantizedKVCache", "--kv-bits"),
        ("RotatingKVCache", "--max-kv-size"),
        ("ArraysCache", "no plain cache"),
        ("CacheList", "no plain cache"),
    ] {
        let mut draft = texts();
        draft.set("2.1", class);
        refused(open(&draft.bytes(), &Known::default()), &[class, "layer 1", word]);
    }
    refused(changed(&texts(), |draft| draft.set("0.1", "7")), &["state text for layer 1"]);
    refused(changed(&texts(), |draft| draft.remove("1.0")), &["`1.0`", "missing"]);
    refused(changed(&texts(), |draft| draft.unset("2.1")), &["4 tensors", "1 layers with 2"]);
    refused(
        changed(&scalars(), |draft| draft.tensor("1.2").bytes = 6_i32.to_le_bytes().to_vec()),
        &["`1.2`", "counts 6 pairs", "room for 5"],
    );
    refused(
        changed(&scalars(), |draft| draft.tensor("0.2").bytes = 0_i32.to_le_bytes().to_vec()),
        &["`0.2`", "counts 0 pairs"],
    );
    refused(
        changed(&scalars(), |draft| {
            draft.tensor("0.0").shape = vec![2, 1, 5, 8];
        }),
        &["`0.0`", "batch of 2"],
    );
    refused(
        changed(&texts(), |draft| draft.set("1.kvsculpt", "[1]")),
        &["1.kvsculpt", "cannot be read"],
    );
}
