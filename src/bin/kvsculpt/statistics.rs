//! `kvsculpt statistics`: what a model's queries are like, for caches that have none.

use std::path::PathBuf;

use kvsculpt::cache::{Capture, QueryStatistics, gather};
use kvsculpt::{Error, Result};

use crate::compress::is_same;
use crate::report::size;
use crate::{Talk, print};

/// Gather what a model's queries are like.
///
/// Other engines' caches hold no queries. From captures of the same model over other texts (`kvsculpt-llm capture` makes them) this
/// finds how queries follow from the keys and values at the same token, and what is left; `kvsculpt compress --queries
/// statistics:FILE` draws queries by it. The longer the texts, the better: each layer should see a few times as many tokens as its keys
/// and values have channels.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Captures of one model, with queries
    #[arg(required = true)]
    captures: Vec<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, _talk: Talk) -> Result<()> {
    let Arguments { captures, output } = arguments;
    if captures.iter().any(|capture| is_same(capture, output)) {
        return Err(Error::File {
            path: output.clone(),
            reason: "is a capture that is read, which would be lost; choose another path for --output".to_owned(),
        });
    }
    let captures = captures.iter().map(|path| Capture::open(path)).collect::<Result<Vec<Capture>>>()?;
    let bytes = gather(&captures, output, &mut |_| {})?;
    let made = QueryStatistics::open(output)?;
    let tokens: usize = captures.iter().map(|capture| capture.tokens).sum();
    print(&format!(
        "{}: queries of {} layers over {tokens} tokens of {} captures, {}\n",
        output.display(),
        made.layers.len(),
        captures.len(),
        size(bytes)
    ))
}
