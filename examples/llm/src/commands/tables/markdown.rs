//! Figures and tables as Markdown has them.

/// What stands for a figure that was not measured.
pub(super) const MISSING: &str = "–";

/// Three significant digits, without a zero before the point: `.0362`, `2.31`, `520`; below 1e-4 as `4.26e-5`.
pub(super) fn figure(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let rounded = format!("{value:.2e}");
    let exponent: Option<i32> = rounded.split_once('e').and_then(|(_, exponent)| exponent.parse().ok());
    match exponent {
        Some(exponent) if exponent >= -4 => {
            let decimals = usize::try_from(2 - exponent).unwrap_or(0);
            bare(&format!("{value:.decimals$}"))
        }
        _ => rounded,
    }
}

/// A share in per cent.
pub(super) fn share(value: f64) -> String {
    format!("{} %", figure(100.0 * value))
}

/// A fraction such as a depth in all its digits, without a zero before the point.
pub(super) fn fraction(value: f64) -> String {
    bare(&value.to_string())
}

/// A figure that may be missing.
pub(super) fn perhaps(value: Option<f64>, written: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| MISSING.to_owned(), written)
}

fn bare(digits: &str) -> String {
    match digits.strip_prefix('-') {
        Some(size) => format!("-{}", bare(size)),
        None if digits.starts_with("0.") => digits[1..].to_owned(),
        None => digits.to_owned(),
    }
}

/// A table; all columns after the first `words` hold figures and are set to the right.
pub(super) fn table(head: &[String], words: usize, rows: &[Vec<String>]) -> String {
    let rule = (0..head.len()).map(|column| if column < words { "---" } else { "---:" });
    let mut text = line(head);
    text.push_str(&format!("|{}|\n", rule.collect::<Vec<_>>().join("|")));
    text.extend(rows.iter().map(|row| line(row)));
    text
}

fn line(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}
