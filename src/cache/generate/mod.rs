//! Captures made up by a seed, of any size, with the statistics of real ones: for tests and measurements.
//!
//! # What is modelled
//!
//! A text of words (drawn by Zipf's law) and passages on topics is made up, the same for all heads. A head's key, value or query
//! is a constant part and a part for the word, the topic and the token alone, before RoPE. The rest is in the constant parts:
//!
//! - **outlier channels**: a few slowly turning channels of keys are several times larger than the others;
//! - **sinks**: the first token's key lacks the constant part and its value is small; queries opposed to the outliers of all other
//!   keys score it highest, most often in the middle layers;
//! - **locality**: queries and keys agree in the turning channels so that a weight falls with distance Δ as Δ^−γ;
//! - **retrieval-like heads**: queries score keys of the same word higher, wherever they stand;
//! - **heavy hitters**: a query's constant part prefers some words whatever is asked.
//!
//! # Beside real captures
//!
//! Attention of the probe queries at 2048 tokens and 64 channels: least, median and most over query heads. `effective` pairs are
//! e^entropy. Over KV heads: `outlier`, the largest channel's root mean square over the median's, and `select`, the squared output error
//! where 0.3 of the pairs are kept (4 sinks, the newest 153, and those that the probes attend to most). Computed apart, in f64.
//!
//! | | on the first 4 | on the last 64 | effective | outlier | select |
//! |---|---|---|---|---|---|
//! | Qwen2.5-Coder-0.5B, layers 0, 7, 15, 23 | 0, .12, .97 | .01, .12, .43 | 1, 59, 993 | 3.1, 4.8, 22 | .004, .016, .029 |
//! | SmolLM2-135M, layers 3, 20 | .03, .07, .87 | 0, .06, .12 | 2, 27, 429 | 2.9, 5.4, 7.3 | .001, .009, .047 |
//! | generated: 4 layers of 2 × 7 heads, seed 1 | 0, .18, .83 | 0, .07, .32 | 4, 58, 861 | 4.5, 6.0, 7.1 | .012, .027, .041 |
//!
//! Not modelled: keys with channels of several hundred as in Qwen's first layer, and heads that attend to two tokens only.

mod model;
mod noise;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use self::model::{Head, Rotation, Rows};
pub(super) use self::noise::Stream;
use super::layout::name;
use super::output::{Entry, Output};
use super::{Capture, Context, Dtype, Layer, Pairing, Queries};
use crate::engine::Dims;
use crate::error::{Error, Result};

/// Rows made at once while a file is written.
const PORTION: usize = 256;

/// The most layers: their header stays far below what is read of one, and no model has as many.
const MOST_LAYERS: usize = 4096;

/// A capture to be made up: the same fields give the same numbers on every machine.
///
/// ```
/// use kvsculpt::cache::{Dtype, Generator};
///
/// let mut generator = Generator::default();
/// (generator.layers, generator.kv_heads, generator.group, generator.dim) = (1, 1, 2, 16);
/// (generator.tokens, generator.probes) = (64, 8);
/// let capture = generator.capture(Dtype::F16)?;
/// assert_eq!((capture.tokens, capture.shape(0)?.query_heads), (64, 2));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// ```
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// use kvsculpt::{Error, cache::{Capture, Dtype, Generator}};
///
/// let mut generator = Generator::default();
/// (generator.layers, generator.kv_heads, generator.group, generator.dim) = (1, 1, 2, 16);
/// (generator.tokens, generator.probes) = (64, 8);
/// // Keys, values, queries and probes.
/// assert_eq!(generator.bytes(Dtype::F16), Some(2 * 16 * (64 + 64 + 2 * 64 + 2 * 8)));
/// let path = folder.path().join("made-up.safetensors");
/// generator.write(&path, Dtype::F16, &mut |share| assert!(share <= 1.0))?;
/// assert_eq!(Capture::open(&path)?.tokens, 64);
/// generator.dim = 3;
/// assert!(matches!(generator.validate(), Err(Error::Options { .. })));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Generator {
    /// Layers, numbered from 0.
    pub layers: usize,
    /// KV heads a layer.
    pub kv_heads: usize,
    /// Query heads a KV head.
    pub group: usize,
    /// Channels of keys and values: a multiple of 4, at most [`Dims::MOST`]. All of them turn, the first half with the second.
    pub dim: usize,
    /// Tokens in the cache.
    pub tokens: usize,
    /// Probe queries a query head, at the positions that follow.
    pub probes: usize,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// What the numbers are drawn by.
    pub seed: u64,
}

impl Default for Generator {
    /// One layer of the shape that Qwen2.5-1.5B has, after 2048 tokens.
    fn default() -> Self {
        Self {
            layers: 1,
            kv_heads: 2,
            group: 6,
            dim: 128,
            tokens: 2048,
            probes: 256,
            rope_theta: 1e6,
            seed: 0,
        }
    }
}

/// A layer's arrays, in the order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Key,
    Value,
    Query,
    Probe,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
            Self::Query => "query",
            Self::Probe => "probe_query",
        }
    }
}

/// One head's rows of a part, any of which can be made on its own.
struct Made<'a> {
    part: Part,
    head: Head,
    /// Where the part is one of queries.
    queries: Option<Rows>,
    rotation: &'a Rotation,
    tokens: usize,
}

impl Made<'_> {
    fn fill(&self, row: usize, numbers: &mut [f32]) {
        match (self.part, &self.queries) {
            (Part::Key, _) => {
                self.head.key(row, numbers);
                self.rotation.turn(numbers, row);
            }
            (Part::Query, Some(queries)) => queries.fill(row, numbers),
            (Part::Probe, Some(queries)) => {
                queries.fill(self.tokens + row, numbers);
                self.rotation.turn(numbers, self.tokens + row);
            }
            _ => self.head.value(row, numbers),
        }
    }
}

impl Generator {
    /// Checks the fields.
    ///
    /// # Errors
    /// [`Error::Options`], naming the field as the program's flag.
    pub fn validate(&self) -> Result<()> {
        for (option, value) in [
            ("--layers", self.layers),
            ("--kv-heads", self.kv_heads),
            ("--group", self.group),
            ("--tokens", self.tokens),
        ] {
            if value == 0 {
                return Err(Error::option(option, "must be at least 1"));
            }
        }
        if self.layers > MOST_LAYERS {
            return Err(Error::option(
                "--layers",
                format!("{} is more than the {MOST_LAYERS} that a file can have; use fewer", self.layers),
            ));
        }
        if !Dims::is_served(self.dim) {
            let (dim, most) = (self.dim, Dims::MOST);
            return Err(Error::option("--dim", format!("{dim} is not a multiple of 4 from 4 to {most}")));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(Error::option(
                "--rope-theta",
                format!("{} is not a number above 1", self.rope_theta),
            ));
        }
        let last = self.tokens.checked_add(self.probes);
        if last.is_none_or(|last| u32::try_from(last).is_err()) {
            return Err(Error::option("--tokens", "more positions than fit into 32 bits"));
        }
        if self.bytes(Dtype::F32).is_none() {
            return Err(Error::option("--layers", "more numbers than this machine can address; use fewer"));
        }
        Ok(())
    }

    /// Bytes of all tensors together; `None` where they cannot be counted.
    #[must_use]
    pub fn bytes(&self, dtype: Dtype) -> Option<usize> {
        let rows = self.kv_heads.checked_mul(2)?.checked_mul(self.tokens)?;
        let asked = self
            .kv_heads
            .checked_mul(self.group)?
            .checked_mul(self.tokens.checked_add(self.probes)?)?;
        let numbers = rows.checked_add(asked)?.checked_mul(self.dim)?.checked_mul(self.layers)?;
        numbers.checked_mul(dtype.bytes())
    }

    /// Writes the capture as a file, whole or not at all, holding a few rows at a time; returns its bytes. `told` hears after each
    /// head which part of the work is done, in (0, 1].
    ///
    /// # Errors
    /// As [`validate`](Self::validate); [`Error::File`] where the file cannot be written.
    pub fn write(&self, path: &Path, dtype: Dtype, told: &mut dyn FnMut(f64)) -> Result<u64> {
        self.validate()?;
        let rotation = Rotation::new(self.rope_theta, self.dim);
        let mut entries: Vec<Entry> = Vec::new();
        for layer in 0..self.layers {
            for part in self.parts() {
                let [heads, rows, dim] = self.shape(part);
                let bytes = heads * rows * dim * dtype.bytes();
                entries.push((name(layer, part.name()), dtype.name(), vec![heads, rows, dim], bytes));
            }
        }
        let mut output = Output::create(path)?;
        output.header(&self.context().into_metadata(), &entries)?;
        let (mut done, mut buffer) = (0, Vec::new());
        let rows_in_all = self.layers * self.parts().map(|part| self.rows(part)).sum::<usize>();
        for layer in 0..self.layers {
            for part in self.parts() {
                let [heads, rows, dim] = self.shape(part);
                for head in 0..heads {
                    let made = self.made(layer, part, head, &rotation);
                    for first in (0..rows).step_by(PORTION) {
                        let last = rows.min(first + PORTION);
                        fill(&made, first..last, dim, &mut buffer);
                        output.floats(&name(layer, part.name()), &buffer, dtype, |element| {
                            format!("head {head}, row {}", first + element / dim)
                        })?;
                    }
                    done += rows;
                    told(done as f64 / rows_in_all as f64);
                }
            }
        }
        output.finish()
    }

    /// The capture in memory, its numbers rounded to the dtype.
    ///
    /// # Errors
    /// As [`validate`](Self::validate); [`Error::OutOfMemory`] where it does not fit.
    pub fn capture(&self, dtype: Dtype) -> Result<Capture> {
        self.validate()?;
        let rotation = Rotation::new(self.rope_theta, self.dim);
        let layers = (0..self.layers).map(|index| self.layer(index, dtype, &rotation));
        let layers = layers.collect::<Result<_>>()?;
        Capture::from_layers(PathBuf::from("the generated capture"), self.context(), layers)
    }

    fn layer(&self, index: usize, dtype: Dtype, rotation: &Rotation) -> Result<Layer> {
        let array = |part: Part| {
            let [heads, rows, dim] = self.shape(part);
            let label = name(index, part.name());
            let (mut all, mut buffer) = (room(heads * rows * dim, &label)?, room(rows * dim, &label)?);
            for head in 0..heads {
                fill(&self.made(index, part, head, rotation), 0..rows, dim, &mut buffer);
                all.extend(buffer.iter().map(|&number| rounded(number, dtype)));
            }
            Ok::<_, Error>(all)
        };
        let queries = |part| {
            Ok::<_, Error>(Queries {
                rows: self.shape(part)[1],
                data: array(part)?,
            })
        };
        Ok(Layer {
            index,
            kv_heads: self.kv_heads,
            query_heads: self.kv_heads * self.group,
            tokens: self.tokens,
            dim: self.dim,
            value_dim: self.dim,
            dtype,
            key: array(Part::Key)?,
            value: array(Part::Value)?,
            query: Some(queries(Part::Query)?),
            reference_query: None,
            probe_query: (self.probes > 0).then(|| queries(Part::Probe)).transpose()?,
        })
    }

    fn parts(&self) -> impl Iterator<Item = Part> {
        let probes = (self.probes > 0).then_some(Part::Probe);
        [Part::Key, Part::Value, Part::Query].into_iter().chain(probes)
    }

    /// Heads, rows and channels.
    fn shape(&self, part: Part) -> [usize; 3] {
        match part {
            Part::Key | Part::Value => [self.kv_heads, self.tokens, self.dim],
            Part::Query => [self.kv_heads * self.group, self.tokens, self.dim],
            Part::Probe => [self.kv_heads * self.group, self.probes, self.dim],
        }
    }

    fn rows(&self, part: Part) -> usize {
        let [heads, rows, _] = self.shape(part);
        heads * rows
    }

    fn made<'a>(&self, layer: usize, part: Part, head: usize, rotation: &'a Rotation) -> Made<'a> {
        let queries = matches!(part, Part::Query | Part::Probe);
        let kv_head = if queries { head / self.group } else { head };
        let depth = (layer as f64 + 0.5) / self.layers as f64;
        let made = Head::new(Stream::new(self.seed), layer, depth, kv_head, rotation, self.tokens);
        Made {
            part,
            queries: queries.then(|| made.queries(head % self.group, rotation)),
            head: made,
            rotation,
            tokens: self.tokens,
        }
    }

    fn context(&self) -> Context {
        Context {
            tokens: self.tokens,
            next_position: self.tokens,
            scale: 1.0 / (self.dim as f64).sqrt(),
            rope_theta: self.rope_theta,
            rope_dim: self.dim,
            pairing: Pairing::Half,
            rope_scaling: None,
            metadata: BTreeMap::from([
                ("model".to_owned(), "generated".to_owned()),
                ("seed".to_owned(), self.seed.to_string()),
            ]),
        }
    }
}

/// Room for so many numbers.
fn room(numbers: usize, label: &str) -> Result<Vec<f32>> {
    let mut room = Vec::new();
    room.try_reserve_exact(numbers).map_err(|_| Error::OutOfMemory {
        label: label.to_owned(),
        bytes: (numbers as u64).saturating_mul(4),
        available: 0,
    })?;
    Ok(room)
}

/// Makes rows one after the other.
fn fill(made: &Made<'_>, rows: std::ops::Range<usize>, dim: usize, buffer: &mut Vec<f32>) {
    buffer.resize(rows.len() * dim, 0.0);
    for (row, numbers) in rows.zip(buffer.chunks_exact_mut(dim)) {
        made.fill(row, numbers);
    }
}

fn rounded(number: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => number,
        Dtype::F16 => f16::from_f32(number).to_f32(),
        Dtype::Bf16 => bf16::from_f32(number).to_f32(),
    }
}

#[cfg(test)]
mod tests;
