//! A file of ours whose kind is not known beforehand.

use std::path::Path;

use super::container::{Container, shown};
use super::{Capture, Compressed};
use crate::error::Result;

/// A file of any kind that can be looked at.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// # let path = folder.path().join("capture.safetensors");
/// # capture.write(&path, kvsculpt::cache::Dtype::F16)?;
/// use kvsculpt::cache::CacheFile;
///
/// match CacheFile::open(&path)? {
///     CacheFile::Capture(capture) => assert_eq!(capture.layers, [20]),
///     CacheFile::Compressed(short) => println!("{} layers", short.layers.len()),
///     _ => println!("something newer"),
/// }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum CacheFile {
    /// Keys, values and queries (`kv-capture`); its layers are read one at a time.
    Capture(Box<Capture>),
    /// A short cache (`kv-compressed`), read whole.
    Compressed(Box<Compressed>),
}

impl CacheFile {
    /// Opens a file as what its metadata `format` says it is.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File): as [`Capture::open`] and [`Compressed::read`], and for a format that is neither.
    pub fn open(path: &Path) -> Result<Self> {
        let container = Container::open(path)?;
        match container.metadata.get("format").map(String::as_str) {
            Some("kv-compressed") => Ok(Self::Compressed(Box::new(Compressed::take(container)?))),
            Some("kv-capture") => Ok(Self::Capture(Box::new(Capture::new(container)?))),
            Some(other) => Err(container.error(format!(
                "has format `{}`, and `kv-capture` and `kv-compressed` are those known; check that it is the right file",
                shown(other)
            ))),
            None => Err(container.error(
                "has no metadata `format`, by which captures (`kv-capture`) and compressed caches (`kv-compressed`) are known; check that it is the right file",
            )),
        }
    }
}
