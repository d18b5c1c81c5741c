//! Safetensors as users of Hugging Face's caches write them.

use kvsculpt::cache::Dtype;
use kvsculpt::formats::{Format, Frame, Known, Target};
use safetensors::SafeTensors;

use crate::draft::{Draft, DraftTensor, encode};
use crate::{all, detected, numbers, open, refused, short, written};

/// Two layers of 2 KV heads and 3 tokens under these names, `{}` for the layer.
pub(crate) fn named(key: &str, value: &str, shape: &[u64]) -> Draft {
    let mut draft = Draft::default();
    for layer in 0..2_u8 {
        let more = f32::from(layer) * 16.0;
        for (name, dtype, channels, more) in [(key, "F16", 8, more), (value, "F32", 4, more + 8.0)] {
            draft.tensors.push(DraftTensor {
                name: name.replace("{}", &layer.to_string()),
                dtype,
                shape: [shape, &[2, 3, channels]].concat(),
                bytes: encode(dtype, &numbers(&[3, 3], channels as usize, more)),
            });
        }
    }
    draft
}

#[test]
fn many_names_mean_the_same() {
    for (key, value) in [
        ("layers.{}.keys", "layers.{}.values"),
        ("key_cache.{}", "value_cache.{}"),
        ("past_key_values.{}.key", "past_key_values.{}.value"),
        ("layer_{}_k", "layer_{}_v"),
        ("{}.0", "{}.1"),
    ] {
        for shape in [&[1][..], &[]] {
            let bytes = named(key, value, shape).bytes();
            assert_eq!(detected(&bytes).expect("known"), Format::HuggingFace);
            let cache = open(&bytes, &Known::default()).expect(key);
            for (layer, (facts, pairs)) in all(&cache).iter().enumerate() {
                assert_eq!(
                    (facts.index, facts.lengths.as_slice(), facts.next_position),
                    (layer, &[3, 3][..], 3)
                );
                assert_eq!((facts.key_dtype, facts.value_dtype), (Dtype::F16, Dtype::F32));
                assert_eq!(pairs.key, numbers(&[3, 3], 8, layer as f32 * 16.0));
                assert_eq!(pairs.value, numbers(&[3, 3], 4, layer as f32 * 16.0 + 8.0));
            }
        }
    }
}

#[test]
fn a_round_trip_keeps_every_bit_and_every_text() {
    let mut draft = named("key_cache.{}", "value_cache.{}", &[1]);
    draft.set("format", "pt");
    draft.set("note", "any");
    let cache = open(&draft.bytes(), &Known::default()).expect("a cache");
    let bytes = written(&cache, &Target::new(Format::HuggingFace)).expect("written");
    let again = open(&bytes, &Known::default()).expect("a cache");
    assert_eq!((all(&again), &again.metadata), (all(&cache), &cache.metadata));
    assert_eq!(again.metadata["note"], "any");
    let tensors = SafeTensors::deserialize(&bytes).expect("a container");
    let key = tensors.tensor("layers.1.key").expect("a key");
    assert_eq!((key.shape(), key.dtype()), (&[1, 2, 3, 8][..], safetensors::Dtype::F16));
    assert_eq!(key.data(), draft.tensor("key_cache.1").bytes);
    // A format of one dtype for both holds them in the wider one, and every number stays.
    let own = written(&cache, &Target::new(Format::Compressed)).expect("written");
    let own = open(&own, &Known::default()).expect("a cache");
    assert_eq!(own.layers[0].key_dtype, Dtype::F32);
    let pairs = |cache| all(cache).into_iter().map(|(_, pairs)| pairs).collect::<Vec<_>>();
    assert_eq!(pairs(&own), pairs(&cache));
}

#[test]
fn positions_come_from_the_caller_or_the_file() {
    let bytes = named("{}.0", "{}.1", &[1]).bytes();
    let known = Known {
        next_position: Some(12),
        ..Known::default()
    };
    let cache = open(&bytes, &known).expect("a cache");
    assert_eq!(cache.layers[1].next_position, 12);
    refused(
        written(&cache, &Target::new(Format::HuggingFace)),
        &["--rope-theta", "before position 12", "before 3", "--model-config"],
    );
    let target = Target {
        frame: Some(Frame::Absolute),
        ..Target::new(Format::HuggingFace)
    };
    let again = written(&cache, &target).expect("written");
    assert_eq!(open(&again, &Known::default()).expect("a cache").layers[0].next_position, 12);
    let other = Known {
        next_position: Some(13),
        ..Known::default()
    };
    refused(open(&again, &other), &["--next-position", "is 13", "position 12"]);
}

#[test]
fn files_that_say_something_else_are_refused() {
    let changed = |change: fn(&mut Draft)| {
        let mut draft = named("layers.{}.key", "layers.{}.value", &[1]);
        change(&mut draft);
        open(&draft.bytes(), &Known::default())
    };
    refused(
        changed(|draft| draft.remove("layers.1.value")),
        &["`layers.1.key`", "alone", "layer 1"],
    );
    refused(
        changed(|draft| draft.tensor("layers.1.key").name = "layers.1.query".into()),
        &["`layers.1.query`", "by its name", "key_cache.0"],
    );
    refused(
        changed(|draft| draft.tensor("layers.1.key").name = "layers.0.keys".into()),
        &["`layers.0.keys`", "same as `layers.0.key`"],
    );
    refused(
        changed(|draft| draft.tensor("layers.0.key").shape = vec![2, 1, 3, 8]),
        &["`layers.0.key`", "batch of 2"],
    );
    refused(
        changed(|draft| draft.tensor("layers.0.key").shape = vec![1, 3, 2, 8]),
        &["`layers.0.value`", "2 heads of 3", "3 of 2"],
    );
    refused(
        changed(|draft| draft.tensor("layers.0.key").shape = vec![6, 8]),
        &["`layers.0.key`", "2 axes"],
    );
    refused(
        changed(|draft| draft.tensor("layers.0.value").dtype = "I32"),
        &["`layers.0.value`", "I32"],
    );
    refused(changed(|draft| draft.set("next_position", "soon")), &["next_position", "\"soon\""]);
    refused(changed(|draft| draft.tensors.clear()), &["no tensors"]);
    refused(
        changed(|draft| draft.tensor("layers.0.value").bytes[0..4].copy_from_slice(&f32::NAN.to_le_bytes()))
            .and_then(|cache| cache.read(0)),
        &["layers.0.value", "NaN", "head 0, pair 0"],
    );
    refused(
        open(b"PK\x03\x04 and so on", &Known::default()),
        &["zip", "torch.save", "safetensors"],
    );
    refused(open(b"\x80\x02}q\x00 and so on", &Known::default()), &["pickle", "safetensors"]);
    refused(open(b"", &Known::default()), &["empty"]);
    let ragged = Target::new(Format::HuggingFace);
    refused(written(&short(&[&[2, 3]]), &ragged), &["2 to 3 pairs a head", "--budget uniform"]);
}
