//! Captures: what `kvsculpt` needs to see of a model reading a text.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use kvsculpt::cache::{self, Capture, Dtype, Layer, Queries};

use crate::model::{Cache, Config, Model, Seen, Watch};

/// Collects every layer's queries of the passes it watches.
#[derive(Debug)]
pub struct Recorder {
    turned: bool,
    /// Of each layer, a tensor `[heads, rows, dim]` a pass.
    layers: Vec<Vec<Tensor>>,
}

impl Recorder {
    /// Collects queries before RoPE: the context's.
    #[must_use]
    pub fn before_rope(model: &Model) -> Self {
        Self::new(model, false)
    }

    /// Collects queries after RoPE: probes.
    #[must_use]
    pub fn after_rope(model: &Model) -> Self {
        Self::new(model, true)
    }

    fn new(model: &Model, turned: bool) -> Self {
        Self {
            turned,
            layers: vec![Vec::new(); model.config().layers],
        }
    }

    /// A layer's queries of all passes, `[query_heads, rows, dim]`.
    fn queries(&self, layer: usize) -> Result<Queries> {
        let joined = Tensor::cat(&self.layers[layer], 1)?;
        Ok(Queries {
            rows: joined.dim(1)?,
            data: floats(&joined)?,
        })
    }
}

impl Watch for Recorder {
    fn layer(&mut self, layer: usize, seen: &Seen) -> Result<()> {
        let queries = if self.turned { &seen.turned } else { &seen.query };
        self.layers[layer].push(queries.clone());
        Ok(())
    }
}

/// The queries that a capture holds.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Of the passes that filled the cache, before RoPE.
    pub context: &'a Recorder,
    /// What heads are to be fitted to in place of the context's queries, after RoPE.
    pub reference: Option<&'a Recorder>,
    /// What results are judged by, after RoPE.
    pub probe: Option<&'a Recorder>,
}

/// The capture of these layers of a sealed cache: their keys and values, and the queries.
///
/// # Errors
/// A cache that is not sealed or is compressed, queries of other passes, or numbers that are not finite.
pub fn capture(name: &str, config: &Config, cache: &Cache, chosen: Range<usize>, asked: Asked<'_>) -> Result<Capture> {
    let mut layers = Vec::with_capacity(chosen.len());
    for index in chosen {
        let place = cache.layers.get(index).with_context(|| format!("the cache has no layer {index}"))?;
        let pairs = place
            .even()
            .with_context(|| format!("layer {index} holds no full context: seal the cache first; a compressed one cannot be captured"))?;
        let (kv_heads, tokens, dim) = pairs.key.dims3()?;
        ensure!(
            tokens == cache.position,
            "the cache has {tokens} tokens and is at position {}",
            cache.position
        );
        layers.push(Layer {
            index,
            kv_heads,
            query_heads: config.heads,
            tokens,
            dim,
            value_dim: pairs.value.dim(2)?,
            dtype: Dtype::F32,
            key: floats(&pairs.key)?,
            value: floats(&pairs.value)?,
            query: Some(asked.context.queries(index)?),
            reference_query: asked.reference.map(|reference| reference.queries(index)).transpose()?,
            probe_query: asked.probe.map(|probe| probe.queries(index)).transpose()?,
        });
    }
    let metadata = BTreeMap::from([
        ("model".to_owned(), config.name.clone()),
        ("architecture".to_owned(), config.architecture.clone()),
    ]);
    let about = cache::Context {
        tokens: cache.position,
        next_position: cache.position,
        scale: config.scale(),
        rope_theta: config.rope_theta,
        rope_dim: config.dim,
        pairing: config.rope.pairing,
        rope_scaling: config.rope_scaling.clone(),
        metadata,
    };
    Ok(Capture::from_layers(name, about, layers)?)
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
