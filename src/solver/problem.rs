//! One head's problem, cut out of its layer.

use super::rows::{Rows, rows};
use crate::batch::Shape;
use crate::cache::{Capture, Layer};
use crate::engine::Dims;
use crate::error::{Error, Result};
use crate::options::{Options, Split};

/// One KV head: its cache, its rows, how its pairs are divided.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) layer: usize,
    pub(crate) head: usize,
    pub(crate) dims: Dims,
    pub(crate) split: Split,
    /// `[tokens, dim]`, after RoPE.
    pub(crate) keys: Vec<f32>,
    /// `[tokens, value_dim]`.
    pub(crate) values: Vec<f32>,
    pub(crate) rows: Rows,
}

impl Problem {
    /// Head `head` of a layer, with its rows drawn and turned.
    pub(crate) fn new(capture: &Capture, layer: &Layer, head: usize, split: Split, options: &Options) -> Result<Self> {
        let keys = layer.tokens * layer.dim;
        let values = layer.tokens * layer.value_dim;
        Ok(Self {
            layer: layer.index,
            head,
            dims: Dims {
                dim: count(layer.dim)?,
                value_dim: count(layer.value_dim)?,
            },
            split,
            keys: layer.key[head * keys..(head + 1) * keys].to_vec(),
            values: layer.value[head * values..(head + 1) * values].to_vec(),
            rows: rows(capture, layer, head, split, options)?,
        })
    }

    /// The sizes of this head.
    pub(crate) fn shape(&self) -> Result<Shape> {
        let dim = self.dims.dim as usize;
        Ok(Shape {
            dims: self.dims,
            tokens: count(self.split.tokens)?,
            fixed: count(self.split.sinks + self.split.tail)?,
            free: count(self.split.free)?,
            training: count(self.rows.training.len() / dim)?,
            validation: count(self.rows.validation.len() / dim)?,
            probe: count(self.rows.probe.len() / dim)?,
        })
    }

    /// Appends the sinks' and the tail's part of an array of `width` floats a pair.
    pub(crate) fn fixed_pairs(&self, pairs: &[f32], width: usize, target: &mut Vec<f32>) {
        target.extend_from_slice(&pairs[..self.split.sinks * width]);
        target.extend_from_slice(&pairs[(self.split.tokens - self.split.tail) * width..]);
    }

    /// A whole head of an array of `width` floats a pair: sinks, the given free pairs, tail.
    pub(crate) fn assemble(&self, pairs: &[f32], free: &[f32], width: usize, target: &mut Vec<f32>) {
        target.extend_from_slice(&pairs[..self.split.sinks * width]);
        target.extend_from_slice(free);
        target.extend_from_slice(&pairs[(self.split.tokens - self.split.tail) * width..]);
    }
}

fn count(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::shape("capture", format!("{number} is more than 32 bits count")))
}
