//! Captures: a cache and its queries, as a file holds them (format `kv-capture`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::container::{Container, cut, shown};
use super::layout::{LayerShape, TENSORS, layer_numbers, layer_shape, name};
use super::output::{Entry, Output};
use super::queries::Proxy;
use super::{Dtype, Pairing, Rope};
use crate::engine::Dims;
use crate::error::{Error, Result};

/// An open capture: its header is read and checked, its layers are read one at a time.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// use kvsculpt::cache::{Capture, Dtype};
///
/// let layer = capture.layers[0];
/// let shape = capture.shape(layer)?;
/// println!("layer {layer}: {} KV heads of {} pairs, {} channels", shape.kv_heads, capture.tokens, shape.dim);
/// assert_eq!(capture.layer(layer)?.key.len(), shape.kv_heads * capture.tokens * shape.dim);
/// assert_eq!(capture.head(layer, 2)?.value.len(), capture.tokens * shape.value_dim);
/// assert_eq!(capture.queries(), "real");
///
/// let path = folder.path().join("half.safetensors");
/// let bytes = capture.write(&path, Dtype::F16)?;
/// let half = Capture::open(&path)?;
/// assert_eq!((half.tokens, half.shape(layer)?.dtype), (capture.tokens, Dtype::F16));
/// // Other bytes are another capture, and one in memory is as good as a file.
/// let read = std::fs::read(&path).unwrap();
/// assert_eq!((Capture::from_bytes("in memory", read)?.digest()?, bytes), (half.digest()?, path.metadata().unwrap().len()));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Capture {
    /// The file, or the name that stands for it.
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
    pub(super) shapes: BTreeMap<usize, LayerShape>,
    /// What stands in for its queries, where something does.
    pub(super) proxy: Option<Proxy>,
    container: Container,
    digest: OnceLock<String>,
}

/// Query rows of all query heads of a layer.
///
/// ```
/// use kvsculpt::cache::Queries;
///
/// // 2 query heads, 3 rows each, 4 channels.
/// let queries = Queries { rows: 3, data: vec![0.0; 2 * 3 * 4] };
/// assert_eq!(queries.data.len() / queries.rows, 2 * 4);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Queries {
    /// Rows a query head.
    pub rows: usize,
    /// `[query_heads, rows, dim]`.
    pub data: Vec<f32>,
}

/// One layer of a capture, widened to f32.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// let layer = capture.layer(20)?;
/// let group = layer.query_heads / layer.kv_heads;
/// // The last key of KV head 1, and which query heads read it.
/// let key = &layer.key[(2 * layer.tokens - 1) * layer.dim..][..layer.dim];
/// let readers: Vec<_> = (0..layer.query_heads).filter(|query_head| query_head / group == 1).collect();
/// assert_eq!((key.len(), readers), (64, vec![3, 4, 5]));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
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
    /// How keys and values were stored in the file; F32, which holds either, where they differ. A compressed cache is stored
    /// the same unless told otherwise.
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
    /// Opens a capture and checks everything its header can tell; no tensor is read.
    ///
    /// # Errors
    /// [`Error::File`], naming the tensor and what to do.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Container::open(path)?)
    }

    /// The same for a capture in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::new(Container::from_bytes(name.into(), bytes.into())?)
    }

    pub(crate) fn new(container: Container) -> Result<Self> {
        Self::checked(container, true)
    }

    /// The same for a container that need not hold queries to fit to, because others are to be put in their place.
    pub(crate) fn without_queries(container: Container) -> Result<Self> {
        Self::checked(container, false)
    }

    fn checked(container: Container, needs_queries: bool) -> Result<Self> {
        container.check_format(
            "kv-capture",
            ("kv-compressed", "is a compressed cache already; give the capture it was made from"),
        )?;
        let tokens = whole(&container, "tokens")?;
        let next_position = whole(&container, "next_position")?;
        if tokens == 0 {
            return Err(container.error("has no tokens (metadata `tokens` is 0); capture a text of some length"));
        }
        if next_position < tokens {
            return Err(container.error(format!(
                "has next_position {next_position}, before the end of its {tokens} tokens; write the position of the token that follows the cache"
            )));
        }
        if container.metadata.contains_key("sinks") {
            whole(&container, "sinks")?;
        }
        let scale = softmax_scale(&container)?;
        let rope = rope(&container)?;
        let mut shapes = BTreeMap::new();
        for index in layer_numbers(&container, &TENSORS)? {
            let shape = layer_shape(&container, index, tokens, needs_queries)?;
            check_rope(&container, &rope, index, &shape)?;
            shapes.insert(index, shape);
        }
        Ok(Self {
            path: container.path().to_owned(),
            layers: shapes.keys().copied().collect(),
            tokens,
            next_position,
            scale,
            rope,
            metadata: container.metadata.clone(),
            shapes,
            proxy: None,
            container,
            digest: OnceLock::new(),
        })
    }

    /// What the header says of a layer, without reading it.
    ///
    /// # Errors
    /// [`Error::Options`] if the layer is not in the file, with those that are.
    pub fn shape(&self, index: usize) -> Result<&LayerShape> {
        self.shapes.get(&index).ok_or_else(|| {
            let present: Vec<String> = self.layers.iter().map(usize::to_string).collect();
            Error::option(
                "--layers",
                format!(
                    "{} has no layer {index}; choose among its layers {}",
                    self.path.display(),
                    cut(&present.join(", "), 400)
                ),
            )
        })
    }

    /// Reads one layer and checks that every number is finite.
    ///
    /// # Errors
    /// [`Error::File`], naming the tensor and what to do, also where it does not fit into memory;
    /// else as [`shape`](Self::shape).
    pub fn layer(&self, index: usize) -> Result<Layer> {
        let shape = self.shape(index)?.clone();
        let mut layer = Layer {
            index,
            kv_heads: shape.kv_heads,
            query_heads: shape.query_heads,
            tokens: self.tokens,
            dim: shape.dim,
            value_dim: shape.value_dim,
            dtype: shape.dtype,
            key: self.read(index, "key", self.tokens, shape.dim)?,
            value: self.read(index, "value", self.tokens, shape.value_dim)?,
            query: self.stored(index, "query", self.stored_rows(&shape), shape.dim)?,
            reference_query: self.stored(index, "reference_query", shape.reference_rows, shape.dim)?,
            probe_query: self.stored(index, "probe_query", shape.probe_rows, shape.dim)?,
        };
        if self.proxy.is_some() {
            let mut data = Vec::new();
            for head in 0..shape.kv_heads {
                data.extend(self.made(&self.head_as_stored(index, head)?, head)?);
            }
            layer.query = Some(Queries { rows: self.tokens, data });
        }
        Ok(layer)
    }

    /// Rows of the context's queries that the file itself has and that count.
    fn stored_rows(&self, shape: &LayerShape) -> Option<usize> {
        (shape.query && self.proxy.is_none()).then_some(self.tokens)
    }

    /// All made-up queries of a head.
    fn made(&self, layer: &Layer, head: usize) -> Result<Vec<f32>> {
        self.queries_at(layer, head, &(0..self.tokens).collect::<Vec<usize>>())
    }

    /// The keys and values of a layer alone, without the queries that [`layer`](Self::layer) reads too.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub(crate) fn key_and_value(&self, index: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let shape = self.shape(index)?;
        Ok((
            self.read(index, "key", self.tokens, shape.dim)?,
            self.read(index, "value", self.tokens, shape.value_dim)?,
        ))
    }

    /// Reads one KV head of a layer and the query heads that read it, as a layer of one KV head; nothing else of the file is read.
    ///
    /// # Errors
    /// As [`layer`](Self::layer); [`Error::Shape`] if the layer has no such head.
    pub fn head(&self, index: usize, head: usize) -> Result<Layer> {
        let mut layer = self.head_as_stored(index, head)?;
        if self.proxy.is_some() {
            let data = self.made(&layer, head)?;
            layer.query = Some(Queries { rows: self.tokens, data });
        }
        Ok(layer)
    }

    /// As [`head`](Self::head), without queries that are made up: of those only the ones that are
    /// [drawn](Self::queries_at) need be made.
    pub(crate) fn head_as_stored(&self, index: usize, head: usize) -> Result<Layer> {
        let shape = self.shape(index)?.clone();
        if head >= shape.kv_heads {
            let reason = format!("there is no such head; the layer's KV heads are 0 to {}", shape.kv_heads - 1);
            return Err(Error::shape(format!("layer {index} head {head}"), reason));
        }
        let group = shape.query_heads / shape.kv_heads;
        let part = |kind: &str, heads: Range<usize>, rows: usize, channels: usize| {
            let elements = heads.start * rows * channels..heads.end * rows * channels;
            self.container
                .floats_in(&name(index, kind), elements, |element| place(kind, rows, channels, element))
        };
        let pairs = |kind, channels| part(kind, head..head + 1, self.tokens, channels);
        let queries = |kind, rows: Option<usize>| {
            let data = rows.map(|rows| Ok((rows, part(kind, head * group..(head + 1) * group, rows, shape.dim)?)));
            Ok::<_, Error>(data.transpose()?.map(|(rows, data)| Queries { rows, data }))
        };
        Ok(Layer {
            index,
            kv_heads: 1,
            query_heads: group,
            tokens: self.tokens,
            dim: shape.dim,
            value_dim: shape.value_dim,
            dtype: shape.dtype,
            key: pairs("key", shape.dim)?,
            value: pairs("value", shape.value_dim)?,
            query: queries("query", self.stored_rows(&shape))?,
            reference_query: queries("reference_query", shape.reference_rows)?,
            probe_query: queries("probe_query", shape.probe_rows)?,
        })
    }

    /// One row of a head's keys or values.
    pub(super) fn row(&self, index: usize, kind: &str, head: usize, token: usize, channels: usize) -> Result<Vec<f32>> {
        let start = (head * self.tokens + token) * channels;
        let place = |element| place(kind, self.tokens, channels, element);
        self.container.floats_in(&name(index, kind), start..start + channels, place)
    }

    fn stored(&self, index: usize, kind: &str, rows: Option<usize>, dim: usize) -> Result<Option<Queries>> {
        rows.map(|rows| {
            Ok(Queries {
                rows,
                data: self.read(index, kind, rows, dim)?,
            })
        })
        .transpose()
    }

    fn read(&self, index: usize, kind: &str, rows: usize, channels: usize) -> Result<Vec<f32>> {
        self.container
            .floats(&name(index, kind), |element| place(kind, rows, channels, element))
    }

    /// Writes the capture as a file, whole or not at all: the same bytes for the same contents and dtype, which is that of
    /// all its tensors; returns their number. One tensor at a time is widened in memory.
    ///
    /// # Errors
    /// [`Error::Write`] where the disk is full or fails; [`Error::File`]: not writable, or a number too large for the dtype; else as [`layer`](Self::layer).
    pub fn write(&self, path: &Path, dtype: Dtype) -> Result<u64> {
        let entries: Vec<Entry> = self
            .arrays()
            .map(|(index, kind, shape)| {
                let bytes = shape.iter().product::<usize>() * dtype.bytes();
                (name(index, kind), dtype.name(), shape.to_vec(), bytes)
            })
            .collect();
        let mut output = Output::create(path)?;
        output.header(&self.metadata, &entries)?;
        for (index, kind, [_, rows, channels]) in self.arrays() {
            let data = match (kind, &self.proxy) {
                ("query", Some(_)) => self.layer(index)?.query.map(|queries| queries.data).unwrap_or_default(),
                _ => self.read(index, kind, rows, channels)?,
            };
            output.floats(&name(index, kind), &data, dtype, |element| place(kind, rows, channels, element))?;
        }
        output.finish()
    }

    /// How all arrays are stored, queries too; F32, which holds any, where they differ.
    pub(crate) fn dtype(&self) -> Result<Dtype> {
        let mut found = None;
        for (index, kind, _) in self.arrays().filter(|array| array.1 != "query" || self.proxy.is_none()) {
            let dtype = self.container.dtype(&name(index, kind))?;
            if *found.get_or_insert(dtype) != dtype {
                return Ok(Dtype::F32);
            }
        }
        Ok(found.unwrap_or(Dtype::F32))
    }

    /// Layer, kind and shape of every array, in the order they are written in.
    fn arrays(&self) -> impl Iterator<Item = (usize, &'static str, [usize; 3])> {
        self.shapes.iter().flat_map(|(&index, shape)| {
            let pairs = |kind, channels| Some((index, kind, [shape.kv_heads, self.tokens, channels]));
            let queries = |kind, rows: Option<usize>| rows.map(|rows| (index, kind, [shape.query_heads, rows, shape.dim]));
            [
                pairs("key", shape.dim),
                pairs("value", shape.value_dim),
                queries("query", shape.query.then_some(self.tokens)),
                queries("reference_query", shape.reference_rows),
                queries("probe_query", shape.probe_rows),
            ]
            .into_iter()
            .flatten()
        })
    }

    /// Says how keys and values were stored where they were read from.
    pub(crate) fn stored_as(&mut self, dtypes: impl Iterator<Item = (usize, (Dtype, Dtype))>) {
        for (index, (key, value)) in dtypes {
            if let Some(shape) = self.shapes.get_mut(&index) {
                // F32 holds either of two.
                shape.dtype = if key == value { key } else { Dtype::F32 };
            }
        }
    }

    /// Says the digest of the file that it was read from.
    pub(crate) fn known_digest(&mut self, digest: String) {
        self.digest = OnceLock::from(digest);
    }

    /// SHA-256 of the whole file, in hexadecimal, computed once; of a capture made [from
    /// layers](Self::from_layers): that of the file that [`write`](Self::write) makes of it in F32.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn digest(&self) -> Result<String> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest.clone());
        }
        let digest = self.container.digest()?;
        Ok(self.digest.get_or_init(|| digest).clone())
    }
}

/// An element of an array in words.
fn place(kind: &str, rows: usize, channels: usize, element: usize) -> String {
    let row = if matches!(kind, "reference_query" | "probe_query") {
        "row"
    } else {
        "token"
    };
    let (head, within) = (element / (rows * channels), element % (rows * channels));
    format!("head {head}, {row} {}, channel {}", within / channels, within % channels)
}

/// A whole number of the metadata, small enough for the 32-bit counts of the engines.
fn whole(container: &Container, key: &str) -> Result<usize> {
    let text = container.text(key)?;
    text.parse::<u32>()
        .ok()
        .and_then(|value| usize::try_from(value).ok())
        .ok_or_else(|| {
            container.error(format!(
                "has metadata `{key}` \"{}\"; write a whole number from 0 to {}",
                shown(text),
                u32::MAX
            ))
        })
}

fn number(container: &Container, key: &str) -> Result<f64> {
    let text = container.text(key)?;
    text.parse()
        .map_err(|_| container.error(format!("has metadata `{key}` \"{}\"; write a number", shown(text))))
}

/// The scale, checked in the precision that the engines multiply in.
fn softmax_scale(container: &Container) -> Result<f64> {
    let scale = number(container, "softmax_scale")?;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "what is too large or too small for f32 is refused just below"
    )]
    let narrow = scale as f32;
    // A subnormal number is zero on many GPUs.
    if narrow.is_normal() && narrow > 0.0 {
        return Ok(scale);
    }
    Err(container.error(format!(
        "has softmax_scale {scale:e}; write a positive number within the range of f32, most often 1 / sqrt(channels of a key)"
    )))
}

/// A model's rotary embedding, by a file's metadata.
pub(super) fn rope(container: &Container) -> Result<Rope> {
    let theta = number(container, "rope_theta")?;
    let dim = whole(container, "rope_dim")?;
    // Before the frequencies are allocated: no head has more channels than this.
    if dim > Dims::MOST as usize {
        return Err(container.error(format!(
            "has rope_dim {dim}; write how many channels of a key rotate, at most {}",
            Dims::MOST
        )));
    }
    let pairing = match container.text("rope_pairing")? {
        "half" => Pairing::Half,
        "interleaved" => Pairing::Interleaved,
        other => {
            return Err(container.error(format!(
                "has rope_pairing `{}`; write `half` (channel i with i + rope_dim/2) or `interleaved` (2i with 2i + 1)",
                shown(other)
            )));
        }
    };
    let scaling = container.metadata.get("rope_scaling").map(String::as_str);
    Rope::build(theta, dim, pairing, scaling).map_err(|reason| container.error(format!("has metadata that cannot be used: {reason}")))
}

fn check_rope(container: &Container, rope: &Rope, index: usize, shape: &LayerShape) -> Result<()> {
    if rope.dim() > shape.dim {
        return Err(container.tensor_error(
            &name(index, "key"),
            format!(
                "has {} channels, and metadata `rope_dim` says {} of them rotate; write how many do",
                shape.dim,
                rope.dim()
            ),
        ));
    }
    match &rope.unsupported {
        Some(what) if shape.reference_rows.is_none() => Err(container.error(format!(
            "has {what}, so the queries of layer {index} cannot be rotated here (default, linear, llama3 and factors are the known kinds of scaling); a tensor `{}` [query_heads, rows, {}] with training queries after RoPE would do instead",
            name(index, "reference_query"),
            shape.dim
        ))),
        _ => Ok(()),
    }
}
