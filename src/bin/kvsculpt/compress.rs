//! `kvsculpt compress`: a capture in, a compressed cache out.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use comfy_table::Table;
use kvsculpt::cache::{Capture, Compressed};
use kvsculpt::solver::{Request, check};
use kvsculpt::{Error, Result};

use crate::arguments::{DtypeKind, EngineArguments, Layers, OptionArguments, bytes, layers};
use crate::progress::Progress;
use crate::report::{Report, Written};
use crate::{Talk, engine, print, print_json, table};

/// Compress a capture.
///
/// Reads keys, values and queries (safetensors, `kv-capture`) and writes the short cache (`kv-compressed`), whole or not at all. The
/// table shows each head's errors on probe queries, which are never fitted, beside those of simpler methods at the same length.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The capture to read
    capture: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Layers to compress, e.g. 0,7-9 [default: all]
    #[arg(long, value_parser = layers)]
    layers: Option<Layers>,
    /// How keys and values are stored [default: as in the capture]
    #[arg(long, value_enum)]
    dtype: Option<DtypeKind>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: OptionArguments,
    #[command(flatten)]
    engine: EngineArguments,
    /// The most memory that the arrays of heads worked on together may use, e.g. 2GiB [default: as much as the
    /// device's largest array, and at least 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Machine")]
    memory: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments, talk: Talk) -> Result<()> {
    let started = Instant::now();
    let capture = Capture::open(&arguments.capture)?;
    check_output(&arguments.output, &arguments.capture)?;
    let request = Request {
        options: arguments.options.options(),
        layers: arguments.layers.clone().map(|layers| layers.0),
        dtype: arguments.dtype.map(Into::into),
        memory: arguments.memory,
        ..Request::default()
    };
    check(&capture, &request)?;
    let mut machine = engine::open(&arguments.engine, talk)?;
    let mut progress = Progress::new(talk);
    let compression = machine.compress(&capture, &request, &mut progress)?;
    progress.finish();
    let write = Instant::now();
    let written = Written {
        path: &arguments.output,
        bytes: compression.compressed.write(&arguments.output)?,
        seconds: write.elapsed().as_secs_f64(),
    };
    let seconds = started.elapsed().as_secs_f64();
    let report = Report::new(&arguments.capture, Some(written), &machine, &request.options, &compression, seconds);
    if arguments.json {
        return print_json(&report);
    }
    let probed = if compression.outcomes.iter().any(|head| head.result.probe.is_some()) {
        ""
    } else {
        "The capture has no probe queries, so errors on unseen queries are not known.\n"
    };
    print(&format!(
        "{}\n{probed}{}",
        table::fitting(&report, terminal_width()),
        report.summary()
    ))
}

/// Refuses an output that cannot be written, before the work that would be lost.
fn check_output(output: &Path, capture: &Path) -> Result<()> {
    let same = matches!((output.canonicalize(), capture.canonicalize()), (Ok(output), Ok(capture)) if output == capture);
    if same {
        return Err(Error::File {
            path: output.to_owned(),
            reason: "is the capture itself, which would be lost; choose another path for --output".into(),
        });
    }
    Compressed::check_writable(output)
}

/// Columns of the terminal that standard output is; `None` where it is none.
fn terminal_width() -> Option<u16> {
    std::io::stdout().is_terminal().then(|| Table::new().width()).flatten()
}
