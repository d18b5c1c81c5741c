//! Our own files among the others.

use kvsculpt::cache::{Capture, Compressed, Dtype};
use kvsculpt::formats::{Cache, Format, Frame, Known, LlamaVersion, MlxLayout, Target};

use crate::draft::{Draft, element};
use crate::{all, compressed, detected, open, refused, short, written};

#[test]
fn captures_give_keys_and_values_and_only_captures_become_captures() {
    let draft = Draft::capture();
    let cache = open(&draft.bytes(), &Known::default()).expect("a cache");
    assert_eq!(
        (detected(&draft.bytes()).expect("known"), cache.format),
        (Format::Capture, Format::Capture)
    );
    let layers = all(&cache);
    assert_eq!(
        (layers[1].0.index, layers[1].0.lengths.as_slice(), layers[1].0.next_position),
        (3, &[5, 5][..], 7)
    );
    assert_eq!((layers[0].0.key_dtype, layers[1].0.value_dtype), (Dtype::F32, Dtype::F16));
    assert_eq!(layers[0].1.key, (0..80).map(|index| element(0, index)).collect::<Vec<_>>());
    assert_eq!(layers[1].1.value, (0..40).map(|index| element(1, index)).collect::<Vec<_>>());
    let target = Target {
        dtype: Some(Dtype::Bf16),
        ..Target::new(Format::Capture)
    };
    let again = Capture::from_bytes("again", written(&cache, &target).expect("written")).expect("a capture");
    assert!(again.layer(1).expect("a layer").probe_query.is_some());
    // Of several dtypes, none is lost where none is asked for.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wide");
    let wide = cache.write(&path, &Target::new(Format::Capture)).expect("written");
    assert!(
        wide.layers
            .iter()
            .all(|layer| (layer.key_dtype, layer.value_dtype) == (Dtype::F32, Dtype::F32))
    );
    assert_eq!(
        Capture::open(&path).expect("a capture").shape(3).expect("a layer").dtype,
        Dtype::F32
    );
    let turned = Target {
        frame: Some(Frame::Rebased),
        ..target
    };
    refused(written(&cache, &turned), &["is a capture", "--frame"]);
    refused(
        written(&short(&[&[2, 2]]), &target),
        &["compressed cache", "no queries", "--to compressed"],
    );
    refused(
        written(&cache, &Target::new(Format::Llama(LlamaVersion::V3))),
        &["--pairing", "none named"],
    );
    let half = Target {
        pairing: Some(kvsculpt::cache::Pairing::Half),
        ..Target::new(Format::Llama(LlamaVersion::V3))
    };
    refused(written(&cache, &half), &["no layer 0", "all layers"]);
}

#[test]
fn a_whole_capture_becomes_a_compressed_cache_bit_for_bit() {
    let cache = open(&Draft::capture().bytes(), &Known::default()).expect("a cache");
    let bytes = written(&cache, &Target::new(Format::Compressed)).expect("written");
    let read = Compressed::from_bytes("short", bytes.clone()).expect("a compressed cache");
    assert_eq!((read.layers.len(), read.next_position().expect("a position")), (2, 7));
    assert_eq!(read.metadata["softmax_scale"], "0.25");
    assert_eq!(all(&open(&bytes, &Known::default()).expect("a cache")), all(&cache));
}

/// The length of a container's header may begin like another kind of file.
#[test]
fn a_header_of_any_length_is_a_header() {
    let mut draft = Draft::compressed();
    draft.set("next_position", "9");
    let header = draft.header();
    for length in [0x0280, 0x1f8b] {
        let bytes = draft.with_header(format!("{header:length$}").as_bytes());
        assert_eq!(bytes[..2], [length as u8, (length >> 8) as u8]);
        assert_eq!(detected(&bytes).expect("known"), Format::Compressed);
        assert_eq!(open(&bytes, &Known::default()).expect("a cache").layers.len(), 1);
    }
}

#[test]
fn ragged_caches_with_biases_stay_what_they_are() {
    let mut ragged = compressed(&[&[2, 3], &[4, 0]]);
    ragged.layers[1].bias = Some(vec![0.0, 0.25, -0.5, 1.0]);
    let cache = Cache::from_compressed("short", ragged.clone(), &Known::default()).expect("a cache");
    assert!(cache.layers[1].bias && !cache.layers[0].bias);
    let bytes = written(&cache, &Target::new(Format::Compressed)).expect("written");
    let again = Compressed::from_bytes("short", bytes).expect("a compressed cache");
    assert_eq!(again.layers, ragged.layers);
    let kept = |key: &str| (again.metadata.get(key).cloned(), ragged.metadata.get(key).cloned());
    for key in ["report", "model", "tokens", "next_position", "rope_dim", "rope_pairing"] {
        let (there, here) = kept(key);
        assert_eq!(there, here, "{key}");
    }
    let rebased = Target {
        frame: Some(Frame::Rebased),
        ..Target::new(Format::Compressed)
    };
    refused(written(&cache, &rebased), &["different lengths in layer 0", "--budget layer"]);
}

#[test]
fn what_compression_left_goes_through_every_format_and_comes_back() {
    let mut given = compressed(&[&[20, 20], &[20, 20]]);
    given.metadata.insert("next_position".into(), "20".into());
    let cache = Cache::from_compressed("short", given, &Known::default()).expect("a cache");
    for (format, known) in [
        (Format::Mlx(MlxLayout::Texts), Known::default()),
        (Format::Mlx(MlxLayout::Scalars), Known::default()),
        (Format::HuggingFace, Known::default()),
        (Format::Llama(LlamaVersion::V2), crate::llama::heads()),
    ] {
        let target = Target {
            dtype: Some(Dtype::F32),
            ..Target::new(format)
        };
        let there = open(&written(&cache, &target).expect("written"), &known).expect("a cache");
        let back = written(&there, &Target::new(Format::Compressed)).expect("written");
        let mut back = open(&back, &Known::default()).expect("a cache");
        back.metadata.remove("mlx.tokenizer_config");
        assert_eq!(all(&back), all(&cache), "{format}");
        if !matches!(format, Format::Llama(_)) {
            // A sequence state has no room for anything else.
            assert_eq!(back.metadata, cache.metadata, "{format}");
            assert_eq!(back.rope, cache.rope);
        }
    }
}

#[test]
fn channels_that_the_kernels_cannot_take_stay_out_of_compressed_caches() {
    let mut draft = crate::hugging_face::named("{}.0", "{}.1", &[1]);
    for layer in 0..2 {
        draft.reshape(&format!("{layer}.0"), &[1, 2, 3, 6]);
    }
    let cache = open(&draft.bytes(), &Known::default()).expect("a cache");
    refused(
        written(&cache, &Target::new(Format::Compressed)),
        &["6 channels", "layer 0", "multiples of 4"],
    );
}
