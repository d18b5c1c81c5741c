//! One combination's outcome, in a table, as comma-separated values and as JSON.

use comfy_table::{ContentArrangement, Table, presets};
use kvsculpt::cache::Generator;
use kvsculpt::machine::Machine;
use kvsculpt::solver::{Request, Timings};
use serde::Serialize;

use super::{Middle, Run};
use crate::report::size;
use crate::table::NOTHING;

/// What was measured of one combination; the object of a line of JSON.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    tool: &'static str,
    engine: &'static str,
    /// Adapter and driver, or the processor.
    machine: String,
    method: String,
    keep: f64,
    layers: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
    tokens: usize,
    seed: u64,
    repetitions: usize,
    seconds: Middle,
    /// KV heads of all layers by the median time.
    heads_a_second: f64,
    /// Tokens of the cache, all its layers compressed, by the median time.
    tokens_a_second: f64,
    /// The most that arrays took on the device, in any run; `None` where the engine has no memory but the host's.
    device_bytes: Option<u64>,
    /// The most that was allocated on the host beside the capture, in any run.
    host_bytes: u64,
    /// What both may take together, where that was said.
    memory: Option<u64>,
    /// Medians.
    stages: Timings,
}

impl Row {
    /// Of at least one run.
    pub(super) fn new(machine: &Machine, generator: &Generator, request: &Request, runs: &[Run]) -> Self {
        let options = &request.options;
        let seconds = Middle::of(runs.iter().map(|run| run.seconds));
        let stage = |pick: fn(&Timings) -> f64| Middle::of(runs.iter().map(|run| pick(&run.stages))).median;
        let &Generator {
            layers,
            kv_heads,
            group,
            dim,
            tokens,
            seed,
            ..
        } = generator;
        let method = serde_json::to_value(options.method).ok();
        Self {
            tool: concat!("kvsculpt ", env!("CARGO_PKG_VERSION")),
            engine: machine.kind(),
            machine: machine.name(),
            method: method.as_ref().and_then(|name| name.as_str()).unwrap_or_default().to_owned(),
            keep: options.keep,
            layers,
            kv_heads,
            group,
            dim,
            tokens,
            seed,
            repetitions: runs.len(),
            seconds,
            heads_a_second: (layers * kv_heads) as f64 / seconds.median,
            tokens_a_second: tokens as f64 / seconds.median,
            device_bytes: runs.iter().filter_map(|run| run.device_bytes).max(),
            host_bytes: runs.iter().map(|run| run.host_bytes).max().unwrap_or(0),
            memory: request.memory,
            stages: Timings {
                read: stage(|stages| stages.read),
                budgets: stage(|stages| stages.budgets),
                teacher: stage(|stages| stages.teacher),
                values: stage(|stages| stages.values),
                keys: stage(|stages| stages.keys),
                judge: stage(|stages| stages.judge),
            },
        }
    }

    /// Values in the order of [`COLUMNS`].
    fn fields(&self) -> [String; COLUMNS.len()] {
        let stages = &self.stages;
        [
            self.engine.to_owned(),
            self.machine.clone(),
            self.method.clone(),
            self.keep.to_string(),
            self.layers.to_string(),
            self.kv_heads.to_string(),
            self.group.to_string(),
            self.dim.to_string(),
            self.tokens.to_string(),
            self.seed.to_string(),
            self.repetitions.to_string(),
            self.seconds.median.to_string(),
            self.seconds.spread.to_string(),
            self.heads_a_second.to_string(),
            self.tokens_a_second.to_string(),
            self.device_bytes.map_or_else(String::new, |bytes| bytes.to_string()),
            self.host_bytes.to_string(),
            self.memory.map_or_else(String::new, |bytes| bytes.to_string()),
            stages.read.to_string(),
            stages.budgets.to_string(),
            stages.teacher.to_string(),
            stages.values.to_string(),
            stages.keys.to_string(),
            stages.judge.to_string(),
        ]
    }

    /// A line of comma-separated values.
    pub(super) fn csv(&self) -> String {
        line(self.fields().into_iter())
    }
}

/// The line of names.
pub(super) fn csv_header() -> String {
    COLUMNS.join(",") + "\n"
}

/// The names of what [`Row::fields`] gives.
const COLUMNS: [&str; 24] = [
    "engine",
    "machine",
    "method",
    "keep",
    "layers",
    "kv_heads",
    "group",
    "dim",
    "tokens",
    "seed",
    "repetitions",
    "seconds",
    "spread",
    "heads_a_second",
    "tokens_a_second",
    "device_bytes",
    "host_bytes",
    "memory",
    "read",
    "budgets",
    "teacher",
    "values",
    "keys",
    "judge",
];

fn line(values: impl Iterator<Item = String>) -> String {
    let quoted = values.map(|value| {
        if value.contains([',', '"', '\n']) {
            format!("\"{}\"", value.replace('"', "\"\""))
        } else {
            value
        }
    });
    quoted.collect::<Vec<_>>().join(",") + "\n"
}

/// All rows, the machine's name in each.
pub(super) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "method", "keep", "layers", "KV heads", "group", "dim", "tokens", "seconds", "heads/s", "tokens/s", "device", "host", "read",
        "budgets", "teacher", "values", "keys", "judge", "machine",
    ]);
    for row in rows {
        let stages = &row.stages;
        let mut cells = vec![row.method.clone(), row.keep.to_string()];
        cells.extend([row.layers, row.kv_heads, row.group, row.dim, row.tokens].map(|number| number.to_string()));
        cells.push(format!("{} ± {}", short(row.seconds.median), short(row.seconds.spread)));
        cells.extend([row.heads_a_second, row.tokens_a_second].map(short));
        cells.push(row.device_bytes.map_or_else(|| NOTHING.to_owned(), size));
        cells.push(size(row.host_bytes));
        cells.extend(
            [
                stages.read,
                stages.budgets,
                stages.teacher,
                stages.values,
                stages.keys,
                stages.judge,
            ]
            .map(short),
        );
        cells.push(row.machine.clone());
        table.add_row(cells);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// Three digits that count.
fn short(number: f64) -> String {
    match number {
        number if number >= 100.0 => format!("{number:.0}"),
        number if number >= 10.0 => format!("{number:.1}"),
        number if number >= 1.0 => format!("{number:.2}"),
        number => format!("{number:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_and_quotes_are_quoted() {
        let values = ["a", "b, c", "\"d\""].map(String::from);
        assert_eq!(line(values.into_iter()), "a,\"b, c\",\"\"\"d\"\"\"\n");
    }
}
