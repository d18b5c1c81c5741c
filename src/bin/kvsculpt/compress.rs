//! `kvsculpt compress`: a capture in, a compressed cache out.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Instant;

use kvsculpt::batch::Shard;
use kvsculpt::cache::{Compressed, Dtype, write_whole};
use kvsculpt::formats::{Format, Target};
use kvsculpt::journal::{Journal, Origin};
use kvsculpt::machine::{Machine, Measured};
use kvsculpt::solver::{Compression, Request, check};
use kvsculpt::{Error, Result};

use crate::arguments::{DtypeKind, EngineArguments, Layers, OptionArguments, bytes, layers};
use crate::destination::{self, DestinationArguments, fit};
use crate::input::{InputArguments, note};
use crate::progress::Progress;
use crate::report::{Report, Written};
use crate::shards::{self, Piece};
use crate::unfinished::{self, UnfinishedArguments};
use crate::{Talk, dry_run, engine, json, print, table, timings};

/// Compress a capture, or the cache of another engine.
///
/// Reads keys, values and queries (safetensors, `kv-capture`), or keys and values as mlx-lm, llama.cpp and users of Hugging Face write
/// them, and writes the short cache (`kv-compressed`, or one of those formats), whole or not at all. The
/// table shows each head's errors on probe queries, which are never fitted, beside those of simpler methods at the same length.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The capture or cache to read; which format it has shows from the contents
    capture: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Tell what memory, space and time it would take, by a short probe on the machine chosen; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Layers to compress, e.g. 0,7-9 [default: all]
    #[arg(long, value_parser = layers)]
    layers: Option<Layers>,
    /// How keys and values are stored [default: as in the capture]
    #[arg(long, value_enum)]
    dtype: Option<DtypeKind>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Also write an HTML page about the result: one file that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print too what each kernel cost by the GPU's clock, or each operation of the CPU engine
    #[arg(long)]
    timings: bool,
    #[command(flatten)]
    unfinished: UnfinishedArguments,
    #[command(flatten)]
    destination: DestinationArguments,
    #[command(flatten)]
    options: OptionArguments,
    #[command(flatten)]
    input: InputArguments,
    #[command(flatten)]
    engine: EngineArguments,
    /// The most memory, on host and device together, that the work may use beside the short cache, e.g. 4GiB [default: heads of 1GiB
    /// are read at once; what is worked on at once takes as much as the device's largest array, and at least 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Machine")]
    memory: Option<u64>,
    /// Compress only this part of the heads, counted from 0, e.g. 0/4; `kvsculpt merge` puts the parts together. Where the output is
    /// there already and the same, nothing is done; where it was interrupted, it goes on, with or without --resume
    #[arg(long, value_name = "PART/PARTS", value_parser = Shard::from_str, help_heading = "Several machines",
        conflicts_with_all = ["report", "timings", "dry_run", "save_budgets", "to"])]
    shard: Option<Shard>,
    /// Compress the part even if the output is there and the same
    #[arg(long, requires = "shard", help_heading = "Several machines")]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments, talk: Talk) -> Result<()> {
    let started = Instant::now();
    let lengths = &arguments.options.lengths;
    let budgets = lengths.read_budgets()?;
    let options = arguments.options.options(budgets.as_ref())?;
    let input = arguments.input.open(&arguments.capture, options.seed, talk)?;
    let capture = &input.capture;
    if let (Some(output), false) = (&arguments.output, arguments.dry_run) {
        check_outputs(arguments, output)?;
    }
    let mut request = Request {
        options,
        layers: arguments.layers.clone().map(|layers| layers.0),
        dtype: arguments.dtype.map(Into::into),
        memory: arguments.memory,
        ..Request::default()
    };
    let says_method = arguments.options.says("method")?
        || (budgets.as_ref().is_some_and(|budgets| budgets.options().is_some()) && !arguments.options.says_preset()?);
    input.suit(&mut request.options, says_method, talk);
    if request.options.bias && !request.options.has_bias() {
        note(talk, "a bias is fitted, and this method fits nothing, so --bias on changes nothing");
    }
    let target = arguments.destination.target(input.format, capture, &request)?;
    if matches!(target.format, Format::Llama(_)) {
        // What is told of the result is told of its numbers as they are stored.
        request.dtype = request.dtype.or(target.dtype).or(Some(Dtype::F16));
    }
    let says_ends = arguments.options.says("sinks")? || arguments.options.says("tail")?;
    lengths.complete(&mut request, budgets, &capture.layers, says_ends)?;
    fit(&mut request, &target, arguments.options.says("budget")?, talk)?;
    let split = check(capture, &request)?;
    target.check(capture, request.layers.as_deref().unwrap_or(&capture.layers), split.kept())?;
    if let (Some(shard), Some(output)) = (arguments.shard, &arguments.output) {
        let piece = Piece {
            path: output,
            shard,
            force: arguments.force,
            json: arguments.json,
            talk,
        };
        return shards::compress(capture, &request, &piece, arguments.unfinished, &arguments.engine);
    }
    let mut machine = engine::open(&arguments.engine, talk)?;
    let output = match &arguments.output {
        Some(output) if !arguments.dry_run => output,
        _ => return dry_run::run(&mut machine, capture, &request, arguments.json, talk),
    };
    if arguments.timings {
        // Where the device has no clock, the table says what stands in its stead.
        machine.enable_timings();
    }
    let progress = Progress::new(talk, request.decided());
    let origin = Origin::new(capture, &request, &machine.name())?;
    let existing = arguments.unfinished.existing();
    let (mut finished, mut unfinished) = unfinished::open(existing, output, &origin, (talk, progress))?;
    let made = machine.compress_from(capture, &request, &mut finished, &mut unfinished);
    unfinished.finish();
    match made.and_then(|made| write(arguments, (output, &target), &machine, &request, &made, started)) {
        Ok(text) => {
            // Before anything is printed: standard output may be closed, and nothing is unfinished any more.
            unfinished.remove()?;
            print(&text)
        }
        Err(error) => {
            unfinished.leave(&error);
            Err(error)
        }
    }
}

/// Writes the output and what was asked for beside it; returns what is to be said of it.
fn write(
    arguments: &Arguments,
    (output, target): (&Path, &Target),
    machine: &Machine,
    request: &Request,
    (compression, measured): &(Compression, Measured),
    started: Instant,
) -> Result<String> {
    let write = Instant::now();
    let written = Written {
        path: output,
        bytes: destination::write(&compression.compressed, target, output)?,
        seconds: write.elapsed().as_secs_f64(),
    };
    let lengths = &arguments.options.lengths;
    if let Some(path) = lengths.destination() {
        compression.budgets.write(path)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut report = Report::new(&arguments.capture, Some(written), machine, request, compression, seconds);
    if arguments.timings {
        report.measured = Some(measured);
    }
    if let Some(path) = &arguments.report {
        write_whole(path, report.page(compression).as_bytes())?;
    }
    if arguments.json {
        return json(&report);
    }
    let probed = if compression.outcomes.iter().any(|head| head.result.probe.is_some()) {
        ""
    } else {
        "The capture has no probe queries, so errors on unseen queries are not known.\n"
    };
    let width = table::terminal_width();
    let saved = lengths.destination().map(|path| format!("budgets  {}\n", path.display()));
    let page = arguments.report.as_ref().map(|path| format!("page     {}\n", path.display()));
    Ok(format!(
        "{}\n{}{probed}{}{}{}{}",
        table::fitting(&report, width),
        report.lengths(width),
        report.summary(),
        saved.unwrap_or_default(),
        page.unwrap_or_default(),
        timings::text(&report)
    ))
}

/// Refuses outputs that cannot be written, or would overwrite what is read or each other, before the work that would be lost.
fn check_outputs(arguments: &Arguments, output: &Path) -> Result<()> {
    let refuse = |path: &Path, reason: &str| {
        let (path, reason) = (path.to_owned(), reason.to_owned());
        Err(Error::File { path, reason })
    };
    let capture = arguments.capture.as_path();
    if is_same(output, capture) {
        return refuse(
            output,
            "is the capture itself, which would be lost; choose another path for --output",
        );
    }
    let mut sources = arguments.options.sources().chain(arguments.input.sources());
    if let Some(source) = sources.find(|source| is_same(output, source)) {
        return refuse(source, "is read, and would be lost; choose another path for --output");
    }
    Compressed::check_writable(output)?;
    let journal = Journal::path_of(output);
    let beside = [Some(capture), arguments.report.as_deref(), arguments.options.lengths.destination()];
    let mut files = beside
        .into_iter()
        .flatten()
        .chain(arguments.options.sources())
        .chain(arguments.input.sources());
    if let Some(file) = files.find(|file| is_same(file, &journal)) {
        return refuse(file, "is where what is finished of the output is kept; choose another path");
    }
    if let Some(page) = &arguments.report {
        let mut others = [capture, output].into_iter();
        let options = &arguments.options;
        if others.any(|other| is_same(page, other))
            || options
                .sources()
                .chain(options.lengths.destination())
                .chain(arguments.input.sources())
                .any(|other| is_same(page, other))
        {
            return refuse(
                page,
                "is another file of this command, which would be lost; choose another path for --report",
            );
        }
        Compressed::check_writable(page)?;
    }
    let Some(budgets) = arguments.options.lengths.destination() else {
        return Ok(());
    };
    if is_same(budgets, capture) || is_same(budgets, output) {
        return refuse(
            budgets,
            "is the capture or the output, which would be lost; choose another path for --save-budgets",
        );
    }
    if arguments
        .options
        .sources()
        .chain(arguments.input.sources())
        .any(|source| is_same(budgets, source))
    {
        return refuse(
            budgets,
            "is read, and what it says of other layers would be lost; choose another path for --save-budgets",
        );
    }
    Compressed::check_writable(budgets)
}

/// Whether two paths are the same file, which need not exist.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let resolved = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            Some(folder.unwrap_or(Path::new(".")).canonicalize().ok()?.join(path.file_name()?))
        })
    };
    matches!((resolved(one), resolved(other)), (Some(one), Some(other)) if one == other)
}
