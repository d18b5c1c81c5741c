//! `tables`: finished measurements as Markdown.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use super::progress::print;
use board::boards;
use measured::Measurements;

mod board;
mod markdown;
mod marks;
mod measured;
mod origin;
mod quality;
mod ratios;
mod recall;
mod way;

/// Write what `eval` and `retrieval` measured as Markdown tables.
///
/// For each model and keep: KL(full ‖ short) of every passage and its mean, the median token, top-1 agreement, perplexity over the
/// short cache (and the full one), seconds of compressing; then how many times smaller every method's KL is than that of those it is
/// compared with; then retrieval beside the full cache's. A method is named by its preset and by the options that differ from it.
/// A dash stands for what was not measured; means are only over complete rows. Of two rows that are the same measurement the last
/// counts.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Files that `eval -o` and `retrieval -o` wrote
    #[arg(required = true, value_name = "RESULTS")]
    results: Vec<PathBuf>,
    /// Put the tables in this file, between its lines `<!-- tables: begin -->` and `<!-- tables: end -->`, instead of printing them
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// The method, as the tables name it, whose KL is divided by every other's; repeatable [default: `select-fit, published` and
    /// `kvsculpt, published`, where they were measured]
    #[arg(long, value_name = "METHOD")]
    against: Vec<String>,
    /// Only a part
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One short table: the mean KL, a line a model and keep, a column a method
    Mean,
}

/// Runs the subcommand.
///
/// # Errors
/// In words for the user: files that cannot be read or hold no measurements, a method that was not measured, or a file without
/// the marks.
pub fn run(arguments: &Arguments) -> Result<()> {
    let found = Measurements::read(&arguments.results)?;
    if found.unreadable > 0 {
        eprintln!("note: {} lines are no measurements and were left out", found.unreadable);
    }
    let text = document(&found, &arguments.against, arguments.only)?;
    match &arguments.into {
        Some(path) => marks::fill(path, &text),
        None => print(&text),
    }
}

/// The tables, each block followed by an empty line but the last.
fn document(found: &Measurements, against: &[String], only: Option<Part>) -> Result<String> {
    let compared = boards(&found.compared);
    let against = ratios::against(&compared, against)?;
    let mut blocks = Vec::new();
    if only == Some(Part::Mean) {
        blocks.extend(quality::means(&compared));
    } else {
        blocks.push(origin::line(found));
        blocks.extend(quality::tables(&compared));
        blocks.extend(ratios::tables(&compared, &against));
        blocks.extend(recall::tables(&boards(&found.recalled)));
    }
    if blocks.is_empty() {
        bail!("nothing of this kind was measured");
    }
    Ok(blocks.join("\n"))
}

#[cfg(test)]
#[path = "tables/tests.rs"]
mod tests;
