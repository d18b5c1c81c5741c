//! `kvsculpt report`: a page about a compressed cache made earlier.

use std::path::PathBuf;

use kvsculpt::cache::{Compressed, write_whole};
use kvsculpt::{Error, Result};

use crate::compress::is_same;
use crate::{Talk, html, print};

/// Write an HTML page about a compressed cache.
///
/// One file that needs no network and can be printed: lengths and errors of every head, methods side by side, options, source.
/// `kvsculpt compress --report FILE` writes one with error curves, machine and times too, which the cache itself does not hold.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The compressed cache
    compressed: PathBuf,
    /// The page to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, _talk: Talk) -> Result<()> {
    let Arguments { compressed, output } = arguments;
    if is_same(compressed, output) {
        return Err(Error::File {
            path: output.clone(),
            reason: "is the cache itself, which would be lost; choose another path for --output".to_owned(),
        });
    }
    let page = html::of_file(compressed, &Compressed::read(compressed)?)?;
    write_whole(output, page.as_bytes())?;
    print(&format!("page  {}\n", output.display()))
}
