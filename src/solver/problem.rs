//! One head's problem, or one chunk's of it.

use std::sync::Arc;

use super::bias;
use super::chunks::Part;
use super::rows::{Rows, rows};
use crate::batch::Shape;
use crate::cache::{Capture, Layer};
use crate::engine::Dims;
use crate::error::{Error, Result};
use crate::options::{Options, Split};

/// One KV head, or a chunk of its cache: its pairs, its rows, how its pairs are divided.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) layer: usize,
    pub(crate) head: usize,
    /// The chunk's number; 0 where the head is not cut.
    pub(crate) chunk: usize,
    /// Channels as the engine sees them: those of the keys' bias counted in, where there is one.
    pub(crate) dims: Dims,
    /// Channels of a key in the cache.
    pub(crate) key_dim: usize,
    /// What every query has in the channel of the bias, where keys have one (see [`super::bias`]).
    pub(crate) constant: Option<f32>,
    pub(crate) split: Split,
    /// The most free pairs that values are ever solved for; `None`: all.
    pub(crate) solved: Option<usize>,
    /// `[tokens, key_dim]`, after RoPE.
    pub(crate) keys: Vec<f32>,
    /// `[tokens, value_dim]`.
    pub(crate) values: Vec<f32>,
    /// Those of the head, which its chunks share.
    pub(crate) rows: Arc<Rows>,
    /// What a chunk knows of the other chunks; `None` where the head is not cut.
    pub(crate) part: Option<Part>,
}

/// How a head is to be made into problems.
#[derive(Clone, Debug)]
pub(crate) struct Cut<'a> {
    /// The head as a whole.
    pub(crate) split: Split,
    /// Its chunks, in order.
    pub(crate) chunks: &'a [Split],
    /// For error curves: the most pairs that values are solved for, and about how many training rows there are to be.
    pub(crate) sampled: Option<(usize, usize)>,
}

impl Problem {
    /// The chunks of one head, its rows drawn and turned; they do not know of each other yet (see
    /// [`introduce`](super::chunks::introduce)). `layer` has this KV head only.
    pub(crate) fn of_head(capture: &Capture, layer: &Layer, head: usize, cut: &Cut<'_>, options: &Options) -> Result<Vec<Self>> {
        let mut rows = rows(capture, layer, head, cut.split, options)?;
        let constant = options.has_bias().then(|| bias::widen_rows(&mut rows, layer.dim));
        let dims = Dims {
            dim: counted(layer.dim + if options.has_bias() { bias::CHANNELS } else { 0 })?,
            value_dim: counted(layer.value_dim)?,
        };
        if let Some((_, most)) = cut.sampled {
            rows = rows.sampled(dims.dim as usize, most);
        }
        let rows = Arc::new(rows);
        let mut first = 0;
        let chunk = |(number, split): (usize, &Split)| {
            let tokens = first..first + split.tokens;
            first = tokens.end;
            Self {
                layer: layer.index,
                head,
                chunk: number,
                dims,
                key_dim: layer.dim,
                constant,
                split: *split,
                solved: cut.sampled.map(|(solved, _)| solved.min(split.free)),
                keys: layer.key[tokens.start * layer.dim..tokens.end * layer.dim].to_vec(),
                values: layer.value[tokens.start * layer.value_dim..tokens.end * layer.value_dim].to_vec(),
                rows: Arc::clone(&rows),
                part: None,
            }
        };
        Ok(cut.chunks.iter().enumerate().map(chunk).collect())
    }

    /// Whether the head keeps every pair it has.
    pub(crate) fn is_whole(&self) -> bool {
        self.split.free == self.split.zone()
    }

    /// The zone's part of an array of `width` floats a pair.
    pub(crate) fn zone_pairs<'a>(&self, pairs: &'a [f32], width: usize) -> &'a [f32] {
        &pairs[self.split.sinks * width..(self.split.tokens - self.split.tail) * width]
    }

    /// The sizes of this head.
    pub(crate) fn shape(&self) -> Result<Shape> {
        let dim = self.dims.dim as usize;
        Ok(Shape {
            dims: self.dims,
            tokens: counted(self.split.tokens)?,
            fixed: counted(self.split.sinks + self.split.tail)?,
            free: counted(self.split.free)?,
            solved: counted(self.solved.unwrap_or(self.split.free))?,
            training: counted(self.rows.training.len() / dim)?,
            validation: counted(self.rows.validation.len() / dim)?,
            probe: counted(self.rows.probe.len() / dim)?,
        })
    }

    /// Appends keys as the engine sees them: with a bias of 0, where keys have one.
    pub(crate) fn push_keys(&self, keys: &[f32], target: &mut Vec<f32>) {
        match self.constant {
            Some(_) => bias::widen(keys, self.key_dim, 0.0, target),
            None => target.extend_from_slice(keys),
        }
    }

    /// All keys of a student as the engine sees them: sinks, the given free ones, tail.
    pub(crate) fn assemble_wide(&self, free: &[f32], target: &mut Vec<f32>) {
        self.push_keys(&self.keys[..self.split.sinks * self.key_dim], target);
        target.extend_from_slice(free);
        self.push_keys(&self.keys[(self.split.tokens - self.split.tail) * self.key_dim..], target);
    }

    /// A whole head of an array of `width` floats a pair: sinks, the given free pairs, tail.
    pub(crate) fn assemble(&self, pairs: &[f32], free: &[f32], width: usize, target: &mut Vec<f32>) {
        target.extend_from_slice(&pairs[..self.split.sinks * width]);
        target.extend_from_slice(free);
        target.extend_from_slice(&pairs[(self.split.tokens - self.split.tail) * width..]);
    }
}

fn counted(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::shape("capture", format!("{number} is more than 32 bits count")))
}
