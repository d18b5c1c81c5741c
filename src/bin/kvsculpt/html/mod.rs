//! A compression as one page: no scripts, nothing from elsewhere, fit for a phone, a screen and paper, light and dark.

mod charts;
mod heat;
mod parts;

use std::collections::BTreeMap;
use std::path::Path;

use kvsculpt::budget::Curve;
use kvsculpt::cache::Compressed;
use kvsculpt::solver::{Errors, Judged, Outcome};
use kvsculpt::{Error, Result};
use serde_json::Value;

use crate::made::Made;
use crate::report::size;
use crate::table::{number, stop};
use charts::Candidates;
use heat::{Grid, Scale, heat};
use parts::{brief, columns, escaped, facts, tile};

const STYLE: &str = include_str!("style.css");

/// What a page tells.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    /// The name of what was compressed, or of the file that came out.
    pub(crate) name: String,
    pub(crate) made: &'a Made,
    /// What lengths were decided by, where it is known.
    pub(crate) curves: &'a [Curve],
    /// What is known of the run itself: machine, time, bytes.
    pub(crate) run: Vec<(String, String)>,
    /// Texts of the capture's metadata.
    pub(crate) metadata: &'a BTreeMap<String, String>,
    /// Bytes of keys and values: of the capture where known, and as they are stored.
    pub(crate) bytes: (Option<u64>, u64),
}

/// Which rows errors are of.
#[derive(Clone, Copy, Debug)]
enum Rows {
    Probe,
    Validation,
    Training,
}

impl Rows {
    /// The hardest that every head has.
    fn of(heads: &[Outcome]) -> Self {
        if heads.iter().all(|head| head.result.probe.is_some()) {
            Self::Probe
        } else if heads.iter().all(|head| head.result.validation.is_some()) {
            Self::Validation
        } else {
            Self::Training
        }
    }

    /// The merged error; of training rows, which have none, that of the output.
    fn error(self, judged: &Judged) -> Option<f64> {
        match self {
            Self::Probe => judged.probe.map(|errors| errors.merged),
            Self::Validation => judged.validation.map(|errors| errors.merged),
            Self::Training => Some(judged.output),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Probe => "merged error on probe rows, which are never fitted",
            Self::Validation => "merged error on rows held out of every fit",
            Self::Training => "output error on the rows that were fitted",
        }
    }
}

/// The page of a compressed file, as far as the file itself tells.
///
/// # Errors
/// [`Error::File`] where it says nothing of its heads, or what is not so.
pub(crate) fn of_file(path: &Path, compressed: &Compressed) -> Result<String> {
    let made = Made::of(compressed);
    if made.heads.is_empty() {
        return Err(Error::File {
            path: path.to_owned(),
            reason: "has no metadata `report` that can be read, so there is nothing to tell; compress again with this release".to_owned(),
        });
    }
    check(path, compressed, &made.heads)?;
    let stored: usize = compressed
        .layers
        .iter()
        .map(|layer| {
            let biases = layer.bias.as_ref().map_or(0, |bias| 4 * bias.len());
            (layer.key.len() + layer.value.len()) * layer.dtype.bytes() + biases
        })
        .sum();
    let page = Page {
        name: path.display().to_string(),
        made: &made,
        curves: &[],
        run: vec![("queries".to_owned(), made.queries.clone())],
        metadata: &compressed.metadata,
        bytes: (None, stored as u64),
    };
    Ok(page.html())
}

/// Refuses a report that is not of the file's own heads.
fn check(path: &Path, compressed: &Compressed, heads: &[Outcome]) -> Result<()> {
    let lengths = compressed.layers.iter().flat_map(|layer| {
        layer
            .lengths
            .iter()
            .enumerate()
            .map(|(head, &length)| ((layer.index, head), length))
    });
    let mut lengths: BTreeMap<(usize, usize), usize> = lengths.collect();
    for head in heads {
        // Taken out, so that a second report of the same head finds none.
        if lengths.remove(&(head.layer, head.head)) != Some(head.kept) {
            return Err(Error::File {
                path: path.to_owned(),
                reason: format!(
                    "has a metadata `report` that gives layer {} head {} {} pairs, which the file does not hold, or tells of it twice; compress again",
                    head.layer, head.head, head.kept
                ),
            });
        }
    }
    Ok(())
}

impl Page<'_> {
    /// The whole page.
    pub(crate) fn html(&self) -> String {
        let heads = &self.made.heads;
        let rows = Rows::of(heads);
        let name = escaped(&self.name);
        let sections = [
            self.tiles(rows),
            self.pictures(rows),
            methods(heads, rows),
            self.curves(),
            ends(heads),
            self.facts(),
            every_head(heads, rows),
        ];
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{name} – kvsculpt</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>A shorter key-value cache</h1>\n<p class=\"soft\">{name}</p>\n{}</main>\n</body>\n</html>\n",
            sections.concat()
        )
    }

    fn tiles(&self, rows: Rows) -> String {
        let heads = &self.made.heads;
        let kept: usize = heads.iter().map(|head| head.kept).sum();
        let all: usize = heads.iter().map(|head| head.tokens).sum();
        let mean = |pick: &dyn Fn(&Outcome) -> Option<f64>| {
            let known: Option<Vec<f64>> = heads.iter().map(pick).collect();
            known.map(|known| known.iter().sum::<f64>() / known.len() as f64)
        };
        let mut tiles = vec![
            tile(
                &format!("{:.1}%", 100.0 * kept as f64 / all.max(1) as f64),
                &format!("of {all} pairs kept, in {} heads", heads.len()),
            ),
            tile(
                &self.bytes.0.map_or_else(
                    || size(self.bytes.1),
                    |before| format!("{:.2}×", before as f64 / self.bytes.1.max(1) as f64),
                ),
                &self.bytes.0.map_or_else(
                    || "of keys and values".to_owned(),
                    |before| format!("smaller: {} → {}", size(before), size(self.bytes.1)),
                ),
            ),
        ];
        let candidates: [(&str, Option<f64>); 3] = [
            ("mean error, select", mean(&|head| rows.error(&head.select))),
            ("mean error, select-fit", mean(&|head| rows.error(head.select_fit.as_ref()?))),
            ("mean error, returned", mean(&|head| rows.error(&head.result))),
        ];
        tiles.extend(candidates.into_iter().filter_map(|(what, error)| Some(tile(&brief(error?), what))));
        format!(
            "<div class=\"tiles\">{}</div>\n<p class=\"soft\">Errors: {}; smaller is better.</p>\n",
            tiles.concat(),
            rows.words()
        )
    }

    fn pictures(&self, rows: Rows) -> String {
        let heads = &self.made.heads;
        let lengths = grid(heads, |head| Some(head.kept as f64 / head.tokens.max(1) as f64));
        let errors = grid(heads, |head| rows.error(&head.result));
        let scale = Scale::of(errors.values().flatten().flatten().copied());
        let lengths = heat(
            "Share of its pairs that each head keeps",
            "Layers down, heads across.",
            &lengths,
            Scale::Share,
            |share| format!("{:.0}%", 100.0 * share),
        );
        let errors = heat("Error of each head", "Stronger is worse, by the logarithm.", &errors, scale, brief);
        format!("<h2>Lengths and errors</h2>\n<div class=\"pair\">{lengths}{errors}</div>\n")
    }

    fn curves(&self) -> String {
        if self.curves.is_empty() {
            return String::new();
        }
        let heads: BTreeMap<(usize, usize), usize> = self.made.heads.iter().map(|head| ((head.layer, head.head), head.kept)).collect();
        format!(
            "<h2>Error curves</h2>\n<p class=\"soft\">Each head's error over the pairs it stores, by which lengths were shared out; the dot is the length it got.</p>\n{}\n",
            charts::curves(self.curves, |layer, head| heads.get(&(layer, head)).copied())
        )
    }

    fn facts(&self) -> String {
        let mut rows = self.run.clone();
        let said = [
            ("tool", &self.made.tool),
            ("method", &self.made.method),
            ("digest of the capture", &self.made.source),
        ];
        rows.extend(said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
        for key in ["model", "architecture", "text", "tokens", "next_position"] {
            rows.extend(
                self.metadata
                    .get(key)
                    .map(|value| (key.to_owned(), value.chars().take(400).collect())),
            );
        }
        let mut html = format!("<h2>Source and run</h2>\n<div class=\"scroll\">{}</div>\n", facts(&rows));
        if let Some(Value::Object(options)) = &self.made.options {
            let options: Vec<(String, String)> = options.iter().map(|(name, value)| (name.clone(), written(name, value))).collect();
            html += &format!("<h2>Options</h2>\n{}\n", columns(&options));
        }
        html
    }
}

/// A value of the options as people write it.
fn written(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => match name {
            "recent_rows" => "as the tail",
            "horizon" => "a position for each row",
            _ => "none",
        }
        .to_owned(),
        Value::Object(one) => one
            .iter()
            .map(|(name, value)| format!("{name} {}", written(name, value)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}

fn grid(heads: &[Outcome], pick: impl Fn(&Outcome) -> Option<f64>) -> Grid {
    let mut grid = Grid::new();
    for head in heads {
        let row = grid.entry(head.layer).or_default();
        // Heads come in their order; one that is missing leaves a gap, of which a hostile file cannot make a large one.
        if head.head < 4096 {
            row.resize(row.len().max(head.head + 1), None);
            row[head.head] = pick(head);
        }
    }
    grid
}

/// Methods by layer.
fn methods(heads: &[Outcome], rows: Rows) -> String {
    let mut layers: BTreeMap<usize, Vec<&Outcome>> = BTreeMap::new();
    for head in heads {
        layers.entry(head.layer).or_default().push(head);
    }
    let mean = |heads: &[&Outcome], pick: &dyn Fn(&Outcome) -> Option<f64>| {
        let known: Option<Vec<f64>> = heads.iter().map(|head| pick(head)).collect();
        known.map(|known| known.iter().sum::<f64>() / known.len() as f64)
    };
    let layers: BTreeMap<usize, Candidates> = layers
        .iter()
        .map(|(&layer, heads)| {
            let candidates = [
                mean(heads, &|head| rows.error(&head.select)),
                mean(heads, &|head| rows.error(head.select_fit.as_ref()?)),
                mean(heads, &|head| rows.error(&head.result)),
            ];
            (layer, candidates)
        })
        .collect();
    format!(
        "<h2>Methods at the same lengths</h2>\n<p class=\"soft\">Mean error of each layer's heads, on a logarithmic scale. Select keeps the pairs that rank highest, select-fit solves their values anew.</p>\n<figure>{}{}</figure>\n",
        charts::legend(),
        charts::methods(&layers)
    )
}

/// Why key optimisation ended, and how long it took.
fn ends(heads: &[Outcome]) -> String {
    let mut counts: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for head in heads {
        let entry = counts.entry(stop(head.stop)).or_default();
        entry.0 += 1;
        entry.1 += u64::from(head.iterations);
    }
    if counts.keys().all(|end| *end == "–") {
        return String::new();
    }
    let rows: String = counts
        .iter()
        .map(|(end, (count, rounds))| {
            let mean = *rounds as f64 / *count as f64;
            format!(
                "<tr><td class=\"text\">{}</td><td>{count}</td><td>{mean:.1}</td></tr>",
                escaped(end)
            )
        })
        .collect();
    format!(
        "<h2>How key steps ended</h2>\n<table><tr><th class=\"text\">end</th><th>heads</th><th>L-BFGS rounds, mean</th></tr>{rows}</table>\n"
    )
}

/// Every head in numbers.
fn every_head(heads: &[Outcome], rows: Rows) -> String {
    let of = |judged: Option<&Judged>| -> [String; 3] {
        let errors = judged.and_then(|judged| match rows {
            Rows::Probe => judged.probe,
            Rows::Validation => judged.validation,
            Rows::Training => Some(Errors {
                output: judged.output,
                mass: judged.mass,
                merged: f64::NAN,
            }),
        });
        let merged = errors.map(|errors| errors.merged).filter(|merged| !merged.is_nan());
        [
            number(errors.map(|errors| errors.output)),
            number(errors.map(|errors| errors.mass)),
            number(merged),
        ]
    };
    let line = |place: [String; 3], select: Option<&Judged>, fit: Option<&Judged>, result: Option<&Judged>, end: &str| {
        let errors = [select, fit, result].map(of);
        let mut cells: Vec<String> = place.to_vec();
        for error in 0..3 {
            cells.extend(errors.iter().map(|candidate| candidate[error].clone()));
        }
        cells.push(end.to_owned());
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let body: String = heads
        .iter()
        .map(|head| {
            let place = [head.layer, head.head, head.kept].map(|number| number.to_string());
            line(
                place,
                Some(&head.select),
                head.select_fit.as_ref(),
                Some(&head.result),
                stop(head.stop),
            )
        })
        .collect();
    let mut header = String::from("<tr><th>layer</th><th>head</th><th>kept</th>");
    for error in ["output", "mass", "merged"] {
        for method in ["select", "select-fit", "returned"] {
            header += &format!("<th>{error}<br>{method}</th>");
        }
    }
    header += "<th>end</th></tr>";
    format!("<h2>Every head</h2>\n<div class=\"scroll\"><table><thead>{header}</thead><tbody>{body}</tbody></table></div>\n")
}
