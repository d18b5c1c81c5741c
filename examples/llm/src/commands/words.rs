//! How methods and figures are written on the progress line and in tables.

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::Value;

use super::recorded::Recorded;
use super::variant::{MethodKind, PresetKind, Variant};

/// A way to shorten a cache as the arguments spell it, with the options that differ from the preset's, and sensitivities.
#[must_use]
pub fn label(variant: &Variant) -> String {
    let options = Recorded::of(&variant.options).ok();
    let changed = changed(variant.preset, options.as_ref(), variant.sensitivities().as_deref());
    format!(
        "{} ({}{changed}{}) at keep {}",
        spelled(variant.method),
        spelled(variant.preset),
        variant.dtype.changed(),
        variant.keep
    )
}

/// Options that differ from the preset's, and sensitivities where there are any: `, bias: on, budget: layer`. Method and keep are
/// told elsewhere.
#[must_use]
pub fn changed(preset: PresetKind, options: Option<&Recorded>, sensitivities: Option<&str>) -> String {
    let usual = Recorded::of(&preset.options()).ok();
    let mut told = String::new();
    for (name, value) in options.into_iter().flat_map(Recorded::all) {
        if ["method", "keep"].contains(&name.as_str()) || Some(value) == usual.as_ref().and_then(|usual| usual.get(name)) {
            continue;
        }
        let value = match value {
            Value::Bool(true) => "on".to_owned(),
            Value::Bool(false) => "off".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        told.push_str(&format!(", {name}: {value}"));
    }
    if let Some(name) = sensitivities {
        told.push_str(&format!(", sensitivities: {name}"));
    }
    told
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
    use crate::commands::variant::{ScopeKind, Switch};

    #[test]
    fn ways_and_figures_are_spelled_as_the_arguments_and_tables_do() {
        assert_eq!(way(MethodKind::SelectFit, PresetKind::Default, "full"), "select-fit");
        assert_eq!(way(MethodKind::Kvsculpt, PresetKind::Published, "full"), "kvsculpt, published");
        assert_eq!(way(MethodKind::Full, PresetKind::Default, "whole"), "whole");
        let variant = Variant::new(MethodKind::Select, PresetKind::Published, 0.3, None).unwrap();
        assert_eq!(label(&variant), "select (published) at keep 0.3");
        let changed = variant.with(Some(ScopeKind::Layer), Some(Switch::On));
        assert_eq!(label(&changed), "select (published, bias: on, budget: layer) at keep 0.3");
        let usual = changed.with(Some(ScopeKind::Uniform), Some(Switch::Off));
        assert_eq!(label(&usual), "select (published) at keep 0.3");
        assert_eq!(
            [number(12.34567), number(0.00012), number(-4.26e-7)],
            ["12.3457", "0.0001", "-4.3e-7"]
        );
    }
}
