//! `kvsculpt demo`: compresses the bundled cache and explains what happened.

use std::path::Path;
use std::time::Instant;

use kvsculpt::cache::Capture;
use kvsculpt::solver::{Request, check};
use kvsculpt::{Options, Result};

use crate::arguments::{EngineArguments, Switch, replace};
use crate::lengths::ScopeKind;
use crate::progress::Progress;
use crate::report::Report;
use crate::{Talk, engine, print, print_json, table};

/// The bundled capture; `tests/data/README.md` says where it is from.
static CAPTURE: &[u8] = include_bytes!("../../../tests/data/smollm2-layer20.safetensors");
/// What stands for its path.
const NAME: &str = "the bundled cache";

/// Compress a small real cache that is built into the program.
///
/// Needs no files, no network and no set-up; writes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Fraction of the pairs that is kept, sinks and tail counted
    #[arg(long, value_name = "FRACTION", default_value_t = 0.3)]
    keep: f64,
    /// Which heads share a length [default: head]
    #[arg(long, value_enum, value_name = "SCOPE")]
    budget: Option<ScopeKind>,
    /// Whether free pairs get a bias on their logit [default: off]
    #[arg(long, value_enum)]
    bias: Option<Switch>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

pub(crate) fn run(arguments: &Arguments, talk: Talk) -> Result<()> {
    let started = Instant::now();
    let mut options = Options::default();
    options.keep = arguments.keep;
    replace(&mut options.budget, arguments.budget.map(Into::into));
    replace(&mut options.bias, arguments.bias.map(|bias| bias == Switch::On));
    let request = Request {
        options,
        ..Request::default()
    };
    let capture = Capture::from_bytes(NAME, CAPTURE)?;
    check(&capture, &request)?;
    let mut machine = engine::open(&arguments.engine, talk)?;
    if !arguments.json {
        print(INTRODUCTION)?;
    }
    let mut progress = Progress::new(talk, request.decided());
    let compression = machine.compress(&capture, &request, &mut progress)?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    let report = Report::new(Path::new(NAME), None, &machine, &request, &compression, seconds);
    if arguments.json {
        return print_json(&report);
    }
    let table = table::one_line_a_candidate(&report);
    let lengths = report.lengths(table::terminal_width());
    let why = if lengths.is_empty() { "" } else { LENGTHS };
    print(&format!("{table}\n{lengths}{EXPLANATION}{why}\n{}\n{NEXT}", report.summary()))
}

const INTRODUCTION: &str = "\
Layer 20 of SmolLM2-135M after it has read 2048 tokens of a novel: 3 key-value heads, each read by 3 query heads.

";

const EXPLANATION: &str = "\
Each head's cache is made shorter in three ways of the same length: `select` keeps the pairs that rank highest,
`select-fit` solves their values anew, `kvsculpt` optimises the keys too. Errors, smaller is better: output is the squared
error of the head's answers, relative to their size; mass is that of the logarithm of the attention the cache draws; merged
is both together, the error that is left once new tokens join in. `training` is on the queries that were fitted, `probe` on
those of the text's next 256 tokens, which were not. Rounds are L-BFGS iterations. Where queries held out of the fit say
that a simpler way serves a head better, or well enough, `kvsculpt` returns that.
";

const LENGTHS: &str = "\
How many pairs a head keeps goes by how its error falls with every pair more, so that the mean error is least.
";

const NEXT: &str = "Next: a cache of your own, see `kvsculpt compress --help`.\n";
