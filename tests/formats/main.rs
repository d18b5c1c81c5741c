//! Other people's cache formats: what is read from files made byte by byte here, what is written, what is refused, and that no damage
//! makes a reader panic.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of small test files")]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "../cache/draft.rs"]
#[allow(dead_code, reason = "shared with the cache's tests, which use all of it")]
mod draft;
mod frames;
mod hugging_face;
mod known;
mod llama;
mod mlx;
mod mutations;
mod own;

use std::path::Path;

use kvsculpt::Result;
use kvsculpt::cache::{Compressed, CompressedLayer, Dtype};
use kvsculpt::formats::{Cache, Format, Known, LayerFacts, LayerPairs, RopeFacts, Target};

/// The model that the caches here are of.
pub(crate) const MODEL: &str = "a/model";

/// Opens bytes as a cache.
pub(crate) fn open(bytes: &[u8], known: &Known) -> Result<Cache> {
    Cache::from_bytes("given", bytes.to_vec(), known)
}

/// The file that a cache becomes.
pub(crate) fn written(cache: &Cache, target: &Target) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out");
    let written = cache.write(&path, target);
    if let Err(error) = written {
        let left = std::fs::read_dir(folder.path()).expect("the folder").count();
        assert_eq!(left, 0, "something was left behind by {error}");
        return Err(error);
    }
    let bytes = std::fs::read(&path).expect("written");
    assert_eq!(written.expect("written").bytes, bytes.len() as u64);
    Ok(bytes)
}

/// All layers.
pub(crate) fn all(cache: &Cache) -> Vec<(LayerFacts, LayerPairs)> {
    let read = |number| cache.read(number).expect("a layer");
    cache
        .layers
        .iter()
        .cloned()
        .enumerate()
        .map(|(number, facts)| (facts, read(number)))
        .collect()
}

/// Asserts that this is refused in one sentence with these words.
pub(crate) fn refused<T>(result: Result<T>, words: &[&str]) {
    let message = result.err().expect("refused").to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    for word in words {
        assert!(message.contains(word), "{message} lacks {word:?}");
    }
}

/// Different numbers everywhere, exact in every dtype: head, pair and channel can be told from each.
pub(crate) fn number(head: usize, pair: usize, channel: usize) -> f32 {
    (head * 100 + pair * 10 + channel) as f32 * 0.5
}

/// A layer's keys or values head by head.
pub(crate) fn numbers(lengths: &[usize], channels: usize, more: f32) -> Vec<f32> {
    let mut data = Vec::new();
    for (head, &length) in lengths.iter().enumerate() {
        for pair in 0..length {
            data.extend((0..channels).map(|channel| number(head, pair, channel) + more));
        }
    }
    data
}

/// A compressed cache of 20 tokens, layers of these lengths by head; keys of 8 channels, values of 4, rotation over 8 channels.
pub(crate) fn compressed(lengths: &[&[usize]]) -> Compressed {
    let layers = lengths.iter().enumerate().map(|(index, lengths)| CompressedLayer {
        index,
        dim: 8,
        value_dim: 4,
        lengths: lengths.to_vec(),
        key: numbers(lengths, 8, index as f32 * 16.0),
        value: numbers(lengths, 4, index as f32 * 16.0 + 8.0),
        bias: None,
        dtype: Dtype::F32,
    });
    let metadata = [
        ("tokens", "20"),
        ("next_position", "20"),
        ("rope_theta", "10000.0"),
        ("rope_dim", "8"),
        ("rope_pairing", "half"),
        ("model", MODEL),
        ("architecture", "qwen2"),
        ("report", "{\"heads\":[1, 2]}"),
    ];
    let metadata = metadata.iter().map(|&(key, text)| (key.to_owned(), text.to_owned()));
    Compressed {
        layers: layers.collect(),
        metadata: metadata.collect(),
    }
}

/// That cache, opened.
pub(crate) fn short(lengths: &[&[usize]]) -> Cache {
    Cache::from_compressed("short", compressed(lengths), &Known::default()).expect("a cache")
}

/// A rotation for files that say none.
pub(crate) fn rope() -> Option<RopeFacts> {
    Some(RopeFacts {
        theta: 10000.0,
        dim: 8,
        scaling: None,
    })
}

/// Whether this is what a file is taken for.
pub(crate) fn detected(bytes: &[u8]) -> Result<Format> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).expect("written");
    kvsculpt::formats::detect(Path::new(&path))
}
