//! The model: its shape and weights from a GGUF file, its forward pass, its cache.
//!
//! candle's own models keep their cache private and their queries to themselves. This forward pass is written over the same
//! tensors so that both can be seen: queries before RoPE, keys and values are what [`kvsculpt`] compresses, and attention runs
//! over what comes back, every head with its own number of pairs. `tests/model.rs` holds its logits to candle's.

mod attention;
mod block;
mod cache;
mod config;
mod linear;
mod rotary;

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::quantized::gguf_file::{Content, TensorInfo};
use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Module};

use attention::Causal;
use block::{Block, Norm};
use linear::Linear;
use rotary::Angles;

pub use block::Seen;
pub use cache::{Cache, HeadPairs, LayerCache, Memory, Pairs};
pub use config::Config;
pub use linear::Products;

/// Follows a forward pass, layer by layer.
pub trait Watch {
    /// Called after each layer.
    ///
    /// # Errors
    /// Whatever ends the pass.
    fn layer(&mut self, layer: usize, seen: &Seen) -> Result<()>;
}

/// Watches nothing.
impl Watch for () {
    fn layer(&mut self, _: usize, _: &Seen) -> Result<()> {
        Ok(())
    }
}

/// A language model, ready to run.
#[derive(Clone, Debug)]
pub struct Model {
    config: Config,
    device: Device,
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: Norm,
    output: Linear,
}

impl Model {
    /// Reads a GGUF file: its metadata (the tokenizer's among them) and the model; without `products` those that
    /// [fit](Products::fitting).
    ///
    /// # Errors
    /// A file that cannot be read or is no GGUF file, and whatever [`Config::new`] refuses, with the path.
    pub fn open(path: &Path, device: &Device, products: Option<Products>) -> Result<(Content, Self)> {
        let opened = || -> Result<(Content, Self)> {
            let mut file = BufReader::new(File::open(path)?);
            let content = Content::read(&mut file).context("is no GGUF file, or one cut short")?;
            let (length, needed) = (file.get_ref().metadata()?.len(), end_of_tensors(&content));
            ensure!(length >= needed, "is cut short: {length} of {needed} bytes; download it again");
            let products = products.unwrap_or_else(|| Products::fitting(&content));
            let model = Self::new(&content, &mut file, device, products)?;
            Ok((content, model))
        };
        opened().with_context(|| path.display().to_string())
    }

    /// The same from an open file.
    ///
    /// # Errors
    /// As [`open`](Self::open), without the path.
    pub fn new<R: Read + Seek>(content: &Content, file: &mut R, device: &Device, products: Products) -> Result<Self> {
        const FACTORS: &str = "rope_freqs.weight";
        let mut weights = Weights {
            content,
            file,
            device,
            products,
        };
        let factors = weights.optional(FACTORS)?.map(|factors| factors.to_vec1::<f32>()).transpose()?;
        let config = Config::new(content, factors.as_deref())?;
        let blocks = (0..config.layers).map(|layer| weights.block(layer, config.epsilon));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        let embedding = weights.tensor("token_embd.weight")?;
        ensure!(
            embedding.dim(1)? == config.hidden,
            "`token_embd.weight` has {} channels, the metadata say {}",
            embedding.dim(1)?,
            config.hidden
        );
        // Small models read and write words with the same matrix.
        let tied = !content.tensor_infos.contains_key("output.weight");
        let output = match (tied, products) {
            (true, Products::Widened) => Linear::wide(embedding.clone()),
            (true, _) => weights.linear("token_embd")?,
            (false, _) => weights.linear("output")?,
        };
        Ok(Self {
            norm: weights.norm("output_norm", config.epsilon)?,
            device: device.clone(),
            embedding: Embedding::new(embedding, config.hidden),
            blocks,
            output,
            config,
        })
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the model computes.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// An empty cache.
    #[must_use]
    pub fn cache(&self) -> Cache {
        Cache::new(self.config.layers)
    }

    /// The states before the first layer, `[tokens, hidden]`.
    ///
    /// # Errors
    /// No tokens, or one beyond the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        ensure!(!tokens.is_empty(), "there are no tokens to read");
        Ok(self.embedding.forward(&Tensor::new(tokens, &self.device)?)?)
    }

    /// Runs layers `first..` over `hidden: [rows, hidden]`, whose tokens follow the cache, and appends their pairs to it;
    /// returns the states after the last layer. Layers before `first` are left as they are: the caller has their states.
    ///
    /// # Errors
    /// What candle reports, and what `watch` does.
    pub fn run(&self, first: usize, hidden: Tensor, cache: &mut Cache, watch: &mut dyn Watch) -> Result<Tensor> {
        let rows = hidden.dim(0)?;
        let Some(place) = cache.layers.get(first) else { return Ok(hidden) };
        let before = place.recent.as_ref().map_or(Ok(0), Pairs::length)?;
        let angles = Angles::new(&self.config.rope, cache.position, rows, &self.device)?;
        let causal = Causal::new(rows, before, &self.device)?;
        let mut hidden = hidden;
        for (layer, (block, place)) in self.blocks.iter().zip(&mut cache.layers).enumerate().skip(first) {
            let (next, seen) = block.forward(&self.config, &hidden, place, &angles, &causal)?;
            watch.layer(layer, &seen)?;
            hidden = next;
        }
        cache.position += rows;
        Ok(hidden)
    }

    /// Reads tokens that follow the cache; returns the states after the last layer, `[tokens, hidden]`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed) and [`run`](Self::run).
    pub fn forward(&self, tokens: &[u32], cache: &mut Cache, watch: &mut dyn Watch) -> Result<Tensor> {
        self.run(0, self.embed(tokens)?, cache, watch)
    }

    /// Logits of the next token, `[rows, vocabulary]`, from states after the last layer.
    ///
    /// # Errors
    /// What candle reports.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.output.forward(&self.norm.forward(hidden)?)
    }
}

/// The least length of a file with these tensors.
fn end_of_tensors(content: &Content) -> u64 {
    let end = |tensor: &TensorInfo| {
        let blocks = tensor.shape.elem_count() / tensor.ggml_dtype.block_size();
        content.tensor_data_offset + tensor.offset + (blocks * tensor.ggml_dtype.type_size()) as u64
    };
    content.tensor_infos.values().map(end).max().unwrap_or(0)
}

/// Reads tensors by name.
struct Weights<'a, R> {
    content: &'a Content,
    file: &'a mut R,
    device: &'a Device,
    products: Products,
}

impl<R: Read + Seek> Weights<'_, R> {
    /// A small tensor, widened.
    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let stored = self.content.tensor(self.file, name, self.device);
        Ok(stored.with_context(|| format!("tensor `{name}`"))?.dequantize(self.device)?)
    }

    fn optional(&mut self, name: &str) -> Result<Option<Tensor>> {
        let present = self.content.tensor_infos.contains_key(name);
        present.then(|| self.tensor(name)).transpose()
    }

    fn linear(&mut self, name: &str) -> Result<Linear> {
        let weight = format!("{name}.weight");
        let stored = self.content.tensor(self.file, &weight, self.device);
        let bias = self.optional(&format!("{name}.bias"))?;
        Linear::new(stored.with_context(|| format!("tensor `{weight}`"))?, bias, self.products)
    }

    fn norm(&mut self, name: &str, epsilon: f64) -> Result<Norm> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        Ok(Norm { weight, epsilon })
    }

    fn block(&mut self, layer: usize, epsilon: f64) -> Result<Block> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        Ok(Block {
            attention_norm: self.norm(&name("attn_norm"), epsilon)?,
            query: self.linear(&name("attn_q"))?,
            key: self.linear(&name("attn_k"))?,
            value: self.linear(&name("attn_v"))?,
            output: self.linear(&name("attn_output"))?,
            feed_forward_norm: self.norm(&name("ffn_norm"), epsilon)?,
            gate: self.linear(&name("ffn_gate"))?,
            up: self.linear(&name("ffn_up"))?,
            down: self.linear(&name("ffn_down"))?,
        })
    }
}
