//! A capture's header: which tensors there are, and whether their shapes agree.

use std::collections::BTreeSet;

use super::Dtype;
use super::container::Container;
use crate::error::Result;

/// A layer's tensors in a capture.
pub(super) const TENSORS: [&str; 5] = ["key", "value", "query", "reference_query", "probe_query"];

/// What the header alone says of a layer.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// let shape = capture.shape(20)?;
/// let pairs = shape.kv_heads * capture.tokens;
/// let bytes = pairs * (shape.dim + shape.value_dim) * shape.dtype.bytes();
/// println!("keys and values of the layer are {bytes} bytes");
/// assert!(shape.query && shape.query_heads % shape.kv_heads == 0);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerShape {
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub query_heads: usize,
    /// Channels of a key.
    pub dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// How keys and values are, or are to be, stored; F32, which holds either, where they differ.
    pub dtype: Dtype,
    /// Whether the context's queries are there.
    pub query: bool,
    /// Rows a query head of the user's own training queries.
    pub reference_rows: Option<usize>,
    /// Rows a query head of the queries that are only reported on.
    pub probe_rows: Option<usize>,
}

pub(super) fn name(layer: usize, kind: &str) -> String {
    format!("layers.{layer}.{kind}")
}

/// The layers that any tensor names, every name checked; `kinds` are a layer's tensors in this format.
pub(super) fn layer_numbers(container: &Container, kinds: &[&str]) -> Result<BTreeSet<usize>> {
    let mut layers = BTreeSet::new();
    for found in container.tensors.keys() {
        let layer = parse(found, kinds).ok_or_else(|| {
            let (nearest, layer) = nearest(found, kinds);
            container.tensor_error(
                found,
                format!(
                    "is not known here; is it meant as `{nearest}`? A layer's tensors are `layers.{layer}.` and one of {}",
                    kinds.join(", ")
                ),
            )
        })?;
        layers.insert(layer);
    }
    if layers.is_empty() {
        let names: Vec<String> = kinds.iter().map(|kind| name(0, kind)).collect();
        return Err(container.error(format!("holds no layers; a layer's tensors are called {}", names.join(", "))));
    }
    Ok(layers)
}

/// The layer of a well-formed name; exactly one spelling of a number counts.
fn parse(tensor: &str, kinds: &[&str]) -> Option<usize> {
    let (number, kind) = tensor.strip_prefix("layers.")?.split_once('.')?;
    let layer = number.parse().ok()?;
    (kinds.contains(&kind) && name(layer, kind) == tensor).then_some(layer)
}

/// The valid name nearest in letters, and its layer: the first number in what was found.
fn nearest(found: &str, kinds: &[&str]) -> (String, usize) {
    let short: String = found.chars().take(64).collect();
    let digits: String = short
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    let layer = digits.parse().unwrap_or(0);
    let mut best = (usize::MAX, String::new());
    for kind in kinds {
        let candidate = name(layer, kind);
        let distance = edits(&short, &candidate);
        if distance < best.0 {
            best = (distance, candidate);
        }
    }
    (best.1, layer)
}

/// How far the letters of `a` are from `b`: 1 for each to put in, 2 for each to take out, so that a shortened name is
/// nearer to the one it shortens than to another short one.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = 2 * (i + 1);
        for (j, other) in b.iter().enumerate() {
            let same = if letter == *other { diagonal } else { usize::MAX };
            diagonal = row[j + 1];
            row[j + 1] = same.min(row[j] + 1).min(diagonal + 2);
        }
    }
    row[b.len()]
}

/// Checks that a layer's tensors are there and agree with each other and with the metadata.
pub(super) fn layer_shape(container: &Container, index: usize, tokens: usize, needs_queries: bool) -> Result<LayerShape> {
    let (key, value) = (name(index, "key"), name(index, "value"));
    for needed in [&key, &value] {
        if !container.tensors.contains_key(needed) {
            return Err(container.tensor_error(
                needed,
                format!("is missing, though other tensors of layer {index} are there; every layer needs `key` and `value`"),
            ));
        }
    }
    let dtype = match (container.dtype(&key)?, container.dtype(&value)?) {
        (key, value) if key == value => key,
        _ => Dtype::F32,
    };
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
    let asked = if needs_queries {
        query.or(reference)
    } else {
        query.or(reference).or(probe).or(Some((kv_heads, 0)))
    };
    let Some((query_heads, _)) = asked else {
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
