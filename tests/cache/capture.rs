//! Captures that are right.

use std::borrow::Cow;
use std::path::Path;

use kvsculpt::cache::{Capture, Dtype, Pairing};
use sha2::{Digest, Sha256};

use crate::draft::{Draft, KIND_SHAPES, element};

#[test]
fn everything_in_a_capture_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.safetensors");
    let bytes = Draft::capture().bytes();
    std::fs::write(&path, &bytes).expect("written");
    for capture in [Capture::open(&path), Capture::from_bytes("in memory", bytes.clone())] {
        let capture = capture.expect("a capture");
        assert_eq!(capture.layers, [1, 3]);
        assert_eq!((capture.tokens, capture.next_position, capture.scale), (5, 7, 0.25));
        assert_eq!((capture.rope.pairing, capture.rope.dim()), (Pairing::Half, 8));
        assert_eq!(capture.metadata["model"], "none");
        let hexadecimal: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(capture.digest().expect("a digest"), hexadecimal);
        for index in [1, 3] {
            let layer = capture.layer(index).expect("a layer");
            assert_eq!((layer.index, layer.kv_heads, layer.query_heads, layer.tokens), (index, 2, 4, 5));
            assert_eq!((layer.dim, layer.value_dim), (8, 4));
            assert_eq!(layer.dtype, if index == 1 { Dtype::F32 } else { Dtype::F16 });
            let query = layer.query.expect("queries");
            let reference = layer.reference_query.expect("reference queries");
            let probe = layer.probe_query.expect("probe queries");
            assert_eq!((query.rows, reference.rows, probe.rows), (5, 3, 2));
            let all = [&layer.key, &layer.value, &query.data, &reference.data, &probe.data];
            for (number, (data, (kind, shape))) in all.into_iter().zip(KIND_SHAPES).enumerate() {
                let expected: Vec<f32> = (0..shape.iter().product::<u64>() as usize)
                    .map(|index| element(number, index))
                    .collect();
                assert_eq!(data, &expected, "layer {index} {kind}");
            }
        }
    }
}

/// What a compressed layer is stored as must not cost what only one of keys and values had.
#[test]
fn keys_and_values_stored_differently_count_as_f32() {
    for (tensor, dtype) in [("layers.3.value", "BF16"), ("layers.3.key", "BF16"), ("layers.3.value", "F16")] {
        let mut draft = Draft::capture();
        draft.tensor(tensor).dtype = dtype;
        let capture = Capture::from_bytes("capture", draft.bytes()).expect("a capture");
        let expected = if dtype == "BF16" { Dtype::F32 } else { Dtype::F16 };
        assert_eq!(capture.shape(3).expect("a shape").dtype, expected, "{tensor} {dtype}");
        assert_eq!(capture.layer(3).expect("a layer").dtype, expected, "{tensor} {dtype}");
    }
}

#[test]
fn queries_that_may_be_left_out() {
    let mut draft = Draft::capture();
    draft.remove("layers.1.probe_query");
    draft.remove("layers.1.reference_query");
    draft.remove("layers.3.query");
    draft.remove("layers.3.probe_query");
    let capture = Capture::from_bytes("capture", draft.bytes()).expect("a capture");
    let built = capture.layer(1).expect("a layer");
    assert!(built.query.is_some() && built.reference_query.is_none() && built.probe_query.is_none());
    let given = capture.layer(3).expect("a layer");
    assert!(given.query.is_none() && given.reference_query.is_some());
    assert_eq!(capture.shape(3).expect("a shape").reference_rows, Some(3));
}

/// A scaling this crate does not know is no obstacle where no query has to be rotated.
#[test]
fn reference_queries_stand_in_for_an_unknown_rope() {
    let mut draft = Draft::capture();
    draft.set("rope_scaling", r#"{"rope_type":"yarn","factor":4.0}"#);
    let capture = Capture::from_bytes("capture", draft.bytes()).expect("a capture");
    assert!(capture.rope.unsupported.is_some());
    draft.remove("layers.3.reference_query");
    let refused = Capture::from_bytes("capture", draft.bytes())
        .expect_err("queries to rotate")
        .to_string();
    for word in ["capture", "yarn", "layer 3", "layers.3.reference_query"] {
        assert!(refused.contains(word), "{refused}");
    }
}

/// The usual writer of the format makes files that open.
#[test]
fn a_file_of_the_usual_writer_opens() {
    let draft = Draft::capture();
    let views = draft.tensors.iter().map(|tensor| {
        let dtype = match tensor.dtype {
            "F32" => safetensors::Dtype::F32,
            "F16" => safetensors::Dtype::F16,
            _ => safetensors::Dtype::BF16,
        };
        let shape = tensor.shape.iter().map(|&extent| extent as usize).collect();
        let view = safetensors::tensor::TensorView::new(dtype, shape, &tensor.bytes).expect("a view");
        (tensor.name.clone(), view)
    });
    let bytes = safetensors::serialize(views, Some(draft.metadata.iter().cloned().collect())).expect("bytes");
    let ours = Capture::from_bytes("ours", draft.bytes()).expect("a capture");
    let theirs = Capture::from_bytes("theirs", bytes).expect("a capture");
    assert_eq!(ours.layer(3).expect("a layer"), theirs.layer(3).expect("a layer"));
}

/// The bundled cache is what its README says.
#[test]
fn the_bundled_capture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-layer20.safetensors");
    let capture = Capture::open(&path).expect("the bundled capture");
    assert_eq!(capture.layers, [20]);
    assert_eq!((capture.tokens, capture.next_position, capture.scale), (2048, 2048, 0.125));
    let layer = capture.layer(20).expect("its layer");
    assert_eq!((layer.kv_heads, layer.query_heads, layer.dim, layer.value_dim), (3, 9, 64, 64));
    assert_eq!(layer.query.as_ref().map(|query| query.rows), Some(2048));
    assert_eq!(layer.probe_query.as_ref().map(|query| query.rows), Some(256));
    assert_eq!(
        capture.digest().expect("a digest"),
        "2dd056e87e392a8e972f060922aba9a88560fc87d82d68419f03d36bd6721dd7"
    );
    let memory = Capture::from_bytes(path.clone(), Cow::Owned(std::fs::read(&path).expect("its bytes"))).expect("the same");
    assert_eq!(memory.layer(20).expect("its layer"), layer);
}
