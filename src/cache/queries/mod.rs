//! Queries made up for caches that come without any.
//!
//! Other engines' files hold keys and values only. What a head's queries are like is known from the model (its
//! [statistics](QueryStatistics), gathered once from captures of other texts) or, much worse, guessed from the keys alone. Either
//! stands in for the context's queries before RoPE; how they are drawn, turned and held out is the same as for real ones.

mod gather;
mod keys;
mod statistics;

use std::sync::Arc;

pub use gather::gather;
pub use statistics::QueryStatistics;

use super::{Capture, Layer, LayerShape};
use crate::error::{Error, Result};

/// First tokens of a text, which attract attention whatever they are and are like no others: nothing is learnt from them.
const FIRST: usize = 4;

/// Query heads a KV head that keys alone stand for, where it is not known how many there are.
const GUESSED_GROUP: usize = 4;

/// Where the queries come from that a cache is fitted to.
///
/// ```
/// use kvsculpt::cache::QuerySource;
///
/// assert_eq!(QuerySource::default().words(), "real");
/// assert_eq!(QuerySource::Keys.words(), "guessed from keys");
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum QuerySource {
    /// The capture itself.
    #[default]
    Own,
    /// The head's own keys, un-rotated, centred and scattered: for want of anything better.
    Keys,
    /// What queries of this model are like, given the keys and values at the same token.
    Statistics(Arc<QueryStatistics>),
}

impl QuerySource {
    /// In words, as reports and the metadata `queries` of a compressed cache have it.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self {
            Self::Own => "real",
            Self::Keys => "guessed from keys",
            Self::Statistics(_) => "drawn from statistics",
        }
    }
}

/// What stands in for a capture's queries.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    source: QuerySource,
    seed: u64,
}

impl Capture {
    /// The capture with queries of another source in place of its own, drawn by a seed; its probe queries stay, and are never looked
    /// at to make any.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// use kvsculpt::cache::QuerySource;
    ///
    /// // As if it had no queries: better than nothing, and far from its own.
    /// let guessed = capture.with_queries(QuerySource::Keys, 0)?;
    /// assert_eq!(guessed.queries(), "guessed from keys");
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Options`] where the statistics are not those of the capture's model.
    pub fn with_queries(mut self, source: QuerySource, seed: u64) -> Result<Self> {
        if matches!(source, QuerySource::Own) {
            return Ok(self);
        }
        if let QuerySource::Statistics(statistics) = &source
            && !statistics.rotates_like(&self.rope)
        {
            return Err(Error::option(
                "--queries",
                format!(
                    "{} is of a model whose positions rotate otherwise than those of {}; give the statistics of its model",
                    statistics.path.display(),
                    self.path.display()
                ),
            ));
        }
        for (&index, shape) in &mut self.shapes {
            match &source {
                QuerySource::Statistics(statistics) => {
                    let found = statistics.check(index, shape, &self.path)?;
                    if shape.probe_rows.is_some() && found != shape.query_heads {
                        return Err(Error::option(
                            "--queries",
                            format!(
                                "{} is of a model with {found} query heads in layer {index}, and {} has {}; give the statistics of its model",
                                statistics.path.display(),
                                self.path.display(),
                                shape.query_heads
                            ),
                        ));
                    }
                    shape.query_heads = found;
                }
                _ if shape.query || shape.reference_rows.is_some() || shape.probe_rows.is_some() => {}
                _ => shape.query_heads = GUESSED_GROUP * shape.kv_heads,
            }
            shape.query = true;
            shape.reference_rows = None;
        }
        if let Some(what) = &self.rope.unsupported {
            return Err(Error::file(
                &self.path,
                format!("has {what}, so no queries can be made for it: their rotation is not known; give a capture with `reference_query`"),
            ));
        }
        self.metadata.insert("queries".to_owned(), source.words().to_owned());
        if let QuerySource::Statistics(statistics) = &source {
            self.metadata
                .insert("query_statistics".to_owned(), format!("sha256:{}", statistics.digest()?));
        }
        self.proxy = Some(Proxy { source, seed });
        Ok(self)
    }

    /// Whether the queries are made up, and by what, in words.
    #[must_use]
    pub fn queries(&self) -> &str {
        // A capture that was written with made-up queries says so when it is read again.
        self.metadata.get("queries").map_or(QuerySource::Own.words(), String::as_str)
    }

    /// Bytes that queries of a head are made up from, at so many tokens, beside what is read of the head and the rows themselves; none
    /// where they are the capture's own.
    pub(crate) fn made_up_bytes(&self, shape: &LayerShape, drawn: usize) -> Option<u64> {
        let floats = match self.proxy.as_ref()?.source {
            QuerySource::Statistics(_) => statistics::floats(shape, drawn),
            _ => keys::floats(shape, self.tokens),
        };
        Some(4 * floats as u64)
    }

    /// Queries before RoPE of the query heads that read a KV head, at these tokens: `[group, tokens, dim]`. `layer` is that head, read.
    pub(crate) fn queries_at(&self, layer: &Layer, head: usize, tokens: &[usize]) -> Result<Vec<f32>> {
        if let Some(proxy) = &self.proxy {
            return match &proxy.source {
                QuerySource::Statistics(statistics) => statistics.draw(self, layer.index, head, tokens, proxy.seed),
                _ => Ok(keys::queries(self, layer, head, tokens, proxy.seed)),
            };
        }
        let Some(queries) = &layer.query else {
            return Err(Error::file(
                &self.path,
                format!("layer {} has neither `query` nor `reference_query`", layer.index),
            ));
        };
        let mut rows = Vec::with_capacity(layer.query_heads * tokens.len() * layer.dim);
        for all in queries.data.chunks_exact(layer.tokens * layer.dim) {
            for token in tokens {
                rows.extend_from_slice(&all[token * layer.dim..(token + 1) * layer.dim]);
            }
        }
        Ok(rows)
    }

    /// The position of a token of the cache.
    pub(super) fn position(&self, token: usize) -> f64 {
        (self.next_position - self.tokens + token) as f64
    }

    /// Whether this token is among the first of its text.
    pub(super) fn is_first(&self, token: usize) -> bool {
        self.next_position == self.tokens && token < FIRST.min(self.tokens / 2)
    }
}
