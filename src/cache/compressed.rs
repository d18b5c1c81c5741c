//! Compressed caches: what comes out (format `kv-compressed`).

use std::collections::BTreeMap;
use std::path::Path;

use super::Dtype;
use crate::error::Result;

/// One layer of a compressed cache: heads one after the other, each with its own length.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressedLayer {
    /// The layer's number in its model.
    pub index: usize,
    /// Channels of a key.
    pub dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// Stored pairs of each KV head.
    pub lengths: Vec<usize>,
    /// `[Σ lengths, dim]`: a head's sinks, free pairs, tail.
    pub key: Vec<f32>,
    /// `[Σ lengths, value_dim]`.
    pub value: Vec<f32>,
    /// `[Σ lengths]`, added to the scaled logits, where the method gives one.
    pub bias: Option<Vec<f32>>,
    /// How keys and values are, or are to be, stored.
    pub dtype: Dtype,
}

/// A compressed cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Compressed {
    /// Layers, ascending.
    pub layers: Vec<CompressedLayer>,
    /// The capture's metadata and what the compression added.
    pub metadata: BTreeMap<String, String>,
}

impl Compressed {
    /// Writes the file whole or not at all, always the same bytes for the same contents; returns their number.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File): not writable, disk full, or a number too large for the dtype.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let _ = path;
        unimplemented!()
    }

    /// Reads a compressed cache and checks its shapes.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), naming the tensor and what to do.
    pub fn read(path: &Path) -> Result<Self> {
        let _ = path;
        unimplemented!()
    }
}
