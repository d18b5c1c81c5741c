//! What a compression came to: the object of `--json`, and the lines under the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use kvsculpt::Options;
use kvsculpt::budget::{Budgets, Curve, heat_map, length_table};
use kvsculpt::cache::QuerySource;
use kvsculpt::machine::{Machine, Measured};
use kvsculpt::options::{Method, Split, Target};
use kvsculpt::solver::{Compression, Errors, Judged, Outcome, Request, Timings};
use serde::{Serialize, Serializer};

use crate::html::Page;
use crate::made::Made;
use crate::progress::duration;

/// The file that came out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    tool: &'static str,
    capture: &'a Path,
    /// Absent for the demonstration, which writes no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a Path>,
    engine: EngineReport,
    options: &'a Options,
    /// Which queries heads were fitted to: the capture's own, or made up by what.
    queries: &'a str,
    /// Sinks and tail of every head, and the mean of the free pairs, rounded down.
    split: Split,
    /// By layer, the lengths of its heads.
    #[serde(serialize_with = "by_layer")]
    budgets: &'a Budgets,
    /// What lengths were decided by, where error curves did it.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    curves: &'a [Curve],
    pub(crate) heads: &'a [Outcome],
    pub(crate) means: Means,
    bytes: Bytes,
    seconds: Seconds,
    /// Whether several machines shared the work, whose seconds by stage are added up.
    #[serde(skip)]
    is_shared: bool,
    /// The error on the rows held out, where a target bounds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<f64>,
    /// What kernels or operations cost, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) measured: Option<&'a Measured>,
}

#[derive(Debug, Serialize)]
struct EngineReport {
    kind: &'static str,
    name: String,
}

/// Bytes of keys and values, in the dtype they are stored in now; and of the whole file written.
#[derive(Debug, Serialize)]
struct Bytes {
    before: u64,
    after: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Seconds {
    #[serde(flatten)]
    stages: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<f64>,
    total: f64,
}

/// Plain means over heads; of probe errors over the heads that have some.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Means {
    pub(crate) result: Judged,
    pub(crate) select: Judged,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) select_fit: Option<Judged>,
}

impl Means {
    pub(crate) fn of(heads: &[Outcome]) -> Self {
        let fitted: Option<Vec<Judged>> = heads.iter().map(|head| head.select_fit).collect();
        Self {
            result: mean(heads.iter().map(|head| head.result)),
            select: mean(heads.iter().map(|head| head.select)),
            select_fit: fitted.map(|judged| mean(judged.into_iter())),
        }
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        capture: &'a Path,
        written: Option<Written<'a>>,
        machine: &Machine,
        request: &'a Request,
        compression: &'a Compression,
        seconds: f64,
    ) -> Self {
        let options = &request.options;
        let heads = compression.outcomes.as_slice();
        let (before, after) = compression.bytes();
        Self {
            tool: concat!("kvsculpt ", env!("CARGO_PKG_VERSION")),
            capture,
            output: written.map(|written| written.path),
            engine: EngineReport {
                kind: machine.kind(),
                name: machine.name(),
            },
            options,
            queries: compression
                .compressed
                .metadata
                .get("queries")
                .map_or(QuerySource::Own.words(), String::as_str),
            split: compression.split,
            budgets: &compression.budgets,
            curves: &compression.curves,
            heads,
            means: Means::of(heads),
            bytes: Bytes {
                before,
                after,
                file: written.map(|written| written.bytes),
            },
            seconds: Seconds {
                stages: compression.timings,
                write: written.map(|written| written.seconds),
                total: seconds,
            },
            is_shared: matches!(machine, Machine::Several(_)),
            error: matches!(options.target, Some(Target::MaxError(_)))
                .then(|| compression.validation_error(request.weights.as_ref()))
                .flatten(),
            measured: None,
        }
    }

    pub(crate) fn method(&self) -> Method {
        self.options.method
    }

    /// Whether heads differ in length.
    fn is_ragged(&self) -> bool {
        self.heads.windows(2).any(|heads| heads[0].kept != heads[1].kept)
    }

    /// Lengths by layer, and where there are several layers a picture of the shares kept, each if it fits into `width` columns;
    /// nothing where all heads have the same length.
    pub(crate) fn lengths(&self, width: Option<u16>) -> String {
        if !self.is_ragged() {
            return String::new();
        }
        let mut parts = vec![length_table(self.budgets)];
        if self.budgets.layers().count() > 1 {
            parts.push(heat_map("Share of the pairs that each head keeps", &self.budgets.shares()));
        }
        let fits = |part: &String| {
            let widest = part.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            width.is_none_or(|width| widest <= usize::from(width))
        };
        parts.into_iter().filter(fits).map(|part| part + "\n").collect()
    }

    /// The same as a page.
    pub(crate) fn page(&self, compression: &Compression) -> String {
        let made = Made::of(&compression.compressed);
        let run = [
            ("machine", self.engine.name.clone()),
            ("time", self.time()),
            ("pairs", self.pairs()),
            ("queries", self.queries.to_owned()),
        ];
        let page = Page {
            name: self.capture.display().to_string(),
            made: &made,
            curves: self.curves,
            run: run.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            metadata: &compression.compressed.metadata,
            bytes: (Some(self.bytes.before), self.bytes.after),
        };
        page.html()
    }

    /// The lines under the table: what was kept, bytes, time, machine, file.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{what:8} {value}");
        };
        line("pairs", self.pairs());
        line("queries", self.queries.to_owned());
        if let (Some(error), Some(Target::MaxError(bound))) = (self.error, self.options.target) {
            line("error", self.held_to(error, bound));
        }
        line(
            "bytes",
            format!(
                "{} → {} of keys and values, {:.2}× smaller",
                size(self.bytes.before),
                size(self.bytes.after),
                self.bytes.before as f64 / self.bytes.after.max(1) as f64
            ),
        );
        line("time", self.time());
        line("machine", self.engine.name.clone());
        if let (Some(path), Some(bytes)) = (self.output, self.bytes.file) {
            line("file", format!("{} ({})", path.display(), size(bytes)));
        }
        text
    }

    /// What was kept of a head, and as what.
    fn pairs(&self) -> String {
        let Split { tokens, sinks, free, tail } = self.split;
        if self.heads.iter().all(|head| head.kept == head.tokens) {
            return format!("{tokens} a head, all of them");
        }
        if !self.is_ragged() {
            let kept = self.split.kept();
            return format!(
                "{tokens} → {kept} a head: {sinks} sinks, {free} {}, {tail} newest",
                self.free_pairs()
            );
        }
        let lengths = || self.heads.iter().map(|head| head.kept);
        let mean = lengths().sum::<usize>() as f64 / self.heads.len() as f64;
        // A whole number without decimals, any other with one.
        let mean = format!("{mean:.1}");
        let (least, most) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
        format!(
            "{tokens} → {} a head on the mean (from {least} to {most}): {sinks} sinks, {tail} newest, the others {}",
            mean.trim_end_matches(".0"),
            self.free_pairs()
        )
    }

    /// The error on the rows held out beside its bound.
    fn held_to(&self, error: f64, bound: f64) -> String {
        let told = format!("{error:.4} on the rows held out, of {bound} allowed");
        let Split { sinks, tail, free, .. } = self.split;
        if free < sinks + tail {
            // Free pairs could not become fewer where the ends alone are nearly enough.
            return format!("{told}; most pairs are sinks and tail, and with a smaller --tail fewer may do");
        }
        told
    }

    /// Seconds by stage; budgets only where some went there.
    fn time(&self) -> String {
        let Timings {
            read,
            budgets,
            teacher,
            values,
            keys,
            judge,
        } = self.seconds.stages;
        let stages = [
            ("reading", Some(read)),
            ("budgets", Some(budgets).filter(|&seconds| seconds >= 0.05)),
            ("teacher and seed", Some(teacher)),
            ("values", Some(values)),
            ("keys", Some(keys)),
            ("judging", Some(judge)),
            ("writing", self.seconds.write),
        ];
        let told = stages
            .into_iter()
            .filter_map(|(what, seconds)| Some(format!("{what} {}", duration(seconds?))));
        let of_all = if self.is_shared { " (of all machines together)" } else { "" };
        format!("{}: {}{of_all}", duration(self.seconds.total), told.collect::<Vec<_>>().join(", "))
    }

    fn free_pairs(&self) -> &'static str {
        match self.options.method {
            Method::Kvsculpt => "optimised",
            Method::SelectFit => "selected and refitted",
            Method::Random => "drawn at random",
            _ => "selected",
        }
    }
}

/// Layers by their index, each with the lengths of its heads.
fn by_layer<S: Serializer>(budgets: &&Budgets, serializer: S) -> Result<S::Ok, S::Error> {
    let layers: BTreeMap<usize, &[usize]> = budgets.layers().collect();
    layers.serialize(serializer)
}

fn mean(judged: impl Iterator<Item = Judged>) -> Judged {
    let judged: Vec<Judged> = judged.collect();
    let over = |pick: fn(&Judged) -> f64| average(judged.iter().map(pick));
    Judged {
        loss: over(|judged| judged.loss),
        output: over(|judged| judged.output),
        mass: over(|judged| judged.mass),
        validation: mean_errors(judged.iter().filter_map(|judged| judged.validation)),
        probe: mean_errors(judged.iter().filter_map(|judged| judged.probe)),
    }
}

/// The mean of each error; `None` where there is none.
pub(crate) fn mean_errors(errors: impl Iterator<Item = Errors>) -> Option<Errors> {
    let errors: Vec<Errors> = errors.collect();
    let over = |pick: fn(&Errors) -> f64| average(errors.iter().map(pick));
    (!errors.is_empty()).then(|| Errors {
        output: over(|errors| errors.output),
        mass: over(|errors| errors.mass),
        merged: over(|errors| errors.merged),
    })
}

fn average(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len();
    values.sum::<f64>() / count as f64
}

/// Bytes as people say them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut number = bytes as f64 / 1024.0;
    let mut unit = 0;
    while number >= 1023.95 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    format!("{number:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_change_their_unit_before_four_digits() {
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1 << 20), "1.0 MiB");
        assert_eq!(size((1 << 20) - 1), "1.0 MiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }
}
