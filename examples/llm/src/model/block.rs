//! One transformer layer.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::ops::{rms_norm, silu};

use super::attention::{Causal, attend};
use super::cache::{LayerCache, Pairs};
use super::config::Config;
use super::linear::Linear;
use super::rotary::Angles;

/// A root-mean-square norm.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub(super) weight: Tensor,
    pub(super) epsilon: f64,
}

impl Norm {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        #[allow(clippy::cast_possible_truncation, reason = "candle takes it in f32")]
        Ok(rms_norm(x, &self.weight, self.epsilon as f32)?)
    }
}

/// One transformer layer's weights.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) feed_forward_norm: Norm,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// What a layer sees of a step, for those who record it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The states it begins with, `[rows, hidden]`.
    pub input: Tensor,
    /// Queries before RoPE, `[heads, rows, dim]`.
    pub query: Tensor,
    /// Queries after RoPE, not scaled, `[heads, rows, dim]`.
    pub turned: Tensor,
}

impl Block {
    /// `hidden: [rows, hidden]` at the positions of `angles`; its pairs are appended to the cache.
    pub(super) fn forward(
        &self,
        config: &Config,
        hidden: &Tensor,
        cache: &mut LayerCache,
        angles: &Angles,
        causal: &Causal,
    ) -> Result<(Tensor, Seen)> {
        let x = self.attention_norm.forward(hidden)?;
        let query = by_head(&self.query.forward(&x)?, config.heads)?;
        let key = by_head(&self.key.forward(&x)?, config.kv_heads)?;
        let value = by_head(&self.value.forward(&x)?, config.kv_heads)?;
        let turned = angles.rotate(&query)?;
        let step = Pairs {
            key: angles.rotate(&key)?,
            value,
        };
        let recent = cache.append(step)?.clone();
        let attended = attend(&(&turned * config.scale())?, cache, &recent, causal)?;
        let after = (hidden + self.output.forward(&attended)?)?;
        let x = self.feed_forward_norm.forward(&after)?;
        let gated = (silu(&self.gate.forward(&x)?)? * self.up.forward(&x)?)?;
        let seen = Seen {
            input: hidden.clone(),
            query,
            turned,
        };
        Ok(((after + self.down.forward(&gated)?)?, seen))
    }
}

/// `[rows, heads · dim]` → `[heads, rows, dim]`.
fn by_head(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, channels) = x.dims2()?;
    Ok(x.reshape((rows, heads, channels / heads))?.transpose(0, 1)?.contiguous()?)
}
