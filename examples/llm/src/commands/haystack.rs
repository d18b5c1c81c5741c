//! A text with needles in it, and what a cache still knows of it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use fastrand::Rng;
use kvsculpt::cache::Capture;
use serde::{Deserialize, Serialize};

use super::progress::Progress;
use super::recorded::Recorded;
use super::session::{Session, name};
use super::variant::{MethodKind, PresetKind, Variant};
use super::words::label;
use crate::measure::planting::{Needle, Planted, ends_sentence, needles};
use crate::measure::recall::{Recall, ask};
use crate::model::Cache;
use crate::reading::Reading;
use kvsculpt::machine::Machine;

/// Tokens of a passage that the model is given again.
const CUE: usize = 16;
/// Tokens of it that should come then.
const CONTINUATION: usize = 32;
/// Other versions may measure otherwise.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is planted and asked.
#[derive(Clone, Debug, Args)]
pub struct Task {
    /// Tokens that are read and compressed, needles included
    #[arg(long, default_value_t = 2048)]
    pub tokens: usize,
    /// How far into the context needles are planted and passages copied from, as fractions of it
    ///
    /// By default none is near the end: of 2048 tokens the published preset keeps the last 256 as they are and the default preset a
    /// quarter of what it keeps, so that what lies there would tell how long a preset's tail is, and not what it compresses.
    #[arg(long, value_name = "DEPTH,…", value_delimiter = ',', default_value = "0.1,0.25,0.4,0.55,0.7")]
    pub depths: Vec<f64>,
    /// Needles at each depth
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub needles: u16,
    /// Which names and numbers are drawn
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl Task {
    /// Refuses counts and depths without meaning.
    ///
    /// # Errors
    /// In words for the user.
    pub fn validate(&self) -> Result<()> {
        ensure!(self.tokens > 0, "--tokens must be at least 1");
        ensure!(!self.depths.is_empty(), "--depths names no depth");
        for depth in &self.depths {
            ensure!((0.0..=1.0).contains(depth), "--depths: {depth} is not a fraction from 0 to 1");
        }
        Ok(())
    }

    /// Refuses a way to shorten that leaves no free pair of so few tokens: before anything is read, and not after.
    ///
    /// # Errors
    /// As [`Variant::check`], with the way.
    pub fn check(&self, variant: &Variant) -> Result<()> {
        variant.check(self.tokens).with_context(|| label(variant))
    }

    /// Needles at each depth.
    fn at_each_depth(&self) -> usize {
        usize::from(self.needles)
    }
}

/// All questions of one passage, asked from one cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// This program's version.
    pub version: String,
    /// The model's file.
    pub model: String,
    /// The text's file.
    pub text: String,
    /// Its first character.
    pub offset: usize,
    /// Tokens compressed.
    pub tokens: usize,
    /// Needles at each depth.
    pub needles: usize,
    /// By which they were drawn.
    pub seed: u64,
    /// How the cache was shortened; `full`: not at all.
    pub method: MethodKind,
    /// Where the options came from.
    pub preset: PresetKind,
    /// Fraction of pairs kept.
    pub keep: f64,
    /// All options; none where nothing is dropped.
    pub options: Option<Recorded>,
    /// The file of sensitivities that errors were weighed by, if any was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivities: Option<String>,
    /// Digest of the capture.
    pub source: String,
    /// What compressed.
    pub engine: String,
    /// Bytes of the cache that was asked.
    pub bytes: usize,
    /// Seconds of compressing.
    pub seconds: f64,
    /// What was found, by depth.
    pub depths: Vec<Depth>,
}

/// What was found at one depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Depth {
    /// The depth that was asked for, in [0, 1].
    pub depth: f64,
    /// Where each needle begins, in tokens.
    pub places: Vec<usize>,
    /// Of each needle, whether greedy decoding gives its number.
    pub exact: Vec<bool>,
    /// Of each needle, the logarithm of the probability of its whole number.
    pub needle_log_probability: Vec<f64>,
    /// Where the copied passage begins, in tokens.
    pub copied_from: usize,
    /// Share of the copied tokens that were the likeliest, in [0, 1].
    pub copy_top1: f64,
    /// Mean over the copied tokens of the logarithm of their probability.
    pub copy_log_probability: f64,
}

/// What is asked for at one depth.
#[derive(Debug)]
struct Questions {
    depth: f64,
    needles: Vec<(usize, Needle)>,
    copied_from: usize,
    copied: Vec<u32>,
}

impl Questions {
    fn ask(&self, session: &Session, cache: &Cache) -> Result<Depth> {
        let needle = |(_, needle): &(usize, Needle)| ask(&session.model, cache, needle.question(), needle.number());
        let found: Vec<Recall> = self.needles.iter().map(needle).collect::<Result<_>>()?;
        let (cue, continuation) = self.copied.split_at(CUE);
        let copied = ask(&session.model, cache, cue, continuation)?;
        Ok(Depth {
            depth: self.depth,
            places: self.needles.iter().map(|(place, _)| *place).collect(),
            exact: found.iter().map(Recall::exact).collect(),
            needle_log_probability: found.iter().map(|recall| recall.log_probability).collect(),
            copied_from: self.copied_from,
            copy_top1: copied.top1 as f64 / copied.tokens as f64,
            copy_log_probability: copied.log_probability / copied.tokens as f64,
        })
    }
}

/// A text with needles that the model has read, and what is asked about it.
#[derive(Debug)]
pub struct Haystack {
    task: Task,
    text: String,
    offset: usize,
    reading: Reading,
    capture: Capture,
    source: String,
    questions: Vec<Questions>,
}

impl Haystack {
    /// Plants needles in a text and reads it.
    ///
    /// # Errors
    /// A text that is too short for what is asked, a tokenizer that does not cut needles, or as [`Session::read`].
    pub fn read(session: &Session, path: &Path, offset: usize, task: &Task, progress: &mut Progress) -> Result<Self> {
        let count = task.tokens;
        let text = session.tokens(path, offset, count)?;
        // Another text gets other needles, the same text always the same.
        let mix = |hash: u64, &token: &u32| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
        let mut random = Rng::with_seed(text.iter().fold(task.seed, mix));
        let each = task.at_each_depth();
        // More than can be counted are more than there are names for, which is refused there.
        let drawn = needles(&session.tokenizer, task.depths.len().saturating_mul(each), &mut random)?;
        let mut depths = task.depths.clone();
        depths.sort_by(f64::total_cmp);
        let at_depth = |index: usize| depths[index / each];
        let deep: Vec<(f64, &[u32])> = drawn
            .iter()
            .enumerate()
            .map(|(index, needle)| (at_depth(index), needle.tokens.as_slice()))
            .collect();
        let planted = Planted::new(&text, |token| ends_sentence(&session.tokenizer, token), &deep, count)?;
        let mut placed = planted.places.iter().map(|place| place.start).zip(drawn.iter().cloned());
        let questions = |&depth: &f64| -> Result<Questions> {
            let passage = planted.passage(depth, CUE + CONTINUATION);
            let passage =
                passage.context("no passage between needles is long enough to be copied; give fewer --needles or more --tokens")?;
            Ok(Questions {
                depth,
                needles: placed.by_ref().take(each).collect(),
                copied_from: passage.start,
                copied: planted.tokens[passage].to_vec(),
            })
        };
        let questions = depths.iter().map(questions).collect::<Result<Vec<_>>>()?;
        let text = name(path);
        let reading = session.read(&format!("{text} from character {offset}"), &planted.tokens, progress)?;
        let capture = reading.capture(&text, &session.model, None)?;
        Ok(Self {
            task: task.clone(),
            text,
            offset,
            reading,
            source: capture.digest()?,
            capture,
            questions,
        })
    }

    /// Asks everything from the short cache of `variant`, or from the full one.
    ///
    /// # Errors
    /// As the compression, or what candle reports.
    pub fn measure(&self, session: &Session, machine: &mut Machine, variant: &Variant, progress: &mut Progress) -> Result<Row> {
        let full = variant.method == MethodKind::Full;
        let what = label(variant);
        progress.begin(format!("{} from character {}: {what}", self.text, self.offset));
        let started = Instant::now();
        let cache = if full {
            self.reading.cache.clone()
        } else {
            let short = variant.shorten(&self.capture, machine, progress)?;
            self.reading.cache.compressed(&short.compressed, session.model.device())?
        };
        let seconds = started.elapsed().as_secs_f64();
        progress.begin(format!("{} from character {}: asking, {what}", self.text, self.offset));
        let mut depths = Vec::with_capacity(self.questions.len());
        for (done, questions) in self.questions.iter().enumerate() {
            progress.at(done, self.questions.len());
            depths.push(questions.ask(session, &cache)?);
        }
        Ok(Row {
            version: VERSION.to_owned(),
            model: session.name.clone(),
            text: self.text.clone(),
            offset: self.offset,
            tokens: self.reading.tokens.len(),
            needles: self.task.at_each_depth(),
            seed: self.task.seed,
            method: variant.method,
            preset: variant.preset,
            keep: variant.keep,
            options: (!full).then(|| Recorded::of(&variant.options)).transpose()?,
            sensitivities: variant.sensitivities(),
            source: self.source.clone(),
            engine: machine.name(),
            bytes: cache.bytes(),
            seconds,
            depths,
        })
    }

    /// Whether a row of an earlier run is what [`measure`](Self::measure) would find.
    #[must_use]
    pub fn is_measured_by(&self, row: &Row, session: &Session, engine: &str, variant: &Variant) -> bool {
        let asked = self.questions.iter().map(|questions| (questions.depth, questions.copied_from));
        Decisive {
            model: &session.name,
            source: &self.source,
            tokens: self.reading.tokens.len(),
            needles: self.task.at_each_depth(),
            seed: self.task.seed,
            asked: asked.collect(),
            engine,
            variant,
        }
        .is_of(row)
    }
}

/// All that decides what a measurement finds.
#[derive(Clone, Debug)]
struct Decisive<'a> {
    model: &'a str,
    source: &'a str,
    tokens: usize,
    needles: usize,
    seed: u64,
    /// Of each depth, what it is and where the copied passage begins.
    asked: Vec<(f64, usize)>,
    engine: &'a str,
    variant: &'a Variant,
}

impl Decisive<'_> {
    fn is_of(&self, row: &Row) -> bool {
        let variant = self.variant;
        // The full cache has no options, and no engine made it.
        let same_cache = match variant.method {
            MethodKind::Full => row.method == MethodKind::Full,
            method => {
                let made = |options| variant.made(options, row.sensitivities.as_deref());
                row.method == method && row.options.as_ref().is_some_and(made) && row.engine == self.engine
            }
        };
        let same_text = row.model == self.model && row.source == self.source && row.tokens == self.tokens;
        let asked = row.depths.iter().map(|depth| (depth.depth, depth.copied_from));
        let same_questions = row.needles == self.needles && row.seed == self.seed && asked.eq(self.asked.iter().copied());
        row.version == VERSION && same_text && same_questions && same_cache
    }
}

#[cfg(test)]
#[path = "haystack/tests.rs"]
mod tests;
