//! The safetensors container, read with distrust: nothing is allocated or followed before it is checked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype as Stored;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::Dtype;
use super::output::header;
use super::source::Source;
use crate::engine::Dims;
use crate::error::{Error, Result};

/// The largest header accepted, in bytes: some hundred thousand tensors, far more than a cache has.
const LARGEST_HEADER: u64 = 1 << 24;

/// One tensor of the header, its place checked.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) stored: Stored,
    pub(crate) shape: Vec<usize>,
    /// From the beginning of the file.
    start: u64,
    bytes: u64,
}

/// An open container: header checked, tensors still in the file.
pub(crate) struct Container {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
    source: Source,
}

impl fmt::Debug for Container {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Container")
            .field("path", &self.source.path)
            .field("length", &self.source.length)
            .finish_non_exhaustive()
    }
}

/// A name or value from a file as it may be shown: escaped, and cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    let text: String = text.chars().take(81).flat_map(char::escape_debug).collect();
    cut(&text, 80)
}

/// At most `limit` characters of a text.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    let mut short: String = text.chars().take(limit).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// A shape as it may be shown: cut where it is long, without putting all of it into letters first.
fn shown_shape(shape: &[usize]) -> String {
    cut(&format!("{:?}", &shape[..shape.len().min(80)]), 80)
}

impl Container {
    /// Opens a file and checks its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::new(Source::open(path)?)
    }

    /// The same for bytes in memory; `path` is only a name for error messages.
    pub(crate) fn from_bytes(path: PathBuf, bytes: Cow<'static, [u8]>) -> Result<Self> {
        Self::new(Source::from_bytes(path, bytes))
    }

    /// The container that a file of these tensors of f32 would be, held to the same checks.
    ///
    /// A tensor's elements must be as many as its shape says.
    pub(crate) fn from_arrays(
        path: PathBuf,
        metadata: &BTreeMap<String, String>,
        tensors: Vec<(String, [usize; 3], Vec<f32>)>,
    ) -> Result<Self> {
        let entries: Vec<_> = tensors
            .iter()
            .map(|(name, shape, data)| (name.clone(), Dtype::F32.name(), shape.to_vec(), 4 * data.len()))
            .collect();
        let header = header(&path, metadata, &entries)?;
        let arrays = tensors.into_iter().map(|(_, _, data)| data).collect();
        Self::new(Source::from_arrays(path, header, arrays))
    }

    pub(crate) fn new(source: Source) -> Result<Self> {
        let mut container = Self {
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
            source,
        };
        let (header, data) = container.header()?;
        container.parse(&header, data)?;
        container.check_coverage(data)?;
        Ok(container)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.source.path
    }

    /// An error about the file as a whole.
    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::file(self.path(), reason)
    }

    /// An error about one tensor.
    pub(crate) fn tensor_error(&self, name: &str, reason: impl fmt::Display) -> Error {
        self.error(format!("tensor `{}` {reason}", shown(name)))
    }

    /// The header's text, and where the data begin.
    fn header(&self) -> Result<(Vec<u8>, u64)> {
        let length = self.source.length;
        if length == 0 {
            return Err(self.error("is empty; write it again"));
        }
        if length < 8 {
            return Err(self.error(format!(
                "has {length} bytes, too few for a safetensors file; check that it is the right file, or write it again"
            )));
        }
        let mut announced = [0; 8];
        self.source.read_at(0, &mut announced)?;
        let announced = u64::from_le_bytes(announced);
        if announced > length - 8 {
            return Err(self.error(format!(
                "is no safetensors file, or is cut short: its first 8 bytes announce a header of {announced} bytes, and {} follow; check that it is the right file, or write it again",
                length - 8
            )));
        }
        if announced > LARGEST_HEADER {
            return Err(self.error(format!(
                "has a header of {announced} bytes, and {LARGEST_HEADER} is the most that is read; check that it is the right file"
            )));
        }
        let size = usize::try_from(announced)
            .map_err(|_| self.error("has a header larger than this machine can address; check that it is the right file"))?;
        let mut header = vec![0; size];
        self.source.read_at(8, &mut header)?;
        Ok((header, 8 + announced))
    }

    fn parse(&mut self, header: &[u8], data: u64) -> Result<()> {
        let text = std::str::from_utf8(header).map_err(|error| {
            self.error(format!(
                "is no safetensors file: its header is not UTF-8 text at byte {}; check that it is the right file, or write it again",
                8 + error.valid_up_to()
            ))
        })?;
        let header: Header = serde_json::from_str(text).map_err(|error| {
            self.error(format!(
                "has a header that cannot be read ({}); check that it is a safetensors file, or write it again",
                cut(&error.to_string(), 400)
            ))
        })?;
        for (name, info) in header.tensors {
            let tensor = self.tensor_from(&name, info, data)?;
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(self.tensor_error(&name, "is there twice; write the file again"));
            }
        }
        self.metadata = header.metadata;
        Ok(())
    }

    /// Checks one entry: its bytes lie in the file and are as many as its shape needs.
    fn tensor_from(&self, name: &str, info: TensorInfo, data: u64) -> Result<Tensor> {
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let available = self.source.length - data;
        if begin > end {
            return Err(self.tensor_error(
                name,
                format!("ends before it begins (data_offsets {begin}, {end}); write the file again"),
            ));
        }
        if end > available {
            return Err(self.tensor_error(
                name,
                format!(
                    "reaches byte {end} of the data, and the file holds {available}: it is cut short or damaged; copy or write it again"
                ),
            ));
        }
        let bits = info
            .shape
            .iter()
            .try_fold(1_u64, |product, &extent| product.checked_mul(extent as u64))
            .and_then(|elements| elements.checked_mul(info.dtype.bitsize() as u64));
        if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != end - begin) {
            return Err(self.tensor_error(
                name,
                format!(
                    "has {} bytes, which do not fit its shape {} of {}; write the file again",
                    end - begin,
                    shown_shape(&info.shape),
                    info.dtype
                ),
            ));
        }
        Ok(Tensor {
            stored: info.dtype,
            shape: info.shape,
            start: data + begin,
            bytes: end - begin,
        })
    }

    /// The format demands that tensors cover the data once: no overlap, no hole.
    fn check_coverage(&self, data: u64) -> Result<()> {
        let mut order: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| (tensor.start, tensor.bytes));
        let mut reached = data;
        let mut before = "";
        for (name, tensor) in order {
            if tensor.start < reached {
                return Err(self.tensor_error(name, format!("overlaps tensor `{}`; write the file again", shown(before))));
            }
            if tensor.start > reached {
                let hole = tensor.start - reached;
                return Err(self.tensor_error(
                    name,
                    format!("has {hole} bytes before it that belong to no tensor; write the file again"),
                ));
            }
            reached = tensor.start + tensor.bytes;
            before = name;
        }
        if reached != self.source.length {
            return Err(self.error(format!(
                "has {} bytes after its last tensor that belong to none; write it again",
                self.source.length - reached
            )));
        }
        Ok(())
    }

    /// Passes some of a tensor's bytes to `take`, a portion at a time.
    fn stream_tensor(&self, name: &str, tensor: &Tensor, bytes: Range<u64>, take: impl FnMut(&[u8])) -> Result<()> {
        let streamed = self.source.stream(tensor.start + bytes.start, bytes.end - bytes.start, take);
        streamed.map_err(|error| match error {
            Error::File { reason, .. } => self.error(format!("tensor `{name}`: the file {reason}")),
            other => other,
        })
    }

    /// A tensor's elements as f32, every one finite; `place` puts an element's index into words.
    pub(crate) fn floats(&self, name: &str, place: impl Fn(usize) -> String) -> Result<Vec<f32>> {
        let elements = self.tensor(name)?.shape.iter().product();
        self.floats_in(name, 0..elements, place)
    }

    /// The same for some of its elements, which must be there; no other part of the tensor is read.
    pub(super) fn floats_in(&self, name: &str, elements: Range<usize>, place: impl Fn(usize) -> String) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let dtype = self.dtype(name)?;
        let mut values = self.room(name, elements.len())?;
        let size = dtype.bytes() as u64;
        let bytes = elements.start as u64 * size..elements.end as u64 * size;
        self.stream_tensor(name, tensor, bytes, |bytes| dtype.widen(bytes, &mut values))?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let what = if values[index].is_nan() { "NaN" } else { "an infinity" };
            return Err(self.tensor_error(
                name,
                format!(
                    "holds {what} at {}; look for an overflow in what wrote the file (bf16 or f32 reach further than f16)",
                    place(elements.start + index)
                ),
            ));
        }
        Ok(values)
    }

    /// A tensor of i32.
    pub(crate) fn integers(&self, name: &str) -> Result<Vec<i32>> {
        let tensor = self.tensor(name)?;
        if tensor.stored != Stored::I32 {
            return Err(self.tensor_error(name, format!("is stored as {}; store it as I32", tensor.stored)));
        }
        let mut values = self.room(name, tensor.shape.iter().product())?;
        self.stream_tensor(name, tensor, 0..tensor.bytes, |bytes| {
            values.extend(bytes.as_chunks().0.iter().map(|&element| i32::from_le_bytes(element)))
        })?;
        Ok(values)
    }

    /// Room for so many of a tensor's elements at four bytes each; too little memory is an error, not an abort.
    fn room<T>(&self, name: &str, elements: usize) -> Result<Vec<T>> {
        let mut values = Vec::new();
        values.try_reserve_exact(elements).map_err(|_| {
            self.tensor_error(
                name,
                format!(
                    "needs {} bytes of memory, more than this machine gives; choose fewer --layers",
                    elements as u64 * 4
                ),
            )
        })?;
        Ok(values)
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| self.tensor_error(name, "is missing; write the file again with it"))
    }

    /// How a tensor of floats is stored.
    pub(crate) fn dtype(&self, name: &str) -> Result<Dtype> {
        match self.tensor(name)?.stored {
            Stored::F32 => Ok(Dtype::F32),
            Stored::F16 => Ok(Dtype::F16),
            Stored::BF16 => Ok(Dtype::Bf16),
            other => Err(self.tensor_error(name, format!("is stored as {other}; store it as F32, F16 or BF16"))),
        }
    }

    /// A tensor's shape, its rank and non-zero extents checked; `axes` names them.
    pub(crate) fn shape<const RANK: usize>(&self, name: &str, axes: [&str; RANK]) -> Result<[usize; RANK]> {
        let tensor = self.tensor(name)?;
        let axes = axes.join(", ");
        let shape: [usize; RANK] = tensor.shape.as_slice().try_into().map_err(|_| {
            self.tensor_error(
                name,
                format!(
                    "has {} axes, shape {}; it must be [{axes}], so reshape it",
                    tensor.shape.len(),
                    shown_shape(&tensor.shape)
                ),
            )
        })?;
        if shape.contains(&0) {
            return Err(self.tensor_error(
                name,
                format!("has no elements, shape {shape:?}; write at least one along each of [{axes}], or leave it out"),
            ));
        }
        Ok(shape)
    }

    /// A channel count every kernel can take.
    pub(crate) fn check_channels(&self, name: &str, channels: usize) -> Result<()> {
        if Dims::is_served(channels) {
            return Ok(());
        }
        Err(self.tensor_error(
            name,
            format!(
                "has {channels} channels a head; the kernels take multiples of 4 from 4 to {}, so pad keys and queries (or values) with zeros up to one",
                Dims::MOST
            ),
        ))
    }

    /// A metadata text, which must be there.
    pub(crate) fn text(&self, key: &str) -> Result<&str> {
        self.metadata.get(key).map(String::as_str).ok_or_else(|| {
            self.error(format!(
                "has no metadata `{key}`; write it into the file's `__metadata__` as a string"
            ))
        })
    }

    /// Checks `format` and `version`; `other` is the format of our other kind of file and what to say of it.
    pub(crate) fn check_format(&self, format: &str, other: (&str, &str)) -> Result<()> {
        let Some(found) = self.metadata.get("format") else {
            return Err(self.error(format!("has no metadata `format`; a file of this kind says `{format}` there")));
        };
        if found == other.0 {
            return Err(self.error(other.1));
        }
        if found != format {
            return Err(self.error(format!(
                "has format `{}`, and `{format}` is needed; check that it is the right file",
                shown(found)
            )));
        }
        let version = self.text("version")?;
        if version != "1" {
            return Err(self.error(format!(
                "has version {}, which is not known to this release: it reads 1; use a newer release or write the file as version 1",
                shown(version)
            )));
        }
        Ok(())
    }

    /// SHA-256 of the whole file, in hexadecimal.
    pub(crate) fn digest(&self) -> Result<String> {
        self.source.digest()
    }
}

/// The header's JSON object, duplicates kept so that they can be refused. Read without a tree of values between,
/// which would take many times the header's own bytes.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut header = Header::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                header.metadata = map
                    .next_value()
                    .map_err(|error| A::Error::custom(format!("metadata must be strings by name: {}", shown(&error.to_string()))))?;
            } else {
                let info = map
                    .next_value()
                    .map_err(|error| A::Error::custom(format!("tensor `{}`: {}", shown(&name), shown(&error.to_string()))))?;
                header.tensors.push((name, info));
            }
        }
        Ok(header)
    }
}
