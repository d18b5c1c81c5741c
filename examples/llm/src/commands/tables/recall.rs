//! Tables of what is found again in the short cache.

use super::board::{Board, Line};
use super::markdown::{MISSING, fraction, perhaps, share, table};
use super::measured::{Recalled, ascending};
use crate::commands::variant::MethodKind;

/// A table a model and keep, the full cache's line first.
pub(super) fn tables(boards: &[Board<'_, Recalled>]) -> Vec<String> {
    let of_model = |boards: &[Board<'_, Recalled>]| -> Vec<String> {
        let lines = || boards.iter().flat_map(|board| &board.lines);
        let full: Vec<&Line<'_, Recalled>> = lines().filter(|line| is_full(line)).collect();
        let mut tables = Vec::new();
        for board in boards {
            let short: Vec<&Line<'_, Recalled>> = board.lines.iter().filter(|line| !is_full(line)).collect();
            if !short.is_empty() {
                tables.push(of_lines(
                    &format!("**{}**, retrieval at keep {}", board.title, board.keep),
                    &[&full[..], &short[..]].concat(),
                ));
            }
        }
        if tables.is_empty() {
            let title = boards.first().map(|board| format!("**{}**, retrieval", board.title));
            tables.extend(title.map(|title| of_lines(&title, &full)));
        }
        tables
    };
    boards.chunk_by(|one, next| one.title == next.title).flat_map(of_model).collect()
}

fn is_full(line: &Line<'_, Recalled>) -> bool {
    line.way.method == MethodKind::Full
}

fn of_lines(title: &str, lines: &[&Line<'_, Recalled>]) -> String {
    let measured = lines.iter().flat_map(|line| line.cells.iter().flatten());
    let depths = ascending(measured.flat_map(|found| &found.depths).map(|depth| depth.depth));
    let mut head = vec!["method".to_owned()];
    head.extend(depths.iter().map(|&depth| format!("at {}", fraction(depth))));
    head.extend(["needles found", "in all", "copied tokens right"].map(str::to_owned));
    let mut rows = Vec::new();
    for line in lines {
        let mut row = vec![line.name.clone()];
        row.extend(depths.iter().map(|&depth| counted(needles(line, Some(depth)))));
        let all = needles(line, None);
        row.push(counted(all));
        row.push(perhaps(complete(line).then(|| all.0 as f64 / all.1 as f64), share));
        row.push(perhaps(line.mean(copied), share));
        rows.push(row);
    }
    format!("{title}\n\n{}", table(&head, 1, &rows))
}

/// Whether every passage was measured and had a needle.
fn complete(line: &Line<'_, Recalled>) -> bool {
    line.cells.iter().all(Option::is_some) && needles(line, None).1 > 0
}

/// Needles found and asked for, at a depth or at all, over the passages measured.
fn needles(line: &Line<'_, Recalled>, at: Option<f64>) -> (usize, usize) {
    let depths = line.cells.iter().flatten().flat_map(|found| &found.depths);
    let exact = depths
        .filter(|depth| at.is_none_or(|at| depth.depth == at))
        .flat_map(|depth| &depth.exact);
    exact.fold((0, 0), |(found, asked), &exact| (found + usize::from(exact), asked + 1))
}

fn counted((found, asked): (usize, usize)) -> String {
    if asked == 0 {
        MISSING.to_owned()
    } else {
        format!("{found}/{asked}")
    }
}

/// The mean over depths of the share of copied tokens that were the likeliest.
fn copied(found: &Recalled) -> f64 {
    found.depths.iter().map(|depth| depth.copy_top1).sum::<f64>() / found.depths.len().max(1) as f64
}
