//! Captures made in memory: held to a file's checks, written, read again.

use std::collections::BTreeMap;
use std::path::Path;

use kvsculpt::Error;
use kvsculpt::cache::{Capture, Context, Dtype, Layer, Pairing, Queries};
use sha2::{Digest, Sha256};

use crate::draft::{Draft, element};

/// What the draft's metadata say.
fn context() -> Context {
    Context {
        tokens: 5,
        next_position: 7,
        scale: 0.25,
        rope_theta: 10_000.0,
        rope_dim: 8,
        pairing: Pairing::Half,
        rope_scaling: None,
        metadata: BTreeMap::from([("model".to_owned(), "none".to_owned())]),
    }
}

fn data(tensor: usize, elements: usize) -> Vec<f32> {
    (0..elements).map(|index| element(tensor, index)).collect()
}

fn queries(tensor: usize, rows: usize) -> Option<Queries> {
    let data = data(tensor, 4 * rows * 8);
    Some(Queries { rows, data })
}

/// The draft's layers, every one F32.
fn layer(index: usize) -> Layer {
    Layer {
        index,
        kv_heads: 2,
        query_heads: 4,
        tokens: 5,
        dim: 8,
        value_dim: 4,
        dtype: Dtype::F32,
        key: data(0, 2 * 5 * 8),
        value: data(1, 2 * 5 * 4),
        query: queries(2, 5),
        reference_query: queries(3, 3),
        probe_query: queries(4, 2),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes, and opens what was written.
fn reopened(capture: &Capture, dtype: Dtype) -> (Vec<u8>, Capture) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.safetensors");
    let bytes = capture.write(&path, dtype).expect("written");
    let written = std::fs::read(&path).expect("its bytes");
    assert_eq!(written.len() as u64, bytes);
    let read = Capture::from_bytes("written", written.clone()).expect("a capture");
    (written, read)
}

fn same(found: &Capture, expected: &Capture) {
    assert_eq!(found.layers, expected.layers);
    assert_eq!(
        (found.tokens, found.next_position, found.scale, &found.rope),
        (expected.tokens, expected.next_position, expected.scale, &expected.rope)
    );
    assert_eq!(found.metadata, expected.metadata);
    for &index in &expected.layers {
        let (mut found, expected) = (found.layer(index).expect("a layer"), expected.layer(index).expect("a layer"));
        found.dtype = expected.dtype;
        assert_eq!(found, expected);
    }
}

#[test]
fn layers_in_memory_are_what_a_file_of_them_is() {
    let capture = Capture::from_layers("memory", context(), vec![layer(3), layer(1)]).expect("a capture");
    same(
        &capture,
        &Capture::from_bytes("draft", Draft::capture().bytes()).expect("a capture"),
    );
    assert_eq!(capture.path, Path::new("memory"));
    assert_eq!(capture.layer(3).expect("a layer"), layer(3));
    let missing = capture.layer(2).expect_err("no layer 2").to_string();
    assert!(missing.contains("memory") && missing.contains("1, 3"), "{missing}");
    let (bytes, read) = reopened(&capture, Dtype::F32);
    same(&read, &capture);
    assert_eq!(capture.digest().expect("a digest"), hexadecimal(&bytes));
    assert_eq!(capture.digest().expect("again"), read.digest().expect("a digest"));
    assert_eq!(bytes, reopened(&read, Dtype::F32).0, "the same contents give the same bytes");
    let usual = safetensors::SafeTensors::deserialize(&bytes).expect("read by the format's usual reader");
    let key = usual.tensor("layers.3.key").expect("a key");
    assert_eq!((key.dtype(), key.shape()), (safetensors::Dtype::F32, &[2, 5, 8][..]));
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(key.data()), layer(3).key);
}

/// Arrays of several megabytes, so that a part that is read at once lies in several of them.
#[test]
fn a_real_capture_survives_memory_and_every_dtype() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-layer20.safetensors");
    let original = Capture::open(&path).expect("the bundled capture");
    let context = Context {
        tokens: original.tokens,
        next_position: original.next_position,
        scale: original.scale,
        rope_theta: original.metadata["rope_theta"].parse().expect("a number"),
        rope_dim: original.rope.dim(),
        pairing: original.rope.pairing,
        rope_scaling: None,
        metadata: original.metadata.clone(),
    };
    let layer = original.layer(20).expect("its layer");
    let capture = Capture::from_layers("memory", context, vec![layer.clone()]).expect("a capture");
    assert_eq!(capture.layer(20).expect("a layer"), layer, "its dtype too");
    let (bytes, read) = reopened(&capture, Dtype::F32);
    same(&read, &capture);
    assert_eq!(capture.digest().expect("a digest"), hexadecimal(&bytes));
    // The file itself holds f16, so that nothing is lost in f16 either.
    assert_eq!(layer.dtype, Dtype::F16);
    let (half, read) = reopened(&original, Dtype::F16);
    same(&read, &original);
    assert_eq!(read.layer(20).expect("a layer").dtype, Dtype::F16);
    assert!(half.len() < bytes.len() / 2 + 4096);
    let rounded = reopened(&capture, Dtype::Bf16).1.layer(20).expect("a layer");
    assert_eq!(rounded.dtype, Dtype::Bf16);
    let probe = layer.probe_query.expect("probe queries").data;
    for (found, wanted) in rounded.probe_query.expect("probe queries").data.iter().zip(&probe) {
        assert_eq!(*found, half::bf16::from_f32(*wanted).to_f32());
    }
}

/// What names one of the fields in the caller's own texts must not speak against the field.
#[test]
fn fields_go_before_texts() {
    let mut context = context();
    for (key, text) in [
        ("format", "kv-compressed"),
        ("tokens", "99"),
        ("rope_scaling", "{"),
        ("softmax_scale", "NaN"),
    ] {
        context.metadata.insert(key.to_owned(), text.to_owned());
    }
    context.scale = 1.0 / 3.0_f64.sqrt();
    context.rope_theta = 1e6 + 1.0 / 3.0;
    context.pairing = Pairing::Interleaved;
    let capture = Capture::from_layers("memory", context.clone(), vec![layer(1)]).expect("a capture");
    assert!(!capture.metadata.contains_key("rope_scaling"));
    let read = reopened(&capture, Dtype::F32).1;
    same(&read, &capture);
    assert_eq!((read.tokens, read.scale.to_bits()), (5, context.scale.to_bits()));
    assert_eq!(read.rope.pairing, Pairing::Interleaved);
    context.rope_scaling = Some(r#"{"rope_type":"factors","factors":[1,2,4,8.5]}"#.to_owned());
    let scaled = Capture::from_layers("memory", context, vec![layer(1)]).expect("a capture");
    assert_eq!(scaled.rope.frequencies[3] * 8.5, capture.rope.frequencies[3]);
    same(&reopened(&scaled, Dtype::F16).1, &scaled);
}

#[test]
fn layers_that_do_not_fit_are_refused_by_name() {
    let refused = |words: &[&str], change: fn(&mut Context, &mut Layer)| {
        let (mut context, mut wrong) = (context(), layer(3));
        change(&mut context, &mut wrong);
        let error = Capture::from_layers("memory", context, vec![layer(1), wrong]).expect_err("no fit");
        assert!(matches!(error, Error::File { .. }), "{error:?}");
        let text = error.to_string();
        for word in words.iter().chain(&["memory"]) {
            assert!(text.contains(word), "{text} lacks {word}");
        }
    };
    refused(&["layers.3.key", "79 elements"], |_, layer| layer.key.truncate(79));
    refused(&["layers.3.value", "41 elements"], |_, layer| layer.value.push(0.0));
    refused(&["layers.3.value"], |_, layer| layer.value_dim = 8);
    refused(&["layers.3.key"], |_, layer| layer.kv_heads = usize::MAX);
    refused(&["layers.3.query", "32 rows"], |_, layer| {
        if let Some(query) = &mut layer.query {
            query.rows = 32;
        }
    });
    refused(&["layers.3.query", "4 tokens"], |_, layer| layer.query = queries(2, 4));
    refused(&["layers.3.reference_query", "no elements"], |_, layer| {
        layer.reference_query = queries(3, 0)
    });
    refused(&["layers.3.key", "4 tokens", "says 5"], |_, layer| {
        layer.tokens = 4;
        layer.key.truncate(2 * 4 * 8);
        layer.value.truncate(2 * 4 * 4);
    });
    refused(&["layers.1.key", "5 tokens", "says 6"], |context, _| {
        (context.tokens, context.next_position) = (6, 8);
    });
    refused(&["layers.3.query", "3 heads", "2 KV heads"], |_, layer| {
        layer.query_heads = 3;
        layer.query = Some(Queries {
            rows: 5,
            data: data(2, 3 * 5 * 8),
        });
        (layer.reference_query, layer.probe_query) = (None, None);
    });
    refused(&["layers.3.query", "nothing to fit to"], |_, layer| {
        (layer.query, layer.reference_query) = (None, None);
    });
    refused(&["layers.3.key", "6 channels"], |_, layer| {
        layer.dim = 6;
        layer.key.truncate(60);
        for queries in [&mut layer.query, &mut layer.reference_query, &mut layer.probe_query] {
            let Some(queries) = queries else { return };
            queries.data.truncate(4 * queries.rows * 6);
        }
    });
    refused(&["layers.1.key", "twice"], |_, layer| layer.index = 1);
}

#[test]
fn numbers_and_contexts_without_meaning_are_refused() {
    let refused = |words: &[&str], change: fn(&mut Context, &mut Layer)| {
        let (mut context, mut layer) = (context(), layer(3));
        change(&mut context, &mut layer);
        let text = Capture::from_layers("memory", context, vec![layer])
            .expect_err("no meaning")
            .to_string();
        for word in words.iter().chain(&["memory"]) {
            assert!(text.contains(word), "{text} lacks {word}");
        }
    };
    refused(&["layers.3.value", "NaN", "head 1, token 2, channel 3"], |_, layer| {
        layer.value[31] = f32::NAN;
    });
    refused(&["layers.3.probe_query", "infinity", "head 3, row 1, channel 7"], |_, layer| {
        if let Some(queries) = &mut layer.probe_query {
            queries.data[63] = f32::NEG_INFINITY;
        }
    });
    refused(&["next_position 4"], |context, _| context.next_position = 4);
    refused(&["softmax_scale"], |context, _| context.scale = f64::NAN);
    refused(&["softmax_scale"], |context, _| context.scale = 0.0);
    refused(&["rope_theta"], |context, _| context.rope_theta = f64::INFINITY);
    refused(&["rope_dim"], |context, _| context.rope_dim = 7);
    refused(&["layers.3.key", "rope_dim"], |context, _| context.rope_dim = 12);
    refused(&["rope_scaling"], |context, _| context.rope_scaling = Some("{".to_owned()));
    refused(&["yarn", "layer 3"], |context, layer| {
        context.rope_scaling = Some(r#"{"rope_type":"yarn"}"#.to_owned());
        layer.reference_query = None;
    });
    let empty = Capture::from_layers("memory", context(), Vec::new())
        .expect_err("no layers")
        .to_string();
    assert!(empty.contains("no layers"), "{empty}");
}

#[test]
fn numbers_too_large_for_the_dtype_leave_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.safetensors");
    let mut large = layer(3);
    large.probe_query.as_mut().expect("probe queries").data[17] = 65_520.0;
    let capture = Capture::from_layers("memory", context(), vec![large.clone()]).expect("a capture");
    let error = capture.write(&path, Dtype::F16).expect_err("too large");
    let text = error.to_string();
    for word in [
        "capture.safetensors",
        "layers.3.probe_query",
        "head 1, row 0, channel 1",
        "too large",
        "--dtype bf16",
    ] {
        assert!(text.contains(word), "{text} lacks {word}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    let (_, read) = reopened(&capture, Dtype::F32);
    assert_eq!(read.layer(3).expect("a layer"), large);
}

/// A file that was written over after it was opened would be seen in a digest taken again.
#[test]
fn a_digest_is_taken_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.safetensors");
    std::fs::write(&path, Draft::capture().bytes()).expect("written");
    let capture = Capture::open(&path).expect("a capture");
    let before = capture.digest().expect("a digest");
    std::fs::write(&path, "x").expect("written over");
    assert_eq!(capture.digest().expect("the same digest"), before);
}

#[cfg(feature = "cpu")]
mod compressed {
    use super::*;
    use kvsculpt::cpu::CpuEngine;
    use kvsculpt::options::{Options, Tail};
    use kvsculpt::solver::{Request, compress};

    /// Where a capture is must not show in what becomes of it, nor in what is said of its source.
    #[test]
    fn from_memory_is_compressed_as_from_a_file() {
        let tokens = 48;
        let noise = |seed: usize, elements: usize| -> Vec<f32> {
            let value = |index: usize| ((index * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
            (0..elements).map(value).collect()
        };
        let query = Queries {
            rows: tokens,
            data: noise(3, 4 * tokens * 8),
        };
        let layers = [2, 5].map(|index| Layer {
            tokens,
            key: noise(index, 2 * tokens * 8),
            value: noise(index + 1, 2 * tokens * 4),
            query: Some(query.clone()),
            reference_query: None,
            ..layer(index)
        });
        let context = Context {
            tokens,
            next_position: tokens,
            ..context()
        };
        let memory = Capture::from_layers("memory", context, layers.to_vec()).expect("a capture");
        let file = reopened(&memory, Dtype::F32).1;
        let mut options = Options::default();
        options.keep = 0.5;
        options.sinks = 2;
        options.tail = Tail::Pairs(4);
        let request = Request {
            options,
            ..Request::default()
        };
        let [memory, file] =
            [memory, file].map(|capture| compress(&mut CpuEngine::new(), &capture, &request, &mut ()).expect("a compression"));
        assert_eq!(memory.outcomes.len(), 4);
        assert_eq!(memory.compressed, file.compressed);
    }
}
