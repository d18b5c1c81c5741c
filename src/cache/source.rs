//! Bytes in a file or in memory, read in parts.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::Dtype;
use crate::error::{Error, Result};

/// Bytes read at once; a multiple of every element size.
const CHUNK: usize = 1 << 20;

/// Bytes in a file or in memory.
pub(crate) struct Source {
    /// The file, or the name that stands for it in errors.
    pub(crate) path: PathBuf,
    /// All its bytes, as they were counted when it was opened.
    pub(crate) length: u64,
    place: Place,
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Source")
            .field("path", &self.path)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

enum Place {
    /// One handle for the source's whole life, so that a file put in its stead meanwhile is not mixed in.
    File(Mutex<File>),
    Memory(Cow<'static, [u8]>),
    /// What a file would hold, never put together: a header, and arrays of f32 one after the other.
    Arrays {
        header: Vec<u8>,
        arrays: Vec<Vec<f32>>,
    },
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        if about.is_dir() {
            return Err(Error::file(path, "is a folder; give the path of a safetensors file"));
        }
        if !about.is_file() {
            return Err(Error::file(
                path,
                "is not a regular file, and only such can be read in parts; save it to a file first",
            ));
        }
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        // Of the file that was opened: another may have taken its name since.
        let length = file.metadata().map_err(|error| unreadable(path, &error))?.len();
        Ok(Self {
            path: path.to_owned(),
            length,
            place: Place::File(Mutex::new(file)),
        })
    }

    pub(crate) fn from_bytes(path: PathBuf, bytes: Cow<'static, [u8]>) -> Self {
        Self {
            path,
            length: bytes.len() as u64,
            place: Place::Memory(bytes),
        }
    }

    pub(crate) fn from_arrays(path: PathBuf, header: Vec<u8>, arrays: Vec<Vec<f32>>) -> Self {
        let elements: u64 = arrays.iter().map(|array| array.len() as u64).sum();
        Self {
            path,
            length: header.len() as u64 + 4 * elements,
            place: Place::Arrays { header, arrays },
        }
    }

    /// Fills `bytes` from a place in the file.
    pub(crate) fn read_at(&self, start: u64, bytes: &mut [u8]) -> Result<()> {
        match &self.place {
            Place::File(file) => {
                // A reader that panicked leaves only the cursor behind, and every read sets that first.
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(start))
                    .and_then(|_| file.read_exact(bytes))
                    .map_err(|error| self.error(start, &error))
            }
            Place::Memory(memory) => {
                let part = usize::try_from(start)
                    .ok()
                    .and_then(|start| memory.get(start..start.checked_add(bytes.len())?))
                    .ok_or_else(|| self.error(start, &ErrorKind::UnexpectedEof.into()))?;
                bytes.copy_from_slice(part);
                Ok(())
            }
            Place::Arrays { header, arrays } => usize::try_from(start)
                .ok()
                .and_then(|start| encode(header, arrays, start, bytes))
                .ok_or_else(|| self.error(start, &ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Passes a part of the file to `take`, a chunk at a time.
    pub(crate) fn stream(&self, start: u64, bytes: u64, mut take: impl FnMut(&[u8])) -> Result<()> {
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

    /// So many elements from a place in the file, widened to f32; `label` names them where they do not fit into memory.
    pub(crate) fn elements(&self, start: u64, count: usize, dtype: Dtype, label: &str) -> Result<Vec<f32>> {
        let bytes = (count as u64).saturating_mul(dtype.bytes() as u64);
        if start.checked_add(bytes).is_none_or(|end| end > self.length) {
            return Err(self.error(start, &ErrorKind::UnexpectedEof.into()));
        }
        let mut values = Vec::new();
        values
            .try_reserve_exact(count)
            .map_err(|_| Error::file(&self.path, format!("{label} need more memory than this machine gives")))?;
        self.stream(start, bytes, |bytes| dtype.widen(bytes, &mut values))?;
        Ok(values)
    }

    /// SHA-256 of all of it, in hexadecimal.
    pub(crate) fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        self.stream(0, self.length, |bytes| hash.update(bytes))?;
        Ok(hexadecimal(&hash.finalize()))
    }

    fn error(&self, start: u64, error: &std::io::Error) -> Error {
        Error::file(
            &self.path,
            if error.kind() == ErrorKind::UnexpectedEof {
                format!("ends within the bytes from {start} on: it was cut short after it was opened; copy or write it again")
            } else {
                format!("cannot be read at byte {start}: {error}; check the disk or copy the file again")
            },
        )
    }
}

/// Two digits a byte, as digests are written.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fills `bytes` with what a file of a header and arrays holds from `at` on; `None` where it ends before they are full.
fn encode(header: &[u8], arrays: &[Vec<f32>], mut at: usize, mut bytes: &mut [u8]) -> Option<()> {
    if at < header.len() {
        let (now, later) = bytes.split_at_mut(bytes.len().min(header.len() - at));
        now.copy_from_slice(&header[at..at + now.len()]);
        (at, bytes) = (header.len(), later);
    }
    at -= header.len();
    for array in arrays {
        let length = 4 * array.len();
        if at < length {
            let (now, later) = bytes.split_at_mut(bytes.len().min(length - at));
            for (byte, place) in now.iter_mut().zip(at..) {
                *byte = array[place / 4].to_le_bytes()[place % 4];
            }
            (at, bytes) = (length, later);
        }
        if bytes.is_empty() {
            break;
        }
        at -= length;
    }
    bytes.is_empty().then_some(())
}

pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::file(
        path,
        match error.kind() {
            ErrorKind::NotFound => "there is no such file; check the path".to_owned(),
            ErrorKind::PermissionDenied => "may not be read; check its permissions".to_owned(),
            _ => format!("cannot be opened: {error}; check the path"),
        },
    )
}
