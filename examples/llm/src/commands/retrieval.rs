//! `retrieval`: does the model still find things in the short cache?

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use fastrand::Rng;
use kvsculpt::cache::Capture;
use kvsculpt::solver::Request;
use serde::{Deserialize, Serialize};

use super::arguments::{EngineArguments, ModelArguments, VariantArguments};
use super::progress::Progress;
use super::results::Results;
use super::session::{Session, name};
use super::words::{columns, label, way};
use crate::measure::planting::{Needle, Planted, ends_sentence, needles};
use crate::measure::recall::{Recall, ask};
use crate::model::{Cache, Products};
use crate::reading::Reading;
use kvsculpt::machine::Machine;

/// Tokens of a passage that the model is given again.
const CUE: usize = 16;
/// Tokens of it that should come then.
const CONTINUATION: usize = 32;

/// Measure whether a model with a short cache still finds what it has read: this is where short caches break.
///
/// Needles are sentences with a number, planted in the text at several depths and asked for, after it, by their own beginning: right
/// is an answer every digit of which is the likeliest token. Copying: at the same depths a passage of the text begins again after it
/// (16 tokens), and the 32 that should follow are looked at one by one, each after the right ones before it. Every question is asked from the
/// same cache, the full one and a short one for each way asked for.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Texts (UTF-8)
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// Characters at which reading begins, in each text
    #[arg(long, value_name = "CHARACTER,…", value_delimiter = ',', default_value = "0")]
    offset: Vec<usize>,
    /// Tokens that are read and compressed, needles included
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// How far into the context needles are planted and passages copied from, as fractions of it
    #[arg(long, value_name = "DEPTH,…", value_delimiter = ',', default_value = "0.1,0.3,0.5,0.7,0.9")]
    depths: Vec<f64>,
    /// Needles at each depth
    #[arg(long, default_value_t = 2)]
    needles: usize,
    /// Which names and numbers are drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    variants: VariantArguments,
    /// Print JSON lines instead of the table
    #[arg(long)]
    json: bool,
    /// Also add each measurement to this file as it is finished, as a JSON line; those that are there already are not made again
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArguments,
}

/// All questions of one passage, asked from one cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
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
    pub options: Option<kvsculpt::Options>,
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
struct Haystack {
    text: String,
    offset: usize,
    reading: Reading,
    capture: Capture,
    questions: Vec<Questions>,
}

impl Haystack {
    fn read(session: &Session, path: &Path, offset: usize, arguments: &Arguments, progress: &mut Progress) -> Result<Self> {
        let count = arguments.tokens;
        let text = session.tokens(path, offset, count)?;
        // Another text gets other needles, the same text always the same.
        let mix = |hash: u64, &token: &u32| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
        let mut random = Rng::with_seed(text.iter().fold(arguments.seed, mix));
        let drawn = needles(&session.tokenizer, arguments.depths.len() * arguments.needles, &mut random)?;
        let mut depths = arguments.depths.clone();
        depths.sort_by(f64::total_cmp);
        let at_depth = |index: usize| depths[index / arguments.needles];
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
                needles: placed.by_ref().take(arguments.needles).collect(),
                copied_from: passage.start,
                copied: planted.tokens[passage].to_vec(),
            })
        };
        let questions = depths.iter().map(questions).collect::<Result<Vec<_>>>()?;
        let text = name(path);
        let reading = session.read(&format!("{text} from character {offset}"), &planted.tokens, progress)?;
        let capture = reading.capture(&text, &session.model, None)?;
        Ok(Self {
            text,
            offset,
            reading,
            capture,
            questions,
        })
    }

    /// Asks everything from the short cache of `variant`, or from the full one.
    fn measure(
        &self,
        session: &Session,
        machine: &mut Machine,
        variant: &Variant,
        arguments: &Arguments,
        progress: &mut Progress,
    ) -> Result<Row> {
        let full = variant.method == MethodKind::Full;
        let what = label(variant.method, variant.preset, variant.keep);
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
            model: session.name.clone(),
            text: self.text.clone(),
            offset: self.offset,
            tokens: self.reading.tokens.len(),
            needles: arguments.needles,
            seed: arguments.seed,
            method: variant.method,
            preset: variant.preset,
            keep: variant.keep,
            options: (!full).then(|| variant.options.clone()),
            source: self.capture.digest()?,
            engine: machine.name(),
            bytes: cache.bytes(),
            seconds,
            depths,
        })
    }
}

/// Runs the subcommand.
///
/// # Errors
/// In words for the user.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.tokens > 0 && arguments.needles > 0,
        "--tokens and --needles must be at least 1"
    );
    for depth in &arguments.depths {
        ensure!((0.0..=1.0).contains(depth), "--depths: {depth} is not a fraction from 0 to 1");
    }
    let mut variants = vec![Variant::new(MethodKind::Full, PresetKind::Default, 1.0, None)?];
    variants.extend(
        arguments
            .variants
            .variants()?
            .into_iter()
            .filter(|variant| variant.method != MethodKind::Full),
    );
    let mut results = Results::<Row>::open(arguments.output.as_deref())?;
    let mut machine = arguments.engine.open()?;
    let mut progress = Progress::new();
    let session = Session::open(&arguments.model, Products::Widened, &mut progress)?;
    let mut rows = Vec::new();
    for path in &arguments.texts {
        for &offset in &arguments.offset {
            let haystack = Haystack::read(&session, path, offset, arguments, &mut progress)?;
            let (source, engine) = (haystack.capture.digest()?, machine.name());
            let asked = |row: &Row| {
                row.depths
                    .iter()
                    .map(|depth| (depth.depth, depth.copied_from))
                    .eq(haystack.questions.iter().map(|at| (at.depth, at.copied_from)))
            };
            for variant in &variants {
                let full = variant.method == MethodKind::Full;
                let same = |row: &Row| {
                    row.source == source
                        && row.model == session.name
                        && row.method == variant.method
                        && (full || row.options.as_ref() == Some(&variant.options) && row.engine == engine)
                        && row.needles == arguments.needles
                        && asked(row)
                };
                let row = match results.find(same) {
                    Some(row) => row.clone(),
                    None => results
                        .add(haystack.measure(&session, &mut machine, variant, arguments, &mut progress)?)?
                        .clone(),
                };
                if arguments.json {
                    progress.print(&serde_json::to_string(&row)?);
                }
                rows.push(row);
            }
        }
    }
    progress.finish();
    if !arguments.json {
        println!("{}", table(&rows));
    }
    Ok(())
}

/// Rows of one way to shorten the cache.
struct Way<'a> {
    model: &'a str,
    keep: f64,
    name: String,
    rows: Vec<&'a Row>,
}

impl Way<'_> {
    /// The mean over what `of` gives for each depth of each row.
    fn mean(&self, of: impl Fn(&Depth) -> Vec<f64>) -> f64 {
        let all: Vec<f64> = self.rows.iter().flat_map(|row| &row.depths).flat_map(of).collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    }
}

/// A line a way to shorten the cache, the full one first: means over passages and depths.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut ways: Vec<Way<'_>> = Vec::new();
    for row in rows {
        let name = way(row.method, row.preset, "full");
        match ways
            .iter_mut()
            .find(|way| way.model == row.model && way.name == name && way.keep == row.keep)
        {
            Some(way) => way.rows.push(row),
            None => ways.push(Way {
                model: &row.model,
                keep: row.keep,
                name,
                rows: vec![row],
            }),
        }
    }
    let names = [
        "model",
        "keep",
        "method",
        "passages",
        "needles exact",
        "log-prob",
        "copying top-1",
        "log-prob",
        "seconds",
    ];
    let mut table = columns(&names, &[0, 2]);
    for way in &ways {
        let exact = |depth: &Depth| depth.exact.iter().map(|&exact| f64::from(u8::from(exact))).collect();
        table.add_row([
            way.model.to_owned(),
            way.keep.to_string(),
            way.name.clone(),
            way.rows.len().to_string(),
            format!("{:.1} %", 100.0 * way.mean(exact)),
            format!("{:.2}", way.mean(|depth| depth.needle_log_probability.clone())),
            format!("{:.1} %", 100.0 * way.mean(|depth| vec![depth.copy_top1])),
            format!("{:.3}", way.mean(|depth| vec![depth.copy_log_probability])),
            format!("{:.1}", way.rows.iter().map(|row| row.seconds).sum::<f64>() / way.rows.len() as f64),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::variant::{MethodKind, PresetKind, Variant};
    use super::*;

    fn row(method: MethodKind, exact: [bool; 2], copy_top1: f64) -> Row {
        Row {
            model: "small".into(),
            text: "a".into(),
            offset: 0,
            tokens: 100,
            needles: 2,
            seed: 0,
            method,
            preset: PresetKind::Default,
            keep: if method == MethodKind::Full { 1.0 } else { 0.3 },
            options: None,
            source: String::new(),
            engine: "CPU".into(),
            bytes: 1,
            seconds: 0.0,
            depths: vec![Depth {
                depth: 0.5,
                places: vec![50, 60],
                exact: exact.to_vec(),
                needle_log_probability: vec![-1.0, -3.0],
                copied_from: 70,
                copy_top1,
                copy_log_probability: -0.5,
            }],
        }
    }

    #[test]
    fn the_table_means_over_passages_by_method() {
        let rows = [
            row(MethodKind::Full, [true, true], 1.0),
            row(MethodKind::Select, [false, false], 0.25),
            row(MethodKind::Full, [true, true], 1.0),
            row(MethodKind::Select, [true, false], 0.75),
        ];
        let table = table(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert!(lines[2].contains("full") && lines[2].contains("100.0 %"), "{table}");
        assert!(
            lines[3].contains("25.0 %") && lines[3].contains("50.0 %") && lines[3].contains("-2.00"),
            "{table}"
        );
    }
}
