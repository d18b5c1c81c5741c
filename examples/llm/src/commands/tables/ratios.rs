//! How many times smaller a method's KL is than another's.

use anyhow::{Result, ensure};

use super::board::{Board, Line};
use super::markdown::{MISSING, figure, table};
use super::measured::{Compared, as_first_seen};
use crate::commands::variant::{MethodKind, PresetKind};

/// What one method's KL is of another's, over the passages both have.
#[derive(Debug, PartialEq)]
pub(super) struct Ratio {
    /// The sum over passages divided by the other's: the passages with much KL decide it.
    pub(super) means: f64,
    /// The geometric mean of the passages' ratios: every passage counts alike.
    pub(super) geometric: f64,
    /// Passages both have.
    pub(super) passages: usize,
}

impl Ratio {
    /// The KL of `other` as a multiple of that of `line`. None where they have no passage in common or a KL is not above zero.
    pub(super) fn between(line: &Line<'_, Compared>, other: &Line<'_, Compared>) -> Option<Self> {
        let both = line.cells.iter().zip(&other.cells).filter_map(|(line, other)| line.zip(*other));
        let pairs: Vec<(f64, f64)> = both.map(|(line, other)| (line.kl.mean, other.kl.mean)).collect();
        if pairs.is_empty() || pairs.iter().any(|&(line, other)| line <= 0.0 || other <= 0.0) {
            return None;
        }
        let (mut line_sum, mut other_sum, mut logarithms) = (0.0, 0.0, 0.0);
        for &(line, other) in &pairs {
            line_sum += line;
            other_sum += other;
            logarithms += other.ln() - line.ln();
        }
        Some(Self {
            means: other_sum / line_sum,
            geometric: (logarithms / pairs.len() as f64).exp(),
            passages: pairs.len(),
        })
    }
}

/// The names of the lines to compare with: those asked for, or else the two published methods.
///
/// # Errors
/// A method asked for that no line is of.
pub(super) fn against(boards: &[Board<'_, Compared>], asked: &[String]) -> Result<Vec<String>> {
    let lines = || boards.iter().flat_map(|board| &board.lines);
    if asked.is_empty() {
        let usual = [MethodKind::SelectFit, MethodKind::Kvsculpt].map(|method| {
            let published = move |line: &&Line<'_, Compared>| {
                line.way.method == method && line.way.preset == PresetKind::Published && line.way.is_preset()
            };
            as_first_seen(lines().filter(published).map(|line| line.name.clone()))
        });
        return Ok(usual.concat());
    }
    let mut names = Vec::new();
    for label in asked {
        let matches = |line: &&Line<'_, Compared>| line.name == *label || line.way.to_string() == *label;
        let found = as_first_seen(lines().filter(matches).map(|line| line.name.clone()));
        ensure!(
            !found.is_empty(),
            "--against: no method measured is called `{label}`; there are: {}",
            as_first_seen(lines().map(|line| line.name.as_str())).join("; ")
        );
        names.extend(found);
    }
    Ok(as_first_seen(names))
}

/// A table a model, with a line a keep and method; lines without a figure are left out.
pub(super) fn tables(boards: &[Board<'_, Compared>], against: &[String]) -> Vec<String> {
    let of_model = |boards: &[Board<'_, Compared>]| -> Option<String> {
        let rows: Vec<Vec<String>> = boards.iter().flat_map(|board| rows(board, against)).collect();
        let title = &boards.first()?.title;
        let mut head = vec!["keep".to_owned(), "method".to_owned()];
        for name in against {
            head.extend([format!("means, {name}"), format!("geometric, {name}")]);
        }
        (!rows.is_empty()).then(|| {
            format!(
                "**{title}**, how many times smaller the KL is: ratio of means and geometric mean of the passages' ratios, in brackets over how many passages where not all\n\n{}",
                table(&head, 2, &rows)
            )
        })
    };
    boards.chunk_by(|one, next| one.title == next.title).filter_map(of_model).collect()
}

fn rows(board: &Board<'_, Compared>, against: &[String]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for line in &board.lines {
        let of = |name: &String| {
            let other = board.lines.iter().find(|other| other.name == *name)?;
            Ratio::between(line, other)
        };
        let ratios: Vec<Option<Ratio>> = against.iter().map(of).collect();
        if ratios.iter().all(Option::is_none) {
            continue;
        }
        let mut row = vec![board.keep.to_string(), line.name.clone()];
        for ratio in ratios {
            row.extend(cells(ratio.as_ref(), board.passages.len()));
        }
        rows.push(row);
    }
    rows
}

fn cells(ratio: Option<&Ratio>, passages: usize) -> [String; 2] {
    let Some(ratio) = ratio else {
        return [MISSING, MISSING].map(str::to_owned);
    };
    [ratio.means, ratio.geometric].map(|value| {
        if ratio.passages == passages {
            figure(value)
        } else {
            format!("{} ({})", figure(value), ratio.passages)
        }
    })
}
