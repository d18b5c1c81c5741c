//! Softmax attention over a context, even or ragged, and the tokens that came after it.

use anyhow::Result;
use candle_core::{D, Device, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::cache::{HeadPairs, LayerCache, Memory, Pairs};

/// Hides from each new row the rows that come after it; one for all layers of a forward pass.
#[derive(Debug)]
pub(super) struct Causal {
    /// `[rows, recent]` of 0 and −∞; none where a single row sees everything.
    mask: Option<Tensor>,
}

impl Causal {
    /// For `rows` new rows behind `before` recent ones.
    pub(super) fn new(rows: usize, before: usize, device: &Device) -> Result<Self> {
        if rows == 1 {
            return Ok(Self { mask: None });
        }
        let recent = before + rows;
        let entries = (0..rows).flat_map(|row| (0..recent).map(move |seen| if seen <= before + row { 0.0_f32 } else { f32::NEG_INFINITY }));
        Ok(Self {
            mask: Some(Tensor::from_iter(entries, device)?.reshape((rows, recent))?),
        })
    }

    /// Applies to `scores: [heads, group · rows, recent]`.
    fn hide(&self, scores: Tensor) -> Result<Tensor> {
        let Some(mask) = &self.mask else { return Ok(scores) };
        let (heads, stacked, recent) = scores.dims3()?;
        let rows = mask.dim(0)?;
        let hidden = scores.reshape((heads, stacked / rows, rows, recent))?.broadcast_add(mask)?;
        Ok(hidden.reshape((heads, stacked, recent))?)
    }
}

/// `softmax(q [K_context; K_recent]ᵀ) [V_context; V_recent]` for `query: [heads, rows, dim]`, after RoPE and already scaled;
/// returns `[rows, heads · value_dim]`. Query head i reads KV head `i / (heads / kv_heads)`.
pub(super) fn attend(query: &Tensor, cache: &LayerCache, recent: &Pairs, causal: &Causal) -> Result<Tensor> {
    let (heads, rows, dim) = query.dims3()?;
    let kv_heads = recent.key.dim(0)?;
    let stacked = query.reshape((kv_heads, heads / kv_heads * rows, dim))?;
    let scores = causal.hide(stacked.matmul(&recent.key.t()?)?)?;
    let output = match &cache.memory {
        None => softmax_last_dim(&scores)?.matmul(&recent.value)?,
        Some(Memory::Even(context)) => merged(&stacked.matmul(&context.key.t()?)?, &context.value, &scores, &recent.value)?,
        Some(Memory::Ragged(context)) => {
            let outputs = context.iter().enumerate().map(|(head, context)| {
                let one = |tensor: &Tensor| tensor.narrow(0, head, 1);
                merged(
                    &biased(&one(&stacked)?, context)?,
                    &context.value.unsqueeze(0)?,
                    &one(&scores)?,
                    &one(&recent.value)?,
                )
            });
            Tensor::cat(&outputs.collect::<Result<Vec<_>>>()?, 0)?
        }
    };
    let value_dim = output.dim(D::Minus1)?;
    let by_row = output.reshape((heads, rows, value_dim))?.transpose(0, 1)?;
    Ok(by_row.reshape((rows, heads * value_dim))?)
}

/// `q Kᵀ + β` of one head: `[1, group · rows, length]`.
fn biased(query: &Tensor, context: &HeadPairs) -> Result<Tensor> {
    let scores = query.matmul(&context.key.t()?.unsqueeze(0)?)?;
    Ok(match &context.bias {
        Some(bias) => scores.broadcast_add(bias)?,
        None => scores,
    })
}

/// One softmax over both parts, each part's weights times its own values.
fn merged(context: &Tensor, context_value: &Tensor, recent: &Tensor, recent_value: &Tensor) -> Result<Tensor> {
    let (length, new) = (context.dim(D::Minus1)?, recent.dim(D::Minus1)?);
    let weights = softmax_last_dim(&Tensor::cat(&[context, recent], D::Minus1)?)?;
    let over_context = weights.narrow(D::Minus1, 0, length)?.matmul(context_value)?;
    let over_recent = weights.narrow(D::Minus1, length, new)?.matmul(recent_value)?;
    Ok((over_context + over_recent)?)
}
