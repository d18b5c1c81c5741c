//! The model reads a text, and goes on.

use std::ops::Range;
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::Tensor;
use kvsculpt::cache::Capture;

use crate::measure::Distributions;
use crate::model::{Cache, Config, Model, Watch};
use crate::record::{Asked, Recorder, capture};

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
        ensure!(!tokens.is_empty(), "there are no tokens to read");
        let started = Instant::now();
        let mut cache = model.cache();
        let mut queries = Recorder::before_rope(model);
        go_on(model, &mut cache, tokens, &mut queries, &mut |_, read| {
            progress(read);
            Ok(())
        })?;
        cache.seal()?;
        Ok(Self {
            tokens: tokens.to_vec(),
            cache,
            seconds: started.elapsed().as_secs_f64(),
            queries,
        })
    }

    /// What the model saw, as `kvsculpt` takes it; `probe`: what it saw of the text that followed.
    ///
    /// # Errors
    /// As [`capture`].
    pub fn capture(&self, name: &str, model: &Model, probe: Option<&Recorder>) -> Result<Capture> {
        self.capture_of(name, model, 0..model.config().layers, None, probe)
    }

    /// The same of some layers, whose heads are to be fitted to the queries of `reference` where that is given.
    ///
    /// # Errors
    /// As [`capture`].
    pub fn capture_of(
        &self,
        name: &str,
        model: &Model,
        layers: Range<usize>,
        reference: Option<&Recorder>,
        probe: Option<&Recorder>,
    ) -> Result<Capture> {
        let asked = Asked {
            context: &self.queries,
            reference,
            probe,
        };
        capture(name, model.config(), &self.cache, layers, asked)
    }
}

/// Tokens to read at once behind so many.
fn part(config: &Config, before: usize) -> usize {
    (SCORES / (config.heads * (before + MOST_ROWS))).clamp(16, MOST_ROWS)
}

/// Reads tokens that follow the cache and appends them to it, part by part; `each` gets the states after the last layer of every
/// part, `[rows, hidden]`, and how many tokens are read with it.
///
/// # Errors
/// More tokens than the model was trained for, what candle reports, or what `each` or `watch` does.
pub fn go_on(
    model: &Model,
    cache: &mut Cache,
    tokens: &[u32],
    watch: &mut dyn Watch,
    each: &mut dyn FnMut(&Tensor, usize) -> Result<()>,
) -> Result<()> {
    let config = model.config();
    let end = cache.position + tokens.len();
    ensure!(
        end <= config.context_length,
        "the text goes on to token {end} and {} was trained for {}; give fewer tokens",
        config.name,
        config.context_length
    );
    let mut read = 0;
    while read < tokens.len() {
        let rows = part(config, cache.position).min(tokens.len() - read);
        let hidden = model.forward(&tokens[read..read + rows], cache, watch)?;
        read += rows;
        each(&hidden, read)?;
    }
    Ok(())
}

/// What the model expects after each of `tokens`, which follow the cache; the cache itself stays as it is.
///
/// # Errors
/// As [`go_on`], or no tokens.
pub fn follow(model: &Model, cache: &Cache, tokens: &[u32], watch: &mut dyn Watch) -> Result<Distributions> {
    let mut logits = Vec::new();
    go_on(model, &mut cache.clone(), tokens, watch, &mut |hidden, _| {
        logits.push(model.logits(hidden)?);
        Ok(())
    })?;
    ensure!(!logits.is_empty(), "there are no tokens to read");
    Distributions::new(&Tensor::cat(&logits, 0)?)
}
