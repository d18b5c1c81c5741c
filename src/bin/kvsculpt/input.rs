//! What is compressed: a capture, or any engine's cache with queries put beside it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvsculpt::cache::{Capture, QuerySource, QueryStatistics};
use kvsculpt::formats::{Cache, Format, detect};
use kvsculpt::options::Method;
use kvsculpt::{Options, Result};

use crate::Talk;
use crate::formats::KnownArguments;

/// Where queries come from, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Queries {
    Real,
    Keys,
    Statistics(PathBuf),
}

fn queries(text: &str) -> Result<Queries, String> {
    match (text, text.strip_prefix("statistics:")) {
        ("real", _) => Ok(Queries::Real),
        ("keys", _) => Ok(Queries::Keys),
        (_, Some(path)) if !path.is_empty() => Ok(Queries::Statistics(path.into())),
        _ => Err("neither `real` nor `keys` nor `statistics:` and a file".to_owned()),
    }
}

/// How the file that is compressed is to be understood.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InputArguments {
    /// Which queries heads are fitted to: `real`, the capture's own; `statistics:FILE`, drawn as `kvsculpt statistics` found the model's
    /// to be; or `keys`, guessed from the keys, a poor stand-in [default: real; keys where the file has none]
    #[arg(long, value_name = "SOURCE", value_parser = queries)]
    queries: Option<Queries>,
    #[command(flatten)]
    known: KnownArguments,
}

/// What was opened.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) capture: Capture,
    pub(crate) format: Format,
    /// Whether queries are guessed from keys.
    pub(crate) guessed: bool,
}

impl InputArguments {
    /// Files that are read beside the one that is compressed.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Path> {
        let statistics = match &self.queries {
            Some(Queries::Statistics(path)) => Some(path.as_path()),
            _ => None,
        };
        self.known.sources().chain(statistics)
    }

    /// Opens a file of any known format.
    ///
    /// # Errors
    /// A file that cannot be read, or lacks what nothing else says.
    pub(crate) fn open(&self, path: &Path, seed: u64, talk: Talk) -> Result<Input> {
        let mut known = self.known.known()?;
        let source = match &self.queries {
            Some(Queries::Keys) => Some(QuerySource::Keys),
            Some(Queries::Statistics(file)) => {
                let statistics = QueryStatistics::open(file)?;
                // A capture says all of it itself.
                if detect(path)? != Format::Capture {
                    known.add_statistics(&statistics);
                }
                Some(QuerySource::Statistics(Arc::new(statistics)))
            }
            Some(Queries::Real) => Some(QuerySource::Own),
            None => None,
        };
        let cache = Cache::open(path, &known)?;
        let format = cache.format;
        let by_default = source.is_none() && format != Format::Capture;
        let source = source.unwrap_or(if by_default { QuerySource::Keys } else { QuerySource::Own });
        let guessed = matches!(source, QuerySource::Keys);
        let capture = cache.into_capture(source, seed)?;
        if by_default {
            note(
                talk,
                &format!(
                    "{} holds no queries, so they are guessed from its keys, at several times the error; --queries statistics:FILE comes close to real ones (see kvsculpt statistics)",
                    path.display()
                ),
            );
        }
        Ok(Input { capture, format, guessed })
    }
}

impl Input {
    /// Chooses the method that suits the queries, where nobody `says` one.
    pub(crate) fn suit(&self, options: &mut Options, says: bool, talk: Talk) {
        if self.guessed && !says {
            options.method = Method::SelectFit;
            note(
                talk,
                "fitting keys to guessed queries gains nothing in the mean and can do harm, so the method is select-fit; --method says another",
            );
        }
    }
}

/// A sentence on standard error.
pub(crate) fn note(talk: Talk, text: &str) {
    if !talk.quiet {
        // Nobody left to tell where standard error is closed.
        let _ = writeln!(io::stderr(), "note: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_named() {
        assert_eq!(queries("keys"), Ok(Queries::Keys));
        assert_eq!(queries("statistics:a:b"), Ok(Queries::Statistics("a:b".into())));
        for wrong in ["", "key", "statistics", "statistics:"] {
            assert!(queries(wrong).is_err(), "{wrong}");
        }
    }
}
