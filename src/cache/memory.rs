//! Captures made in memory, of what a model has just computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::container::Container;
use super::layout::name;
use super::{Capture, Layer, Pairing, Queries};
use crate::error::{Error, Result};

/// What holds for all layers of a capture: where its tokens stand and how the model asks.
///
/// ```
/// use std::collections::BTreeMap;
/// use kvsculpt::cache::{Context, Pairing};
///
/// let context = Context {
///     tokens: 2048,
///     next_position: 2048,
///     scale: 1.0 / 64_f64.sqrt(),
///     rope_theta: 10_000.0,
///     rope_dim: 64,
///     pairing: Pairing::Half,
///     rope_scaling: Some(r#"{"rope_type": "linear", "factor": 2.0}"#.into()),
///     metadata: BTreeMap::from([("model".into(), "a model".into())]),
/// };
/// assert_eq!(context.scale, 0.125);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Context {
    /// Tokens in the cache, N.
    pub tokens: usize,
    /// The position of the next token; N where the cache begins at position 0.
    pub next_position: usize,
    /// Softmax scale s, most often 1 / √(channels of a key).
    pub scale: f64,
    /// The base of the rotary frequencies θ^(−2i / `rope_dim`).
    pub rope_theta: f64,
    /// Channels that rotate: the first so many of a key.
    pub rope_dim: usize,
    /// Which channels rotate together.
    pub pairing: Pairing,
    /// A scaling of the rotary frequencies, as JSON; [`Rope::new`](super::Rope::new) says which are known.
    pub rope_scaling: Option<String>,
    /// Texts of the caller's own (`model`, `architecture`, …), carried through to the compressed cache. A name that a file
    /// uses for one of the other fields, or for its format, has no effect here.
    pub metadata: BTreeMap<String, String>,
}

impl Context {
    /// All of it as a file's metadata.
    pub(super) fn into_metadata(self) -> BTreeMap<String, String> {
        let mut metadata = self.metadata;
        metadata.remove("rope_scaling");
        metadata.extend(self.rope_scaling.map(|scaling| ("rope_scaling".to_owned(), scaling)));
        let pairing = match self.pairing {
            Pairing::Half => "half",
            Pairing::Interleaved => "interleaved",
        };
        for (key, text) in [
            ("format", "kv-capture".to_owned()),
            ("version", "1".to_owned()),
            ("tokens", self.tokens.to_string()),
            ("next_position", self.next_position.to_string()),
            // As debugging prints it: the shortest text that reads back the same, without hundreds of digits.
            ("softmax_scale", format!("{:?}", self.scale)),
            ("rope_theta", format!("{:?}", self.rope_theta)),
            ("rope_dim", self.rope_dim.to_string()),
            ("rope_pairing", pairing.to_owned()),
        ] {
            metadata.insert(key.to_owned(), text);
        }
        metadata
    }
}

impl Capture {
    /// A capture of layers in memory, in any order, that no file holds; `name` stands for the path in errors.
    ///
    /// It is what a file of the same contents would be, stored in F32, and is checked as one: every shape against the
    /// counts, every number finite, queries there to fit to. [`write`](Self::write) makes the file.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use kvsculpt::cache::{Capture, Context, Dtype, Layer, Pairing, Queries};
    ///
    /// // In the place of a model: 100 tokens, a layer of 1 KV head that 2 query heads read, 8 channels.
    /// let numbers = |count: usize| (0..count).map(|number| (0.7 * number as f32).sin()).collect();
    /// let layer = Layer {
    ///     index: 0,
    ///     kv_heads: 1,
    ///     query_heads: 2,
    ///     tokens: 100,
    ///     dim: 8,
    ///     value_dim: 8,
    ///     dtype: Dtype::F16,
    ///     key: numbers(100 * 8),
    ///     value: numbers(100 * 8),
    ///     query: Some(Queries { rows: 100, data: numbers(2 * 100 * 8) }),
    ///     reference_query: None,
    ///     probe_query: None,
    /// };
    /// let context = Context {
    ///     tokens: 100,
    ///     next_position: 100,
    ///     scale: 1.0 / 8_f64.sqrt(),
    ///     rope_theta: 10_000.0,
    ///     rope_dim: 8,
    ///     pairing: Pairing::Half,
    ///     rope_scaling: None,
    ///     metadata: BTreeMap::new(),
    /// };
    /// let capture = Capture::from_layers("what the model just read", context, vec![layer])?;
    /// assert_eq!((capture.layers.as_slice(), capture.tokens), ([0].as_slice(), 100));
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::File`], naming the layer's tensor and what to do.
    pub fn from_layers(name: impl Into<PathBuf>, context: Context, mut layers: Vec<Layer>) -> Result<Self> {
        let path = name.into();
        layers.sort_by_key(|layer| layer.index);
        let dtypes: Vec<_> = layers.iter().map(|layer| (layer.index, layer.dtype)).collect();
        let mut tensors = Vec::new();
        for layer in layers {
            add(&mut tensors, layer, &path)?;
        }
        let mut capture = Self::new(Container::from_arrays(path, &context.into_metadata(), tensors)?)?;
        for (index, dtype) in dtypes {
            // Reading is what finds numbers that are not finite.
            capture.layer(index)?;
            if let Some(shape) = capture.shapes.get_mut(&index) {
                shape.dtype = dtype;
            }
        }
        Ok(capture)
    }
}

/// Adds a layer's arrays, each with as many elements as its shape says, in the order of a file.
fn add(tensors: &mut Vec<(String, [usize; 3], Vec<f32>)>, layer: Layer, path: &Path) -> Result<()> {
    let heads = layer.query_heads;
    let queries = |kind, queries: Option<Queries>| queries.map(|queries| (kind, [heads, queries.rows, layer.dim], queries.data));
    let arrays = [
        Some(("key", [layer.kv_heads, layer.tokens, layer.dim], layer.key)),
        Some(("value", [layer.kv_heads, layer.tokens, layer.value_dim], layer.value)),
        queries("query", layer.query),
        queries("reference_query", layer.reference_query),
        queries("probe_query", layer.probe_query),
    ];
    for (kind, shape, data) in arrays.into_iter().flatten() {
        let tensor = name(layer.index, kind);
        let elements = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
        if elements != Some(data.len()) {
            let [heads, rows, channels] = shape;
            return Err(Error::file(
                path,
                format!(
                    "tensor `{tensor}` has {} elements, which are not those of {heads} heads, {rows} rows and {channels} channels; give all of them, or the right counts",
                    data.len()
                ),
            ));
        }
        tensors.push((tensor, shape, data));
    }
    Ok(())
}
