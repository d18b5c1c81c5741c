//! Captures: a cache and its queries, as read from a file (format `kv-capture`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::container::{Container, shown};
use super::{Dtype, Pairing, Rope};
use crate::error::Result;

/// A layer's tensors.
const TENSORS: [&str; 5] = ["key", "value", "query", "reference_query", "probe_query"];

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
    shapes: BTreeMap<usize, LayerShape>,
    container: Container,
}

/// What the header alone says of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub query_heads: usize,
    /// Channels of a key.
    pub dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// How the keys are stored.
    pub dtype: Dtype,
    /// Whether the context's queries are there.
    pub query: bool,
    /// Rows a query head of the user's own training queries.
    pub reference_rows: Option<usize>,
    /// Rows a query head of the queries that are only reported on.
    pub probe_rows: Option<usize>,
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
    /// Opens a capture and checks everything its header can tell; no tensor is read.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), naming the tensor and what to do.
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

    fn new(container: Container) -> Result<Self> {
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
        let scale = number(&container, "softmax_scale")?;
        if !(scale.is_finite() && scale > 0.0) {
            return Err(container.error(format!(
                "has softmax_scale {scale}; write a positive number, most often 1 / sqrt(channels of a key)"
            )));
        }
        let rope = rope(&container)?;
        let mut shapes = BTreeMap::new();
        for index in layer_numbers(&container)? {
            let shape = layer_shape(&container, index, tokens)?;
            check_rope(&container, &rope, index, &shape)?;
            shapes.insert(index, shape);
        }
        Ok(Self {
            path: container.path.clone(),
            layers: shapes.keys().copied().collect(),
            tokens,
            next_position,
            scale,
            rope,
            metadata: container.metadata.clone(),
            shapes,
            container,
        })
    }

    /// What the header says of a layer, without reading it.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the layer is not in the file, with those that are.
    pub fn shape(&self, index: usize) -> Result<&LayerShape> {
        self.shapes.get(&index).ok_or_else(|| {
            let present: Vec<String> = self.layers.iter().map(usize::to_string).collect();
            self.container
                .error(format!("has no layer {index}; choose among its layers {}", present.join(", ")))
        })
    }

    /// Reads one layer and checks that every number is finite.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), naming the tensor and what to do;
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn layer(&self, index: usize) -> Result<Layer> {
        let shape = self.shape(index)?.clone();
        Ok(Layer {
            index,
            kv_heads: shape.kv_heads,
            query_heads: shape.query_heads,
            tokens: self.tokens,
            dim: shape.dim,
            value_dim: shape.value_dim,
            dtype: shape.dtype,
            key: self.read(index, "key", self.tokens, shape.dim)?,
            value: self.read(index, "value", self.tokens, shape.value_dim)?,
            query: self.queries(index, "query", shape.query.then_some(self.tokens), shape.dim)?,
            reference_query: self.queries(index, "reference_query", shape.reference_rows, shape.dim)?,
            probe_query: self.queries(index, "probe_query", shape.probe_rows, shape.dim)?,
        })
    }

    fn queries(&self, index: usize, kind: &str, rows: Option<usize>, dim: usize) -> Result<Option<Queries>> {
        rows.map(|rows| {
            Ok(Queries {
                rows,
                data: self.read(index, kind, rows, dim)?,
            })
        })
        .transpose()
    }

    fn read(&self, index: usize, kind: &str, rows: usize, channels: usize) -> Result<Vec<f32>> {
        let row = if matches!(kind, "reference_query" | "probe_query") {
            "row"
        } else {
            "token"
        };
        self.container.floats(&name(index, kind), |element| {
            let (head, within) = (element / (rows * channels), element % (rows * channels));
            format!("head {head}, {row} {}, channel {}", within / channels, within % channels)
        })
    }

    /// SHA-256 of the whole file, in hexadecimal.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File).
    pub fn digest(&self) -> Result<String> {
        self.container.digest()
    }
}

fn name(layer: usize, kind: &str) -> String {
    format!("layers.{layer}.{kind}")
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

fn rope(container: &Container) -> Result<Rope> {
    let theta = number(container, "rope_theta")?;
    let dim = whole(container, "rope_dim")?;
    // Before the frequencies are allocated: no head has more channels than this.
    if dim > 256 {
        return Err(container.error(format!("has rope_dim {dim}; write how many channels of a key rotate, at most 256")));
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
            "has {what}, so the queries of layer {index} cannot be rotated here (default, linear and llama3 scaling are known); a tensor `{}` [query_heads, rows, {}] with training queries after RoPE would do instead",
            name(index, "reference_query"),
            shape.dim
        ))),
        _ => Ok(()),
    }
}

/// The layers that any tensor names, every name checked.
fn layer_numbers(container: &Container) -> Result<BTreeSet<usize>> {
    let mut layers = BTreeSet::new();
    for found in container.tensors.keys() {
        let layer = parse(found).ok_or_else(|| {
            let (nearest, layer) = nearest(found);
            container.tensor_error(
                found,
                format!(
                    "is not known here; is it meant as `{nearest}`? A layer's tensors are `layers.{layer}.` and one of {}",
                    TENSORS.join(", ")
                ),
            )
        })?;
        layers.insert(layer);
    }
    if layers.is_empty() {
        return Err(container.error("holds no layers; write at least `layers.0.key`, `layers.0.value` and `layers.0.query`"));
    }
    Ok(layers)
}

/// The layer of a well-formed name; exactly one spelling of a number counts.
fn parse(tensor: &str) -> Option<usize> {
    let (number, kind) = tensor.strip_prefix("layers.")?.split_once('.')?;
    let layer = number.parse().ok()?;
    (TENSORS.contains(&kind) && name(layer, kind) == tensor).then_some(layer)
}

/// The valid name that takes the fewest changed letters, and its layer: the first number in what was found.
fn nearest(found: &str) -> (String, usize) {
    let short: String = found.chars().take(64).collect();
    let digits: String = short
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    let layer = digits.parse().unwrap_or(0);
    let mut best = (usize::MAX, String::new());
    for kind in TENSORS {
        let candidate = name(layer, kind);
        let distance = edits(&short, &candidate);
        if distance < best.0 {
            best = (distance, candidate);
        }
    }
    (best.1, layer)
}

/// Levenshtein's distance: insertions, removals and changes of a letter.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Checks that a layer's tensors are there and agree with each other and with the metadata.
fn layer_shape(container: &Container, index: usize, tokens: usize) -> Result<LayerShape> {
    let (key, value) = (name(index, "key"), name(index, "value"));
    for needed in [&key, &value] {
        if !container.tensors.contains_key(needed) {
            return Err(container.tensor_error(
                needed,
                format!("is missing, though other tensors of layer {index} are there; every layer needs `key` and `value`"),
            ));
        }
    }
    let dtype = container.dtype(&key)?;
    container.dtype(&value)?;
    let [kv_heads, found, dim] = container.shape(&key, ["kv_heads", "tokens", "dim"])?;
    check_tokens(container, &key, found, tokens)?;
    container.check_channels(&key, dim)?;
    let [value_heads, found, value_dim] = container.shape(&value, ["kv_heads", "tokens", "value_dim"])?;
    check_tokens(container, &value, found, tokens)?;
    container.check_channels(&value, value_dim)?;
    if value_heads != kv_heads {
        return Err(container.tensor_error(
            &value,
            format!("has {value_heads} heads and `{key}` has {kv_heads}; both are the layer's KV heads"),
        ));
    }
    let query = query_shape(container, index, "query", kv_heads, dim)?;
    if let Some((_, rows)) = query {
        check_tokens(container, &name(index, "query"), rows, tokens)?;
    }
    let reference = query_shape(container, index, "reference_query", kv_heads, dim)?;
    let probe = query_shape(container, index, "probe_query", kv_heads, dim)?;
    let Some((query_heads, _)) = query.or(reference) else {
        return Err(container.tensor_error(
            &name(index, "query"),
            "is missing: there is nothing to fit to; write the context's queries before RoPE, or `reference_query` after RoPE",
        ));
    };
    for (kind, found) in [("reference_query", reference), ("probe_query", probe)] {
        if let Some((heads, _)) = found
            && heads != query_heads
        {
            return Err(container.tensor_error(
                &name(index, kind),
                format!("has {heads} heads and the layer's other queries have {query_heads}; write all query heads in each"),
            ));
        }
    }
    Ok(LayerShape {
        kv_heads,
        query_heads,
        dim,
        value_dim,
        dtype,
        query: query.is_some(),
        reference_rows: reference.map(|(_, rows)| rows),
        probe_rows: probe.map(|(_, rows)| rows),
    })
}

/// Heads and rows of a tensor of queries, where it is there.
fn query_shape(container: &Container, index: usize, kind: &str, kv_heads: usize, dim: usize) -> Result<Option<(usize, usize)>> {
    let tensor = name(index, kind);
    if !container.tensors.contains_key(&tensor) {
        return Ok(None);
    }
    container.dtype(&tensor)?;
    let [heads, rows, channels] = container.shape(&tensor, ["query_heads", "rows", "dim"])?;
    if channels != dim {
        return Err(container.tensor_error(
            &tensor,
            format!(
                "has {channels} channels and `{}` has {dim}; both must have the same",
                name(index, "key")
            ),
        ));
    }
    if heads % kv_heads != 0 {
        return Err(container.tensor_error(
            &tensor,
            format!(
                "has {heads} heads, no multiple of the {kv_heads} KV heads of `{}`; write all query heads",
                name(index, "key")
            ),
        ));
    }
    Ok(Some((heads, rows)))
}

fn check_tokens(container: &Container, tensor: &str, found: usize, tokens: usize) -> Result<()> {
    if found == tokens {
        return Ok(());
    }
    Err(container.tensor_error(
        tensor,
        format!("has {found} tokens and metadata `tokens` says {tokens}; write the same number in both"),
    ))
}
