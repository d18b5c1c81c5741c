//! Budgets for the eye: plain text for a terminal, at most 80 columns wide.

use std::collections::BTreeMap;

use super::file::Budgets;

/// Columns of a terminal that may be counted on.
const WIDTH: usize = 80;
/// Fractions below 0.2, 0.4, 0.6, 0.8, and the rest.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];
/// Where there is no fraction.
const NOTHING: char = '·';

/// Fractions in [0, 1] as shades, by layer and head: the longer side runs across and is cut into bands where it is too long.
/// `title` is the first line. Fractions outside are drawn as the nearest, NaN as if it were none.
///
/// ```
/// use kvsculpt::budget::{Budgets, heat_map};
///
/// let budgets = Budgets::new(1000, [(0, vec![1000, 100]), (1, vec![500, 300])].into())?;
/// let picture = heat_map("pairs kept", &budgets.shares());
/// print!("{picture}");
/// assert!(picture.starts_with("pairs kept\n") && picture.contains('█'));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[must_use]
pub fn heat_map(title: &str, grid: &BTreeMap<usize, Vec<Option<f64>>>) -> String {
    let heads = grid.values().map(Vec::len).max().unwrap_or(0);
    let layers: Vec<usize> = grid.keys().copied().collect();
    let cell = |layer: usize, head: usize| shade(grid.get(&layer).and_then(|heads| heads.get(head).copied().flatten()));
    let across_layers = layers.len() >= heads;
    let (heads, layers) = ((0..heads).collect::<Vec<_>>(), layers);
    let picture = if across_layers {
        bands(("layer", &layers), ("head", &heads), cell)
    } else {
        bands(("head", &heads), ("layer", &layers), |head, layer| cell(layer, head))
    };
    let [none, low, middle, high, full] = SHADES;
    format!("{title}\n{picture}|{none}| below 20%  |{low}| below 40%  |{middle}| below 60%  |{high}| below 80%  |{full}| up to 100%\n")
}

fn shade(fraction: Option<f64>) -> char {
    match fraction {
        Some(fraction) if !fraction.is_nan() => {
            let above = [0.2, 0.4, 0.6, 0.8].iter().filter(|&&bound| fraction >= bound).count();
            SHADES[above]
        }
        _ => NOTHING,
    }
}

/// A picture with columns and rows of these names and indices.
fn bands(columns: (&str, &[usize]), rows: (&str, &[usize]), cell: impl Fn(usize, usize) -> char) -> String {
    let digits = |indices: &[usize]| indices.last().map_or(1, |last| last.to_string().len());
    let places = digits(rows.1);
    // A name, a blank, an index, a blank.
    let margin = (rows.0.len() + 1 + places).max(columns.0.len()) + 1;
    let room = WIDTH.saturating_sub(margin + 2);
    // Two characters are about as wide as a line is high.
    let wide = if columns.1.len() * 2 <= room { 2 } else { 1 };
    let mut picture = String::new();
    for band in columns.1.chunks((room / wide).max(1)) {
        let title = format!("{:<margin$} {}", columns.0, ruler(band, wide));
        picture.push_str(title.trim_end());
        picture.push('\n');
        for &row in rows.1 {
            let name = format!("{} {row:>places$}", rows.0);
            let cells: String = band.iter().flat_map(|&column| [cell(column, row)].repeat(wide)).collect();
            picture.push_str(&format!("{name:<margin$}|{cells}|\n"));
        }
    }
    picture
}

/// The indices above their columns, as many as have room.
fn ruler(indices: &[usize], wide: usize) -> String {
    let end = indices.len() * wide + 1;
    let mut ruler = String::new();
    for (at, index) in indices.iter().enumerate() {
        let label = index.to_string();
        let place = at * wide;
        let free = ruler.is_empty() || place > ruler.len();
        if (at == 0 || index % 5 == 0) && free && place + label.len() <= end {
            ruler.push_str(&" ".repeat(place - ruler.len()));
            ruler.push_str(&label);
        }
    }
    ruler
}

/// A line a layer: its index, the lengths of its heads, and the part of its pairs that is kept; below, the same of all.
///
/// ```
/// use kvsculpt::budget::{Budgets, length_table};
///
/// let budgets = Budgets::new(1000, [(0, vec![1000, 100]), (7, vec![500, 300])].into())?;
/// let table = length_table(&budgets);
/// print!("{table}");
/// assert!(["1000", "100", "500", "300"].iter().all(|length| table.contains(length)));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[must_use]
pub fn length_table(budgets: &Budgets) -> String {
    let columns = ["layer", "kept", "lengths of heads"];
    let kept = |total: usize, heads: usize| format!("{:.1}%", total as f64 / (heads as f64 * budgets.tokens() as f64) * 100.0);
    let most = budgets.layers().flat_map(|(_, lengths)| lengths).max().copied().unwrap_or(0);
    let places = most.to_string().len();
    let margin = budgets
        .layers()
        .last()
        .map_or(0, |(layer, _)| layer.to_string().len())
        .max(columns[0].len());
    let share = "100.0%".len();
    let mut table = format!("{:>margin$}  {:>share$}  {}\n", columns[0], columns[1], columns[2]);
    let in_line = (WIDTH.saturating_sub(margin + share + 3) / (places + 1)).max(1);
    let mut heads = 0;
    for (layer, lengths) in budgets.layers() {
        heads += lengths.len();
        let total = lengths.iter().fold(0_usize, |sum, &length| sum.saturating_add(length));
        for (at, part) in lengths.chunks(in_line).enumerate() {
            let (name, kept) = match at {
                0 => (layer.to_string(), kept(total, lengths.len())),
                _ => (String::new(), String::new()),
            };
            let lengths: String = part.iter().map(|length| format!(" {length:>places$}")).collect();
            table.push_str(&format!("{name:>margin$}  {kept:>share$} {lengths}\n"));
        }
    }
    table.push_str(&format!(
        "{:>margin$}  {:>share$}  {} pairs in {heads} heads\n",
        "all",
        kept(budgets.total(), heads),
        budgets.total()
    ));
    table
}
