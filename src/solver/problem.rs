//! One head's problem, cut out of its layer.

use std::sync::Arc;

use super::bias;
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
    pub(crate) keys: Arc<[f32]>,
    /// `[tokens, value_dim]`.
    pub(crate) values: Arc<[f32]>,
    pub(crate) rows: Rows,
}

impl Problem {
    /// Head `head` of a layer, with its rows drawn and turned.
    pub(crate) fn new(capture: &Capture, layer: &Layer, head: usize, split: Split, options: &Options) -> Result<Self> {
        let keys = layer.tokens * layer.dim;
        let values = layer.tokens * layer.value_dim;
        let mut rows = rows(capture, layer, head, split, options)?;
        let constant = options.has_bias().then(|| bias::widen_rows(&mut rows, layer.dim));
        Ok(Self {
            layer: layer.index,
            head,
            dims: Dims {
                dim: count(layer.dim + if options.has_bias() { bias::CHANNELS } else { 0 })?,
                value_dim: count(layer.value_dim)?,
            },
            key_dim: layer.dim,
            constant,
            split,
            solved: None,
            keys: layer.key[head * keys..(head + 1) * keys].into(),
            values: layer.value[head * values..(head + 1) * values].into(),
            rows,
        })
    }

    /// The same head with `free` free pairs, values solved for at most `solved` of them, and at most about `most` of its training
    /// rows, for its error curve. Without validation rows every fourth of those is held out.
    pub(crate) fn sampled(&self, free: usize, solved: usize, most: usize) -> Self {
        let dim = self.dims.dim as usize;
        let count = self.rows.training.len() / dim;
        let stride = count.div_ceil(most.max(1)).max(1);
        let mut rows = Rows {
            validation: self.rows.validation.clone(),
            ..Rows::default()
        };
        let holds_out = rows.validation.is_empty() && count / stride >= 4;
        for (place, row) in self.rows.training.chunks_exact(dim).step_by(stride).enumerate() {
            let target = if holds_out && place % 4 == 2 {
                &mut rows.validation
            } else {
                &mut rows.training
            };
            target.extend_from_slice(row);
        }
        Self {
            layer: self.layer,
            head: self.head,
            dims: self.dims,
            key_dim: self.key_dim,
            constant: self.constant,
            split: Split { free, ..self.split },
            solved: Some(solved),
            keys: Arc::clone(&self.keys),
            values: Arc::clone(&self.values),
            rows,
        }
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
            tokens: count(self.split.tokens)?,
            fixed: count(self.split.sinks + self.split.tail)?,
            free: count(self.split.free)?,
            solved: count(self.solved.unwrap_or(self.split.free))?,
            training: count(self.rows.training.len() / dim)?,
            validation: count(self.rows.validation.len() / dim)?,
            probe: count(self.rows.probe.len() / dim)?,
        })
    }

    /// Appends keys as the engine sees them: with a bias of 0, where keys have one.
    pub(crate) fn push_keys(&self, keys: &[f32], target: &mut Vec<f32>) {
        match self.constant {
            Some(_) => bias::widen(keys, self.key_dim, 0.0, target),
            None => target.extend_from_slice(keys),
        }
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
