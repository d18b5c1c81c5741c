//! The table a head, in two layouts: one line a candidate, or one line a head where the terminal is wide enough.

use std::io::IsTerminal as _;

use comfy_table::{CellAlignment, ContentArrangement, ContentLineStyle, LineStyle, Table, TableStyle};
use kvsculpt::options::Method;
use kvsculpt::solver::{Judged, Outcome, Stop};

use crate::report::Report;

/// What stands where a number is not known.
pub(crate) const NOTHING: &str = "–";

/// Lines under the header and before the means, no borders.
const STYLE: TableStyle = TableStyle::new()
    .header_lines(ContentLineStyle::none())
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .content_lines(ContentLineStyle::none());

/// Columns of the terminal that standard output is; `None` where it is none.
pub(crate) fn terminal_width() -> Option<u16> {
    std::io::stdout().is_terminal().then(|| Table::new().width()).flatten()
}

/// A line a head if it fits into `width` columns, else a line a candidate.
pub(crate) fn fitting(report: &Report<'_>, width: Option<u16>) -> String {
    let lines = one_line_a_head(report);
    let widest = lines.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    if width.is_some_and(|width| widest > usize::from(width)) {
        one_line_a_candidate(report)
    } else {
        lines
    }
}

/// What a head's pairs could have been, each under its method's name, the result last.
fn candidates(method: Method, select: Judged, select_fit: Option<Judged>, result: Judged) -> Vec<(&'static str, Option<Judged>)> {
    match method {
        Method::Random => vec![("random", Some(result))],
        Method::Select => vec![("select", Some(result))],
        Method::SelectFit => vec![("select", Some(select)), ("select-fit", Some(result))],
        _ => vec![("select", Some(select)), ("select-fit", select_fit), ("kvsculpt", Some(result))],
    }
}

fn of_head(method: Method, head: &Outcome) -> Vec<(&'static str, Option<Judged>)> {
    candidates(method, head.select, head.select_fit, head.result)
}

fn of_means(report: &Report<'_>) -> Vec<(&'static str, Option<Judged>)> {
    let means = &report.means;
    candidates(report.method(), means.select, means.select_fit, means.result)
}

/// A line a candidate: narrow, and every line says what it is.
pub(crate) fn one_line_a_candidate(report: &Report<'_>) -> String {
    let header = [
        "layer",
        "head",
        "kept",
        "method",
        "training\noutput",
        "probe\noutput",
        "probe\nmass",
        "probe\nmerged",
        "rounds",
        "end",
    ];
    let mut table = Body::new(header.map(String::from).to_vec());
    let mut group = |place: [String; 3], candidates: Vec<(&'static str, Option<Judged>)>, end: [String; 2]| {
        let last = candidates.len() - 1;
        for (index, (name, judged)) in candidates.into_iter().enumerate() {
            let mut row = if index == 0 { place.to_vec() } else { vec![String::new(); 3] };
            row.push(name.into());
            row.push(number(judged.map(|judged| judged.output)));
            row.extend(probe(judged));
            row.extend(if index == last { end.to_vec() } else { vec![String::new(); 2] });
            table.row(row);
        }
    };
    for head in report.heads {
        let end = [head.iterations.to_string(), stop(head.stop).to_owned()];
        group(place(head), of_head(report.method(), head), end);
    }
    let mean = ["mean".to_owned(), String::new(), String::new()];
    group(mean, of_means(report), [String::new(), String::new()]);
    table.text(&[3, 9])
}

/// A line a head: every error of the candidates side by side.
fn one_line_a_head(report: &Report<'_>) -> String {
    let names: Vec<&str> = of_means(report).iter().map(|candidate| candidate.0).collect();
    let mut header: Vec<String> = ["layer", "head", "kept", "training\noutput"].map(String::from).to_vec();
    for error in ["output", "mass", "merged"] {
        // `select-fit` is wider than its numbers.
        let short = names.iter().map(|name| if *name == "select-fit" { "+ fit" } else { *name });
        header.extend(short.map(|name| format!("probe\n{error}\n{name}")));
    }
    header.extend(["rounds", "end"].map(String::from));
    let mut table = Body::new(header);
    let mut line = |place: [String; 3], candidates: Vec<(&'static str, Option<Judged>)>, end: [String; 2]| {
        let mut row = place.to_vec();
        row.push(number(candidates.last().and_then(|last| last.1).map(|judged| judged.output)));
        let probes: Vec<[String; 3]> = candidates.iter().map(|candidate| probe(candidate.1)).collect();
        for error in 0..3 {
            row.extend(probes.iter().map(|probe| probe[error].clone()));
        }
        row.extend(end);
        table.row(row);
    };
    for head in report.heads {
        let end = [head.iterations.to_string(), stop(head.stop).to_owned()];
        line(place(head), of_head(report.method(), head), end);
    }
    let mean = ["mean".to_owned(), String::new(), String::new()];
    line(mean, of_means(report), [String::new(), String::new()]);
    let end = 5 + 3 * names.len();
    table.text(&[end])
}

fn place(head: &Outcome) -> [String; 3] {
    [head.layer.to_string(), head.head.to_string(), head.kept.to_string()]
}

fn probe(judged: Option<Judged>) -> [String; 3] {
    let errors = judged.and_then(|judged| judged.probe);
    [
        number(errors.map(|errors| errors.output)),
        number(errors.map(|errors| errors.mass)),
        number(errors.map(|errors| errors.merged)),
    ]
}

/// At most seven characters, at least two digits that count.
pub(crate) fn number(value: Option<f64>) -> String {
    match value {
        None => NOTHING.into(),
        Some(value) if !value.is_finite() => "not finite".into(),
        Some(0.0) => "0".into(),
        Some(value) if !(1e-4..1e4).contains(&value) => format!("{value:.1e}"),
        Some(value) if value < 1e-3 => format!("{value:.5}"),
        Some(value) if value < 10.0 => format!("{value:.4}"),
        Some(value) => format!("{value:.1}"),
    }
}

pub(crate) fn stop(stop: Stop) -> &'static str {
    match stop {
        Stop::Whole => "kept whole",
        Stop::NotOptimised => NOTHING,
        Stop::OutOfSteps => "all steps",
        Stop::Converged => "converged",
        Stop::Flat => "flat",
        Stop::NoBetter => "no better",
        Stop::GoodEnough => "good enough",
        Stop::NotFinite => "not finite",
        _ => "other",
    }
}

/// A table being filled; numbers to the right.
pub(crate) struct Body(Table);

impl Body {
    pub(crate) fn new(header: Vec<String>) -> Self {
        let mut table = Table::new();
        table
            .load_style(STYLE)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header);
        Self(table)
    }

    pub(crate) fn row(&mut self, row: Vec<String>) {
        self.0.add_row(row);
    }

    /// The table with these columns to the left, without blanks at line ends.
    pub(crate) fn text(mut self, left: &[usize]) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 1));
            if !left.contains(&column.index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines: Vec<String> = self.0.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short() {
        let values = [0.0, 1e-9, 0.00123, 0.5, 9.99996, 12.0, 9999.96, 1e12];
        for value in values {
            assert!(number(Some(value)).len() <= 7, "{}", number(Some(value)));
        }
        assert_eq!(number(Some(0.03217)), "0.0322");
        assert_eq!(number(Some(3.21e-5)), "3.2e-5");
        assert_eq!(number(Some(f64::NAN)), "not finite");
    }
}
