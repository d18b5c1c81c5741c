//! The model reads a text, and goes on.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use kvsculpt::cache::Capture;

use crate::measure::Distributions;
use crate::model::{Cache, Config, Model, Watch};
use crate::record::{Recorder, capture};

/// Attention scores that are held at once, in numbers: 128 MiB.
const SCORES: usize = 1 << 25;
/// Tokens read at once, at most: beyond it products get no faster.
const MOST_ROWS: usize = 512;

/// A text as the model has read it.
#[derive(Debug)]
pub struct Reading {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The full cache, sealed.
    pub cache: Cache,
    /// Logits of the token that follows, `[1, vocabulary]`.
    pub next: Tensor,
    /// Seconds it took.
    pub seconds: f64,
    queries: Recorder,
}

impl Reading {
    /// Reads `tokens` from position 0 on, part by part; `progress` hears how many are read.
    ///
    /// # Errors
    /// No tokens, more than the model was trained for, or what candle reports.
    pub fn new(model: &Model, tokens: &[u32], progress: &mut dyn FnMut(usize)) -> Result<Self> {
        let config = model.config();
        ensure!(
            tokens.len() <= config.context_length,
            "the text has {} tokens and {} was trained for {}; give fewer",
            tokens.len(),
            config.name,
            config.context_length
        );
        let started = Instant::now();
        let mut cache = model.cache();
        let mut queries = Recorder::before_rope(model);
        let mut last = None;
        let mut read = 0;
        while read < tokens.len() {
            let rows = part(config, read).min(tokens.len() - read);
            let hidden = model.forward(&tokens[read..read + rows], &mut cache, &mut queries)?;
            last = Some(hidden.narrow(0, rows - 1, 1)?);
            read += rows;
            progress(read);
        }
        let next = model.logits(&last.context("there are no tokens to read")?)?;
        cache.seal()?;
        Ok(Self {
            tokens: tokens.to_vec(),
            cache,
            next,
            seconds: started.elapsed().as_secs_f64(),
            queries,
        })
    }

    /// What the model saw, as `kvsculpt` takes it; `probe`: what it saw of the text that followed.
    ///
    /// # Errors
    /// As [`capture`].
    pub fn capture(&self, name: &str, model: &Model, probe: Option<&Recorder>) -> Result<Capture> {
        capture(name, model.config(), &self.cache, &self.queries, probe)
    }
}

/// Tokens to read at once behind so many.
fn part(config: &Config, before: usize) -> usize {
    (SCORES / (config.heads * (before + MOST_ROWS))).clamp(16, MOST_ROWS)
}

/// What the model expects after each of `tokens`, which follow the cache; the cache itself stays as it is.
///
/// # Errors
/// No tokens, or what candle reports.
pub fn follow(model: &Model, cache: &Cache, tokens: &[u32], watch: &mut dyn Watch) -> Result<Distributions> {
    let hidden = model.forward(tokens, &mut cache.clone(), watch)?;
    Distributions::new(&model.logits(&hidden)?)
}
