//! The safetensors container, read with distrust: nothing is allocated or followed before it is checked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::{bf16, f16};
use safetensors::Dtype as Stored;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Dtype;
use crate::error::{Error, Result};

/// The largest header accepted, in bytes; the same bound other readers of the format use.
const LARGEST_HEADER: u64 = 100_000_000;

/// Bytes read at once; a multiple of every element size.
const CHUNK: usize = 1 << 20;

/// Where the bytes are.
enum Source {
    /// One handle for the container's whole life, so that a file replaced meanwhile is not mixed in.
    File(Mutex<File>),
    Memory(Cow<'static, [u8]>),
}

/// One tensor of the header, its place checked.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) stored: Stored,
    pub(super) shape: Vec<usize>,
    /// From the beginning of the file.
    start: u64,
    bytes: u64,
}

/// An open container: header checked, tensors still in the file.
pub(super) struct Container {
    pub(super) path: PathBuf,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: BTreeMap<String, Tensor>,
    source: Source,
    length: u64,
}

impl fmt::Debug for Container {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Container")
            .field("path", &self.path)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// A name or value from a file as it may be shown: escaped, and cut where it is long.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

impl Container {
    /// Opens a file and checks its header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        if about.is_dir() {
            return Err(Error::file(path, "is a folder; give the path of a safetensors file"));
        }
        if !about.is_file() {
            return Err(Error::file(
                path,
                "is not a regular file; a capture is read in parts, so save it to a file first",
            ));
        }
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Self::new(path.to_owned(), Source::File(Mutex::new(file)), about.len())
    }

    /// The same for bytes in memory; `path` is only a name for error messages.
    pub(super) fn from_bytes(path: PathBuf, bytes: Cow<'static, [u8]>) -> Result<Self> {
        let length = bytes.len() as u64;
        Self::new(path, Source::Memory(bytes), length)
    }

    fn new(path: PathBuf, source: Source, length: u64) -> Result<Self> {
        let mut container = Self {
            path,
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
            source,
            length,
        };
        let (header, data) = container.header()?;
        container.parse(&header, data)?;
        container.check_coverage(data)?;
        Ok(container)
    }

    /// An error about the file as a whole.
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        Error::file(&self.path, reason)
    }

    /// An error about one tensor.
    pub(super) fn tensor_error(&self, name: &str, reason: impl fmt::Display) -> Error {
        self.error(format!("tensor `{}` {reason}", shown(name)))
    }

    /// The header's text, and where the data begin.
    fn header(&self) -> Result<(Vec<u8>, u64)> {
        let length = self.length;
        if length == 0 {
            return Err(self.error("is empty; write it again"));
        }
        if length < 8 {
            return Err(self.error(format!(
                "has {length} bytes, too few for a safetensors file; check that it is the right file, or write it again"
            )));
        }
        let mut announced = [0; 8];
        self.read_at(0, &mut announced)?;
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
        self.read_at(8, &mut header)?;
        Ok((header, 8 + announced))
    }

    fn parse(&mut self, header: &[u8], data: u64) -> Result<()> {
        let text = std::str::from_utf8(header).map_err(|error| {
            self.error(format!(
                "is no safetensors file: its header is not UTF-8 text at byte {}; write it again",
                8 + error.valid_up_to()
            ))
        })?;
        let Entries(entries) = serde_json::from_str(text).map_err(|error| {
            self.error(format!(
                "is no safetensors file: its header is not a JSON object of tensors ({error}); write it again"
            ))
        })?;
        for (name, value) in entries {
            if name == "__metadata__" {
                self.metadata = serde_json::from_value(value).map_err(|error| {
                    self.error(format!(
                        "has metadata that are not texts by name ({error}); write every value as a string"
                    ))
                })?;
                continue;
            }
            let tensor = self.tensor_from(&name, value, data)?;
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(self.tensor_error(&name, "is there twice; write the file again"));
            }
        }
        Ok(())
    }

    /// Checks one entry: its bytes lie in the file and are as many as its shape needs.
    fn tensor_from(&self, name: &str, value: Value, data: u64) -> Result<Tensor> {
        let info: TensorInfo = serde_json::from_value(value).map_err(|error| {
            self.tensor_error(
                name,
                format!(
                    "has a header entry that cannot be read ({}); write the file again",
                    shown(&error.to_string())
                ),
            )
        })?;
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let available = self.length - data;
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
                    "has {} bytes, which do not fit its shape {:?} of {}; write the file again",
                    end - begin,
                    info.shape,
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
        if reached != self.length {
            return Err(self.error(format!(
                "has {} bytes after its last tensor that belong to none; write it again",
                self.length - reached
            )));
        }
        Ok(())
    }

    /// Fills `bytes` from a place in the file.
    fn read_at(&self, start: u64, bytes: &mut [u8]) -> Result<()> {
        match &self.source {
            Source::File(file) => {
                let mut file = lock(file);
                file.seek(SeekFrom::Start(start))
                    .and_then(|_| file.read_exact(bytes))
                    .map_err(|error| self.read_error(start, &error))
            }
            Source::Memory(memory) => {
                let part = usize::try_from(start)
                    .ok()
                    .and_then(|start| memory.get(start..start.checked_add(bytes.len())?))
                    .ok_or_else(|| self.read_error(start, &ErrorKind::UnexpectedEof.into()))?;
                bytes.copy_from_slice(part);
                Ok(())
            }
        }
    }

    fn read_error(&self, start: u64, error: &std::io::Error) -> Error {
        if error.kind() == ErrorKind::UnexpectedEof {
            self.error(format!(
                "ends before byte {start} and what should follow it: it was cut short after it was opened; copy or write it again"
            ))
        } else {
            self.error(format!(
                "cannot be read at byte {start}: {error}; check the disk or copy the file again"
            ))
        }
    }

    /// Passes a part of the file to `take`, a chunk at a time.
    fn stream(&self, start: u64, bytes: u64, mut take: impl FnMut(&[u8])) -> Result<()> {
        let mut buffer = vec![0; usize::try_from(bytes).map_or(CHUNK, |bytes| bytes.min(CHUNK))];
        let end = start + bytes;
        let mut at = start;
        while at < end {
            let size = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
            self.read_at(at, &mut buffer[..size])?;
            take(&buffer[..size]);
            at += size as u64;
        }
        Ok(())
    }

    /// Passes a tensor's bytes to `take`, a chunk at a time.
    fn stream_tensor(&self, name: &str, tensor: &Tensor, take: impl FnMut(&[u8])) -> Result<()> {
        self.stream(tensor.start, tensor.bytes, take).map_err(|error| match error {
            Error::File { reason, .. } => self.error(format!("tensor `{name}`: the file {reason}")),
            other => other,
        })
    }

    /// A tensor's elements as f32, every one finite; `place` puts an element's index into words.
    pub(super) fn floats(&self, name: &str, place: impl Fn(usize) -> String) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let dtype = self.dtype(name)?;
        let mut values = self.room(name, tensor)?;
        self.stream_tensor(name, tensor, |bytes| match dtype {
            Dtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|&element| f32::from_le_bytes(element))),
            Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|&element| f16::from_le_bytes(element).to_f32())),
            Dtype::Bf16 => values.extend(bytes.as_chunks().0.iter().map(|&element| bf16::from_le_bytes(element).to_f32())),
        })?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let what = if values[index].is_nan() { "NaN" } else { "an infinity" };
            return Err(self.tensor_error(
                name,
                format!(
                    "holds {what} at {}; look for an overflow in what wrote the file (bf16 or f32 reach further than f16)",
                    place(index)
                ),
            ));
        }
        Ok(values)
    }

    /// A tensor of i32.
    pub(super) fn integers(&self, name: &str) -> Result<Vec<i32>> {
        let tensor = self.tensor(name)?;
        if tensor.stored != Stored::I32 {
            return Err(self.tensor_error(name, format!("is stored as {}; store it as I32", tensor.stored)));
        }
        let mut values = self.room(name, tensor)?;
        self.stream_tensor(name, tensor, |bytes| {
            values.extend(bytes.as_chunks().0.iter().map(|&element| i32::from_le_bytes(element)))
        })?;
        Ok(values)
    }

    /// Room for a tensor's elements at four bytes each; too little memory is an error, not an abort.
    fn room<T>(&self, name: &str, tensor: &Tensor) -> Result<Vec<T>> {
        let elements = tensor.shape.iter().product();
        let mut values = Vec::new();
        values.try_reserve_exact(elements).map_err(|_| Error::OutOfMemory {
            label: name.to_owned(),
            bytes: elements as u64 * 4,
            available: 0,
        })?;
        Ok(values)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| self.tensor_error(name, "is missing; write the file again with it"))
    }

    /// How a tensor of floats is stored.
    pub(super) fn dtype(&self, name: &str) -> Result<Dtype> {
        match self.tensor(name)?.stored {
            Stored::F32 => Ok(Dtype::F32),
            Stored::F16 => Ok(Dtype::F16),
            Stored::BF16 => Ok(Dtype::Bf16),
            other => Err(self.tensor_error(name, format!("is stored as {other}; store it as F32, F16 or BF16"))),
        }
    }

    /// A tensor's shape, its rank and non-zero extents checked; `axes` names them.
    pub(super) fn shape<const RANK: usize>(&self, name: &str, axes: [&str; RANK]) -> Result<[usize; RANK]> {
        let tensor = self.tensor(name)?;
        let axes = axes.join(", ");
        let shape: [usize; RANK] = tensor.shape.as_slice().try_into().map_err(|_| {
            self.tensor_error(
                name,
                format!(
                    "has {} axes, shape {:?}; it must be [{axes}], so reshape it",
                    tensor.shape.len(),
                    tensor.shape
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
    pub(super) fn check_channels(&self, name: &str, channels: usize) -> Result<()> {
        if channels.is_multiple_of(4) && (4..=256).contains(&channels) {
            return Ok(());
        }
        Err(self.tensor_error(
            name,
            format!("has {channels} channels a head; the kernels take multiples of 4 from 4 to 256, so pad keys and queries (or values) with zeros up to one"),
        ))
    }

    /// A metadata text, which must be there.
    pub(super) fn text(&self, key: &str) -> Result<&str> {
        self.metadata.get(key).map(String::as_str).ok_or_else(|| {
            self.error(format!(
                "has no metadata `{key}`; write it into the file's `__metadata__` as a string"
            ))
        })
    }

    /// Checks `format` and `version`; `other` is the format of our other kind of file and what to say of it.
    pub(super) fn check_format(&self, format: &str, other: (&str, &str)) -> Result<()> {
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
    pub(super) fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        self.stream(0, self.length, |bytes| hash.update(bytes))?;
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A reader that panicked leaves only the file's cursor behind, and every read sets that first.
fn lock(file: &Mutex<File>) -> MutexGuard<'_, File> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::file(
        path,
        match error.kind() {
            ErrorKind::NotFound => "there is no such file; check the path".to_owned(),
            ErrorKind::PermissionDenied => "may not be read; check its permissions".to_owned(),
            _ => format!("cannot be opened: {error}; check the path"),
        },
    )
}

/// A JSON object's entries in order, duplicates kept so that they can be refused.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}
