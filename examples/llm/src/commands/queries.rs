//! What heads are fitted to: the context's own queries, or others that the model is made to ask.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use clap::ValueEnum;
use kvsculpt::cache::{Capture, Compressed};
use kvsculpt::machine::Machine;
use serde::{Deserialize, Serialize};

use super::choice::Choice;
use super::passage::Passage;
use super::progress::Progress;
use super::session::Session;
use super::variant::{Short, Variant, probe_error};
use crate::model::{Cache, Watch};
use crate::reading::go_on;
use crate::record::Recorder;

/// Tokens behind the cache whose queries heads are fitted to.
const ROWS: usize = 512;

/// What heads are fitted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueriesKind {
    /// The context's own queries, turned to the positions that follow
    #[default]
    Context,
    /// What the model asks when it reads the last 512 tokens a second time, behind the full cache
    Again,
    /// The same layer by layer: each layer is fitted to what is asked behind the short layers below
    Cascade,
    /// What the model asks while it goes on with the text by itself for 512 tokens, behind the full cache
    Generated,
}

impl QueriesKind {
    /// Whether they are the context's own.
    #[must_use]
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
    pub fn is_usual(&self) -> bool {
        *self == Self::Context
    }

    /// For labels: `, queries: again`; nothing where they are the usual ones.
    #[must_use]
    pub fn changed(self) -> String {
        if self.is_usual() {
            return String::new();
        }
        format!(", queries: {}", super::words::spelled(self))
    }
}

/// A passage and the captures of it that its heads are fitted by; those beside the usual one are made when they are asked for.
#[derive(Debug)]
pub struct Asking<'a> {
    /// The model.
    pub session: &'a Session,
    /// What was read.
    pub passage: &'a Passage,
    again: Option<Capture>,
    generated: Option<Capture>,
}

impl<'a> Asking<'a> {
    /// Nothing has been asked yet.
    #[must_use]
    pub fn new(session: &'a Session, passage: &'a Passage) -> Self {
        Self {
            session,
            passage,
            again: None,
            generated: None,
        }
    }

    /// Shortens the passage's cache, and tells the seconds of compressing; making the model ask is not counted.
    ///
    /// # Errors
    /// What the model or `kvsculpt` reports.
    pub fn shorten(
        &mut self,
        machine: &mut Machine,
        variant: &Variant,
        queries: QueriesKind,
        progress: &mut Progress,
    ) -> Result<(Short, f64)> {
        let capture = match queries {
            QueriesKind::Context => &self.passage.capture,
            QueriesKind::Again | QueriesKind::Cascade => {
                if self.again.is_none() {
                    self.again = Some(self.capture(&self.read_again()?)?);
                }
                self.again.as_ref().context("just made")?
            }
            QueriesKind::Generated => {
                if self.generated.is_none() {
                    self.generated = Some(self.capture(&self.generate()?)?);
                }
                self.generated.as_ref().context("just made")?
            }
        };
        let started = Instant::now();
        let short = if queries == QueriesKind::Cascade {
            self.cascade(machine, variant, capture, progress)?
        } else {
            variant.shorten(capture, machine, progress)?
        };
        Ok((short, started.elapsed().as_secs_f64()))
    }

    /// The last tokens of the text, as many as the model still has room for.
    fn last_tokens(&self) -> Result<&'a [u32]> {
        let reading = &self.passage.reading;
        let room = self.session.model.config().context_length.saturating_sub(reading.cache.position);
        let rows = ROWS.min(reading.tokens.len()).min(room);
        ensure!(
            rows > 0,
            "the model has no room behind {} tokens; give fewer --tokens",
            reading.cache.position
        );
        Ok(&reading.tokens[reading.tokens.len() - rows..])
    }

    /// The queries of the last tokens, read behind the full cache.
    fn read_again(&self) -> Result<Recorder> {
        let model = &self.session.model;
        let mut asked = Recorder::after_rope(model);
        go_on(
            model,
            &mut self.passage.reading.cache.clone(),
            self.last_tokens()?,
            &mut asked,
            &mut |_, _| Ok(()),
        )?;
        Ok(asked)
    }

    /// The queries of what the model says by itself behind the full cache.
    fn generate(&self) -> Result<Recorder> {
        let model = &self.session.model;
        let mut cache = self.passage.reading.cache.clone();
        let mut asked = Recorder::after_rope(model);
        let mut choice = Choice::new(1.0, 0);
        let rows = self.last_tokens()?.len();
        // The last token once more: what it led to the first time is not kept.
        let mut token = *self.passage.reading.tokens.last().context("the text is empty")?;
        for _ in 0..rows {
            let hidden = model.forward(&[token], &mut cache, &mut asked)?;
            token = choice.next(&model.logits(&hidden)?)?;
        }
        Ok(asked)
    }

    fn capture(&self, asked: &Recorder) -> Result<Capture> {
        let (passage, model) = (self.passage, &self.session.model);
        let layers = 0..model.config().layers;
        passage
            .reading
            .capture_of(&passage.text, model, layers, Some(asked), Some(&passage.probe))
    }

    /// Shortens layer after layer; `whole` holds what is asked behind the full layers, by which lengths are decided.
    fn cascade(&self, machine: &mut Machine, variant: &Variant, whole: &Capture, progress: &mut Progress) -> Result<Short> {
        let (passage, model) = (self.passage, &self.session.model);
        let mut request = variant.request();
        let first = machine.compress(whole, &request, progress)?;
        request.budgets = Some(first.budgets);
        let mut cache = passage.reading.cache.clone();
        let mut hidden = model.embed(self.last_tokens()?)?;
        let (mut layers, mut outcomes) = (Vec::new(), Vec::new());
        for layer in 0..model.config().layers {
            let mut asked = Recorder::after_rope(model);
            self.layer(layer, &hidden, &cache, &mut asked)?;
            let capture = passage
                .reading
                .capture_of(&passage.text, model, layer..layer + 1, Some(&asked), Some(&passage.probe))?;
            let short = machine.compress(&capture, &request, &mut ())?;
            cache = cache.compressed(&short.compressed, model.device())?;
            hidden = self.layer(layer, &hidden, &cache, &mut ())?;
            outcomes.extend(short.outcomes);
            layers.extend(short.compressed.layers);
        }
        Ok(Short {
            compressed: Compressed {
                layers,
                metadata: first.compressed.metadata,
            },
            probe_error: probe_error(&outcomes),
        })
    }

    /// The states after one layer, of tokens that follow the cache; the cache stays as it is.
    fn layer(&self, layer: usize, hidden: &Tensor, cache: &Cache, watch: &mut dyn Watch) -> Result<Tensor> {
        let mut below = Cache {
            layers: cache.layers[..=layer].to_vec(),
            position: cache.position,
        };
        self.session.model.run(layer, hidden.clone(), &mut below, watch)
    }
}
