//! `kvsculpt bench`: how fast this machine compresses, over lists of sizes.

use std::num::NonZeroU32;

use kvsculpt::cache::{Capture, Dtype, Generator};
use kvsculpt::machine::Machine;
use kvsculpt::solver::{Request, Timings, check};
use kvsculpt::{Options, Result};
use serde::Serialize;

use crate::arguments::{BackendKind, EngineArguments, EngineKind, MethodKind, PresetKind, bytes, method, replace};
use crate::generate::Shape;
use crate::lengths::ScopeKind;
use crate::memory::Peak;
use crate::progress::Progress;
use crate::{Talk, engine, print, print_json};

mod rows;

use rows::{Row, csv_header, table};

/// Measure how fast this machine compresses.
///
/// Captures are made up in memory (see `kvsculpt generate`). Wherever COUNT, FRACTION … may be given, so may a list with commas; every
/// combination is measured. The first run of each is not counted (`--warm-up 0` counts it).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Tokens in the cache
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', default_value = "2048")]
    tokens: Vec<usize>,
    /// Channels of keys and values
    #[arg(long, value_name = "CHANNELS,…", value_delimiter = ',', default_value = "128")]
    dim: Vec<usize>,
    /// KV heads a layer
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', default_value = "2")]
    kv_heads: Vec<usize>,
    /// Query heads a KV head
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', default_value = "6")]
    group: Vec<usize>,
    /// Layers
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', default_value = "1")]
    layers: Vec<usize>,
    /// Fraction of the pairs that is kept, sinks and tail counted
    #[arg(long, value_name = "FRACTION,…", value_delimiter = ',', default_value = "0.3")]
    keep: Vec<f64>,
    /// How a head's short cache is made
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kvsculpt")]
    method: Vec<MethodKind>,
    /// Runs that are counted, of each combination
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Runs before them, for kernels to be compiled
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    warm_up: u32,
    #[command(flatten)]
    shape: Shape,
    /// Where the options that are not given come from
    #[arg(long, value_enum, default_value_t = PresetKind::Default)]
    preset: PresetKind,
    /// Which heads share a length [default: the preset's]
    #[arg(long, value_enum, value_name = "SCOPE")]
    budget: Option<ScopeKind>,
    /// Outer steps of key optimisation [default: the preset's]
    #[arg(long)]
    steps: Option<u32>,
    /// Print lines of comma-separated values, the first with their names
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print a line of JSON for each combination, when it is measured
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArguments,
}

/// On what machines to compute.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Machine")]
struct MachineArguments {
    /// What computes
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ENGINE,…", default_value = "auto")]
    engine: Vec<EngineKind>,
    /// Use only GPU adapters of this interface
    #[arg(long, value_enum, value_name = "BACKEND")]
    backend: Option<BackendKind>,
    /// The adapter's number in `kvsculpt devices`, or a part of its name; several with commas share the heads
    #[arg(long, value_name = "INDEX|NAME,…")]
    adapter: Option<String>,
    /// How much of the heads each of several adapters gets, e.g. 3,1
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', requires = "adapter")]
    shares: Vec<NonZeroU32>,
    /// Let products go by the GPU's cooperative matrices; see `kvsculpt compress --help`
    #[arg(long)]
    cooperative_matrices: bool,
    /// The most memory, on host and device together, that the work may use beside the short cache, e.g. 2GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory: Option<u64>,
}

impl MachineArguments {
    /// An engine of the list; adapter and interface are for those that use one.
    fn one(&self, engine: EngineKind) -> EngineArguments {
        let named = engine != EngineKind::Cpu;
        EngineArguments {
            engine,
            backend: self.backend.filter(|_| named),
            adapter: self.adapter.clone().filter(|_| named),
            shares: if named { self.shares.clone() } else { Vec::new() },
            cooperative_matrices: self.cooperative_matrices && named,
        }
    }
}

pub(crate) fn run(arguments: &Arguments, talk: Talk) -> Result<()> {
    let generators = generators(arguments);
    let requests = requests(arguments);
    // Whatever is refused is refused before the first measurement.
    for generator in &generators {
        generator.validate()?;
    }
    for request in &requests {
        request.options.validate()?;
    }
    for generator in &generators {
        // The check reads no queries, so one query head a KV head will do.
        let mut narrow = generator.clone();
        narrow.group = 1;
        let capture = narrow.capture(Dtype::F16)?;
        requests.iter().try_for_each(|request| check(&capture, request).map(drop))?;
    }
    let mut rows = Vec::new();
    if arguments.csv {
        print(&csv_header())?;
    }
    let outcome = measure_all(arguments, &generators, &requests, talk, &mut rows);
    // What was measured before something failed is told.
    let told = if rows.is_empty() { Ok(()) } else { print(&table(&rows)) };
    outcome.and(told)
}

/// Measures every combination; rows for the table are left in `rows`, others printed as they come.
fn measure_all(arguments: &Arguments, generators: &[Generator], requests: &[Request], talk: Talk, rows: &mut Vec<Row>) -> Result<()> {
    for &kind in &arguments.machine.engine {
        let mut machine = engine::open(&arguments.machine.one(kind), talk)?;
        for generator in generators {
            let capture = generator.capture(Dtype::F16)?;
            for request in requests {
                let row = measure(&mut machine, generator, &capture, request, arguments, talk)?;
                if arguments.json {
                    print_json(&row)?;
                } else if arguments.csv {
                    print(&row.csv())?;
                } else {
                    rows.push(row);
                }
            }
        }
    }
    Ok(())
}

/// Every combination of what captures are made by.
fn generators(arguments: &Arguments) -> Vec<Generator> {
    let mut start = Generator::default();
    start.probes = arguments.shape.probes;
    start.rope_theta = arguments.shape.rope_theta;
    start.seed = arguments.shape.seed;
    let mut all = vec![start];
    let mut cross = |values: &[usize], set: fn(&mut Generator, usize)| {
        all = all
            .iter()
            .flat_map(|generator| {
                values.iter().map(|&value| {
                    let mut generator = generator.clone();
                    set(&mut generator, value);
                    generator
                })
            })
            .collect();
    };
    cross(&arguments.layers, |generator, layers| generator.layers = layers);
    cross(&arguments.kv_heads, |generator, heads| generator.kv_heads = heads);
    cross(&arguments.group, |generator, group| generator.group = group);
    cross(&arguments.dim, |generator, dim| generator.dim = dim);
    cross(&arguments.tokens, |generator, tokens| generator.tokens = tokens);
    all
}

/// Every combination of what is asked of each.
fn requests(arguments: &Arguments) -> Vec<Request> {
    let mut all = Vec::new();
    for &kind in &arguments.method {
        for &keep in &arguments.keep {
            let mut options: Options = arguments.preset.options();
            options.method = method(kind);
            options.keep = keep;
            replace(&mut options.budget, arguments.budget.map(Into::into));
            replace(&mut options.steps, arguments.steps);
            all.push(Request {
                options,
                memory: arguments.machine.memory,
                ..Request::default()
            });
        }
    }
    all
}

fn measure(
    machine: &mut Machine,
    generator: &Generator,
    capture: &Capture,
    request: &Request,
    arguments: &Arguments,
    talk: Talk,
) -> Result<Row> {
    let mut runs: Vec<Run> = Vec::new();
    let warm_up = u64::from(arguments.warm_up);
    for number in 0..warm_up + u64::from(arguments.repetitions) {
        let mut progress = Progress::new(talk, request.decided());
        let host = Peak::from_here();
        let started = std::time::Instant::now();
        let (compression, measured) = machine.compress_measured(capture, request, &mut progress)?;
        let seconds = started.elapsed().as_secs_f64();
        let host_bytes = host.bytes();
        progress.finish();
        if number >= warm_up {
            runs.push(Run {
                seconds,
                stages: compression.timings,
                device_bytes: measured.device_bytes,
                host_bytes,
            });
        }
    }
    Ok(Row::new(machine, generator, request, &runs))
}

/// What was measured of one run.
#[derive(Clone, Copy, Debug)]
struct Run {
    seconds: f64,
    stages: Timings,
    /// The most that arrays took on the device; `None` where that is the host.
    device_bytes: Option<u64>,
    /// The most that the program took on the host beside what it had before.
    host_bytes: u64,
}

/// The middle of some numbers, and half of what lies between the least and the largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Middle {
    median: f64,
    spread: f64,
}

impl Middle {
    /// Of at least one number.
    fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        let count = numbers.len();
        Self {
            median: (numbers[(count - 1) / 2] + numbers[count / 2]) / 2.0,
            spread: (numbers[count - 1] - numbers[0]) / 2.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_counts() {
        let of = |numbers: &[f64]| Middle::of(numbers.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 8.0]), Middle { median: 3.0, spread: 3.5 });
        assert_eq!(of(&[1.0, 2.0, 4.0, 9.0]), Middle { median: 3.0, spread: 4.0 });
        assert_eq!(of(&[5.0]), Middle { median: 5.0, spread: 0.0 });
    }
}
