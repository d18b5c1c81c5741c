//! What a compressed file says of how it was made.

use kvsculpt::Options;
use kvsculpt::cache::{Compressed, QuerySource};
use kvsculpt::solver::Outcome;
use serde::Serialize;
use serde_json::Value;

use crate::report::Means;

/// The metadata that a compression adds; what is not there, or cannot be read, is absent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Made {
    pub(crate) tool: Option<String>,
    pub(crate) method: Option<String>,
    /// Fraction of all pairs that is kept.
    pub(crate) keep: Option<f64>,
    /// The digest of the capture.
    pub(crate) source: Option<String>,
    /// Which queries heads were fitted to.
    pub(crate) queries: String,
    pub(crate) options: Option<Value>,
    /// What became of each head; empty where the file does not say.
    pub(crate) heads: Vec<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) means: Option<Means>,
}

impl Made {
    pub(crate) fn of(compressed: &Compressed) -> Self {
        let text = |key: &str| compressed.metadata.get(key).cloned();
        let heads: Vec<Outcome> = text("report").and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Self {
            tool: text("tool"),
            method: text("method"),
            keep: text("keep").and_then(|text| text.parse().ok()),
            source: text("source"),
            queries: text("queries").unwrap_or_else(|| QuerySource::Own.words().to_owned()),
            options: text("options").and_then(|text| serde_json::from_str(&text).ok()),
            means: (!heads.is_empty()).then(|| Means::of(&heads)),
            heads,
        }
    }

    /// The options, where this release understands them all.
    pub(crate) fn understood(&self) -> Option<Options> {
        serde_json::from_value(self.options.clone()?).ok()
    }
}
