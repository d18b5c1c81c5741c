//! `sensitivity`: which layers and heads must not be wrong?

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use kvsculpt::cache::Compressed;
use kvsculpt::solver::Request;
use serde::{Deserialize, Serialize};

use super::arguments::{EngineArguments, ModelArguments};
use super::passage::Passage;
use super::progress::Progress;
use super::results::Results;
use super::session::Session;
use super::variant::{MethodKind, PresetKind, Variant};
use super::words::{columns, number, perhaps};
use crate::measure::sensitivities::{self, Sensitivities};
use crate::measure::sensitivity::{LayerEffect, Replay};
use crate::model::{Memory, Products};
use kvsculpt::machine::Machine;

/// Measure how much what the model says reacts to an error in each layer and head; once a model.
///
/// The model reads the beginning of each text. Then, layer by layer and head by head, that piece of the cache alone is replaced by
/// its pairs of highest attention, and the text that follows is read again: KL(full ‖ this) in nats, beside the error of the piece's
/// attention on the queries of that text. Their quotient, the sensitivity, is written to a file (JSON), by which pairs can be
/// given to the layers and heads that need them.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Texts (UTF-8); the figures of a single one are noisy
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// The file to write; while it is not whole, what is finished is kept in FILE.partial.jsonl, from which a later run goes on
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Characters at which reading begins, in each text
    #[arg(long, value_name = "CHARACTER,…", value_delimiter = ',', default_value = "0")]
    offset: Vec<usize>,
    /// Tokens that are read and whose cache is disturbed
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Tokens that follow, over which is measured
    #[arg(long, default_value_t = 128)]
    next: usize,
    /// The fraction of the disturbed piece's pairs that is kept
    #[arg(long, value_name = "FRACTION", default_value_t = 0.1)]
    keep: f64,
    /// Measure layers only, and not their heads
    #[arg(long)]
    layers_only: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

/// A finished layer of one passage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model's file.
    pub model: String,
    /// Digest of the capture, the queries of the tokens that follow included.
    pub source: String,
    /// Tokens that follow.
    pub next: usize,
    /// How the layer was shortened.
    pub options: kvsculpt::Options,
    /// What compressed.
    pub engine: String,
    /// What that did.
    pub effect: LayerEffect,
}

/// Runs the subcommand.
///
/// # Errors
/// In words for the user.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.tokens > 0 && arguments.next > 0, "--tokens and --next must be at least 1");
    Compressed::check_writable(&arguments.output)?;
    let variant = Variant::new(MethodKind::Select, PresetKind::Default, arguments.keep, None)?;
    let partial = partial(&arguments.output);
    let mut measurement = Measurement {
        arguments,
        options: variant.options,
        results: Results::open(Some(&partial))?,
        machine: arguments.engine.open()?,
        progress: Progress::new(),
    };
    let session = Session::open(&arguments.model, Some(Products::Widened), &mut measurement.progress)?;
    let mut found = Vec::new();
    for path in &arguments.texts {
        for &offset in &arguments.offset {
            found.push(measurement.passage(&session, path, offset)?);
        }
    }
    let found = Sensitivities::new(&session.name, &measurement.options, found)?;
    found.write(&arguments.output)?;
    fs::remove_file(&partial).with_context(|| format!("{} is not needed any more and cannot be removed", partial.display()))?;
    measurement.progress.finish();
    println!("{}", table(&found));
    println!("written to {}", arguments.output.display());
    Ok(())
}

/// Where finished layers are kept until the file is whole.
fn partial(output: &Path) -> PathBuf {
    let mut name = OsString::from(output);
    name.push(".partial.jsonl");
    name.into()
}

/// A run's means.
struct Measurement<'a> {
    arguments: &'a Arguments,
    options: kvsculpt::Options,
    results: Results<Row>,
    machine: Machine,
    progress: Progress,
}

impl Measurement<'_> {
    fn passage(&mut self, session: &Session, path: &Path, offset: usize) -> Result<(sensitivities::Passage, Vec<LayerEffect>)> {
        let Arguments { tokens, next, .. } = *self.arguments;
        let passage = Passage::read(session, path, offset, tokens, next, &mut self.progress)?;
        let source = passage.capture.digest()?;
        let replay = Replay::new(&session.model, &passage.reading.cache, &passage.following[..next])?;
        let noise = replay.noise()?;
        let layers = session.model.config().layers;
        let missing: Vec<usize> = (0..layers)
            .filter(|&layer| self.known(&session.name, &source, layer).is_none())
            .collect();
        if !missing.is_empty() {
            self.measure(session, &passage, &replay, &missing)?;
        }
        let known = |layer| {
            let row = self.known(&session.name, &source, layer);
            Ok(row.with_context(|| format!("layer {layer} was not measured"))?.effect.clone())
        };
        let effects = (0..layers).map(known).collect::<Result<_>>()?;
        let about = sensitivities::Passage {
            text: passage.text,
            offset,
            tokens,
            next,
            source,
            noise,
        };
        Ok((about, effects))
    }

    /// A layer that is finished already.
    fn known(&self, model: &str, source: &str, layer: usize) -> Option<&Row> {
        let engine = self.machine.name();
        self.results.find(|row| {
            row.model == model
                && row.source == source
                && row.next == self.arguments.next
                && row.options == self.options
                && row.engine == engine
                && row.effect.layer == layer
                && row.effect.heads.is_empty() == self.arguments.layers_only
        })
    }

    /// Measures these layers.
    fn measure(&mut self, session: &Session, passage: &Passage, replay: &Replay<'_>, layers: &[usize]) -> Result<()> {
        let what = format!("{} from character {}", passage.text, passage.offset);
        self.progress.begin(format!("{what}: compressing"));
        let request = Request {
            options: self.options.clone(),
            layers: Some(layers.to_vec()),
            ..Request::default()
        };
        let compression = self.machine.compress(&passage.capture, &request, &mut self.progress)?;
        let short = passage.reading.cache.compressed(&compression.compressed, session.model.device())?;
        self.progress.begin(format!("{what}: measuring {} layers", layers.len()));
        for (done, &layer) in layers.iter().enumerate() {
            self.progress.at(done, layers.len());
            let outcomes = compression.outcomes.iter().filter(|outcome| outcome.layer == layer);
            let errors = outcomes.map(|outcome| outcome.result.probe.map_or(f64::NAN, |errors| errors.merged));
            let errors: Vec<f64> = errors.collect();
            let Some(Memory::Ragged(heads)) = &short.layers[layer].memory else {
                anyhow::bail!("layer {layer} was not compressed");
            };
            let effect = replay.effect(layer, heads, &errors, !self.arguments.layers_only)?;
            self.results.add(Row {
                model: session.name.clone(),
                source: passage.capture.digest()?,
                next: self.arguments.next,
                options: self.options.clone(),
                engine: self.machine.name(),
                effect,
            })?;
        }
        Ok(())
    }
}

/// A line a layer, its heads beside it.
#[must_use]
pub fn table(found: &Sensitivities) -> String {
    let by_head = found.layers.iter().any(|layer| !layer.heads.is_empty());
    let mut names = vec!["layer", "KL", "share", "error", "sensitivity"];
    if by_head {
        names.extend(["heads: KL", "error", "sensitivity"]);
    }
    let mut table = columns(&names, &[]);
    for layer in &found.layers {
        let mut cells = vec![
            layer.layer.to_string(),
            number(layer.kl),
            format!("{:.1} %", 100.0 * layer.share),
            number(layer.error),
            perhaps(layer.sensitivity),
        ];
        if by_head {
            let joined = |cells: Vec<String>| cells.join("  ");
            cells.push(joined(layer.heads.iter().map(|head| number(head.kl)).collect()));
            cells.push(joined(layer.heads.iter().map(|head| number(head.error)).collect()));
            cells.push(joined(layer.heads.iter().map(|head| perhaps(head.sensitivity)).collect()));
        }
        table.add_row(cells);
    }
    format!("{table}\nKL of a cache that keeps everything: {}", number(found.noise))
}
