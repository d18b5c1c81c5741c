//! Records, as they are written and as they are read back.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Origin;
use crate::cache::unreadable;
use crate::solver::{Finished, FinishedHead, Outcome};
use crate::{Error, Result};

/// How such a file begins.
pub(super) const MAGIC: &[u8] = b"kvsculpt journal 1\n";
/// Bytes of a record beside its contents.
const AROUND: u64 = 1 + 8 + 8;

/// What a file holds.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) origin: Option<Origin>,
    pub(super) finished: Finished,
    /// Bytes of whole records.
    pub(super) length: u64,
}

/// A head's record, without its floats.
#[derive(Serialize, Deserialize)]
struct HeadRecord {
    outcome: Outcome,
    free: Vec<usize>,
    key: usize,
    value: usize,
    bias: Option<usize>,
}

/// A record as it stands in the file.
pub(super) fn record(kind: u8, contents: &[u8]) -> Vec<u8> {
    let mut record = vec![kind];
    record.extend((contents.len() as u64).to_le_bytes());
    record.extend(contents);
    let checksum = checksum(&record);
    record.extend(checksum);
    record
}

/// The contents of a record of an origin or of lengths.
///
/// # Errors
/// In words, where they cannot be made.
pub(super) fn cbor(contents: &impl Serialize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    ciborium::into_writer(contents, &mut bytes).map_err(|error| format!("a record cannot be made: {error}"))?;
    Ok(bytes)
}

/// The contents of a head's record.
///
/// # Errors
/// In words, where they cannot be made.
pub(super) fn head(head: &FinishedHead) -> Result<Vec<u8>, String> {
    let about = cbor(&HeadRecord {
        outcome: head.outcome.clone(),
        free: head.free.clone(),
        key: head.key.len(),
        value: head.value.len(),
        bias: head.bias.as_ref().map(Vec::len),
    })?;
    let length = u32::try_from(about.len()).map_err(|_| "a head has too many chunks to be written down".to_owned())?;
    let mut contents = length.to_le_bytes().to_vec();
    contents.extend(about);
    for floats in [Some(&head.key), Some(&head.value), head.bias.as_ref()].into_iter().flatten() {
        contents.extend(floats.iter().flat_map(|float| float.to_le_bytes()));
    }
    Ok(contents)
}

fn checksum(record: &[u8]) -> [u8; 8] {
    let hash = Sha256::digest(record);
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    first
}

/// Whether the file begins as a journal does; one that was never begun does not.
///
/// # Errors
/// [`Error::File`] where it is something else, which is not ours to change.
pub(super) fn check_magic(path: &Path, file: &File, length: u64) -> Result<bool> {
    let mut begin = Vec::new();
    let read = file.take(MAGIC.len() as u64).read_to_end(&mut begin);
    read.map_err(|error| unreadable(path, &error))?;
    if !MAGIC.starts_with(&begin) || (begin.len() < MAGIC.len() && begin.len() as u64 != length) {
        return Err(Error::file(
            path,
            "is in the way: what is finished would be kept there, and it is no journal of kvsculpt of this version; move it away, or choose another path for --output",
        ));
    }
    Ok(begin.len() == MAGIC.len())
}

impl Contents {
    /// All whole records.
    pub(super) fn read(path: &Path, file: &File, length: u64) -> Result<Self> {
        let mut contents = Self::default();
        if !check_magic(path, file, length)? {
            return Ok(contents);
        }
        contents.length = MAGIC.len() as u64;
        let mut reader = BufReader::new(file);
        while let Some(record) = whole_record(&mut reader, length - contents.length).map_err(|error| unreadable(path, &error))? {
            if contents.take(record[0], &record[9..]).is_none() {
                break;
            }
            contents.length += record.len() as u64 + 8;
        }
        Ok(contents)
    }

    /// Takes a record up; `None` where it is not what it should be.
    fn take(&mut self, kind: u8, contents: &[u8]) -> Option<()> {
        match (kind, &self.origin) {
            (b'O', None) => self.origin = Some(ciborium::from_reader(contents).ok()?),
            (b'L', Some(_)) => self.finished.lengths = Some(ciborium::from_reader(contents).ok()?),
            (b'H', Some(_)) => self.finished.heads.push(read_head(contents)?),
            _ => return None,
        }
        Some(())
    }
}

/// The next record without its checksum, of a file of which so many bytes are left; `None` where none is, or none that is whole.
fn whole_record(reader: &mut impl Read, left: u64) -> std::io::Result<Option<Vec<u8>>> {
    if left < AROUND {
        return Ok(None);
    }
    let mut record = vec![0; 9];
    reader.read_exact(&mut record)?;
    let mut length = [0; 8];
    length.copy_from_slice(&record[1..]);
    let length = u64::from_le_bytes(length);
    if length > left - AROUND {
        return Ok(None);
    }
    reader.take(length).read_to_end(&mut record)?;
    let mut found = [0; 8];
    reader.read_exact(&mut found)?;
    Ok((found == checksum(&record)).then_some(record))
}

/// The head of a record.
fn read_head(contents: &[u8]) -> Option<FinishedHead> {
    let (length, rest) = contents.split_first_chunk()?;
    let (record, mut rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let record: HeadRecord = ciborium::from_reader(record).ok()?;
    let mut floats = |count: usize| {
        let (mine, others) = rest.split_at_checked(count.checked_mul(4)?)?;
        rest = others;
        Some(
            mine.as_chunks()
                .0
                .iter()
                .map(|&float| f32::from_le_bytes(float))
                .collect::<Vec<f32>>(),
        )
    };
    let (key, value) = (floats(record.key)?, floats(record.value)?);
    let bias = match record.bias {
        Some(count) => Some(floats(count)?),
        None => None,
    };
    rest.is_empty().then_some(FinishedHead {
        outcome: record.outcome,
        free: record.free,
        key,
        value,
        bias,
    })
}
