//! A cache of another engine as a capture: what it lacks is put beside it.

use std::collections::BTreeMap;

use super::cache::{Cache, LayerFacts};
use super::{Format, own};
use crate::cache::{Capture, Container, QuerySource};
use crate::error::{Error, Result};

/// Texts that other formats' files bring along and that say nothing of a compressed cache.
const LEFT: [&str; 2] = ["format", "positions"];

impl Cache {
    /// The cache as a capture that [`compress`](crate::solver::compress) takes, with queries of this source, drawn by a seed where they
    /// are drawn. A capture stays where it is, and is read head by head; any other cache is read into memory as f32.
    ///
    /// The softmax scale is the metadata's `softmax_scale`, the statistics', or 1 / √(channels of a key).
    ///
    /// # Errors
    /// [`Error::File`]: a cache that is compressed already or has no one length, or cannot be read; [`Error::Options`] where something
    /// must be [`Known`](super::Known) for it, or the source has no queries for this cache.
    pub fn into_capture(self, source: QuerySource, seed: u64) -> Result<Capture> {
        if self.format == Format::Capture {
            let path = self.path.clone();
            let capture = self.source.into_capture();
            let capture = capture.ok_or_else(|| Error::file(&path, "is a capture that was not opened as one"))?;
            return capture.with_queries(source, seed);
        }
        if matches!(source, QuerySource::Own) {
            return Err(Error::option(
                "--queries",
                format!(
                    "{} is a {} and holds no queries; give statistics:FILE (made by `kvsculpt statistics` from captures of its model), or keys",
                    self.path.display(),
                    self.format
                ),
            ));
        }
        let length = self.check_plain()?;
        let metadata = self.captured(&source, length)?;
        let mut tensors = Vec::new();
        for (number, facts) in self.layers.iter().enumerate() {
            let pairs = self.read(number)?;
            let heads = facts.lengths.len();
            tensors.push((format!("layers.{}.key", facts.index), [heads, length, facts.dim], pairs.key));
            tensors.push((
                format!("layers.{}.value", facts.index),
                [heads, length, facts.value_dim],
                pairs.value,
            ));
        }
        let container = Container::from_arrays(self.path.clone(), &metadata, tensors)?;
        let mut capture = Capture::without_queries(container)?;
        capture.stored_as(self.layers.iter().map(|facts| (facts.index, (facts.key_dtype, facts.value_dtype))));
        if let Some(digest) = self.source.digest()? {
            capture.known_digest(digest);
        }
        capture.with_queries(source, seed)
    }

    /// Checks that every head of every layer has all its pairs, at consecutive positions before the same one; how many.
    fn check_plain(&self) -> Result<usize> {
        if self.format == Format::Compressed || self.metadata.contains_key("keep") {
            return Err(self.error("is compressed already; give the cache it was made from"));
        }
        if self.positions.is_some() {
            return Err(self.error(
                "has cells at positions with holes between, as a shortened cache has; give the cache as it was when the text was read",
            ));
        }
        let first = self.layers.first().ok_or_else(|| self.error("has no layers"))?;
        let length = first.longest();
        let differs = |facts: &&LayerFacts| facts.length() != Some(length) || facts.next_position != first.next_position;
        match self.layers.iter().find(differs) {
            None => Ok(length),
            Some(other) => Err(self.error(format!(
                "has {length} pairs a head in layer {} and {} in layer {}, and all layers must have read the same text; give a cache without sliding windows, as it was when the text was read",
                first.index,
                other.longest(),
                other.index
            ))),
        }
    }

    /// The metadata of the capture that the cache becomes.
    fn captured(&self, source: &QuerySource, length: usize) -> Result<BTreeMap<String, String>> {
        let missing = |option, what: &str, remedy: &str| {
            Error::option(
                option,
                format!("{} does not say {what}, which queries need; {remedy}", self.path.display()),
            )
        };
        let rope = self
            .rope
            .as_ref()
            .ok_or_else(|| missing("--rope-theta", "how its keys rotate", "give it with --rope-dim, or --model-config"))?;
        let pairing = self.pairing.ok_or_else(|| {
            missing(
                "--rope-pairing",
                "which channels of a key rotate together",
                "give half or interleaved, or --architecture",
            )
        })?;
        let told = match source {
            QuerySource::Statistics(statistics) => statistics.metadata.get("softmax_scale"),
            _ => None,
        };
        let dim = self.layers.first().map_or(1, |facts| facts.dim);
        let usual = || format!("{:?}", 1.0 / (dim as f64).sqrt());
        let mut metadata = self.metadata.clone();
        for key in LEFT {
            metadata.remove(key);
        }
        metadata
            .entry("softmax_scale".to_owned())
            .or_insert_with(|| told.cloned().unwrap_or_else(usual));
        let next_position = self.layers.first().map_or(length, |facts| facts.next_position);
        for (key, text) in [
            ("format", "kv-capture".to_owned()),
            ("version", "1".to_owned()),
            ("tokens", length.to_string()),
            ("next_position", next_position.to_string()),
            ("rope_theta", format!("{:?}", rope.theta)),
            ("rope_dim", rope.dim.to_string()),
            ("rope_pairing", own::written(pairing).to_owned()),
        ] {
            metadata.insert(key.to_owned(), text);
        }
        if let Some(scaling) = &rope.scaling {
            metadata.insert("rope_scaling".to_owned(), scaling.clone());
        }
        if let Some(ids) = &self.token_ids {
            metadata.insert("token_ids".to_owned(), own::list(ids));
        }
        Ok(metadata)
    }
}
