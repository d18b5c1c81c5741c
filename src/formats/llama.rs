//! llama.cpp's state of one sequence, as `llama_state_seq_save_file` and a server's slot save write it.
//!
//! Little-endian, packed: magic, version, token count and tokens; stream count, cell count; each cell's position, sequence count and
//! sequence; whether values are transposed, layer count; then each layer's keys and each layer's values, every block with its element
//! type and row size before it. A row is one cell: `[kv_heads][dim]`. The file names no model and no head count.

use super::cache::{Cache, LayerFacts, LayerPairs, Layers};
use super::known::Known;
use super::{Format, LlamaVersion, own};
use crate::cache::{Dtype, Source};
use crate::error::{Error, Result};

mod write;
pub(super) use write::{beside, check, write};

/// Texts in which other formats keep what only this one has.
const TRANSPOSED: &str = "llama.values_transposed";

/// The version that a file's second word says, where it is one of those known.
pub(super) fn version(source: &Source, number: u32) -> Result<LlamaVersion> {
    match number {
        2 => Ok(LlamaVersion::V2),
        3 => Ok(LlamaVersion::V3),
        other => Err(Error::file(
            &source.path,
            format!(
                "is a llama.cpp sequence state of version {other}, and versions 2 and 3 are read; save it with a llama.cpp that writes one of these"
            ),
        )),
    }
}

/// ggml's number of an element type.
fn ggml_type(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 30,
    }
}

/// Where one layer's keys or values lie.
#[derive(Debug)]
struct Block {
    dtype: Dtype,
    /// Elements of one cell.
    width: usize,
    start: u64,
}

/// An open file.
#[derive(Debug)]
struct State {
    source: Source,
    cells: usize,
    transposed: bool,
    keys: Vec<Block>,
    values: Vec<Block>,
}

impl Layers for State {
    fn digest(&self) -> Result<Option<String>> {
        self.source.digest().map(Some)
    }

    fn read(&self, number: usize, facts: &LayerFacts) -> Result<LayerPairs> {
        let (Some(key), Some(value)) = (self.keys.get(number), self.values.get(number)) else {
            return Err(Error::shape("cache", format!("has no layer number {number} from 0")));
        };
        let heads = facts.lengths.len();
        Ok(LayerPairs {
            key: self.heads(key, heads, false, &format!("keys of layer {number}"))?,
            value: self.heads(value, heads, self.transposed, &format!("values of layer {number}"))?,
            bias: None,
        })
    }
}

impl State {
    /// A block's elements head by head, `[heads, cells, channels]`.
    fn heads(&self, block: &Block, heads: usize, transposed: bool, label: &str) -> Result<Vec<f32>> {
        let stored = self.source.elements(block.start, self.cells * block.width, block.dtype, label)?;
        let channels = block.width / heads;
        let mut data = Vec::new();
        data.try_reserve_exact(stored.len())
            .map_err(|_| Error::file(&self.source.path, format!("{label} need more memory than this machine gives")))?;
        for head in 0..heads {
            for cell in 0..self.cells {
                for channel in head * channels..(head + 1) * channels {
                    let at = if transposed {
                        channel * self.cells + cell
                    } else {
                        cell * block.width + channel
                    };
                    data.push(stored[at]);
                }
            }
        }
        if let Some(at) = data.iter().position(|number| !number.is_finite()) {
            let (head, within) = (at / (self.cells * channels), at % (self.cells * channels));
            return Err(Error::file(
                &self.source.path,
                format!(
                    "{label} hold {} at head {head}, cell {}, channel {}; look for an overflow in what made the cache",
                    data[at],
                    within / channels,
                    within % channels
                ),
            ));
        }
        Ok(data)
    }
}

/// Reads one number after the other, never past the end.
struct Cursor<'a> {
    source: &'a Source,
    at: u64,
}

impl Cursor<'_> {
    fn left(&self) -> u64 {
        self.source.length - self.at
    }

    fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::file(&self.source.path, format!("byte {}: {reason}", self.at))
    }

    fn take<const BYTES: usize>(&mut self, what: &str) -> Result<[u8; BYTES]> {
        if self.left() < BYTES as u64 {
            return Err(self.error(format!("the file ends before {what}; it was cut short, save it again")));
        }
        let mut bytes = [0; BYTES];
        self.source.read_at(self.at, &mut bytes)?;
        self.at += BYTES as u64;
        Ok(bytes)
    }

    fn count(&mut self, what: &str) -> Result<u32> {
        self.take(what).map(u32::from_le_bytes)
    }

    /// So many items of that many bytes, only if the file has them; read at once.
    fn items<const BYTES: usize>(&mut self, count: u32, what: &str) -> Result<Vec<[u8; BYTES]>> {
        let bytes = u64::from(count) * BYTES as u64;
        if bytes > self.left() {
            return Err(self.error(format!(
                "{what} need {bytes} bytes, and {} are left; the file was cut short, or its model has cells of a kind that is not read here",
                self.left()
            )));
        }
        let mut items = vec![[0; BYTES]; usize::try_from(count).map_err(|_| self.error(format!("too many {what}")))?];
        self.source.read_at(self.at, items.as_flattened_mut())?;
        self.at += bytes;
        Ok(items)
    }

    /// Element type and row size of a block, and where its elements are; steps over them.
    fn block(&mut self, cells: usize, transposed: bool, what: &str) -> Result<Block> {
        let kind = i32::from_le_bytes(self.take(what)?);
        let dtype = match kind {
            0 => Dtype::F32,
            1 => Dtype::F16,
            30 => Dtype::Bf16,
            other => {
                return Err(self.error(format!(
                    "{what} are stored as {}, and F32, F16 and BF16 are read; run llama.cpp with --cache-type-k f16 --cache-type-v f16",
                    ggml_name(other)
                )));
            }
        };
        let width = if transposed {
            let bytes = self.count(what)?;
            if u64::from(bytes) != dtype.bytes() as u64 {
                return Err(self.error(format!(
                    "{what} have elements of {bytes} bytes, which do not fit their type; save the file again"
                )));
            }
            u64::from(self.count(what)?)
        } else {
            let row = u64::from_le_bytes(self.take(what)?);
            if row % dtype.bytes() as u64 != 0 {
                return Err(self.error(format!(
                    "{what} have rows of {row} bytes, no whole number of elements; save the file again"
                )));
            }
            row / dtype.bytes() as u64
        };
        let bytes = width
            .checked_mul(cells as u64)
            .and_then(|elements| elements.checked_mul(dtype.bytes() as u64))
            .filter(|&bytes| bytes > 0 && bytes <= self.left());
        let (Some(bytes), Ok(width)) = (bytes, usize::try_from(width)) else {
            return Err(self.error(format!(
                "{what} have {width} elements a cell, which do not fit the {} bytes that are left; the file was cut short, or its model has cells of a kind that is not read here",
                self.left()
            )));
        };
        let start = self.at;
        self.at += bytes;
        Ok(Block { dtype, width, start })
    }
}

fn ggml_name(kind: i32) -> String {
    let name = match kind {
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        20 => "IQ4_NL",
        _ => return format!("ggml type {kind}"),
    };
    name.to_owned()
}

pub(super) fn open(source: Source, version: LlamaVersion, known: &Known) -> Result<Cache> {
    // Magic and version are known.
    let mut cursor = Cursor { source: &source, at: 8 };
    let count = cursor.count("the token count")?;
    let token_ids: Vec<i32> = cursor.items(count, "tokens")?.into_iter().map(i32::from_le_bytes).collect();
    if let Some(number) = token_ids.iter().position(|&id| id < 0) {
        return Err(cursor.error(format!(
            "token {number} is {}, no token of a text; caches of images and sounds are not read here",
            token_ids[number]
        )));
    }
    let positions = positions(&mut cursor)?;
    let transposed = match cursor.count("whether values are transposed")? {
        0 => false,
        1 => true,
        other => {
            return Err(cursor.error(format!(
                "whether values are transposed is {other}, neither 0 nor 1; cells of models with several positions a token are not read here"
            )));
        }
    };
    let layers = cursor.count("the layer count")?;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for layer in 0..layers {
        keys.push(cursor.block(positions.len(), false, &format!("keys of layer {layer}"))?);
    }
    for layer in 0..layers {
        values.push(cursor.block(positions.len(), transposed, &format!("values of layer {layer}"))?);
    }
    if keys.is_empty() {
        return Err(cursor.error("the file holds no layers; save it after the prompt was read"));
    }
    if cursor.left() > 0 {
        return Err(cursor.error(format!(
            "{} bytes follow the cache; models with sliding windows or recurrent layers have a second one, which is not read here",
            cursor.left()
        )));
    }
    let state = State {
        cells: positions.len(),
        transposed,
        keys,
        values,
        source,
    };
    cache(state, version, token_ids, positions, known)
}

/// Positions of the cells of the one stream.
fn positions(cursor: &mut Cursor<'_>) -> Result<Vec<i32>> {
    let streams = cursor.count("the stream count")?;
    if streams != 1 {
        return Err(cursor.error(format!(
            "the file has {streams} streams, and one is read; run llama.cpp with --kv-unified or one sequence (version 2 files of before July 2025 have no streams and are not read)"
        )));
    }
    let count = cursor.count("the cell count")?;
    if count == 0 {
        return Err(cursor.error("the file holds no cells; save it after the prompt was read"));
    }
    let mut positions = Vec::new();
    for (cell, bytes) in cursor.items::<12>(count, "cells")?.iter().enumerate() {
        let ([position, sequences, _], []) = bytes.as_chunks::<4>() else {
            continue;
        };
        let (position, sequences) = (i32::from_le_bytes(*position), u32::from_le_bytes(*sequences));
        if position < 0 || position == i32::MAX || sequences != 1 {
            return Err(cursor.error(format!(
                "cell {cell} is at position {position} in {sequences} sequences; a sequence's file has cells of one sequence from position 0 on (cells of models with several positions a token are not read here)"
            )));
        }
        positions.push(position);
    }
    Ok(positions)
}

fn cache(state: State, version: LlamaVersion, token_ids: Vec<i32>, positions: Vec<i32>, known: &Known) -> Result<Cache> {
    let path = state.source.path.clone();
    let Some(heads) = known.kv_heads.filter(|&heads| heads > 0) else {
        return Err(Error::option(
            "--kv-heads",
            format!(
                "{} does not say how many KV heads its model has; give their number, or --model-config",
                path.display()
            ),
        ));
    };
    let last = positions
        .iter()
        .copied()
        .max()
        .and_then(|last| usize::try_from(last).ok())
        .unwrap_or(0);
    let mut layers = Vec::new();
    for (index, (key, value)) in state.keys.iter().zip(&state.values).enumerate() {
        if let Some(block) = [key, value].into_iter().find(|block| !block.width.is_multiple_of(heads)) {
            return Err(Error::option(
                "--kv-heads",
                format!(
                    "is {heads}, which does not divide the {} channels of a cell of layer {index} of {}; give the model's KV heads",
                    block.width,
                    path.display()
                ),
            ));
        }
        layers.push(LayerFacts {
            index,
            lengths: vec![positions.len(); heads],
            dim: key.width / heads,
            value_dim: value.width / heads,
            key_dtype: key.dtype,
            value_dtype: value.dtype,
            bias: false,
            next_position: last + 1,
        });
    }
    let texts = [(TRANSPOSED.to_owned(), state.transposed.to_string())].into();
    let tokens = token_ids.len().max(positions.len());
    let mut cache = own::from_texts(path, Format::Llama(version), layers, texts, Box::new(state))?;
    cache.tokens = tokens;
    cache.token_ids = Some(token_ids).filter(|ids| !ids.is_empty());
    cache.positions = Some(positions).filter(|positions| !consecutive(positions));
    Ok(cache)
}

/// Whether each position follows the one before.
fn consecutive(positions: &[i32]) -> bool {
    positions.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]))
}
