//! Tables of KL, top-1 agreement and perplexity.

use super::board::{Board, Line};
use super::markdown::{MISSING, figure, perhaps, share, table};
use super::measured::{Compared, as_first_seen};
use crate::commands::variant::MethodKind;

/// A table a board, with a line a method.
pub(super) fn tables(boards: &[Board<'_, Compared>]) -> Vec<String> {
    boards.iter().map(of_board).collect()
}

fn of_board(board: &Board<'_, Compared>) -> String {
    let mut head = vec!["method".to_owned()];
    head.extend(board.passages.iter().map(|passage| format!("{} @{}", passage.text, passage.offset)));
    head.extend(["mean KL", "median token", "top-1", "perplexity (full)", "seconds"].map(str::to_owned));
    let rows: Vec<Vec<String>> = board.lines.iter().map(row).collect();
    format!("**{}**, keep {}\n\n{}", board.title, board.keep, table(&head, 1, &rows))
}

fn row(line: &Line<'_, Compared>) -> Vec<String> {
    let mut cells = vec![line.name.clone()];
    cells.extend(line.cells.iter().map(|cell| perhaps(cell.map(|found| found.kl.mean), figure)));
    let short = line.mean(|found| found.kl.perplexity_short).map(figure);
    let full = line.mean(|found| found.kl.perplexity_full).map(figure);
    let perplexity = short.zip(full).map(|(short, full)| format!("{short} ({full})"));
    cells.extend([
        perhaps(mean(line), figure),
        perhaps(line.mean(|found| found.kl.median), figure),
        perhaps(line.mean(|found| found.kl.top1), share),
        perplexity.unwrap_or_else(|| MISSING.to_owned()),
        perhaps(line.mean(|found| found.seconds), figure),
    ]);
    cells
}

fn mean(line: &Line<'_, Compared>) -> Option<f64> {
    line.mean(|found| found.kl.mean)
}

/// One table of mean KL, a column a method and the least of each line in bold; none where nothing was shortened.
pub(super) fn means(boards: &[Board<'_, Compared>]) -> Option<String> {
    let shortened = |line: &&Line<'_, Compared>| line.way.method != MethodKind::Full;
    let lines = boards.iter().flat_map(|board| &board.lines).filter(shortened);
    let mut ways = as_first_seen(lines.map(|line| (line.way, line.name.as_str())));
    ways.sort_by_key(|(way, _)| way.rank());
    if ways.is_empty() {
        return None;
    }
    let mut head = vec!["model".to_owned(), "keep".to_owned()];
    head.extend(ways.iter().map(|(_, name)| (*name).to_owned()));
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut model = "";
    for board in boards.iter().filter(|board| board.lines.iter().any(|line| shortened(&line))) {
        let means = ways
            .iter()
            .map(|(_, name)| board.lines.iter().find(|line| line.name == *name).and_then(mean));
        let means: Vec<Option<f64>> = means.collect();
        let least = means.iter().flatten().copied().min_by(f64::total_cmp);
        let written = |value: f64| {
            let text = figure(value);
            if Some(value) == least { format!("**{text}**") } else { text }
        };
        let title = if board.title == model { "" } else { &board.title };
        let mut row = vec![title.to_owned(), board.keep.to_string()];
        row.extend(means.iter().map(|&mean| perhaps(mean, written)));
        rows.push(row);
        model = &board.title;
    }
    Some(table(&head, 2, &rows))
}
