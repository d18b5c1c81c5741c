//! `sensitivity`: which layers and heads must not be wrong?

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use kvsculpt::cache::Compressed;
use kvsculpt::solver::Request;
use serde::{Deserialize, Serialize};

use super::arguments::{EngineArguments, ModelArguments, TextArguments, tokens};
use super::passage::Passage;
use super::progress::{Progress, print};
use super::recorded::Recorded;
use super::results::Results;
use super::session::Session;
use super::variant::{MethodKind, PresetKind, ScopeKind, Variant};
use super::words::{columns, number, perhaps};
use crate::measure::sensitivities::{self, Sensitivities};
use crate::measure::sensitivity::{LayerEffect, Replay};
use crate::model::{Memory, Products};
use kvsculpt::machine::Machine;

/// Measure how much what the model says reacts to an error in each layer and head; once a model.
///
/// The model reads the beginning of each text. Then, layer by layer and head by head, that piece of the cache alone is replaced by
/// a short one, and the text that follows is read again: KL(full ‖ this) in nats, beside the merged error of the piece's attention
/// on the queries of that text. The short one is the default preset's selection: the first 4 pairs, the last ones up to a quarter of
/// what is kept (at most 256), and between them those that rank highest. The quotient of the two, the sensitivity, is written to
/// a file (JSON), by which pairs can be given to the layers and heads that need them.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    texts: TextArguments,
    /// The file to write; while it is not whole, what is finished is kept in FILE.partial.jsonl, from which a later run goes on
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Tokens that are read and whose cache is disturbed
    #[arg(long, default_value = "2048", value_parser = tokens)]
    tokens: usize,
    /// Tokens that follow, over which is measured
    #[arg(long, default_value = "128", value_parser = tokens)]
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

/// Other versions may measure otherwise.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A finished layer of one passage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// This program's version.
    pub version: String,
    /// The model's file.
    pub model: String,
    /// Digest of the capture, the queries of the tokens that follow included.
    pub source: String,
    /// Tokens that follow.
    pub next: usize,
    /// How the layer was shortened.
    pub options: Recorded,
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
    arguments.texts.check()?;
    Compressed::check_writable(&arguments.output)?;
    let variant = Variant::new(MethodKind::Select, PresetKind::Default, arguments.keep, None)?;
    // Every piece is disturbed alike, whichever layers are still to be measured.
    let variant = variant.with(Some(ScopeKind::Uniform), None);
    variant.check(arguments.tokens)?;
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
    for (path, offset) in arguments.texts.passages() {
        found.push(measurement.passage(&session, path, offset)?);
    }
    let found = Sensitivities::new(&session.name, &measurement.options, found)?;
    found.write(&arguments.output)?;
    measurement.progress.finish();
    if measurement.holds_only(&found) {
        fs::remove_file(&partial).with_context(|| format!("{} is not needed any more and cannot be removed", partial.display()))?;
    } else {
        eprintln!(
            "note: {} also holds layers of other measurements and was left; delete it if they are not needed",
            partial.display()
        );
    }
    print(&format!("{}\nwritten to {}\n", table(&found), arguments.output.display()))?;
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
        let this = self.decisive(model, source, &engine);
        self.results.find(|row| row.effect.layer == layer && this.is_of(row))
    }

    /// Whether everything that was kept has gone into `found`.
    fn holds_only(&self, found: &Sensitivities) -> bool {
        let engine = self.machine.name();
        let is_of = |row: &Row| {
            let mut sources = found.passages.iter().map(|passage| &passage.source);
            sources.any(|source| self.decisive(&found.model, source, &engine).is_of(row))
        };
        self.results.unreadable() == 0 && self.results.rows().iter().all(is_of)
    }

    fn decisive<'a>(&'a self, model: &'a str, source: &'a str, engine: &'a str) -> Decisive<'a> {
        Decisive {
            model,
            source,
            next: self.arguments.next,
            options: &self.options,
            engine,
            layers_only: self.arguments.layers_only,
        }
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
                version: VERSION.to_owned(),
                model: session.name.clone(),
                source: passage.capture.digest()?,
                next: self.arguments.next,
                options: Recorded::of(&self.options)?,
                engine: self.machine.name(),
                effect,
            })?;
        }
        Ok(())
    }
}

/// All that decides what is found in a layer.
#[derive(Clone, Copy, Debug)]
struct Decisive<'a> {
    model: &'a str,
    source: &'a str,
    next: usize,
    options: &'a kvsculpt::Options,
    engine: &'a str,
    layers_only: bool,
}

impl Decisive<'_> {
    fn is_of(&self, row: &Row) -> bool {
        row.version == VERSION
            && row.model == self.model
            && row.source == self.source
            && row.next == self.next
            && row.options.are(self.options)
            && row.engine == self.engine
            && row.effect.heads.is_empty() == self.layers_only
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::sensitivity::Effect;

    /// Makes a row one of another measurement.
    type Change = fn(&mut Row);

    #[test]
    fn a_row_serves_again_only_for_the_very_same_measurement() {
        let options = Variant::new(MethodKind::Select, PresetKind::Default, 0.1, None).unwrap().options;
        let this = Decisive {
            model: "small",
            source: "0123",
            next: 16,
            options: &options,
            engine: "CPU",
            layers_only: false,
        };
        let effect = Effect { kl: 0.1, error: 0.2 };
        let found = Row {
            version: VERSION.into(),
            model: "small".into(),
            source: "0123".into(),
            next: 16,
            options: Recorded::of(&options).unwrap(),
            engine: "CPU".into(),
            effect: LayerEffect {
                layer: 1,
                whole: effect,
                heads: vec![effect, effect],
            },
        };
        assert!(this.is_of(&found));
        let changes: [(&str, Change); 7] = [
            ("version", |row| row.version.push('0')),
            ("model", |row| row.model.push('0')),
            ("source", |row| row.source.push('0')),
            ("next", |row| row.next += 1),
            ("options", |row| row.options = Recorded::of(&kvsculpt::Options::default()).unwrap()),
            ("engine", |row| row.engine.push('0')),
            ("layers only", |row| row.effect.heads.clear()),
        ];
        for (what, change) in changes {
            let mut other = found.clone();
            change(&mut other);
            assert!(!this.is_of(&other), "{what}");
        }
        let mut layer = found;
        layer.effect.heads.clear();
        let layers_only = Decisive { layers_only: true, ..this };
        assert!(layers_only.is_of(&layer));
    }
}
