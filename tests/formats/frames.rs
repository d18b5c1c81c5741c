//! Keys turned to other positions.

use kvsculpt::cache::{Dtype, Pairing, Rope};
use kvsculpt::formats::{Cache, Format, Frame, Known, LlamaVersion, MlxLayout, Target};

use crate::{all, compressed, numbers, open, refused, written};

/// A cache whose keys are plain numbers turned to positions: pair p of a layer of t stands at 20 − t + p.
fn turned(lengths: [usize; 2], scaling: Option<&str>) -> Cache {
    let mut given = compressed(&[&[lengths[0]; 2], &[lengths[1]; 2]]);
    if let Some(scaling) = scaling {
        given.metadata.insert("rope_scaling".into(), scaling.into());
    }
    for layer in &mut given.layers {
        layer.key = at(layer.lengths[0], 20, layer.index, scaling);
    }
    Cache::from_compressed("short", given, &Known::default()).expect("a cache")
}

/// The keys of a layer of `length` pairs a head that end before position `next`.
fn at(length: usize, next: usize, layer: usize, scaling: Option<&str>) -> Vec<f32> {
    let rope = Rope::new(10000.0, 8, Pairing::Half, scaling).expect("a rotation");
    let mut keys = numbers(&[length; 2], 8, layer as f32 * 16.0);
    for (row, key) in keys.chunks_exact_mut(8).enumerate() {
        rope.rotate(key, (next - length + row % length) as f64);
    }
    keys
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        // Three rotations in f64, each rounded to f32.
        assert!(
            (found - expected).abs() <= 4.0 * f32::EPSILON * largest,
            "{found} is not {expected}"
        );
    }
}

#[test]
fn each_layer_is_turned_to_its_own_stored_length() {
    let scaling = "{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}";
    for scaling in [None, Some(scaling)] {
        let cache = turned([5, 3], scaling);
        for format in [Format::Mlx(MlxLayout::Scalars), Format::Mlx(MlxLayout::Texts)] {
            let bytes = written(&cache, &Target::new(format)).expect("written");
            let there = open(&bytes, &Known::default()).expect("a cache");
            assert_eq!((there.layers[0].next_position, there.layers[1].next_position), (5, 3));
            for (layer, length) in [(0, 5), (1, 3)] {
                assert_near(&all(&there)[layer].1.key, &at(length, length, layer, scaling));
                assert_eq!(all(&there)[layer].1.value, all(&cache)[layer].1.value);
            }
            refused(
                written(&there, &Target::new(Format::Compressed)),
                &["different positions", "--frame 20, where the original"],
            );
            let back = Target {
                frame: Some(Frame::At(20)),
                ..Target::new(Format::Compressed)
            };
            let back = open(&written(&there, &back).expect("written"), &Known::default()).expect("a cache");
            assert_near(&all(&back)[1].1.key, &all(&cache)[1].1.key);
        }
    }
}

/// Hugging Face's models rotate a query once for all layers.
#[test]
fn one_length_is_needed_where_one_position_counts_for_all_layers() {
    let target = Target::new(Format::HuggingFace);
    let bytes = written(&turned([4, 4], None), &target).expect("written");
    let there = open(&bytes, &Known::default()).expect("a cache");
    assert_eq!(there.layers[1].next_position, 4);
    assert_near(&all(&there)[1].1.key, &at(4, 4, 1, None));
    refused(
        written(&turned([5, 3], None), &target),
        &["3 to 5 pairs by layer", "--budget uniform", "--frame absolute", "position_ids"],
    );
    let absolute = Target {
        frame: Some(Frame::Absolute),
        ..target
    };
    let bytes = written(&turned([5, 3], None), &absolute).expect("written");
    let there = open(&bytes, &Known::default()).expect("a cache");
    assert_eq!(there.layers[1].next_position, 20);
    assert_eq!(all(&there), all(&turned([5, 3], None)));
}

#[test]
fn rotation_and_order_of_channels_go_together() {
    let mut cache = turned([4, 4], None);
    cache.metadata.insert("architecture".into(), "llama".into());
    let woven = Target {
        dtype: Some(Dtype::F32),
        frame: Some(Frame::Rebased),
        ..Target::new(Format::Llama(LlamaVersion::V3))
    };
    let bytes = written(&cache, &woven).expect("written");
    let known = Known {
        architecture: Some("llama".into()),
        rope: crate::rope(),
        ..crate::llama::heads()
    };
    let there = open(&bytes, &known).expect("a cache");
    assert_eq!((there.pairing, there.layers[0].next_position), (Some(Pairing::Interleaved), 4));
    // Rotated in the interleaved order and put back, it is the original.
    let back = Target {
        frame: Some(Frame::At(20)),
        ..Target::new(Format::HuggingFace)
    };
    let back = open(&written(&there, &back).expect("written"), &Known::default()).expect("a cache");
    assert_eq!(back.layers[0].next_position, 20);
    assert_near(&all(&back)[0].1.key, &all(&cache)[0].1.key);
}

#[test]
fn what_cannot_be_rotated_is_refused() {
    let mut yarn = turned([4, 4], None);
    if let Some(rope) = &mut yarn.rope {
        rope.scaling = Some("{\"rope_type\":\"longrope\",\"factor\":4.0}".into());
    }
    refused(
        written(&yarn, &Target::new(Format::HuggingFace)),
        &["cannot be turned", "longrope", "--frame absolute"],
    );
    let absolute = Target {
        frame: Some(Frame::Absolute),
        ..Target::new(Format::HuggingFace)
    };
    let bytes = written(&yarn, &absolute).expect("written");
    assert_eq!(all(&open(&bytes, &Known::default()).expect("a cache")), all(&yarn));
    let far = Target {
        frame: Some(Frame::At(1 << 40)),
        ..absolute
    };
    refused(written(&turned([4, 4], None), &far), &["--frame", "too large"]);
}
