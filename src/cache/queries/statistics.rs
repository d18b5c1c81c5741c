//! What the queries of a model are like: a side file (format `kv-query-statistics`).
//!
//! Query, keys and values at a token are all linear in the same hidden state, so a query is known up to what the keys and values of
//! its layer do not tell. The file holds, layer by layer, the best linear guess of the queries before RoPE from the un-rotated keys and
//! the values at the same token, and the covariance of what is left:
//!
//! ```text
//! q = mean + weights (x − centre) + noise z        x = [keys of all KV heads, un-rotated; their values],  z normal
//! ```
//!
//! | tensor | shape | what |
//! |---|---|---|
//! | `layers.{i}.centre` | `[1, 1, inputs]` F32 | the mean of x; inputs = kv_heads · (dim + value_dim) |
//! | `layers.{i}.mean` | `[query_heads, 1, dim]` F32 | the mean query of each head |
//! | `layers.{i}.weights` | `[query_heads, dim, inputs]` BF16 | the regression |
//! | `layers.{i}.noise` | `[query_heads, dim, dim]` BF16 | L of L Lᵀ = the covariance of the rest, zeros above the diagonal |
//!
//! Metadata: `kv_heads` and `value_dim` (alike in all layers), `model`, `architecture`, `softmax_scale` and the rotation as in a capture,
//! `tokens` that were looked at, and `sources`, the digests of the captures.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::capture::rope;
use super::super::container::{Container, shown};
use super::super::generate::Stream;
use super::super::layout::{LayerShape, layer_numbers, name};
use super::super::rope::reorder;
use super::super::{Capture, Pairing, Rope};
use crate::error::{Error, Result};

pub(super) const FORMAT: &str = "kv-query-statistics";
/// A layer's tensors.
pub(super) const TENSORS: [&str; 4] = ["centre", "mean", "weights", "noise"];

/// Sizes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    query_heads: usize,
    dim: usize,
    inputs: usize,
}

/// An open file of query statistics: its header is read and checked, numbers are read as they are needed.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// # let path = folder.path().join("statistics.safetensors");
/// # kvsculpt::cache::gather(std::slice::from_ref(&capture), &path, &mut |_| {})?;
/// use std::sync::Arc;
/// use kvsculpt::cache::{QuerySource, QueryStatistics};
///
/// let statistics = QueryStatistics::open(&path)?;
/// assert_eq!(QueryStatistics::from_bytes("in memory", std::fs::read(&path).unwrap())?.digest()?, statistics.digest()?);
/// // For a cache of the same model that has no queries.
/// let drawn = capture.with_queries(QuerySource::Statistics(Arc::new(statistics)), 0)?;
/// assert_eq!(drawn.queries(), "drawn from statistics");
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct QueryStatistics {
    /// The file, or the name that stands for it.
    pub path: PathBuf,
    /// Layers present, ascending.
    pub layers: Vec<usize>,
    /// All the file's metadata.
    pub metadata: BTreeMap<String, String>,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Which channels of a query rotate together.
    pub pairing: Pairing,
    rope: Rope,
    value_dim: usize,
    rope_dim: usize,
    sizes: BTreeMap<usize, Sizes>,
    container: Container,
}

/// Floats that drawing a head's queries at so many tokens takes: what is known of the tokens, and the head's part of the file.
pub(super) fn floats(shape: &LayerShape, drawn: usize) -> usize {
    let inputs = shape.kv_heads * (shape.dim + shape.value_dim);
    let group = shape.query_heads / shape.kv_heads;
    inputs * (drawn + 1) + group * shape.dim * (inputs + shape.dim + 1)
}

impl QueryStatistics {
    /// Opens a file and checks everything its header can tell.
    ///
    /// # Errors
    /// [`Error::File`], naming the tensor and what to do.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Container::open(path)?)
    }

    /// The same for a file in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::new(Container::from_bytes(name.into(), bytes.into())?)
    }

    fn new(container: Container) -> Result<Self> {
        container.check_format(
            FORMAT,
            (
                "kv-capture",
                "is a capture, and statistics of queries are needed; make them with `kvsculpt statistics`",
            ),
        )?;
        let whole = |key: &str| {
            let text = container.text(key)?;
            let number = text.parse::<u16>().ok().filter(|&number| number > 0).map(usize::from);
            number.ok_or_else(|| {
                container.error(format!(
                    "has metadata `{key}` \"{}\"; make it again with `kvsculpt statistics`",
                    shown(text)
                ))
            })
        };
        let (kv_heads, value_dim) = (whole("kv_heads")?, whole("value_dim")?);
        let rope = rope(&container)?;
        let rope_dim = rope.dim();
        let mut sizes = BTreeMap::new();
        for index in layer_numbers(&container, &TENSORS)? {
            let [query_heads, dim, inputs] = container.shape(&name(index, "weights"), ["query_heads", "dim", "inputs"])?;
            let expected = [
                ("centre", [1, 1, inputs]),
                ("mean", [query_heads, 1, dim]),
                ("noise", [query_heads, dim, dim]),
            ];
            for (kind, shape) in expected {
                let found = container.shape(&name(index, kind), ["heads", "rows", "channels"])?;
                if found != shape {
                    return Err(container.tensor_error(
                        &name(index, kind),
                        format!("has shape {found:?}, and {shape:?} belongs to `weights`; make it again with `kvsculpt statistics`"),
                    ));
                }
            }
            container.check_channels(&name(index, "mean"), dim)?;
            if inputs != kv_heads * (dim + value_dim) || !query_heads.is_multiple_of(kv_heads) || rope_dim > dim || rope_dim % 2 != 0 {
                return Err(container.tensor_error(
                    &name(index, "weights"),
                    format!("has shape [{query_heads}, {dim}, {inputs}], which does not fit {kv_heads} KV heads with values of {value_dim} channels and {rope_dim} channels that rotate; make it again with `kvsculpt statistics`"),
                ));
            }
            sizes.insert(index, Sizes { query_heads, dim, inputs });
        }
        Ok(Self {
            path: container.path().to_owned(),
            layers: sizes.keys().copied().collect(),
            metadata: container.metadata.clone(),
            kv_heads,
            pairing: rope.pairing,
            rope,
            value_dim,
            rope_dim,
            sizes,
            container,
        })
    }

    /// SHA-256 of the whole file, in hexadecimal.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn digest(&self) -> Result<String> {
        self.container.digest()
    }

    /// Whether positions rotate as in these statistics' model, as far as two files' numbers agree.
    pub(super) fn rotates_like(&self, rope: &Rope) -> bool {
        let close = |(one, other): (&f64, &f64)| (one - other).abs() <= 1e-4 * other.abs();
        let (own, other) = (&self.rope.frequencies, &rope.frequencies);
        own.len() == other.len() && own.iter().zip(other).all(close)
    }

    /// Query heads of a layer, where the statistics are those of a model with such a layer.
    pub(super) fn check(&self, index: usize, shape: &LayerShape, path: &Path) -> Result<usize> {
        let Some(sizes) = self.sizes.get(&index) else {
            return Err(Error::option(
                "--queries",
                format!(
                    "{} knows nothing of layer {index} of {}; gather statistics from captures of all layers",
                    self.path.display(),
                    path.display()
                ),
            ));
        };
        if (self.kv_heads, sizes.dim, self.value_dim) != (shape.kv_heads, shape.dim, shape.value_dim) {
            return Err(Error::option(
                "--queries",
                format!(
                    "{} is of a model with {} KV heads of {} and {} channels in layer {index}, and {} has {} of {} and {}; give the statistics of its model",
                    self.path.display(),
                    self.kv_heads,
                    sizes.dim,
                    self.value_dim,
                    path.display(),
                    shape.kv_heads,
                    shape.dim,
                    shape.value_dim
                ),
            ));
        }
        Ok(sizes.query_heads)
    }

    /// Queries before RoPE of the query heads that read a KV head, at these tokens: `[group, tokens, dim]`, in the capture's order of
    /// channels. What is drawn depends on seed, layer, query head, token and channel alone.
    pub(super) fn draw(&self, capture: &Capture, index: usize, head: usize, tokens: &[usize], seed: u64) -> Result<Vec<f32>> {
        let Some(&Sizes { query_heads, dim, inputs }) = self.sizes.get(&index) else {
            return Err(Error::file(&self.path, format!("knows nothing of layer {index}")));
        };
        let group = query_heads / self.kv_heads;
        let heads = head * group..(head + 1) * group;
        let part = |kind: &str, width: usize| self.part(index, kind, heads.start * width..heads.end * width);
        let (mean, weights, noise) = (part("mean", dim)?, part("weights", dim * inputs)?, part("noise", dim * dim)?);
        let known = self.known(capture, index, tokens, inputs)?;
        let stream = Stream::new(seed).part(index as u64);
        let mut rows = Vec::with_capacity(group * tokens.len() * dim);
        let mut moved = vec![0.0; self.rope_dim];
        for (place, query_head) in heads.enumerate() {
            let stream = stream.part(query_head as u64);
            for (x, &token) in known.chunks_exact(inputs).zip(tokens) {
                let drawn: Vec<f32> = (0..dim).map(|channel| stream.bell((token * dim + channel) as u64)).collect();
                let start = rows.len();
                for channel in 0..dim {
                    let row = place * dim + channel;
                    let told = dot(&weights[row * inputs..(row + 1) * inputs], x);
                    let rest = dot(&noise[row * dim..row * dim + channel + 1], &drawn[..channel + 1]);
                    rows.push(mean[row] + told + rest);
                }
                if self.pairing != capture.rope.pairing {
                    reorder(&mut rows[start..start + self.rope_dim], &mut moved, capture.rope.pairing);
                }
            }
        }
        Ok(rows)
    }

    /// `x − centre` at these tokens, `[tokens, inputs]`; nothing where the token is one of the first.
    fn known(&self, capture: &Capture, index: usize, tokens: &[usize], inputs: usize) -> Result<Vec<f32>> {
        let centre = self.part(index, "centre", 0..inputs)?;
        let mut known = Vec::with_capacity(tokens.len() * inputs);
        for &token in tokens {
            if capture.is_first(token) {
                known.resize(known.len() + inputs, 0.0);
                continue;
            }
            let start = known.len();
            capture.push_token(index, token, self.pairing, &mut known)?;
            for (x, centre) in known[start..].iter_mut().zip(&centre) {
                *x -= centre;
            }
        }
        Ok(known)
    }

    fn part(&self, index: usize, kind: &str, elements: std::ops::Range<usize>) -> Result<Vec<f32>> {
        let first = elements.start;
        let place = |element: usize| format!("element {}", first + element);
        self.container.floats_in(&name(index, kind), elements, place)
    }
}

/// A sum of products in the same order on every machine: eight sums side by side, then together.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (ones, one) = one.as_chunks::<8>();
    let (others, other) = other.as_chunks::<8>();
    for (one, other) in ones.iter().zip(others) {
        for ((sum, one), other) in sums.iter_mut().zip(one).zip(other) {
            *sum += one * other;
        }
    }
    let rest: f32 = one.iter().zip(other).map(|(one, other)| one * other).sum();
    sums.iter().sum::<f32>() + rest
}
