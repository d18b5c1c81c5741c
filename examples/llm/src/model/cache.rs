//! The key-value cache: a context, long or compressed, and the tokens that came after it.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use kvsculpt::cache::{Compressed, CompressedLayer};

use super::config::Config;

/// Keys `[kv_heads, length, dim]` and values `[kv_heads, length, value_dim]`, keys after RoPE.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// Keys.
    pub key: Tensor,
    /// Values.
    pub value: Tensor,
}

impl Pairs {
    /// Pairs of each head.
    ///
    /// # Errors
    /// Tensors of another rank.
    pub fn length(&self) -> Result<usize> {
        Ok(self.key.dim(1)?)
    }
}

/// One KV head of a compressed layer.
#[derive(Clone, Debug)]
pub struct HeadPairs {
    /// `[length, dim]`.
    pub key: Tensor,
    /// `[length, value_dim]`.
    pub value: Tensor,
    /// `[length]`, added to the scaled logits.
    pub bias: Option<Tensor>,
}

/// What a layer remembers of the context.
#[derive(Clone, Debug)]
pub enum Memory {
    /// All heads alike: the full cache.
    Even(Pairs),
    /// Every head with its own length: a compressed cache.
    Ragged(Vec<HeadPairs>),
}

/// One layer's cache. Tensors are shared and never written to, so a clone is cheap and independent.
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    /// The context; none before the first [`Cache::seal`].
    pub memory: Option<Memory>,
    /// What was appended since.
    pub recent: Option<Pairs>,
}

impl LayerCache {
    /// Appends a step's pairs and returns all that are recent.
    pub(super) fn append(&mut self, step: Pairs) -> Result<&Pairs> {
        let joined = match self.recent.take() {
            None => step,
            Some(before) => Pairs {
                key: Tensor::cat(&[&before.key, &step.key], 1)?,
                value: Tensor::cat(&[&before.value, &step.value], 1)?,
            },
        };
        Ok(self.recent.insert(joined))
    }

    /// The context's pairs where all heads have the same.
    #[must_use]
    pub fn even(&self) -> Option<&Pairs> {
        match &self.memory {
            Some(Memory::Even(pairs)) => Some(pairs),
            _ => None,
        }
    }
}

/// The cache of all layers.
#[derive(Clone, Debug)]
pub struct Cache {
    /// One a layer.
    pub layers: Vec<LayerCache>,
    /// The next token's position; with a compressed context more than what is stored.
    pub position: usize,
}

impl Cache {
    /// An empty cache for so many layers.
    #[must_use]
    pub fn new(layers: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); layers],
            position: 0,
        }
    }

    /// Makes what was appended the context. Appending copies what is recent, so a long text is sealed before decoding.
    ///
    /// # Errors
    /// If there is a context already: what was appended to one cannot become part of it.
    pub fn seal(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            ensure!(layer.memory.is_none(), "the cache has a context already");
            layer.memory = layer.recent.take().map(Memory::Even);
        }
        Ok(())
    }

    /// This cache with the layers of `short` in place of its own; layers that `short` does not have, and the next position,
    /// stay.
    ///
    /// # Errors
    /// A layer the model does not have, or one with other heads or channels than the full context it stands for.
    pub fn compressed(&self, short: &Compressed, device: &Device) -> Result<Self> {
        let mut cache = self.clone();
        for layer in &short.layers {
            let place = cache.layers.get_mut(layer.index);
            let Some(place) = place else {
                anyhow::bail!(
                    "the compressed cache has a layer {}, the model has {}",
                    layer.index,
                    self.layers.len()
                );
            };
            if let Some(pairs) = place.even() {
                let (heads, _, dim) = pairs.key.dims3()?;
                ensure!(
                    heads == layer.lengths.len() && dim == layer.dim && pairs.value.dim(2)? == layer.value_dim,
                    "layer {} of the compressed cache has {} heads of {} and {} channels, the model's has {heads} of {dim}",
                    layer.index,
                    layer.lengths.len(),
                    layer.dim,
                    layer.value_dim
                );
            }
            place.memory = Some(Memory::Ragged(heads(layer, device)?));
        }
        Ok(cache)
    }

    /// The cache that a compressed file alone makes; new tokens follow at its next position.
    ///
    /// # Errors
    /// A file that lacks one of the model's layers or the next position, or whose heads or channels are not the model's.
    pub fn from_compressed(config: &Config, short: &Compressed, device: &Device) -> Result<Self> {
        let mut cache = Self::new(config.layers);
        cache.position = short.next_position()?;
        for layer in &short.layers {
            ensure!(
                layer.index < config.layers
                    && layer.lengths.len() == config.kv_heads
                    && (layer.dim, layer.value_dim) == (config.dim, config.dim),
                "layer {} of the compressed cache has {} heads of {} channels; {} has {} layers with {} heads of {}",
                layer.index,
                layer.lengths.len(),
                layer.dim,
                config.name,
                config.layers,
                config.kv_heads,
                config.dim
            );
            cache.layers[layer.index].memory = Some(Memory::Ragged(heads(layer, device)?));
        }
        let missing = cache.layers.iter().position(|layer| layer.memory.is_none());
        ensure!(
            missing.is_none(),
            "the compressed cache lacks layer {}; compress all layers",
            missing.unwrap_or_default()
        );
        Ok(cache)
    }

    /// Bytes of keys, values and biases that are stored.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let pairs = |pairs: &Pairs| of(&pairs.key) + of(&pairs.value);
        let head = |head: &HeadPairs| of(&head.key) + of(&head.value) + head.bias.as_ref().map_or(0, of);
        let layer = |layer: &LayerCache| {
            let memory = match &layer.memory {
                None => 0,
                Some(Memory::Even(even)) => pairs(even),
                Some(Memory::Ragged(heads)) => heads.iter().map(head).sum(),
            };
            memory + layer.recent.as_ref().map_or(0, pairs)
        };
        self.layers.iter().map(layer).sum()
    }
}

/// A compressed layer's heads as tensors.
fn heads(layer: &CompressedLayer, device: &Device) -> Result<Vec<HeadPairs>> {
    let tensors = layer.heads().map(|head| {
        let bias = head.bias.map(|bias| Tensor::from_slice(bias, head.length, device));
        Ok(HeadPairs {
            key: Tensor::from_slice(head.key, (head.length, layer.dim), device)?,
            value: Tensor::from_slice(head.value, (head.length, layer.value_dim), device)?,
            bias: bias.transpose()?,
        })
    });
    tensors.collect()
}
