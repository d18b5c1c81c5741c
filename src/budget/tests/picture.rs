use std::collections::BTreeMap;

use super::super::{Budgets, heat_map, length_table};

type Grid = BTreeMap<usize, Vec<Option<f64>>>;

fn grid(layers: usize, heads: usize, fraction: impl Fn(usize, usize) -> Option<f64>) -> Grid {
    (0..layers)
        .map(|layer| (layer, (0..heads).map(|head| fraction(layer, head)).collect()))
        .collect()
}

#[test]
fn shades_stand_at_their_layer_and_head() {
    let fractions = [[Some(0.0), Some(0.2)], [Some(0.59), Some(0.6)], [Some(1.0), None]];
    let text = heat_map("share kept", &grid(3, 2, |layer, head| fractions[layer][head]));
    let right = "share kept\n\
        layer   0\n\
        head 0 |  ▒▒██|\n\
        head 1 |░░▓▓··|\n\
        | | below 20%  |░| below 40%  |▒| below 60%  |▓| below 80%  |█| up to 100%\n";
    assert_eq!(text, right);
}

#[test]
fn the_longer_side_runs_across() {
    let text = heat_map("share kept", &grid(2, 12, |layer, head| Some((layer * 12 + head) as f64 / 24.0)));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], "head     0         5         10");
    assert_eq!(lines[2], "layer 0 |          ░░░░░░░░░░▒▒▒▒|");
    assert_eq!(lines[3], "layer 1 |▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓████████|");
}

#[test]
fn deep_models_are_cut_into_bands_within_80_columns() {
    for (layers, heads) in [(1, 1), (24, 2), (36, 8), (80, 8), (126, 8), (3, 200), (1000, 3), (64, 64)] {
        // Every cell drawn by its own shade, read back in order.
        let shade = |layer: usize, head: usize| (layer * 7 + head * 3) % 5;
        let text = heat_map(
            "share kept",
            &grid(layers, heads, |layer, head| Some(shade(layer, head) as f64 / 5.0 + 0.1)),
        );
        assert!(
            text.lines().all(|line| line.chars().count() <= 80 && line.trim_end() == line),
            "{text}"
        );
        let (across, down) = if layers >= heads { (layers, heads) } else { (heads, layers) };
        let mut rows = vec![String::new(); down];
        let body: Vec<&str> = text.lines().skip(1).filter(|line| line.ends_with('|')).collect();
        for (at, line) in body.iter().enumerate() {
            rows[at % down].push_str(line.trim_end_matches('|').split_once('|').unwrap().1);
        }
        let wide = rows[0].chars().count() / across;
        for (row, cells) in rows.iter().enumerate() {
            for (column, cell) in cells.chars().collect::<Vec<_>>().chunks(wide).enumerate() {
                let (layer, head) = if layers >= heads { (column, row) } else { (row, column) };
                let drawn = " ░▒▓█".chars().nth(shade(layer, head)).unwrap();
                assert!(cell.iter().all(|&shade| shade == drawn), "layer {layer} head {head}: {cell:?}");
            }
        }
    }
}

#[test]
fn indices_stand_above_their_columns() {
    let layers: Grid = [3, 10, 11, 20, 31].into_iter().map(|layer| (layer, vec![Some(0.9)])).collect();
    let text = heat_map("share kept", &layers);
    assert_eq!(text.lines().nth(1), Some("layer   3 10  20"));
    assert_eq!(text.lines().nth(2), Some("head 0 |██████████|"));
}

#[test]
fn odd_grids_are_drawn_too() {
    // Nothing between title and legend.
    assert_eq!(heat_map("none", &Grid::new()).lines().count(), 2);
    let ragged: Grid = [(0, vec![Some(2.0)]), (1, vec![Some(-1.0), Some(f64::NAN)])].into_iter().collect();
    let text = heat_map("odd", &ragged);
    assert!(text.contains("head 0 |██  |\nhead 1 |····|"), "{text}");
}

#[test]
fn a_table_says_what_each_layer_keeps() {
    let budgets = Budgets::new(2048, BTreeMap::from([(0, vec![120, 2048]), (11, vec![96, 8])])).unwrap();
    let right = "layer    kept  lengths of heads\n    \
            0   52.9%   120 2048\n   \
            11    2.5%    96    8\n  \
            all   27.7%  2272 pairs in 4 heads\n";
    assert_eq!(length_table(&budgets), right);
    let many = Budgets::new(200_000, BTreeMap::from([(5, (0..64).map(|head| 100_000 + head).collect())])).unwrap();
    let table = length_table(&many);
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!((0..64).all(|head| table.contains(&format!(" {}", 100_000 + head))), "{table}");
}
