//! Captures: a cache and its queries, as read from a file (format `kv-capture`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Dtype, Rope};
use crate::error::Result;

/// An open capture: its header is read and checked, its layers are read one at a time.
#[derive(Debug)]
pub struct Capture {
    /// The file.
    pub path: PathBuf,
    /// Layers present, ascending; parts of a model are fine.
    pub layers: Vec<usize>,
    /// Tokens in the cache, N.
    pub tokens: usize,
    /// The position of the next token.
    pub next_position: usize,
    /// Softmax scale s.
    pub scale: f64,
    /// How queries are turned to positions.
    pub rope: Rope,
    /// All the file's metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Query rows of all query heads of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Queries {
    /// Rows a query head.
    pub rows: usize,
    /// `[query_heads, rows, dim]`.
    pub data: Vec<f32>,
}

/// One layer of a capture, widened to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The layer's number in its model.
    pub index: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads, a multiple of `kv_heads`; query head i reads KV head `i / (query_heads / kv_heads)`.
    pub query_heads: usize,
    /// Tokens.
    pub tokens: usize,
    /// Channels of a key.
    pub dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// How the keys were stored in the file.
    pub dtype: Dtype,
    /// `[kv_heads, tokens, dim]`, after RoPE.
    pub key: Vec<f32>,
    /// `[kv_heads, tokens, value_dim]`.
    pub value: Vec<f32>,
    /// The context's queries BEFORE RoPE; may be absent where `reference_query` is given.
    pub query: Option<Queries>,
    /// The user's own training queries, after RoPE.
    pub reference_query: Option<Queries>,
    /// Queries after RoPE, never fitted, only reported on.
    pub probe_query: Option<Queries>,
}

impl Capture {
    /// Opens a capture and checks everything its header can tell.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), naming the tensor and what to do.
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        unimplemented!()
    }

    /// Reads one layer and checks that every number is finite.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), naming the tensor and what to do.
    pub fn layer(&self, index: usize) -> Result<Layer> {
        let _ = index;
        unimplemented!()
    }

    /// SHA-256 of the whole file, in hexadecimal.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File).
    pub fn digest(&self) -> Result<String> {
        unimplemented!()
    }
}
