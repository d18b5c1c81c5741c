//! How methods and figures are written on the progress line and in tables.

use super::variant::{MethodKind, PresetKind};
use clap::ValueEnum as _;
use clap::builder::PossibleValue;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

/// A way to shorten a cache as the arguments spell it.
#[must_use]
pub fn label(method: MethodKind, preset: PresetKind, keep: f64) -> String {
    let written = |value: Option<PossibleValue>| value.map_or_else(String::new, |value| value.get_name().to_owned());
    format!(
        "{} ({}) at keep {keep}",
        written(method.to_possible_value()),
        written(preset.to_possible_value())
    )
}

/// A way to shorten a cache in a table; `full`: what the full cache is called there.
#[must_use]
pub fn way(method: MethodKind, preset: PresetKind, full: &str) -> String {
    let method = match method {
        MethodKind::Full => return full.to_owned(),
        MethodKind::Random => "random",
        MethodKind::Select => "select",
        MethodKind::SelectFit => "select-fit",
        MethodKind::Kvsculpt => "kvsculpt",
    };
    match preset {
        PresetKind::Default => method.to_owned(),
        PresetKind::Published => format!("{method}, published"),
    }
}

/// Three digits that count.
#[must_use]
pub fn number(value: f64) -> String {
    if value.abs() >= 1e-4 {
        format!("{value:.4}")
    } else {
        format!("{value:.1e}")
    }
}

/// A figure that may be missing.
#[must_use]
pub fn perhaps(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), number)
}

/// An empty Markdown table with these columns; all but those in `words` hold figures and are set to the right.
#[must_use]
pub fn columns(names: &[&str], words: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(names.to_vec());
    for column in table.column_iter_mut().filter(|column| !words.contains(&column.index)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
