//! How methods and figures are written on the progress line and in tables.

use super::variant::{MethodKind, PresetKind};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

/// A way to shorten a cache as the arguments spell it.
#[must_use]
pub fn label(method: MethodKind, preset: PresetKind, keep: f64) -> String {
    format!("{} ({}) at keep {keep}", spelled(method), spelled(preset))
}

/// A value as the arguments spell it.
#[must_use]
pub fn spelled(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// A way to shorten a cache in a table; `full`: what the full cache is called there.
#[must_use]
pub fn way(method: MethodKind, preset: PresetKind, full: &str) -> String {
    match (method, preset) {
        (MethodKind::Full, _) => full.to_owned(),
        (_, PresetKind::Default) => spelled(method),
        (_, PresetKind::Published) => format!("{}, {}", spelled(method), spelled(preset)),
    }
}

/// A figure with four decimals, and one of size below 1e-4 as a power of ten with two digits.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_and_figures_are_spelled_as_the_arguments_and_tables_do() {
        assert_eq!(way(MethodKind::SelectFit, PresetKind::Default, "full"), "select-fit");
        assert_eq!(way(MethodKind::Kvsculpt, PresetKind::Published, "full"), "kvsculpt, published");
        assert_eq!(way(MethodKind::Full, PresetKind::Default, "whole"), "whole");
        assert_eq!(
            label(MethodKind::Select, PresetKind::Published, 0.3),
            "select (published) at keep 0.3"
        );
        assert_eq!(
            [number(12.34567), number(0.00012), number(-4.26e-7)],
            ["12.3457", "0.0001", "-4.3e-7"]
        );
    }
}
