//! `retrieval`: does the model still find things in the short cache?

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::arguments::{EngineArguments, ModelArguments, TextArguments, VariantArguments};
use super::haystack::{Depth, Haystack, Row, Task};
use super::progress::Progress;
use super::results::Results;
use super::session::Session;
use super::variant::{MethodKind, PresetKind, Variant};
use super::words::{changed, columns, way};
use crate::model::Products;

/// Measure whether a model with a short cache still finds what it has read: this is where short caches break.
///
/// Needles are sentences with a number, planted in the text at several depths and asked for, after it, by their own beginning: right
/// is an answer every digit of which is the likeliest token. The table counts those found at each depth. Copying: at the same depths a passage of the text begins again after it
/// (16 tokens), and the 32 that should follow are looked at one by one, each after the right ones before it. Every question is asked
/// from the same cache, the full one and a short one for each way asked for.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    texts: TextArguments,
    #[command(flatten)]
    task: Task,
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

/// Runs the subcommand.
///
/// # Errors
/// In words for the user.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.task.validate()?;
    let mut variants = vec![Variant::new(MethodKind::Full, PresetKind::Default, 1.0, None)?];
    arguments.texts.check()?;
    let asked = arguments.variants.variants()?;
    variants.extend(asked.into_iter().filter(|variant| variant.method != MethodKind::Full));
    for variant in &variants {
        arguments.task.check(variant)?;
    }
    let mut results = Results::<Row>::open(arguments.output.as_deref())?;
    let mut machine = arguments.engine.open()?;
    let mut progress = Progress::new();
    let session = Session::open(&arguments.model, Some(Products::Widened), &mut progress)?;
    let mut rows = Vec::new();
    for (path, offset) in arguments.texts.passages() {
        let haystack = Haystack::read(&session, path, offset, &arguments.task, &mut progress)?;
        for variant in &variants {
            let engine = machine.name();
            let same = |row: &Row| haystack.is_measured_by(row, &session, &engine, variant);
            let row = results.once(same, || haystack.measure(&session, &mut machine, variant, &mut progress))?;
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

    /// Needles found at a depth and needles asked for there, over all passages.
    fn found(&self, depth: f64) -> String {
        let depths = self.rows.iter().flat_map(|row| &row.depths);
        let exact: Vec<bool> = depths
            .filter(|found| found.depth == depth)
            .flat_map(|found| found.exact.iter().copied())
            .collect();
        format!("{}/{}", exact.iter().filter(|&&exact| exact).count(), exact.len())
    }
}

/// Rows by the way to shorten the cache, in the order in which the ways first come.
fn ways(rows: &[Row]) -> Vec<Way<'_>> {
    let mut ways: Vec<Way<'_>> = Vec::new();
    for row in rows {
        let name = way(row.method, row.preset, "full") + &changed(row.preset, row.options.as_ref(), row.sensitivities.as_deref());
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
    ways
}

/// A line a way to shorten the cache, the full one first: needles found of those asked for at each depth, and means over passages
/// and depths.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut depths: Vec<f64> = rows.iter().flat_map(|row| &row.depths).map(|depth| depth.depth).collect();
    depths.sort_by(f64::total_cmp);
    depths.dedup();
    let at_depth: Vec<String> = depths.iter().map(|depth| format!("at {depth}")).collect();
    let mut names = vec!["model", "keep", "method", "passages"];
    names.extend(at_depth.iter().map(String::as_str));
    names.extend(["needles exact", "log-prob", "copying top-1", "log-prob", "seconds"]);
    let mut table = columns(&names, &[0, 2]);
    for way in &ways(rows) {
        let exact = |depth: &Depth| depth.exact.iter().map(|&exact| f64::from(u8::from(exact))).collect();
        let mut cells = vec![
            way.model.to_owned(),
            way.keep.to_string(),
            way.name.clone(),
            way.rows.len().to_string(),
        ];
        cells.extend(depths.iter().map(|&depth| way.found(depth)));
        cells.extend([
            format!("{:.1} %", 100.0 * way.mean(exact)),
            format!("{:.2}", way.mean(|depth| depth.needle_log_probability.clone())),
            format!("{:.1} %", 100.0 * way.mean(|depth| vec![depth.copy_top1])),
            format!("{:.3}", way.mean(|depth| vec![depth.copy_log_probability])),
            format!("{:.1}", way.rows.iter().map(|row| row.seconds).sum::<f64>() / way.rows.len() as f64),
        ]);
        table.add_row(cells);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: MethodKind, exact: [bool; 2], copy_top1: f64) -> Row {
        let depth = |depth, exact: Vec<bool>| Depth {
            depth,
            places: vec![50, 60],
            exact,
            needle_log_probability: vec![-1.0, -3.0],
            copied_from: 70,
            copy_top1,
            copy_log_probability: -0.5,
        };
        Row {
            version: "1".into(),
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
            sensitivities: None,
            source: String::new(),
            engine: "CPU".into(),
            bytes: 1,
            seconds: 0.0,
            depths: vec![depth(0.25, vec![true, true]), depth(0.5, exact.to_vec())],
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
        let cells = |line: usize| -> Vec<&str> { lines[line].trim_matches('|').split('|').map(str::trim).collect() };
        assert_eq!(cells(0)[4..7], ["at 0.25", "at 0.5", "needles exact"], "{table}");
        assert_eq!(cells(2)[2..7], ["full", "2", "4/4", "4/4", "100.0 %"], "{table}");
        assert_eq!(
            cells(3)[2..9],
            ["select", "2", "4/4", "1/4", "62.5 %", "-2.00", "50.0 %"],
            "{table}"
        );
    }
}
