//! Captures: what `kvsculpt` needs to see of a model reading a text.

use std::collections::BTreeMap;

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

/// The capture of a sealed cache: its keys and values, the queries of the passes that filled it, and, as probes, those of the
/// passes that followed it.
///
/// # Errors
/// A cache that is not sealed or is compressed, queries of other passes, or numbers that are not finite.
pub fn capture(name: &str, config: &Config, cache: &Cache, context: &Recorder, probe: Option<&Recorder>) -> Result<Capture> {
    let mut layers = Vec::with_capacity(config.layers);
    for (index, place) in cache.layers.iter().enumerate() {
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
            query: Some(context.queries(index)?),
            reference_query: None,
            probe_query: probe.map(|probe| probe.queries(index)).transpose()?,
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
