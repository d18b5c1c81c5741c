//! `eval`: does the model say the same with the short cache?

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use kvsculpt::machine::Machine;
use serde::{Deserialize, Serialize};

use super::arguments::{EngineArguments, ModelArguments, TextArguments, VariantArguments, tokens};
use super::passage::Passage;
use super::progress::Progress;
use super::queries::{Asking, QueriesKind};
use super::recorded::Recorded;
use super::results::Results;
use super::session::Session;
use super::variant::{DtypeKind, MethodKind, PresetKind, Short, Variant};
use super::words::{self, changed, columns, label, number, perhaps};
use crate::measure::Divergence;
use crate::model::Products;
use crate::reading::follow;

/// Measure how far what the model says with a short cache is from what it says with the full one.
///
/// The model reads the beginning of each text, its cache is compressed in each way asked for, and the text that follows is read
/// over the full and the short cache: KL(full ‖ short) of the next-token distributions, in nats. Weights are widened to single
/// precision, so that nothing but the cache differs.
///
/// Columns: KL, mean over tokens; its median token; the share of the sum that the five worst tokens hold; tokens whose likeliest
/// successor is the same; perplexity of the text over the short cache (and the full one); the mean merged output error on the queries of
/// that text; seconds of compressing.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    texts: TextArguments,
    /// Tokens that are read and compressed
    #[arg(long, default_value = "2048", value_parser = tokens)]
    tokens: usize,
    /// Tokens that follow, over which is measured
    #[arg(long, default_value = "128", value_parser = tokens)]
    next: usize,
    #[command(flatten)]
    variants: VariantArguments,
    /// What heads are fitted to; each is measured
    #[arg(long, value_name = "QUERIES,…", value_delimiter = ',', value_enum, default_value = "context")]
    queries: Vec<QueriesKind>,
    /// How the short cache's numbers are stored; each is measured
    #[arg(long, value_name = "DTYPE,…", value_delimiter = ',', value_enum, default_value = "f32")]
    dtype: Vec<DtypeKind>,
    /// Print JSON lines instead of the table
    #[arg(long)]
    json: bool,
    /// Also add each measurement to this file as it is finished, as a JSON line; those that are there already are not made again
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArguments,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The version of this program that measured.
    pub version: String,
    /// The model's file.
    pub model: String,
    /// The text's file.
    pub text: String,
    /// Its first character.
    pub offset: usize,
    /// Tokens compressed.
    pub tokens: usize,
    /// Tokens measured over.
    pub next: usize,
    /// How the cache was shortened.
    pub method: MethodKind,
    /// Where the options came from.
    pub preset: PresetKind,
    /// Fraction of pairs kept.
    pub keep: f64,
    /// All options.
    pub options: Recorded,
    /// What heads were fitted to, where not to the context's own queries.
    #[serde(default, skip_serializing_if = "QueriesKind::is_usual")]
    pub queries: QueriesKind,
    /// The file of sensitivities that errors were weighed by, if any was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivities: Option<String>,
    /// How the short cache's numbers were stored, where not in single precision.
    #[serde(default, skip_serializing_if = "DtypeKind::is_exact")]
    pub dtype: DtypeKind,
    /// Digest of the capture.
    pub source: String,
    /// What compressed.
    pub engine: String,
    /// Bytes of the full cache and of the short one.
    pub bytes: [usize; 2],
    /// Seconds of reading the text and of compressing.
    pub seconds: [f64; 2],
    /// Mean over heads of the merged output error on the queries of the text that follows; none where nothing is dropped.
    pub probe_error: Option<f64>,
    /// The divergence.
    pub kl: Divergence,
}

impl Asking<'_> {
    fn measure(&mut self, machine: &mut Machine, variant: &Variant, queries: QueriesKind, progress: &mut Progress) -> Result<Row> {
        let name = format!("{} from character {}: {}", self.passage.text, self.passage.offset, label(variant));
        progress.begin(name + &queries.changed());
        let (short, seconds) = self.shorten(machine, variant, queries, progress)?;
        self.passage.row(self.session, machine, variant, queries, short, seconds)
    }
}

impl Passage {
    fn row(
        &self,
        session: &Session,
        machine: &Machine,
        variant: &Variant,
        queries: QueriesKind,
        short: Short,
        seconds: f64,
    ) -> Result<Row> {
        let cache = self.reading.cache.compressed(&short.compressed, session.model.device())?;
        let rows = self.full.rows();
        let found = follow(&session.model, &cache, &self.following[..rows], &mut ())?;
        Ok(Row {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: session.name.clone(),
            text: self.text.clone(),
            offset: self.offset,
            tokens: self.reading.tokens.len(),
            next: rows,
            method: variant.method,
            preset: variant.preset,
            keep: variant.keep,
            options: Recorded::of(&variant.options)?,
            queries,
            sensitivities: variant.sensitivities(),
            dtype: variant.dtype,
            source: self.capture.digest()?,
            engine: machine.name(),
            bytes: [self.reading.cache.bytes(), cache.bytes()],
            seconds: [self.reading.seconds, seconds],
            probe_error: short.probe_error,
            kl: Divergence::new(&self.full, &found, &self.following[1..])?,
        })
    }
}

/// Runs the subcommand.
///
/// # Errors
/// In words for the user.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.texts.check()?;
    let variants = arguments.variants.variants()?;
    let stored = |variant: &Variant| {
        arguments
            .dtype
            .iter()
            .map(|&dtype| variant.clone().stored_as(dtype))
            .collect::<Vec<_>>()
    };
    let variants: Vec<Variant> = variants.iter().flat_map(stored).collect();
    for variant in &variants {
        variant.check(arguments.tokens)?;
        ensure!(
            variant.method != MethodKind::Full || arguments.queries.iter().all(QueriesKind::is_usual),
            "nothing is fitted where nothing is dropped; leave --queries out for --method full"
        );
    }
    let mut results = Results::<Row>::open(arguments.output.as_deref())?;
    let mut machine = arguments.engine.open()?;
    let mut progress = Progress::new();
    let session = Session::open(&arguments.model, Some(Products::Widened), &mut progress)?;
    let mut rows = Vec::new();
    for (path, offset) in arguments.texts.passages() {
        let passage = Passage::read(&session, path, offset, arguments.tokens, arguments.next, &mut progress)?;
        let (source, engine) = (passage.capture.digest()?, machine.name());
        let mut asking = Asking::new(&session, &passage);
        for (variant, &queries) in variants
            .iter()
            .flat_map(|variant| arguments.queries.iter().map(move |queries| (variant, queries)))
        {
            let same = |row: &Row| {
                row.version == env!("CARGO_PKG_VERSION")
                    && row.source == source
                    && row.engine == engine
                    && row.method == variant.method
                    && row.next == arguments.next
                    && row.queries == queries
                    && row.dtype == variant.dtype
                    && variant.made(&row.options, row.sensitivities.as_deref())
                    && row.model == session.name
            };
            let row = results.once(same, || asking.measure(&mut machine, variant, queries, &mut progress))?;
            if arguments.json {
                progress.print(&serde_json::to_string(&row)?)?;
            }
            rows.push(row);
        }
    }
    progress.finish();
    results.note_unreadable();
    if !arguments.json {
        progress.print(&table(&rows))?;
    }
    Ok(())
}

/// A line a measurement, and where there are several passages the mean over them.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let names = [
        "model",
        "text",
        "keep",
        "method",
        "KL",
        "median",
        "worst 5",
        "top-1",
        "perplexity",
        "(full)",
        "probe error",
        "seconds",
    ];
    let mut table = columns(&names, &[0, 1, 3]);
    for row in rows {
        let kl = &row.kl;
        table.add_row([
            row.model.clone(),
            format!("{} @{}", row.text, row.offset),
            format!("{}", row.keep),
            way(row),
            number(kl.mean),
            number(kl.median),
            format!("{:.0} %", 100.0 * kl.worst_share),
            format!("{:.1} %", 100.0 * kl.top1),
            format!("{:.3}", kl.perplexity_short),
            format!("{:.3}", kl.perplexity_full),
            perhaps(row.probe_error),
            format!("{:.1}", row.seconds[1]),
        ]);
    }
    format!("{table}\n{}", means(rows))
}

/// Mean KL over passages, for each model, keep and method; nothing where there is one passage only.
fn means(rows: &[Row]) -> String {
    let mut ways: Vec<(&str, String, f64, Vec<&Row>)> = Vec::new();
    for row in rows {
        let (model, way) = (row.model.as_str(), way(row));
        match ways
            .iter_mut()
            .find(|known| known.0 == model && known.1 == way && known.2 == row.keep)
        {
            Some(known) => known.3.push(row),
            None => ways.push((model, way, row.keep, vec![row])),
        }
    }
    if ways.iter().all(|(.., rows)| rows.len() < 2) {
        return String::new();
    }
    let mut table = columns(
        &["model", "keep", "method", "passages", "mean KL", "mean top-1", "mean seconds"],
        &[0, 2],
    );
    for (model, way, keep, rows) in ways {
        let mean = |of: fn(&Row) -> f64| rows.iter().map(|row| of(row)).sum::<f64>() / rows.len() as f64;
        table.add_row([
            model.to_owned(),
            keep.to_string(),
            way,
            rows.len().to_string(),
            number(mean(|row| row.kl.mean)),
            format!("{:.1} %", 100.0 * mean(|row| row.kl.top1)),
            format!("{:.1}", mean(|row| row.seconds[1])),
        ]);
    }
    format!("\n{table}\n")
}

fn way(row: &Row) -> String {
    let way = words::way(row.method, row.preset, "full, through the compressed path");
    if row.method == MethodKind::Full {
        return way + &row.dtype.changed();
    }
    way + &changed(row.preset, Some(&row.options), row.sensitivities.as_deref()) + &row.queries.changed() + &row.dtype.changed()
}
