//! `kvsculpt curves`: the error curves of a part of the heads.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Instant;

use kvsculpt::batch::Shard;
use kvsculpt::solver::{CurveSet, Request, plan_curves};
use kvsculpt::{Error, Result};

use crate::arguments::{DtypeKind, EngineArguments, Layers, OptionArguments, bytes, layers};
use crate::input::InputArguments;
use crate::progress::Progress;
use crate::shards::{Piece, check_apart};
use crate::{Talk, engine};

/// Measure error curves of a part of the heads, for work on several machines.
///
/// The first of four steps: `curves --shard` on each machine, `allocate` once, `compress --budgets --shard` on each machine, `merge` once.
/// Say here how large the short cache is to be and with which options it is made; the later steps take them from the files. --layers,
/// --dtype, --queries and facts that the file does not hold are said to `compress` too, alike. The merged
/// file has the bytes that one `compress` with these options writes. docs/clusters.md has recipes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The capture or cache to read, as by `compress`
    capture: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Only this part of the heads, counted from 0, e.g. 0/4
    #[arg(long, value_name = "PART/PARTS", default_value = "0/1", value_parser = Shard::from_str)]
    shard: Shard,
    /// Measure even if the output is there and the same
    #[arg(long)]
    force: bool,
    /// Layers to compress, e.g. 0,7-9 [default: all]
    #[arg(long, value_parser = layers)]
    layers: Option<Layers>,
    /// How keys and values will be stored [default: as in the capture]
    #[arg(long, value_enum)]
    dtype: Option<DtypeKind>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: OptionArguments,
    #[command(flatten)]
    input: InputArguments,
    #[command(flatten)]
    engine: EngineArguments,
    /// The most memory, on host and device together, that the work may use, e.g. 4GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Machine")]
    memory: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments, talk: Talk) -> Result<()> {
    let started = Instant::now();
    let lengths = &arguments.options.lengths;
    for (option, is_given, instead) in [
        (
            "--budgets",
            lengths.budgets.is_some(),
            "names lengths, and curves are what lengths are made of",
        ),
        (
            "--save-budgets",
            lengths.destination().is_some(),
            "has nothing to save yet; `kvsculpt allocate` makes lengths of curves",
        ),
        (
            "--sensitivities",
            lengths.weights.sensitivities.is_some(),
            "weighs curves and does not change them; give it to `kvsculpt allocate`",
        ),
    ] {
        if is_given {
            let reason = instead.to_owned();
            return Err(Error::Options { option, reason });
        }
    }
    let mut options = arguments.options.options(None)?;
    let input = arguments.input.open(&arguments.capture, options.seed, talk)?;
    input.suit(&mut options, arguments.options.says("method")?, talk);
    let capture = &input.capture;
    let sources = std::iter::once(arguments.capture.as_path())
        .chain(arguments.options.sources())
        .chain(arguments.input.sources());
    check_apart(&arguments.output, sources)?;
    let request = Request {
        options,
        layers: arguments.layers.clone().map(|layers| layers.0),
        dtype: arguments.dtype.map(Into::into),
        memory: arguments.memory,
        ..Request::default()
    };
    let planned = plan_curves(capture, &request, arguments.shard)?;
    let piece = Piece {
        path: &arguments.output,
        shard: arguments.shard,
        force: arguments.force,
        json: arguments.json,
        talk,
    };
    if let Some(set) = piece.earlier(CurveSet::read, |set| set.is_like(&planned)) {
        return piece.tell("curves of part", set.heads().len(), true, &[], started, "");
    }
    let heads = planned.heads().len();
    if heads == 0 {
        planned.write(piece.path)?;
    } else {
        let mut machine = engine::open(&arguments.engine, talk)?;
        let mut progress = Progress::new(talk, request.decided());
        let set = machine.measure_curves(capture, &request, arguments.shard, &mut progress)?;
        progress.finish();
        set.write(piece.path)?;
    }
    piece.tell("curves of part", heads, false, &[], started, "")
}
