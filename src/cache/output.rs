//! A file that appears whole or not at all, and the safetensors container written into it.
//!
//! Our own writer, because the same contents must give the same bytes and the format's usual writer keeps its
//! metadata in a map of random order.

use std::collections::BTreeMap;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

use half::{bf16, f16};
use tempfile::NamedTempFile;

use super::Dtype;
use crate::error::{Error, Result};

/// Elements converted at once while writing.
const CHUNK: usize = 1 << 16;

/// A tensor of the header to be: name, dtype, shape and bytes.
pub(crate) type Entry = (String, &'static str, Vec<usize>, usize);

/// Length, metadata in their order, tensors in theirs; blanks up to a multiple of 8 bytes, so that the data are aligned.
pub(crate) fn header(path: &Path, metadata: &BTreeMap<String, String>, tensors: &[Entry]) -> Result<Vec<u8>> {
    let texts = serde_json::to_string(metadata).map_err(|error| Error::file(path, format!("its metadata cannot be written: {error}")))?;
    let mut header = format!("{{\"__metadata__\":{texts}");
    let mut begin = 0;
    for (name, dtype, shape, bytes) in tensors {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let end = begin + bytes;
        header.push_str(&format!(
            ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{}],\"data_offsets\":[{begin},{end}]}}",
            shape.join(",")
        ));
        begin = end;
    }
    header.push('}');
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    Ok(bytes)
}

/// A temporary file beside its destination; dropped before [`finish`](Self::finish), it leaves nothing behind.
pub(crate) struct Output<'a> {
    path: &'a Path,
    file: BufWriter<NamedTempFile>,
    written: u64,
}

impl<'a> Output<'a> {
    pub(crate) fn create(path: &'a Path) -> Result<Self> {
        Ok(Self {
            path,
            file: BufWriter::new(temporary(path)?),
            written: 0,
        })
    }

    pub(crate) fn header(&mut self, metadata: &BTreeMap<String, String>, tensors: &[Entry]) -> Result<()> {
        self.bytes(&header(self.path, metadata, tensors)?)
    }

    /// Rounds a tensor to the nearest, ties to even, and streams it to the file; `place` puts an element's index into words.
    ///
    /// # Errors
    /// [`Error::File`] as for [`bytes`](Self::bytes), and where a number is not finite once rounded.
    pub(crate) fn floats(&mut self, tensor: &str, data: &[f32], dtype: Dtype, place: impl Fn(usize) -> String) -> Result<()> {
        let mut bytes = Vec::with_capacity(CHUNK.min(data.len()) * dtype.bytes());
        for (at, chunk) in data.chunks(CHUNK).enumerate() {
            bytes.clear();
            for (offset, &value) in chunk.iter().enumerate() {
                let fits = match dtype {
                    Dtype::F32 => {
                        bytes.extend(value.to_le_bytes());
                        value.is_finite()
                    }
                    Dtype::F16 => {
                        let stored = f16::from_f32(value);
                        bytes.extend(stored.to_le_bytes());
                        stored.is_finite()
                    }
                    Dtype::Bf16 => {
                        let stored = bf16::from_f32(value);
                        bytes.extend(stored.to_le_bytes());
                        stored.is_finite()
                    }
                };
                if !fits {
                    return Err(Error::file(self.path, unfit(tensor, value, &place(at * CHUNK + offset), dtype)));
                }
            }
            self.bytes(&bytes)?;
        }
        Ok(())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| unwritable(self.path, &error))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Brings the file to the disk and then to its name; returns its bytes.
    pub(crate) fn finish(self) -> Result<u64> {
        let file = self.file.into_inner().map_err(|error| unwritable(self.path, error.error()))?;
        file.as_file().sync_all().map_err(|error| unwritable(self.path, &error))?;
        file.persist(self.path).map_err(|error| unwritable(self.path, &error.error))?;
        Ok(self.written)
    }
}

fn unfit(tensor: &str, value: f32, place: &str, dtype: Dtype) -> String {
    if !value.is_finite() {
        return format!("tensor `{tensor}` is not finite at {place} ({value}); nothing was written");
    }
    let wider = if dtype == Dtype::F16 {
        "--dtype bf16 or --dtype f32"
    } else {
        "--dtype f32"
    };
    format!(
        "tensor `{tensor}` holds {value:e} at {place}, too large for {}; use {wider} (nothing was written)",
        dtype.name()
    )
}

/// Fails as [`Output::create`] would, and leaves nothing behind.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    temporary(path).map(drop)
}

/// Checks the destination and makes the temporary file, in the same folder so that renaming cannot fail for being
/// on another disk.
fn temporary(path: &Path) -> Result<NamedTempFile> {
    if path.file_name().is_none() {
        return Err(Error::file(path, "is no file name; give the file to write"));
    }
    match std::fs::metadata(path) {
        Ok(about) if about.is_dir() => return Err(Error::file(path, "is a folder; give the file to write in it")),
        // Renaming over a device or a pipe would take its place instead of writing to it.
        Ok(about) if !about.is_file() => {
            return Err(Error::file(
                path,
                "is not a regular file and cannot be replaced; choose another path",
            ));
        }
        Ok(about) if about.permissions().readonly() => {
            return Err(Error::file(
                path,
                "is there already and read-only; choose another path or allow writing",
            ));
        }
        _ => {}
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match std::fs::metadata(folder) {
        Ok(about) if about.is_dir() => {}
        Ok(_) => {
            return Err(Error::file(
                path,
                format!("cannot be written: {} is not a folder; choose another path", folder.display()),
            ));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::file(
                path,
                format!(
                    "cannot be written: there is no folder {}; make it first or choose another path",
                    folder.display()
                ),
            ));
        }
        Err(error) => return Err(unwritable(path, &error)),
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kvsculpt-").suffix(".partial");
    // As an ordinary new file would be, minus the user's mask; temporary files are private by default.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|error| unwritable(path, &error))
}

/// What an error of the system while writing this file is to its user.
pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Error::file(
            path,
            "cannot be written: its folder does not allow it; choose another path or change the folder's permissions",
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::write(
            path,
            "cannot be written: the disk is full; make room or choose another path (nothing was left behind)",
        ),
        _ => Error::write(
            path,
            format!("cannot be written: {error}; choose another path (nothing was left behind)"),
        ),
    }
}

/// Writes a file whole or not at all; returns its bytes.
///
/// ```
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// use kvsculpt::cache::write_whole;
///
/// let path = folder.path().join("notes.txt");
/// assert_eq!(write_whole(&path, b"first")?, 5);
/// // Whoever reads it meanwhile sees the old or the new one.
/// write_whole(&path, b"second")?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"second");
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::File`] where the path does not do; [`Error::Write`] where the disk is full or fails.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<u64> {
    let mut output = Output::create(path)?;
    output.bytes(bytes)?;
    output.finish()
}
