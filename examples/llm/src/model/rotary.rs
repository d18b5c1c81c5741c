//! Rotary position embedding on candle's tensors.

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_nn::rotary_emb::{rope, rope_i};
use kvsculpt::cache::{Pairing, Rope};

/// Cosines and sines of a run of positions; one for all layers of a forward pass.
#[derive(Debug)]
pub(super) struct Angles {
    cosine: Tensor,
    sine: Tensor,
    pairing: Pairing,
}

impl Angles {
    /// `rows` positions from `first` on. Angles are computed in f64: at position 8192 a product in f32 is off by 5e-4.
    pub(super) fn new(rotary: &Rope, first: usize, rows: usize, device: &Device) -> Result<Self> {
        let shape = (rows, rotary.frequencies.len());
        let table = |of: fn(f64) -> f64| {
            let entries = (first..first + rows).flat_map(|position| {
                #[allow(clippy::cast_possible_truncation, reason = "computed in f64, kept in f32")]
                rotary
                    .frequencies
                    .iter()
                    .map(move |frequency| of(frequency * position as f64) as f32)
            });
            Tensor::from_iter(entries, device)?.reshape(shape)
        };
        Ok(Self {
            cosine: table(f64::cos)?,
            sine: table(f64::sin)?,
            pairing: rotary.pairing,
        })
    }

    /// `x: [heads, rows, dim]`, contiguous, each row turned to its position.
    pub(super) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.unsqueeze(0)?;
        let turned = match self.pairing {
            Pairing::Half => rope(&x, &self.cosine, &self.sine)?,
            Pairing::Interleaved => rope_i(&x, &self.cosine, &self.sine)?,
        };
        Ok(turned.squeeze(0)?)
    }
}
