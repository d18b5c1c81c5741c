//! `kvsculpt compare`: two short caches side by side.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kvsculpt::cache::{CacheFile, Capture, Compressed};
use kvsculpt::options::Tail;
use kvsculpt::solver::{Decided, Errors, Outcome, Worth};
use kvsculpt::{Error, Options, Result};
use serde::Serialize;

use crate::arguments::EngineArguments;
use crate::input::note;
use crate::made::Made;
use crate::progress::Progress;
use crate::report::{mean_errors, size};
use crate::table::{Body, number};
use crate::{Talk, engine, print, print_json};

/// Compare two compressed caches, or one with the capture it was made from.
///
/// Sizes and lengths; with the capture the errors of each head, judged anew on its probe rows, else on rows held out.
/// Without the capture errors are those that the files themselves report. A ratio is B over A: below 1, B is smaller or better.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A compressed cache, or the capture
    a: PathBuf,
    /// Another compressed cache, or the capture
    b: PathBuf,
    /// The capture both were made from; errors are judged on its rows
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Comparison {
    a: Side,
    b: Side,
    /// What errors are of: `probe` or `validation` rows of the capture, judged now, or `reported`, as the files say.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<&'static str>,
    heads: Vec<Pair>,
    means: Means,
}

#[derive(Debug, Serialize)]
struct Side {
    file: PathBuf,
    /// Bytes of the whole file.
    bytes: u64,
    /// Pairs of all heads.
    pairs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
}

/// One head in both.
#[derive(Debug, Serialize)]
struct Pair {
    layer: usize,
    head: usize,
    kept: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<[Errors; 2]>,
    /// Merged error of B over that of A.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Means {
    kept: [f64; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<[Errors; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    /// Heads in which B's merged error is below A's, and in which it is above.
    better: usize,
    worse: usize,
}

pub(crate) fn run(arguments: &Arguments, talk: Talk) -> Result<()> {
    let files = [CacheFile::open(&arguments.a)?, CacheFile::open(&arguments.b)?];
    let given = arguments.capture.as_deref().map(Capture::open).transpose()?;
    let captures: Vec<&Capture> = files
        .iter()
        .filter_map(|file| match file {
            CacheFile::Capture(capture) => Some(capture.as_ref()),
            _ => None,
        })
        .collect();
    if captures.len() == 2 {
        return Err(Error::File {
            path: arguments.b.clone(),
            reason: "is a capture, and so is the other; give at least one compressed cache".to_owned(),
        });
    }
    let capture = given.as_ref().or(captures.first().copied());
    let paths = [arguments.a.as_path(), arguments.b.as_path()];
    let found = match capture {
        Some(capture) => judged(&files, capture, arguments, talk)?,
        None => [reported(&files[0]), reported(&files[1])],
    };
    let comparison = Comparison::new(paths, &files, found, capture.is_some())?;
    if arguments.json {
        return print_json(&comparison);
    }
    print(&comparison.text())
}

/// Errors judged now; of the capture itself, which loses nothing, none.
fn judged(files: &[CacheFile; 2], capture: &Capture, arguments: &Arguments, talk: Talk) -> Result<[Vec<Worth>; 2]> {
    let caches: Vec<&Compressed> = files.iter().filter_map(short).collect();
    // What the first of them that says so held out; the other did too, where it was made alike.
    let options = caches.iter().find_map(|cache| held_out_by(cache)).unwrap_or_default();
    for (cache, path) in files.iter().zip([&arguments.a, &arguments.b]) {
        let made_of = short(cache).and_then(|cache| Made::of(cache).source);
        if made_of.is_some_and(|source| capture.digest().is_ok_and(|digest| source != format!("sha256:{digest}"))) {
            note(
                talk,
                &format!("{} was made of another file than {}", path.display(), capture.path.display()),
            );
        }
    }
    let mut machine = engine::open_one(&arguments.engine, talk)?;
    let mut progress = Progress::new(talk, Decided::Beforehand);
    let mut found = machine.judge(capture, &caches, &options, &mut progress)?.into_iter();
    progress.finish();
    let first = found.next().unwrap_or_default();
    let whole = |other: &[Worth]| other.iter().map(|worth| untouched(*worth, capture.tokens)).collect();
    Ok(match (short(&files[0]), found.next()) {
        (Some(_), Some(second)) => [first, second],
        (Some(_), None) => {
            let whole = whole(&first);
            [first, whole]
        }
        (None, _) => [whole(&first), first],
    })
}

/// The options that say which rows a short cache held out; of a tail that errors, bytes or a file decided they say nothing themselves.
fn held_out_by(cache: &Compressed) -> Option<Options> {
    let mut options = Made::of(cache).understood()?;
    let number = |key: &str| cache.metadata.get(key)?.parse().ok();
    options.sinks = number("sinks").unwrap_or(options.sinks);
    options.tail = number("tail").map_or(options.tail, Tail::Pairs);
    Some(options)
}

fn short(file: &CacheFile) -> Option<&Compressed> {
    match file {
        CacheFile::Compressed(compressed) => Some(compressed.as_ref()),
        _ => None,
    }
}

/// The whole cache beside a short one.
fn untouched(other: Worth, tokens: usize) -> Worth {
    let nothing = |errors: Option<Errors>| {
        errors.map(|_| Errors {
            output: 0.0,
            mass: 0.0,
            merged: 0.0,
        })
    };
    let mut whole = other;
    whole.kept = tokens;
    (whole.validation, whole.probe) = (nothing(other.validation), nothing(other.probe));
    whole
}

/// Lengths, and errors where the file reports them.
fn reported(file: &CacheFile) -> Vec<Worth> {
    let Some(cache) = short(file) else {
        return Vec::new();
    };
    let outcomes: BTreeMap<(usize, usize), Outcome> = Made::of(cache)
        .heads
        .into_iter()
        .map(|outcome| ((outcome.layer, outcome.head), outcome))
        .collect();
    let heads = cache
        .layers
        .iter()
        .flat_map(|layer| layer.lengths.iter().enumerate().map(move |(head, &kept)| (layer.index, head, kept)));
    let worth = heads.map(|(layer, head, kept)| {
        let outcome = outcomes.get(&(layer, head));
        let mut worth = Worth::new(layer, head, kept);
        worth.validation = outcome.and_then(|outcome| outcome.result.validation);
        worth.probe = outcome.and_then(|outcome| outcome.result.probe);
        worth
    });
    worth.collect()
}

impl Comparison {
    fn new(paths: [&Path; 2], files: &[CacheFile; 2], found: [Vec<Worth>; 2], judged: bool) -> Result<Self> {
        let [a, b] = &found;
        let twins: BTreeMap<(usize, usize), Worth> = b.iter().map(|worth| ((worth.layer, worth.head), *worth)).collect();
        let twin = |one: &Worth| twins.get(&(one.layer, one.head)).copied();
        let both: Vec<(Worth, Worth)> = a.iter().filter_map(|&one| Some((one, twin(&one)?))).collect();
        if both.is_empty() {
            return Err(Error::File {
                path: paths[1].to_owned(),
                reason: format!(
                    "has no layer and head in common with {}; compare caches of the same model",
                    paths[0].display()
                ),
            });
        }
        // One kind of rows for all heads, so that means are of the same thing.
        let probed = both.iter().all(|(a, b)| a.probe.is_some() && b.probe.is_some());
        let errors = |worth: &Worth| if probed { worth.probe } else { worth.validation };
        let pair = |(a, b): &(Worth, Worth)| {
            let errors = errors(a).zip(errors(b)).map(|(a, b)| [a, b]);
            Pair {
                layer: a.layer,
                head: a.head,
                kept: [a.kept, b.kept],
                errors,
                ratio: errors.and_then(ratio),
            }
        };
        let heads: Vec<Pair> = both.iter().map(pair).collect();
        let known = heads.iter().any(|pair| pair.errors.is_some());
        let rows = match (judged, probed) {
            (_, _) if !known => None,
            (false, _) => Some("reported"),
            (true, true) => Some("probe"),
            (true, false) => Some("validation"),
        };
        let [a, b] = [side(paths[0], &files[0])?, side(paths[1], &files[1])?];
        Ok(Self {
            a,
            b,
            rows,
            means: means(&heads),
            heads,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, side) in [("A", &self.a), ("B", &self.b)] {
            let method = side.method.as_ref().map_or_else(String::new, |method| format!(", {method}"));
            text += &format!(
                "{name}  {} ({}, {} pairs{method})\n",
                side.file.display(),
                size(side.bytes),
                side.pairs
            );
        }
        text += &format!(
            "B has {:.3}× the bytes and {:.3}× the pairs of A\n\n",
            self.b.bytes as f64 / self.a.bytes.max(1) as f64,
            self.b.pairs as f64 / self.a.pairs.max(1) as f64
        );
        text += &self.table();
        text += &match self.rows {
            None => "\nNeither errors nor rows to judge by; give the capture with --capture.\n".to_owned(),
            Some(rows) => format!(
                "\n{}. Merged error: lower in B in {} heads, higher in {}, of {}.\n",
                match rows {
                    "probe" => "Errors on the capture's probe rows, judged now",
                    "validation" => "Errors on the rows that the first compressed cache held out of its fit, judged now",
                    _ => "Errors as the files report them; --capture FILE judges both anew",
                },
                self.means.better,
                self.means.worse,
                self.heads.len()
            ),
        };
        text
    }

    fn table(&self) -> String {
        let errors = ["output\nA", "output\nB", "mass\nA", "mass\nB", "merged\nA", "merged\nB", "B / A"];
        let mut header: Vec<&str> = vec!["layer", "head", "kept\nA", "kept\nB"];
        if self.rows.is_some() {
            header.extend(errors);
        }
        let mut table = Body::new(header.into_iter().map(String::from).collect());
        let numbers = |errors: Option<[Errors; 2]>, ratio: Option<f64>| {
            let of = |pick: fn(&Errors) -> f64| [0, 1].map(|side| number(errors.map(|errors| pick(&errors[side]))));
            let mut cells = Vec::new();
            for pick in [|e: &Errors| e.output, |e: &Errors| e.mass, |e: &Errors| e.merged] {
                cells.extend(of(pick));
            }
            cells.push(number(ratio));
            cells
        };
        for pair in &self.heads {
            let mut row = vec![pair.layer.to_string(), pair.head.to_string()];
            row.extend(pair.kept.map(|kept| kept.to_string()));
            if self.rows.is_some() {
                row.extend(numbers(pair.errors, pair.ratio));
            }
            table.row(row);
        }
        let mut row = vec!["mean".to_owned(), String::new()];
        row.extend(self.means.kept.map(|kept| format!("{kept:.1}")));
        if self.rows.is_some() {
            row.extend(numbers(self.means.errors, self.means.ratio));
        }
        table.row(row);
        table.text(&[])
    }
}

/// Merged error of the second over that of the first; none where the first has no error.
fn ratio([a, b]: [Errors; 2]) -> Option<f64> {
    (a.merged > 0.0).then(|| b.merged / a.merged)
}

fn means(heads: &[Pair]) -> Means {
    let mean = |side: usize| mean_errors(heads.iter().filter_map(|pair| Some(pair.errors?[side])));
    let errors = mean(0).zip(mean(1)).map(|(a, b)| [a, b]);
    let kept = [0, 1].map(|side| heads.iter().map(|pair| pair.kept[side]).sum::<usize>() as f64 / heads.len() as f64);
    let count = |is: fn(f64, f64) -> bool| {
        let pairs = heads.iter().filter_map(|pair| pair.errors);
        pairs.filter(|[a, b]| is(b.merged, a.merged)).count()
    };
    Means {
        kept,
        errors,
        ratio: errors.and_then(ratio),
        better: count(|b, a| b < a),
        worse: count(|b, a| b > a),
    }
}

fn side(path: &Path, file: &CacheFile) -> Result<Side> {
    let about = std::fs::metadata(path).map_err(|error| Error::File {
        path: path.to_owned(),
        reason: format!("cannot be looked at: {error}"),
    })?;
    let (pairs, method) = match file {
        CacheFile::Compressed(cache) => (cache.layers.iter().flat_map(|layer| &layer.lengths).sum(), Made::of(cache).method),
        CacheFile::Capture(capture) => {
            let heads = capture.layers.iter().map(|&layer| Ok(capture.shape(layer)?.kv_heads));
            (heads.sum::<Result<usize>>()? * capture.tokens, None)
        }
        _ => (0, None),
    };
    Ok(Side {
        file: path.to_owned(),
        bytes: about.len(),
        pairs,
        method,
    })
}
