//! Every reader of the library, as a function of a file's bytes: what the fuzz targets and the bounded run as a test both call.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use kvsculpt::Options;
use kvsculpt::budget::{Budgets, Weights};
use kvsculpt::cache::{Capture, Compressed, Dtype, Generator, Part, QuerySource, QueryStatistics, Rope, merge};
use kvsculpt::formats::{Cache, Known, RopeFacts};
use kvsculpt::journal::{Existing, Journal, Origin};
use kvsculpt::solver::{CurveSet, Request, allocate};

/// A reader by name; it says whether the bytes were a file.
pub(crate) type Reader = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub(crate) const READERS: [Reader; 12] = [
    ("capture", capture),
    ("compressed", compressed),
    ("part", part),
    ("cache", cache),
    ("budgets", budgets),
    ("sensitivities", sensitivities),
    ("curves", curves),
    ("options", options),
    ("rope_scaling", rope_scaling),
    ("statistics", statistics),
    ("journal", journal),
    ("configuration", configuration),
];

const NAME: &str = "file";

/// A capture, all layers of it.
pub(crate) fn capture(bytes: &[u8]) -> bool {
    let Ok(capture) = Capture::from_bytes(NAME, bytes.to_vec()) else {
        return false;
    };
    // Layers and heads read alike.
    capture.layers.iter().all(|&layer| {
        let is_read = capture.layer(layer).is_ok();
        let heads = capture.shape(layer).map_or(0, |shape| shape.kv_heads);
        let heads_read = (0..heads).all(|head| capture.head(layer, head).is_ok());
        assert_eq!(is_read, heads_read, "a layer is as readable as its heads");
        is_read
    })
}

/// A compressed cache.
pub(crate) fn compressed(bytes: &[u8]) -> bool {
    let Ok(compressed) = Compressed::from_bytes(NAME, bytes.to_vec()) else {
        return false;
    };
    compressed.layers.iter().all(|layer| layer.heads().count() == layer.lengths.len())
}

/// A part of one, and what merges of it alone.
pub(crate) fn part(bytes: &[u8]) -> bool {
    let Ok(part) = Part::from_bytes(NAME, bytes.to_vec()) else {
        return false;
    };
    let _ = part.shard().map(|shard| shard.to_string());
    let _ = merge(vec![(NAME.into(), part)]);
    true
}

/// Any engine's cache: ours, mlx-lm's, llama.cpp's, transformers'.
pub(crate) fn cache(bytes: &[u8]) -> bool {
    let known = Known {
        kv_heads: Some(2),
        rope: Some(RopeFacts {
            theta: 10_000.0,
            dim: 8,
            scaling: None,
        }),
        ..Known::default()
    };
    let Ok(cache) = Cache::from_bytes(NAME, bytes.to_vec(), &known) else {
        return false;
    };
    let is_read = (0..cache.layers.len()).all(|layer| cache.read(layer).is_ok());
    // What is whole has keys that queries can be guessed from.
    if let Ok(capture) = cache.into_capture(QuerySource::Keys, 0) {
        let _ = capture.layers.first().map(|&layer| capture.head(layer, 0));
    }
    is_read
}

/// A file of budgets, and what is written of it again.
pub(crate) fn budgets(bytes: &[u8]) -> bool {
    let Ok(budgets) = Budgets::from_bytes(NAME, bytes) else {
        return false;
    };
    let again = Budgets::from_bytes(NAME, budgets.to_string().as_bytes());
    assert_eq!(again.ok(), Some(budgets), "what is written is read back");
    true
}

/// A file of sensitivities.
pub(crate) fn sensitivities(bytes: &[u8]) -> bool {
    let Ok(weights) = Weights::from_bytes(NAME, bytes) else {
        return false;
    };
    let _ = (weights.digest(), weights.powered(0.5));
    true
}

/// A file of error curves, and the lengths that follow.
pub(crate) fn curves(bytes: &[u8]) -> bool {
    let Ok(set) = CurveSet::from_bytes(NAME, bytes) else { return false };
    let _ = set.curves();
    let joined = CurveSet::joined(vec![(Path::new(NAME).to_owned(), set)]);
    let _ = joined.map(|set| allocate(&set, &set.options().clone(), None));
    true
}

/// Options, as configurations, reports and files of budgets hold them.
pub(crate) fn options(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Options>(bytes).is_ok_and(|options| options.validate().is_ok())
}

/// The scaling of rotations that metadata hold.
pub(crate) fn rope_scaling(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let facts = RopeFacts {
        theta: 10_000.0,
        dim: 8,
        scaling: Some(text.to_owned()),
    };
    let rope: Option<Rope> = facts.rope(kvsculpt::cache::Pairing::Half).ok();
    rope.is_some()
}

/// Query statistics, and what they draw for a capture.
pub(crate) fn statistics(bytes: &[u8]) -> bool {
    let Ok(found) = QueryStatistics::from_bytes(NAME, bytes.to_vec()) else {
        return false;
    };
    let drawn = make_small().with_queries(QuerySource::Statistics(Arc::new(found)), 0);
    let _ = drawn.map(|capture| capture.head(0, 0));
    true
}

/// What is finished of an output.
pub(crate) fn journal(bytes: &[u8]) -> bool {
    let path = written("journal", bytes);
    Journal::open(&path.0, &origin(), Existing::Resume).is_ok_and(|opened| !opened.finished.heads.is_empty())
}

/// A model's `config.json`.
pub(crate) fn configuration(bytes: &[u8]) -> bool {
    let path = written("configuration", bytes);
    Known::default().add_configuration(&path.0).is_ok()
}

/// A file of the process's own, gone when this is.
struct Written(PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file of these bytes.
fn written(kind: &str, bytes: &[u8]) -> Written {
    let path = std::env::temp_dir().join(format!("kvsculpt-fuzz-{kind}-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    Written(path)
}

/// Two layers of two heads over a few tokens.
pub(crate) fn small() -> &'static Capture {
    static SMALL: OnceLock<Capture> = OnceLock::new();
    SMALL.get_or_init(make_small)
}

fn make_small() -> Capture {
    let mut generator = Generator::default();
    (generator.layers, generator.kv_heads, generator.group, generator.dim) = (2, 2, 1, 8);
    (generator.tokens, generator.probes) = (40, 2);
    generator.capture(Dtype::F32).unwrap()
}

/// What journals here are of.
pub(crate) fn origin() -> Origin {
    Origin::new(small(), &Request::default(), "a machine").unwrap()
}
