//! Compressed caches, written and read again.

use std::collections::BTreeMap;
use std::path::Path;

use kvsculpt::Error;
use kvsculpt::cache::{Compressed, CompressedLayer, Dtype};

fn layer(index: usize, dtype: Dtype, bias: bool) -> CompressedLayer {
    // Odd counts, so that nothing is aligned by chance.
    let lengths = vec![3, 1, 5];
    let pairs = lengths.iter().sum::<usize>();
    CompressedLayer {
        index,
        dim: 12,
        value_dim: 4,
        key: (0..pairs * 12).map(|i| i as f32 * 0.5 - 20.0).collect(),
        value: (0..pairs * 4).map(|i| 3.0 - i as f32 * 0.25).collect(),
        bias: bias.then(|| (0..pairs).map(|i| i as f32 * 0.1).collect()),
        lengths,
        dtype,
    }
}

fn cache(layers: Vec<CompressedLayer>) -> Compressed {
    let metadata = [
        ("format", "kv-compressed"),
        ("version", "1"),
        ("zeta", "last"),
        ("alpha", "\"quoted\"\n\u{1f5dc}"),
    ];
    Compressed {
        layers,
        metadata: metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.safetensors");
    let cache = cache(vec![
        layer(0, Dtype::F32, true),
        layer(7, Dtype::F16, false),
        layer(11, Dtype::Bf16, true),
    ]);
    Compressed::check_writable(&path).expect("writable");
    assert_eq!(entries(folder.path()), [""; 0], "the check leaves nothing behind");
    let bytes = cache.write(&path).expect("written");
    assert_eq!(entries(folder.path()), ["out.safetensors"]);
    let written = std::fs::read(&path).expect("its bytes");
    assert_eq!(written.len() as u64, bytes);
    assert_eq!(Compressed::read(&path).expect("read"), cache);
    assert_eq!(Compressed::from_bytes("memory", written).expect("read"), cache);
}

#[test]
fn heads_are_parts_of_their_layer() {
    for bias in [true, false] {
        let layer = layer(2, Dtype::F32, bias);
        let heads: Vec<_> = layer.heads().collect();
        assert_eq!(heads.iter().map(|head| head.length).collect::<Vec<_>>(), [3, 1, 5]);
        assert_eq!(heads[1].key, &layer.key[36..48]);
        assert_eq!(heads[1].value, &layer.value[12..16]);
        assert_eq!(heads.iter().flat_map(|head| head.key).copied().collect::<Vec<_>>(), layer.key);
        assert_eq!(heads.iter().flat_map(|head| head.value).copied().collect::<Vec<_>>(), layer.value);
        let biases: Option<Vec<_>> = heads.iter().map(|head| head.bias).collect();
        assert_eq!(biases.map(|biases| biases.concat()), layer.bias);
    }
}

/// Against the format's usual reader, and aligned for those that map the file.
#[test]
fn the_usual_reader_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.safetensors");
    let cache = cache(vec![layer(2, Dtype::F16, true), layer(3, Dtype::F32, true)]);
    cache.write(&path).expect("written");
    let bytes = std::fs::read(&path).expect("its bytes");
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    assert_eq!(header % 8, 0);
    let texts: BTreeMap<String, String> = metadata.metadata().clone().expect("metadata").into_iter().collect();
    assert_eq!(texts, cache.metadata);
    for info in metadata.tensors().values() {
        assert_eq!(info.data_offsets.0 * 8 % info.dtype.bitsize(), 0);
    }
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    assert_eq!(tensors.len(), 8);
    let lengths = tensors.tensor("layers.2.lengths").expect("lengths");
    assert_eq!((lengths.dtype(), lengths.shape()), (safetensors::Dtype::I32, &[3][..]));
    assert_eq!(lengths.data(), [3, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
    let key = tensors.tensor("layers.3.key").expect("a key");
    assert_eq!((key.dtype(), key.shape()), (safetensors::Dtype::F32, &[9, 12][..]));
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(key.data()), cache.layers[1].key);
}

#[test]
fn the_same_contents_give_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let mut cache = cache(vec![layer(5, Dtype::F16, true)]);
    cache.write(&one).expect("written");
    // Format and version are set even where the caller carries the capture's.
    cache.metadata.insert("format".to_owned(), "kv-capture".to_owned());
    cache.metadata.remove("version");
    cache.write(&two).expect("written");
    assert_eq!(std::fs::read(one).expect("bytes"), std::fs::read(two).expect("bytes"));
}

#[test]
fn halves_are_rounded_to_the_nearest_even() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out");
    for (dtype, bits) in [(Dtype::F16, 10), (Dtype::Bf16, 7)] {
        let unit = 0.5_f32.powi(bits);
        let mut layer = layer(0, dtype, false);
        let given = [1.0 + 0.5 * unit, 1.0 + 1.5 * unit, 1.0 + 0.51 * unit, -1.0 - 1.49 * unit];
        layer.key[..4].copy_from_slice(&given);
        cache(vec![layer]).write(&path).expect("written");
        let read = Compressed::read(&path).expect("read");
        assert_eq!(read.layers[0].key[..4], [1.0, 1.0 + 2.0 * unit, 1.0 + unit, -1.0 - unit]);
    }
}

#[test]
fn numbers_that_do_not_fit_leave_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.safetensors");
    let mut fits = layer(4, Dtype::F16, false);
    fits.value[9] = 65_519.0;
    cache(vec![fits.clone()])
        .write(&path)
        .expect("the largest number that rounds to a half");
    let before = std::fs::read(&path).expect("bytes");
    for (value, dtype, hints) in [
        (65_520.0, Dtype::F16, ["too large", "--dtype bf16"]),
        (-1e30, Dtype::F16, ["too large", "--dtype f32"]),
        (f32::MAX, Dtype::Bf16, ["too large", "--dtype f32"]),
        (f32::NAN, Dtype::F32, ["not finite", "nothing was written"]),
        (f32::INFINITY, Dtype::F16, ["not finite", "nothing was written"]),
    ] {
        let mut layer = fits.clone();
        layer.dtype = dtype;
        // Row 3 is the only pair of head 1.
        layer.value[3 * 4 + 2] = value;
        let error = cache(vec![layer]).write(&path).expect_err("too large").to_string();
        for word in ["out.safetensors", "layers.4.value", "head 1, pair 0, channel 2", hints[0], hints[1]] {
            assert!(error.contains(word), "{error} lacks {word}");
        }
    }
    assert_eq!(std::fs::read(&path).expect("bytes"), before, "what was there before stays");
    assert_eq!(entries(folder.path()), ["out.safetensors"]);
}

#[test]
fn places_that_cannot_be_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "x").expect("written");
    let frozen = folder.path().join("frozen");
    std::fs::write(&frozen, "x").expect("written");
    let mut permissions = std::fs::metadata(&frozen).expect("about").permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&frozen, permissions).expect("set");
    let mut places = vec![
        (folder.path().to_owned(), "is a folder"),
        (folder.path().join("none/out"), "there is no folder"),
        (file.join("out"), "not a folder"),
        (frozen, "read-only"),
        (Path::new("").to_owned(), "no file name"),
    ];
    if cfg!(unix) {
        places.push((Path::new("/dev/null").to_owned(), "not a regular file"));
    }
    let cache = cache(vec![layer(0, Dtype::F32, false)]);
    for (place, reason) in places {
        for error in [
            Compressed::check_writable(&place).expect_err("early"),
            cache.write(&place).expect_err("late"),
        ] {
            let Error::File { path, reason: found } = &error else {
                panic!("{error:?}")
            };
            assert_eq!(*path, place);
            assert!(found.contains(reason), "{error} lacks {reason}");
        }
    }
    assert_eq!(entries(folder.path()), ["file", "frozen"]);
}

#[test]
fn layers_that_do_not_fit_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out");
    let wrong = |change: fn(&mut CompressedLayer)| {
        let mut layer = layer(6, Dtype::F32, true);
        change(&mut layer);
        cache(vec![layer])
    };
    for cache in [
        cache(vec![]),
        cache(vec![layer(6, Dtype::F32, true), layer(6, Dtype::F32, true)]),
        wrong(|layer| layer.lengths[0] = 4),
        wrong(|layer| layer.lengths = vec![]),
        wrong(|layer| layer.dim = 0),
        // Sums and products beyond what can be counted, which must not wrap around to what is there.
        wrong(|layer| layer.lengths = vec![usize::MAX, 10]),
        wrong(|layer| layer.dim = usize::MAX),
        wrong(|layer| layer.value_dim = usize::MAX / 2),
        wrong(|layer| layer.value.truncate(7)),
        wrong(|layer| layer.bias = Some(vec![])),
    ] {
        let error = cache.write(&path).expect_err("no fit");
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
    assert_eq!(entries(folder.path()), [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_file_as_readable_as_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let (plain, path) = (folder.path().join("plain"), folder.path().join("out"));
    std::fs::write(&plain, "x").expect("written");
    cache(vec![layer(0, Dtype::F32, false)]).write(&path).expect("written");
    let mode = |path: &Path| std::fs::metadata(path).expect("about").permissions().mode();
    assert_eq!(mode(&path), mode(&plain));
}
