//! How much what the model says reacts to an error in one layer, or in one head of it.
//!
//! One piece of the cache, a layer or a KV head, is replaced by a short one while everything else stays full, and the tokens
//! that follow are read again: KL(full ‖ this). To first order KL is quadratic in a perturbation, and the merged error
//! ([`kvsculpt::solver::Errors`]) is a squared relative one, so their ratio, the **sensitivity**, depends little on how the piece
//! was shortened: a piece whose merged error is e costs about sensitivity · e nats a token.
//!
//! Over several texts the sensitivity is `Σ KL / Σ error`, the quotient of the sums. That is the mean of the texts' own quotients
//! weighted by their errors: a text that hardly disturbs a piece says little about it, and its quotient, one tiny number divided
//! by another, would dominate a plain mean. It is also the one number that gives back the KL that was measured in all.
//!
//! A quotient of two roundings means nothing. The path's own rounding is measured: the KL of a cache that keeps everything
//! but goes the way of a compressed one. KL being quadratic, a measured KL of [`CLEAR`] times that is known to
//! `2 / √CLEAR` = 20 %; below, or where the error itself is within single precision, there is no sensitivity.

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Distributions, Divergence};
use crate::model::{Cache, HeadPairs, Memory, Model, Pairs, Seen, Watch};

/// How many times the path's own rounding a KL must be to count.
pub const CLEAR: f64 = 100.0;
/// A merged error must be more than this to count: outputs are sums in single precision, right to about 1e-6 of their size, and
/// the error is that squared, times [`CLEAR`].
pub const LEAST_ERROR: f64 = 1e-10;
/// The square of single precision's spacing: no path rounds less, even where its measured noise is smaller.
const LEAST_NOISE: f64 = 1.4e-14;

/// What it did to replace a piece of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Mean KL(full ‖ this) over the tokens that follow, in nats.
    pub kl: f64,
    /// Merged error on their queries; of a layer, the mean over its KV heads.
    pub error: f64,
}

/// What it did to replace a layer, and each of its KV heads alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerEffect {
    /// The layer.
    pub layer: usize,
    /// All heads at once.
    pub whole: Effect,
    /// Each head alone, in their order; empty where only layers were measured.
    pub heads: Vec<Effect>,
}

/// `Σ KL / Σ error` over texts, for mean figures `kl` and `error`; `noise`: the largest KL of a cache that keeps everything.
///
/// None where either figure is within rounding (see the [module](self)). That is where `kl ≤ 100 · max(noise, 1.4e-14)`: then the
/// quotient is at most `100 · max(noise, 1.4e-14) / error`. And it is where `error ≤ 1e-10` ([`LEAST_ERROR`]): then nothing is
/// known, that bound included.
#[must_use]
pub fn sensitivity(of: Effect, noise: f64) -> Option<f64> {
    (of.kl > CLEAR * noise.max(LEAST_NOISE) && of.error > LEAST_ERROR).then(|| of.kl / of.error)
}

/// Tokens that were read over a full cache and can be read again from any layer on, over another memory of that layer.
#[derive(Debug)]
pub struct Replay<'a> {
    model: &'a Model,
    cache: &'a Cache,
    /// The states before each layer, `[tokens, hidden]`.
    states: Vec<Tensor>,
    full: Distributions,
}

impl<'a> Replay<'a> {
    /// Reads `tokens`, which follow the sealed `cache`.
    ///
    /// # Errors
    /// No tokens, or what candle reports.
    pub fn new(model: &'a Model, cache: &'a Cache, tokens: &[u32]) -> Result<Self> {
        let mut states = States(Vec::with_capacity(cache.layers.len()));
        let hidden = model.forward(tokens, &mut cache.clone(), &mut states)?;
        Ok(Self {
            model,
            cache,
            states: states.0,
            full: Distributions::new(&model.logits(&hidden)?)?,
        })
    }

    /// Mean KL(full ‖ this) where `layer` remembers `memory` and every other layer everything. Runs from `layer` on only: what
    /// comes before does not see the change.
    ///
    /// # Errors
    /// A layer the model does not have, or what candle reports.
    pub fn divergence(&self, layer: usize, memory: Memory) -> Result<f64> {
        let mut cache = self.cache.clone();
        let place = cache.layers.get_mut(layer).with_context(|| format!("there is no layer {layer}"))?;
        place.memory = Some(memory);
        self.from(layer, cache)
    }

    /// Mean KL(full ‖ this) where every layer keeps everything but is read the way a compressed one is, its pairs in reverse:
    /// rounding, and nothing else. In their own order the sums would be the full cache's to the last bit, and no measure of what another
    /// length does to them.
    ///
    /// # Errors
    /// As [`divergence`](Self::divergence).
    pub fn noise(&self) -> Result<f64> {
        let mut cache = self.cache.clone();
        for (layer, place) in cache.layers.iter_mut().enumerate() {
            let reversed = self.everything(layer)?.iter().map(reversed).collect::<Result<_>>()?;
            place.memory = Some(Memory::Ragged(reversed));
        }
        self.from(0, cache)
    }

    /// What it does to replace a layer's heads by those of `short`, all at once and, with `by_head`, each alone; `errors` are the
    /// heads' merged errors.
    ///
    /// # Errors
    /// Other heads than the layer's, an error that is no number, or as [`divergence`](Self::divergence).
    pub fn effect(&self, layer: usize, short: &[HeadPairs], errors: &[f64], by_head: bool) -> Result<LayerEffect> {
        let full = self.everything(layer)?;
        ensure!(
            short.len() == full.len() && errors.len() == full.len(),
            "layer {layer} has {} KV heads; {} short ones came with {} errors",
            full.len(),
            short.len(),
            errors.len()
        );
        ensure!(
            errors.iter().all(|error| error.is_finite()),
            "layer {layer}: an error on the queries that follow is no number"
        );
        let whole = Effect {
            kl: self.divergence(layer, Memory::Ragged(short.to_vec()))?,
            error: errors.iter().sum::<f64>() / errors.len() as f64,
        };
        let alone = |head: usize| -> Result<Effect> {
            // A layer's only head is the layer.
            if full.len() == 1 {
                return Ok(whole);
            }
            let mut heads = full.clone();
            heads[head] = short[head].clone();
            Ok(Effect {
                kl: self.divergence(layer, Memory::Ragged(heads))?,
                error: errors[head],
            })
        };
        let measured = if by_head { full.len() } else { 0 };
        Ok(LayerEffect {
            layer,
            whole,
            heads: (0..measured).map(alone).collect::<Result<_>>()?,
        })
    }

    fn from(&self, layer: usize, mut cache: Cache) -> Result<f64> {
        let hidden = self.model.run(layer, self.states[layer].clone(), &mut cache, &mut ())?;
        let found = Distributions::new(&self.model.logits(&hidden)?)?;
        Ok(Divergence::new(&self.full, &found, &[])?.mean)
    }

    /// All pairs of a layer, head by head.
    fn everything(&self, layer: usize) -> Result<Vec<HeadPairs>> {
        let place = self.cache.layers.get(layer).with_context(|| format!("there is no layer {layer}"))?;
        by_head(place.even().with_context(|| format!("layer {layer} holds no full context"))?)
    }
}

/// The same pairs, the last one first.
fn reversed(head: &HeadPairs) -> Result<HeadPairs> {
    Ok(HeadPairs {
        key: head.key.flip(&[0])?,
        value: head.value.flip(&[0])?,
        bias: head.bias.as_ref().map(|bias| bias.flip(&[0])).transpose()?,
    })
}

fn by_head(pairs: &Pairs) -> Result<Vec<HeadPairs>> {
    let head = |head| -> Result<HeadPairs> {
        Ok(HeadPairs {
            key: pairs.key.get(head)?,
            value: pairs.value.get(head)?,
            bias: None,
        })
    };
    (0..pairs.key.dim(0)?).map(head).collect()
}

/// Keeps the states before each layer of one pass.
struct States(Vec<Tensor>);

impl Watch for States {
    fn layer(&mut self, _: usize, seen: &Seen) -> Result<()> {
        self.0.push(seen.input.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_within_rounding_has_no_sensitivity() {
        let of = |kl, error| sensitivity(Effect { kl, error }, 1e-9);
        assert_eq!(of(1e-3, 0.5), Some(2e-3));
        assert_eq!(of(0.9e-7, 0.5), None);
        assert_eq!(of(1.1e-7, 0.5), Some(1.1e-7 / 0.5));
        assert_eq!(of(1e-3, 1e-11), None);
        assert_eq!(of(1e-3, 0.0), None);
        // A path that happens to round nothing at all does not make every KL count.
        assert_eq!(sensitivity(Effect { kl: 1e-13, error: 0.5 }, 0.0), None);
    }
}
