//! Files that are damaged, mistaken or meant to harm: each is refused with the file's name, the tensor and what to
//! do, and none makes the library panic.

use kvsculpt::Result;
use kvsculpt::cache::{Capture, Compressed};

use crate::draft::Draft;

const NAME: &str = "hostile.safetensors";

/// Opens a capture and reads all of it.
fn read_all(bytes: Vec<u8>) -> Result<usize> {
    let capture = Capture::from_bytes(NAME, bytes)?;
    let mut numbers = 0;
    for &index in &capture.layers {
        let layer = capture.layer(index)?;
        let queries = [layer.query, layer.reference_query, layer.probe_query];
        let tensors = queries
            .into_iter()
            .flatten()
            .map(|queries| queries.data)
            .chain([layer.key, layer.value]);
        for tensor in tensors {
            assert!(tensor.iter().all(|number| number.is_finite()));
            numbers += tensor.len();
        }
    }
    Ok(numbers)
}

/// Asserts that both the file and the bytes are refused in the same words, and that these say what they should.
fn refused(bytes: Vec<u8>, words: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(NAME);
    std::fs::write(&path, &bytes).expect("written");
    let from_file = Capture::open(&path).and_then(|capture| capture.layers.iter().try_for_each(|&index| capture.layer(index).map(drop)));
    let message = read_all(bytes).expect_err("a hostile file").to_string();
    let from_file = from_file.expect_err("a hostile file").to_string();
    assert!(from_file.ends_with(&message), "{from_file} is not {message}");
    assert!(message.starts_with(NAME), "{message}");
    for word in words {
        assert!(message.contains(word), "{message} lacks {word:?}");
    }
}

/// The valid capture with one thing changed.
fn changed(change: impl FnOnce(&mut Draft)) -> Vec<u8> {
    let mut draft = Draft::capture();
    change(&mut draft);
    draft.bytes()
}

#[test]
fn the_draft_itself_is_read() {
    let numbers = read_all(Draft::capture().bytes()).expect("a capture");
    assert_eq!(numbers, 2 * (80 + 40 + 160 + 96 + 64));
}

#[test]
fn paths_that_are_no_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.safetensors");
    let error = Capture::open(&missing).expect_err("missing").to_string();
    assert!(
        error.contains("missing.safetensors: there is no such file; check the path"),
        "{error}"
    );
    let error = Capture::open(folder.path()).expect_err("a folder").to_string();
    assert!(error.contains("is a folder; give the path"), "{error}");
    let error = Compressed::read(&missing).expect_err("missing").to_string();
    assert!(error.contains("there is no such file"), "{error}");
    if cfg!(unix) {
        let error = Capture::open("/dev/zero".as_ref()).expect_err("a device").to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

#[test]
fn files_that_are_no_container() {
    refused(vec![], &["is empty", "write it again"]);
    refused(vec![1, 2, 3], &["3 bytes", "too few"]);
    refused(
        b"GGUF is another format, and a good one".to_vec(),
        &["no safetensors file", "check that it is the right file"],
    );
    refused(vec![0; 64], &["header that cannot be read", "check that it is a safetensors file"]);
    let draft = Draft::capture();
    refused(draft.with_header(b"{\"a\":"), &["header that cannot be read"]);
    refused(
        draft.with_header(b"[1, 2]"),
        &["header that cannot be read", "an object of tensors"],
    );
    refused(draft.with_header(&[b'{', b'"', 0xff, 0xfe]), &["not UTF-8", "byte 10"]);
    refused(draft.with_header("[".repeat(100_000).as_bytes()), &["header that cannot be read"]);
    refused(
        draft.with_header(b"{\"__metadata__\": {\"tokens\": 5}}"),
        &["metadata must be strings"],
    );
    let text = format!("{{\"layers.0.key\": {}}}", "[".repeat(100_000));
    refused(draft.with_header(text.as_bytes()), &["tensor `layers.0.key`"]);
}

#[test]
fn header_lengths() {
    let bytes = Draft::capture().bytes();
    for length in [u64::MAX, u64::MAX - 7, i64::MAX as u64, bytes.len() as u64 - 7, 1 << 40] {
        let mut hostile = bytes.clone();
        hostile[..8].copy_from_slice(&length.to_le_bytes());
        refused(hostile, &["cut short", &length.to_string(), "write it again"]);
    }
    for length in [0_u64, 1, 40] {
        let mut hostile = bytes.clone();
        hostile[..8].copy_from_slice(&length.to_le_bytes());
        refused(hostile, &["header that cannot be read"]);
    }
    // Larger than any reader accepts, in a file that claims to be as large without taking the room.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(NAME);
    std::fs::write(&path, ((1_u64 << 24) + 1).to_le_bytes()).expect("written");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.set_len(1 << 25).expect("a sparse file");
    let error = Capture::open(&path).expect_err("too large").to_string();
    assert!(error.contains("header of 16777217 bytes"), "{error}");
}

#[test]
fn truncated_anywhere() {
    let bytes = Draft::capture().bytes();
    for length in 0..bytes.len() {
        let error = read_all(bytes[..length].to_vec()).expect_err("cut short").to_string();
        assert!(error.starts_with(NAME) && error.contains("write it again"), "{error}");
    }
    let mut longer = bytes;
    longer.push(0);
    refused(longer, &["1 bytes after its last tensor"]);
}

#[test]
fn truncated_after_it_was_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(NAME);
    let bytes = Draft::capture().bytes();
    std::fs::write(&path, &bytes).expect("written");
    let capture = Capture::open(&path).expect("a capture");
    capture.layer(3).expect("still whole");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.set_len(bytes.len() as u64 - 1).expect("cut");
    capture.layer(1).expect("before the cut");
    for error in [capture.layer(3).map(drop), capture.digest().map(drop)] {
        let error = error.expect_err("cut short").to_string();
        assert!(error.contains(NAME) && error.contains("after it was opened"), "{error}");
    }
    let error = capture.layer(3).expect_err("cut short").to_string();
    assert!(error.contains("layers.3.probe_query"), "{error}");
}

#[test]
fn offsets() {
    // Layer 1's key is bytes 0..320 of the data, its value 320..480; all data are 2864 bytes.
    let key = "\"data_offsets\":[0,320]";
    let value = "\"data_offsets\":[320,480]";
    let draft = Draft::capture();
    assert!(draft.header().contains(key) && draft.header().contains(value));
    for (from, to, words) in [
        (
            value,
            "\"data_offsets\":[160,320]",
            ["layers.1.value", "overlaps tensor `layers.1.key`"],
        ),
        (value, "\"data_offsets\":[480,320]", ["layers.1.value", "ends before it begins"]),
        (value, "\"data_offsets\":[320,999999]", ["layers.1.value", "cut short or damaged"]),
        (value, "\"data_offsets\":[320,481]", ["layers.1.value", "do not fit its shape"]),
        (
            value,
            "\"data_offsets\":[320,18446744073709551615]",
            ["layers.1.value", "cut short or damaged"],
        ),
        (
            value,
            "\"data_offsets\":[320,18446744073709551616]",
            ["layers.1.value", "cannot be read"],
        ),
        (value, "\"data_offsets\":[-1,480]", ["layers.1.value", "cannot be read"]),
        (value, "\"data_offsets\":[320]", ["layers.1.value", "cannot be read"]),
        (key, "\"data_offsets\":[160,480]", ["layers.1.key", "160 bytes before it"]),
        (
            "\"shape\":[2, 5, 4]",
            "\"shape\":[2, 5, 5]",
            ["layers.1.value", "do not fit its shape [2, 5, 5]"],
        ),
        (
            "\"shape\":[2, 5, 4]",
            "\"shape\":[4294967296, 4294967296, 4294967296]",
            ["layers.1.value", "do not fit its shape"],
        ),
        ("\"shape\":[2, 5, 4]", "\"shape\":[2, -5, 4]", ["layers.1.value", "cannot be read"]),
        ("\"dtype\":\"F32\"", "\"dtype\":\"F33\"", ["layers.1.key", "cannot be read"]),
        (
            "\"dtype\":\"F32\"",
            "\"dtype\":\"I32\"",
            ["layers.1.key", "store it as F32, F16 or BF16"],
        ),
        ("\"dtype\":\"F32\"", "\"dtype\":\"F64\"", ["layers.1.key", "do not fit its shape"]),
        ("layers.3.value", "layers.3.key", ["layers.3.key", "is there twice"]),
    ] {
        refused(draft.with_header(draft.header().replacen(from, to, 1).as_bytes()), &words);
    }
    let mut hole = draft.clone();
    hole.tensor("layers.1.value").bytes.extend([0; 8]);
    let header = hole.header().replace("[320,488]", "[320,480]");
    refused(
        hole.with_header(header.as_bytes()),
        &["layers.1.query", "8 bytes before it that belong to no tensor"],
    );
}

#[test]
fn formats_and_versions() {
    refused(changed(|draft| draft.unset("format")), &["no metadata `format`", "`kv-capture`"]);
    refused(
        changed(|draft| draft.set("format", "mlx")),
        &["format `mlx`", "`kv-capture` is needed"],
    );
    refused(
        changed(|draft| draft.set("format", "kv-compressed")),
        &["compressed cache already", "capture it was made from"],
    );
    refused(
        changed(|draft| draft.set("version", "2")),
        &["version 2", "not known to this release", "reads 1"],
    );
    refused(changed(|draft| draft.unset("version")), &["no metadata `version`"]);
    refused(changed(|draft| draft.metadata.clear()), &["no metadata `format`"]);
    refused(changed(|draft| draft.tensors.clear()), &["holds no layers", "layers.0.key"]);
}

#[test]
fn metadata() {
    for (key, value, hint) in [
        ("tokens", "0", "no tokens"),
        ("tokens", "-5", "whole number"),
        ("tokens", "5.0", "whole number"),
        ("tokens", "18446744073709551615", "whole number"),
        ("tokens", "6", "layers.1.key"),
        ("next_position", "4", "before the end"),
        ("next_position", "soon", "whole number"),
        ("sinks", "some", "whole number"),
        ("softmax_scale", "0", "positive number"),
        ("softmax_scale", "NaN", "positive number"),
        ("softmax_scale", "inf", "positive number"),
        // Infinite and zero in the f32 that engines compute in.
        ("softmax_scale", "1e39", "positive number"),
        ("softmax_scale", "1e-50", "positive number"),
        ("softmax_scale", "1/8", "write a number"),
        ("rope_theta", "-1", "positive number"),
        ("rope_theta", "theta", "write a number"),
        ("rope_dim", "7", "even"),
        ("rope_dim", "0", "at least 2"),
        ("rope_dim", "10", "layers.1.key"),
        ("rope_dim", "4294967294", "at most 256"),
        ("rope_pairing", "neox", "`half`"),
        ("rope_scaling", "factor 4", "not JSON"),
        ("rope_scaling", r#"{"rope_type":"linear"}"#, "factor"),
    ] {
        refused(changed(|draft| draft.set(key, value)), &[key, hint]);
        if key != "sinks" && key != "rope_scaling" {
            refused(changed(|draft| draft.unset(key)), &[key, "__metadata__"]);
        }
    }
}

#[test]
fn tensors_missing_or_misnamed() {
    for kind in ["key", "value"] {
        let name = format!("layers.1.{kind}");
        refused(changed(|draft| draft.remove(&name)), &[&name, "is missing", "every layer needs"]);
    }
    let unfit = changed(|draft| {
        draft.remove("layers.1.query");
        draft.remove("layers.1.reference_query");
    });
    refused(unfit, &["layers.1.query", "is missing", "nothing to fit to", "`reference_query`"]);
    for (from, to, meant) in [
        ("layers.1.key", "layers.1.keys", "`layers.1.key`"),
        ("layers.1.value", "layers.1.values", "`layers.1.value`"),
        ("layers.1.query", "layers.1.q_query", "`layers.1.query`"),
        ("layers.1.probe_query", "layers.1.probe", "`layers.1.probe_query`"),
        ("layers.1.key", "layer.1.key", "`layers.1.key`"),
        ("layers.1.key", "layers.01.key", "`layers.1.key`"),
        ("layers.3.key", "model.layers.3.self_attn.key", "`layers.3."),
        ("layers.1.key", "layers.99999999999999999999.key", "`layers.0.key`"),
        ("layers.1.key", "layers.-1.key", "`layers.1.key`"),
        ("layers.1.key", "", "`layers.0.key`"),
    ] {
        let bytes = changed(|draft| draft.tensor(from).name = to.to_owned());
        refused(
            bytes,
            &[
                &format!("`{to}`"),
                "is not known here",
                meant,
                "key, value, query, reference_query, probe_query",
            ],
        );
    }
    // A name is shown, not obeyed: no escape reaches a terminal, and no page is filled.
    let loud = changed(|draft| draft.tensor("layers.1.key").name = format!("\\u001b[31m{}", "x".repeat(100_000)));
    let message = read_all(loud).expect_err("a loud name").to_string();
    assert!(message.len() < 500 && !message.contains('\u{1b}'), "{message}");
}

#[test]
fn shapes() {
    for (tensor, shape, words) in [
        ("key", &[10, 8][..], ["2 axes", "[kv_heads, tokens, dim]"]),
        ("key", &[1, 2, 5, 8], ["4 axes", "reshape it"]),
        ("value", &[], ["0 axes", "[kv_heads, tokens, value_dim]"]),
        ("key", &[2, 6, 8], ["6 tokens", "`tokens` says 5"]),
        ("value", &[2, 4, 4], ["4 tokens", "`tokens` says 5"]),
        ("value", &[1, 5, 4], ["1 heads", "`layers.1.key` has 2"]),
        ("query", &[4, 6, 8], ["6 tokens", "`tokens` says 5"]),
        ("query", &[3, 5, 8], ["3 heads", "no multiple of the 2 KV heads"]),
        ("query", &[4, 5, 4], ["4 channels", "`layers.1.key` has 8"]),
        ("reference_query", &[2, 3, 8], ["2 heads", "other queries have 4"]),
        ("probe_query", &[6, 2, 8], ["6 heads", "other queries have 4"]),
        ("probe_query", &[4, 0, 8], ["no elements", "leave it out"]),
        ("key", &[0, 5, 8], ["no elements", "[kv_heads, tokens, dim]"]),
        ("key", &[2, 5, 6], ["6 channels", "multiples of 4"]),
        ("value", &[2, 5, 260], ["260 channels", "4 to 256"]),
    ] {
        let name = format!("layers.1.{tensor}");
        refused(changed(|draft| draft.reshape(&name, shape)), &[&name, words[0], words[1]]);
    }
}

/// However long what the header says, the sentence stays one that can be read.
#[test]
fn a_shape_of_many_axes_fills_no_page() {
    let draft = Draft::capture();
    // As many elements as before, so that the shape itself passes; and a product that fits no bytes.
    for (first, words) in [("2, 5, 8", "axes, shape [2, 5, 8"), ("7", "do not fit its shape [7")] {
        let shape = format!("\"shape\":[{first}{}]", ", 1".repeat(100_000));
        let header = draft.header().replacen("\"shape\":[2, 5, 8]", &shape, 1);
        let bytes = draft.with_header(header.as_bytes());
        let message = read_all(bytes.clone()).expect_err("a hostile shape").to_string();
        assert!(message.len() < 1000, "{} bytes", message.len());
        refused(bytes, &["layers.1.key", words, "…"]);
    }
}

#[test]
fn numbers_that_are_not_finite() {
    refused(
        changed(|draft| draft.poke("layers.1.key", 40 + 2 * 8 + 7, f32::NAN)),
        &["layers.1.key", "NaN", "head 1, token 2, channel 7", "overflow"],
    );
    refused(
        changed(|draft| draft.poke("layers.1.value", 0, f32::NEG_INFINITY)),
        &["layers.1.value", "infinity", "head 0, token 0, channel 0"],
    );
    refused(
        changed(|draft| draft.poke("layers.1.probe_query", 3 * 16 + 8, f32::INFINITY)),
        &["layers.1.probe_query", "head 3, row 1, channel 0"],
    );
    // f16's and bf16's own infinity and NaN, in layer 3.
    for (tensor, bits, what) in [
        ("key", 0x7c00_u16, "infinity"),
        ("query", 0x7f80, "infinity"),
        ("query", 0xffc1, "NaN"),
    ] {
        let name = format!("layers.3.{tensor}");
        let bytes = changed(|draft| draft.tensor(&name).bytes[18..20].copy_from_slice(&bits.to_le_bytes()));
        refused(bytes, &[&name, what, "head 0, token 1, channel 1"]);
    }
}

#[test]
fn a_layer_that_is_not_there() {
    let capture = Capture::from_bytes(NAME, Draft::capture().bytes()).expect("a capture");
    let error = capture.layer(2).expect_err("no layer 2").to_string();
    assert!(error.contains("has no layer 2") && error.contains("1, 3"), "{error}");
}

#[test]
fn compressed_caches() {
    let refused = |change: fn(&mut Draft), words: &[&str]| {
        let mut draft = Draft::compressed();
        change(&mut draft);
        let message = Compressed::from_bytes(NAME, draft.bytes()).expect_err("hostile").to_string();
        for word in [NAME].iter().chain(words) {
            assert!(message.contains(word), "{message} lacks {word:?}");
        }
    };
    Compressed::from_bytes(NAME, Draft::compressed().bytes()).expect("valid as it is");
    refused(|draft| *draft = Draft::capture(), &["is a capture", "kvsculpt compress"]);
    refused(|draft| draft.set("version", "9"), &["version 9"]);
    refused(|draft| draft.tensors.clear(), &["no layers"]);
    for kind in ["lengths", "key", "value"] {
        let mut draft = Draft::compressed();
        draft.remove(&format!("layers.2.{kind}"));
        let message = Compressed::from_bytes(NAME, draft.bytes()).expect_err("missing").to_string();
        assert!(message.contains(&format!("`layers.2.{kind}` is missing")), "{message}");
    }
    refused(
        |draft| draft.tensor("layers.2.bias").name = "layers.2.beta".to_owned(),
        &["layers.2.beta", "bias"],
    );
    refused(
        |draft| draft.tensor("layers.2.lengths").bytes[0] = 3,
        &["layers.2.key", "5 pairs", "sum to 6"],
    );
    refused(
        |draft| draft.tensor("layers.2.lengths").bytes[3] = 0x80,
        &["layers.2.lengths", "head 0", "negative"],
    );
    refused(|draft| draft.tensor("layers.2.lengths").dtype = "F32", &["layers.2.lengths", "I32"]);
    refused(
        |draft| draft.reshape("layers.2.bias", &[4]),
        &["layers.2.bias", "4 pairs", "sum to 5"],
    );
    refused(|draft| draft.reshape("layers.2.value", &[6, 4]), &["layers.2.value", "6 pairs"]);
    refused(|draft| draft.reshape("layers.2.key", &[5, 2, 4]), &["layers.2.key", "3 axes"]);
    refused(|draft| draft.reshape("layers.2.key", &[5, 3]), &["layers.2.key", "multiples of 4"]);
    refused(
        |draft| draft.tensor("layers.2.value").dtype = "BF16",
        &["layers.2.value", "both alike"],
    );
    refused(
        |draft| draft.poke("layers.2.bias", 3, f32::NAN),
        &["layers.2.bias", "head 1, pair 1"],
    );
}

/// One random change: bytes, the length, the header's length, or a number of the header put to an extreme.
fn mutate(random: &mut fastrand::Rng, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    match random.u8(0..6) {
        0 => bytes.truncate(random.usize(0..bytes.len())),
        1 => bytes[random.usize(0..8)] = random.u8(..),
        2 => {
            for _ in 0..random.usize(1..4) {
                bytes[random.usize(8..8 + header)] ^= 1 << random.u8(0..8);
            }
        }
        3 => {
            let at = random.usize(8 + header..bytes.len());
            bytes[at] = random.u8(..);
        }
        4 => bytes.insert(random.usize(8..8 + header), random.u8(..)),
        _ => {
            let digits: Vec<usize> = (8..8 + header).filter(|&at| bytes[at].is_ascii_digit()).collect();
            let at = digits[random.usize(0..digits.len())];
            let end = (at..8 + header).find(|&at| !bytes[at].is_ascii_digit()).unwrap_or(8 + header);
            let extremes = [
                "0",
                "1",
                "18446744073709551615",
                "9223372036854775807",
                "4294967296",
                "-1",
                "1e99",
                "8",
            ];
            let extreme = extremes[random.usize(0..extremes.len())];
            bytes.splice(at..end, extreme.bytes());
            bytes[..8].copy_from_slice(&((header + extreme.len() - (end - at)) as u64).to_le_bytes());
        }
    }
    bytes
}

#[test]
fn random_damage_never_panics() {
    let mut random = fastrand::Rng::with_seed(20_260_327);
    let (capture, compressed) = (Draft::capture().bytes(), Draft::compressed().bytes());
    let (mut read, mut refused) = (0, 0);
    for _ in 0..6000 {
        match read_all(mutate(&mut random, &capture)) {
            Ok(_) => read += 1,
            Err(error) => {
                assert!(error.to_string().starts_with(NAME), "{error}");
                refused += 1;
            }
        }
        match Compressed::from_bytes(NAME, mutate(&mut random, &compressed)) {
            Ok(cache) => assert!(cache.layers.iter().all(|layer| layer.key.len() == 5 * layer.dim)),
            Err(error) => assert!(error.to_string().starts_with(NAME), "{error}"),
        }
    }
    assert!(
        read > 100 && refused > 1000,
        "{read} read, {refused} refused: the damage is too mild or too strong"
    );
}
