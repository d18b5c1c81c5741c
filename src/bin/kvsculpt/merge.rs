//! `kvsculpt merge`: the parts of a compressed cache put together.

use std::path::PathBuf;

use kvsculpt::Result;
use kvsculpt::cache::{Part, merge};
use serde::Serialize;

use crate::report::size;
use crate::shards::check_apart;
use crate::{print, print_json};

/// Put the parts of a compressed cache together.
///
/// Reads what `compress --shard` wrote on each machine, in any order, and writes the whole in the bytes that one `compress` writes.
/// Parts of another capture, other options, budgets or versions are refused, and so are heads that are missing or there twice.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// All parts
    #[arg(required = true)]
    parts: Vec<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Merged<'a> {
    output: &'a PathBuf,
    parts: usize,
    heads: usize,
    pairs: usize,
    bytes: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    check_apart(&arguments.output, arguments.parts.iter())?;
    let parts = arguments.parts.iter().map(|path| Ok((path.clone(), Part::read(path)?)));
    let whole = merge(parts.collect::<Result<_>>()?)?;
    let bytes = whole.write(&arguments.output)?;
    let lengths = whole.layers.iter().flat_map(|layer| &layer.lengths);
    let merged = Merged {
        output: &arguments.output,
        parts: arguments.parts.len(),
        heads: lengths.clone().count(),
        pairs: lengths.sum(),
        bytes,
    };
    if arguments.json {
        return print_json(&merged);
    }
    print(&format!(
        "{}: {} heads of {} parts, {} pairs, {}\n",
        merged.output.display(),
        merged.heads,
        merged.parts,
        merged.pairs,
        size(bytes)
    ))
}
