//! Compressed caches: what comes out (format `kv-compressed`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Dtype;
use super::container::Container;
use super::layout::{layer_numbers, name};
use super::output::{Entry, Output, check_writable, header};
use crate::error::{Error, Result};

/// A layer's tensors in a compressed cache.
const TENSORS: [&str; 4] = ["lengths", "bias", "key", "value"];

/// One layer of a compressed cache: heads one after the other, each with its own length.
///
/// ```
/// use kvsculpt::cache::{CompressedLayer, Dtype};
///
/// let layer = CompressedLayer {
///     index: 0, dim: 4, value_dim: 4, lengths: vec![1, 2], key: vec![0.5; 12], value: vec![1.0; 12], bias: None, dtype: Dtype::F16,
/// };
/// let lengths: Vec<_> = layer.heads().map(|head| head.key.len() / layer.dim).collect();
/// assert_eq!(lengths, layer.lengths);
/// ```
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

/// One KV head's stored pairs: sinks, free pairs, tail.
///
/// ```
/// use kvsculpt::cache::CompressedHead;
///
/// let head = CompressedHead { length: 2, key: &[1.0, 0.0, 0.0, 1.0], value: &[3.0, 4.0], bias: Some(&[0.0, -0.5]) };
/// // What an engine adds to a pair's scaled logit.
/// assert_eq!(head.bias.map(|bias| bias[1]), Some(-0.5));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompressedHead<'a> {
    /// Stored pairs.
    pub length: usize,
    /// `[length, dim]`.
    pub key: &'a [f32],
    /// `[length, value_dim]`.
    pub value: &'a [f32],
    /// `[length]`, added to the scaled logits, where the method gives one.
    pub bias: Option<&'a [f32]>,
}

/// A compressed cache.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{cache::Compressed, cpu::CpuEngine, options::Method, solver::{Request, compress}};
///
/// let mut request = Request::default();
/// request.options.method = Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?.compressed;
/// for layer in &short.layers {
///     for head in layer.heads() {
///         assert_eq!(head.key.len(), head.length * layer.dim);
///         assert_eq!(head.value.len(), head.length * layer.value_dim);
///     }
/// }
/// // The next token stands where it would have stood.
/// assert_eq!(short.next_position()?, capture.next_position);
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::File { path: "".into(), reason: error.to_string() })?;
/// let path = folder.path().join("short.safetensors");
/// short.write(&path)?;
/// assert_eq!(Compressed::read(&path)?.layers[0].lengths, short.layers[0].lengths);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// ```
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// use std::collections::BTreeMap;
/// use kvsculpt::cache::{Compressed, CompressedLayer, Dtype};
///
/// let layer = CompressedLayer {
///     index: 0, dim: 4, value_dim: 4, lengths: vec![1, 2], key: vec![0.5; 12], value: vec![1.0; 12], bias: None, dtype: Dtype::F16,
/// };
/// let short = Compressed { layers: vec![layer], metadata: BTreeMap::from([("next_position".into(), "100".into())]) };
/// let path = folder.path().join("short.safetensors");
/// // Before the work, so that it is not done in vain:
/// Compressed::check_writable(&path)?;
/// short.write(&path)?;
/// let read = Compressed::from_bytes("short", std::fs::read(&path).unwrap())?;
/// assert_eq!(read.layers, short.layers);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Compressed {
    /// Layers, ascending.
    pub layers: Vec<CompressedLayer>,
    /// The capture's metadata and what the compression added.
    pub metadata: BTreeMap<String, String>,
}

impl Compressed {
    /// The position of the token that follows the cache: more than what is stored.
    ///
    /// # Errors
    /// [`Error::Shape`] where the metadata `next_position` is missing or no whole number.
    pub fn next_position(&self) -> Result<usize> {
        let text = self.metadata.get("next_position");
        let position = text
            .and_then(|text| text.parse::<u32>().ok())
            .and_then(|position| usize::try_from(position).ok());
        position.ok_or_else(|| {
            Error::shape(
                "compressed cache",
                format!("metadata `next_position` is {text:?}, and a whole number is needed"),
            )
        })
    }

    /// Fails now as [`write`](Self::write) would for this path, so that a long run does not fail at its end.
    ///
    /// # Errors
    /// [`Error::File`]: a folder that is missing or not writable, or a path that is no file.
    pub fn check_writable(path: &Path) -> Result<()> {
        check_writable(path)
    }

    /// Bytes of the file that [`write`](Self::write) would write.
    ///
    /// # Errors
    /// [`Error::File`] where the metadata cannot be written.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let entries = entries(&self.layers);
        let tensors: usize = entries.iter().map(|entry| entry.3).sum();
        Ok((header(Path::new("the short cache"), &self.marked(), &entries)?.len() + tensors) as u64)
    }

    /// The metadata as they are written.
    fn marked(&self) -> BTreeMap<String, String> {
        let mut metadata = self.metadata.clone();
        metadata.insert("format".to_owned(), "kv-compressed".to_owned());
        metadata.insert("version".to_owned(), "1".to_owned());
        metadata
    }

    /// Writes the file whole or not at all, always the same bytes for the same contents; returns their number.
    ///
    /// Metadata `format` and `version` are set whatever [`metadata`](Self::metadata) says.
    ///
    /// # Errors
    /// [`Error::Write`] where the disk is full or fails; [`Error::File`]: not writable, or a number that is not finite or too large for the dtype;
    /// [`Error::Shape`] where a layer's arrays do not fit together.
    pub fn write(&self, path: &Path) -> Result<u64> {
        self.check()?;
        write(path, &self.marked(), &self.layers)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.layers.is_empty() {
            return Err(Error::shape("a compressed cache", "has no layers; it needs at least one"));
        }
        for pair in self.layers.windows(2) {
            if pair[0].index >= pair[1].index {
                return Err(pair[1].shape_error(format!("comes after layer {}; layers must ascend", pair[0].index)));
            }
        }
        self.layers.iter().try_for_each(CompressedLayer::check)
    }

    /// Reads a compressed cache and checks its shapes and that every number is finite.
    ///
    /// # Errors
    /// [`Error::File`], naming the tensor and what to do, also where it does not fit into memory.
    pub fn read(path: &Path) -> Result<Self> {
        Self::take(Container::open(path)?)
    }

    /// The same for a file in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::take(Container::from_bytes(name.into(), bytes.into())?)
    }

    pub(crate) fn take(container: Container) -> Result<Self> {
        container.check_format(
            "kv-compressed",
            (
                "kv-capture",
                "is a capture, not a compressed cache; `kvsculpt compress` makes one of it",
            ),
        )?;
        Ok(Self {
            layers: layers_of(&container)?,
            metadata: container.metadata,
        })
    }
}

/// Writes layers whose arrays fit together, whole or not at all.
pub(super) fn write(path: &Path, metadata: &BTreeMap<String, String>, layers: &[CompressedLayer]) -> Result<u64> {
    let mut output = Output::create(path)?;
    output.header(metadata, &entries(layers))?;
    for layer in layers {
        for &length in &layer.lengths {
            let length = i32::try_from(length).map_err(|_| layer.shape_error(format!("a length of {length} does not fit 32 bits")))?;
            output.bytes(&length.to_le_bytes())?;
        }
        if let Some(bias) = &layer.bias {
            layer.write(&mut output, "bias", bias, 1, Dtype::F32)?;
        }
    }
    for layer in layers {
        layer.write(&mut output, "key", &layer.key, layer.dim, layer.dtype)?;
        layer.write(&mut output, "value", &layer.value, layer.value_dim, layer.dtype)?;
    }
    output.finish()
}

/// Name, dtype, shape and bytes of every tensor in the file's order: what has four bytes an element first, so
/// that everything is aligned.
fn entries(layers: &[CompressedLayer]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for layer in layers {
        let heads = layer.lengths.len();
        entries.push((layer.name("lengths"), "I32", vec![heads], 4 * heads));
        if let Some(bias) = &layer.bias {
            entries.push((layer.name("bias"), "F32", vec![bias.len()], 4 * bias.len()));
        }
    }
    for layer in layers {
        for (kind, data, channels) in [("key", &layer.key, layer.dim), ("value", &layer.value, layer.value_dim)] {
            let shape = vec![data.len() / channels, channels];
            entries.push((layer.name(kind), layer.dtype.name(), shape, data.len() * layer.dtype.bytes()));
        }
    }
    entries
}

/// All layers of a container.
pub(super) fn layers_of(container: &Container) -> Result<Vec<CompressedLayer>> {
    let layers = layer_numbers(container, &TENSORS)?.into_iter();
    layers.map(|index| CompressedLayer::read(container, index)).collect()
}

impl CompressedLayer {
    /// The layer's KV heads in their order, each with its own part of the arrays.
    ///
    /// # Panics
    /// While it goes on, where an array is shorter than [`lengths`](Self::lengths) and channels say; no layer is that was
    /// read from a file or made by [`compress`](crate::solver::compress).
    pub fn heads(&self) -> impl Iterator<Item = CompressedHead<'_>> {
        self.lengths.iter().scan(0, |first, &length| {
            let start = std::mem::replace(first, *first + length);
            let part = |channels: usize| start * channels..(start + length) * channels;
            Some(CompressedHead {
                length,
                key: &self.key[part(self.dim)],
                value: &self.value[part(self.value_dim)],
                bias: self.bias.as_ref().map(|bias| &bias[part(1)]),
            })
        })
    }

    fn name(&self, kind: &str) -> String {
        name(self.index, kind)
    }

    fn shape_error(&self, reason: String) -> Error {
        Error::shape(format!("layer {}", self.index), reason)
    }

    fn check(&self) -> Result<()> {
        let uncountable = || self.shape_error("lengths and channels make more elements than can be counted".to_owned());
        let pairs = self.lengths.iter().try_fold(0_usize, |sum, &length| sum.checked_add(length));
        let pairs = pairs.ok_or_else(uncountable)?;
        if pairs == 0 || self.dim == 0 || self.value_dim == 0 {
            return Err(self.shape_error("stores no pairs; every layer needs some".to_owned()));
        }
        let bias = self.bias.as_ref().map_or(pairs, Vec::len);
        let keys = pairs.checked_mul(self.dim).ok_or_else(uncountable)?;
        let values = pairs.checked_mul(self.value_dim).ok_or_else(uncountable)?;
        if self.key.len() != keys || self.value.len() != values || bias != pairs {
            return Err(self.shape_error(format!(
                "lengths sum to {pairs}, which does not fit {} key elements of {} channels, {} value elements of {} and {bias} biases",
                self.key.len(),
                self.dim,
                self.value.len(),
                self.value_dim
            )));
        }
        Ok(())
    }

    fn write(&self, output: &mut Output<'_>, kind: &str, data: &[f32], channels: usize, dtype: Dtype) -> Result<()> {
        output.floats(&self.name(kind), data, dtype, |element| {
            self.place(element / channels, element % channels)
        })
    }

    /// A row of the ragged arrays in words.
    fn place(&self, row: usize, channel: usize) -> String {
        let mut first = 0;
        for (head, length) in self.lengths.iter().enumerate() {
            if row < first + length {
                return format!("head {head}, pair {}, channel {channel}", row - first);
            }
            first += length;
        }
        format!("row {row}, channel {channel}")
    }

    fn read(container: &Container, index: usize) -> Result<Self> {
        let name = |kind: &str| name(index, kind);
        let (key, value, bias) = (name("key"), name("value"), name("bias"));
        let lengths = read_lengths(container, &name("lengths"))?;
        let pairs = lengths.iter().try_fold(0_usize, |sum, &length| sum.checked_add(length));
        let [rows, dim] = container.shape(&key, ["pairs", "dim"])?;
        let [value_rows, value_dim] = container.shape(&value, ["pairs", "value_dim"])?;
        container.check_channels(&key, dim)?;
        container.check_channels(&value, value_dim)?;
        for (tensor, found) in [(&key, rows), (&value, value_rows)] {
            check_rows(container, tensor, found, pairs)?;
        }
        let dtype = container.dtype(&key)?;
        if container.dtype(&value)? != dtype {
            return Err(container.tensor_error(&value, format!("is not stored as `{key}` is; store both alike")));
        }
        let mut layer = Self {
            index,
            dim,
            value_dim,
            lengths,
            key: Vec::new(),
            value: Vec::new(),
            bias: None,
            dtype,
        };
        layer.key = container.floats(&key, |element| layer.place(element / dim, element % dim))?;
        layer.value = container.floats(&value, |element| layer.place(element / value_dim, element % value_dim))?;
        if container.tensors.contains_key(&bias) {
            let [found] = container.shape(&bias, ["pairs"])?;
            check_rows(container, &bias, found, pairs)?;
            layer.bias = Some(container.floats(&bias, |element| layer.place(element, 0))?);
        }
        Ok(layer)
    }
}

fn read_lengths(container: &Container, name: &str) -> Result<Vec<usize>> {
    container.shape(name, ["kv_heads"])?;
    container
        .integers(name)?
        .into_iter()
        .enumerate()
        .map(|(head, length)| {
            usize::try_from(length)
                .map_err(|_| container.tensor_error(name, format!("has {length} pairs for head {head}; a length cannot be negative")))
        })
        .collect()
}

fn check_rows(container: &Container, tensor: &str, found: usize, pairs: Option<usize>) -> Result<()> {
    if pairs == Some(found) {
        return Ok(());
    }
    let sum = pairs.map_or("more than can be counted".to_owned(), |pairs| pairs.to_string());
    Err(container.tensor_error(
        tensor,
        format!("has {found} pairs and the layer's `lengths` sum to {sum}; write the file again"),
    ))
}
