//! `kvsculpt allocate`: every head's length, by the error curves of all.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kvsculpt::Result;
use kvsculpt::budget::length_table;
use kvsculpt::options::Target;
use kvsculpt::solver::{CurveSet, allocate};
use serde::Serialize;

use crate::arguments::replace;
use crate::inspect::LengthFacts;
use crate::lengths::{ScopeKind, TargetArguments, WeightArguments};
use crate::shards::check_apart;
use crate::{Talk, print, print_json};

/// Decide every head's length by the error curves of all parts.
///
/// Reads what `curves` wrote on each machine and writes the file of budgets that `compress --budgets --shard` takes on each, options
/// included. `compress` must be given --layers, --dtype, --queries and facts that the file does not hold as `curves`
/// was. What is not given here is as the curves were measured for; the merged file then has the bytes of one `compress`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The curves of all parts
    #[arg(required = true)]
    curves: Vec<PathBuf>,
    /// The file of budgets to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    target: TargetArguments,
    /// Which heads share a length: `head` or `layer` [default: as the curves were measured for]
    #[arg(long, value_enum, value_name = "SCOPE")]
    budget: Option<ScopeKind>,
    /// Lengths are whole pages of so many pairs, as far as a head has them [default: as the curves were measured for]
    #[arg(long, value_name = "PAIRS")]
    page: Option<usize>,
    #[command(flatten)]
    weights: WeightArguments,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Allocated<'a> {
    output: &'a Path,
    #[serde(flatten)]
    lengths: LengthFacts,
}

pub(crate) fn run(arguments: &Arguments, talk: Talk) -> Result<()> {
    check_apart(&arguments.output, arguments.curves.iter().chain(&arguments.weights.sensitivities))?;
    let sets = arguments.curves.iter().map(|path| Ok((path.clone(), CurveSet::read(path)?)));
    let curves = CurveSet::joined(sets.collect::<Result<_>>()?)?;
    let mut options = curves.options().clone();
    arguments.target.put_over(&mut options);
    replace(&mut options.budget, arguments.budget.map(Into::into));
    replace(&mut options.page, arguments.page);
    if let (Some(Target::MaxError(_)), false) = (options.target, talk.quiet) {
        // A closed standard error is no reason to stop.
        let _ = writeln!(
            io::stderr(),
            "note: the bound holds by the error curves alone; one `kvsculpt compress --max-error` also measures what was fitted, and fits again"
        );
    }
    let budgets = allocate(&curves, &options, arguments.weights.read()?.as_ref())?;
    budgets.write(&arguments.output)?;
    if arguments.json {
        return print_json(&Allocated {
            output: &arguments.output,
            lengths: LengthFacts::of(&budgets),
        });
    }
    print(&format!("{}\nbudgets  {}\n", length_table(&budgets), arguments.output.display()))
}
