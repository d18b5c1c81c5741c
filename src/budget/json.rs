//! Small JSON files: bounded, and of a named format and version.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cache::unreadable;
use crate::error::{Error, Result};

/// Bytes that a file of numbers of heads may have. A thousand layers of a thousand heads take a tenth of it.
pub(crate) const MOST_BYTES: u64 = 64 << 20;

/// What every such file begins with.
#[derive(Deserialize)]
struct Opening {
    format: Option<Value>,
    version: Option<Value>,
}

/// Reads a file of at most so many bytes, this format and version; `source` says where such files come from.
///
/// # Errors
/// [`Error::File`] for a file that is not there, is no file, is larger, is no JSON, or of another format or version, or
/// does not have the fields of `T`, with line and column.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, most: u64, format: &str, version: u32, source: &str) -> Result<T> {
    parse(path, &bytes(path, most)?, format, version, source)
}

/// The same for a file in memory; `path` is only a name for error messages.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8], format: &str, version: u32, source: &str) -> Result<T> {
    // Some editors put a mark before the text.
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let opening: Opening = serde_json::from_slice(text)
        .map_err(|error| Error::file(path, format!("is not a file of the format `{format}` ({error}); give {source}")))?;
    if opening.format.as_ref().and_then(Value::as_str) != Some(format) {
        return Err(Error::file(
            path,
            format!(
                "its `format` is {}, and `{format}` is needed; give {source}",
                shown(opening.format.as_ref())
            ),
        ));
    }
    if opening.version.as_ref().and_then(Value::as_u64) != Some(u64::from(version)) {
        return Err(Error::file(
            path,
            format!(
                "its `version` is {}, and this kvsculpt reads version {version}; make the file again, or use the kvsculpt that made it",
                shown(opening.version.as_ref())
            ),
        ));
    }
    serde_json::from_slice(text)
        .map_err(|error| Error::file(path, format!("cannot be understood: {error}; correct it there, or make it again")))
}

/// A value in a message, cut short.
fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "not given".to_owned(), |value| value.to_string().chars().take(40).collect())
}

fn bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let about = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if about.is_dir() {
        return Err(Error::file(path, "is a folder; give the path of a JSON file"));
    }
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let mut bytes = Vec::new();
    // Not by the length the folder tells: a pipe has none, and a file may grow.
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::file(path, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > most {
        return Err(Error::file(
            path,
            format!("is larger than {} MiB, which no such file is; check the path", most >> 20),
        ));
    }
    Ok(bytes)
}
