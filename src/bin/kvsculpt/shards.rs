//! What `kvsculpt curves` and `kvsculpt compress --shard` share: a piece of work that a job runner may start again.

use std::path::Path;
use std::time::Instant;

use kvsculpt::batch::Shard;
use kvsculpt::cache::{Capture, Part};
use kvsculpt::journal::Origin;
use kvsculpt::solver::{Outcome, Request, plan_part};
use kvsculpt::{Error, Result};
use serde::Serialize;

use crate::arguments::EngineArguments;
use crate::progress::{Progress, duration};
use crate::report::{Means, size};
use crate::unfinished::{self, UnfinishedArguments};
use crate::{Talk, engine, print, print_json};

/// A piece of the work and the file it goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) path: &'a Path,
    pub(crate) shard: Shard,
    /// Whether it is done even if its file is there.
    pub(crate) force: bool,
    pub(crate) json: bool,
    pub(crate) talk: Talk,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Told<'a> {
    output: &'a Path,
    shard: String,
    /// Heads of the shard.
    heads: usize,
    /// Whether the file was there already, and nothing was done.
    already_there: bool,
    seconds: f64,
    /// What became of each head that was compressed.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    outcomes: &'a [Outcome],
}

impl Piece<'_> {
    /// What an earlier run left, if it is read and found to be the same.
    pub(crate) fn earlier<T>(&self, read: impl FnOnce(&Path) -> Result<T>, is_same: impl FnOnce(&T) -> bool) -> Option<T> {
        if self.force || !self.path.exists() {
            return None;
        }
        // Whatever else is there is written over, as `compress` does.
        read(self.path).ok().filter(is_same)
    }

    /// Says what was done: of so many heads, in the time since `started`; a line more in words.
    pub(crate) fn tell(
        &self,
        what: &str,
        heads: usize,
        already_there: bool,
        outcomes: &[Outcome],
        started: Instant,
        more: &str,
    ) -> Result<()> {
        let seconds = started.elapsed().as_secs_f64();
        if self.json {
            return print_json(&Told {
                output: self.path,
                shard: self.shard.to_string(),
                heads,
                already_there,
                seconds,
                outcomes,
            });
        }
        let (path, shard) = (self.path.display(), self.shard);
        let of = match heads {
            0 => "no heads: there are more parts than heads".to_owned(),
            1 => "1 head".to_owned(),
            _ => format!("{heads} heads"),
        };
        if already_there {
            return print(&format!(
                "{path}: {what} {shard} is there already and whole ({of}); --force does it again\n"
            ));
        }
        print(&format!("{path}: {what} {shard}, {of}, in {}{more}\n", duration(seconds)))
    }
}

/// Compresses a shard of the heads into a part, from where an interrupted run left it.
pub(crate) fn compress(
    capture: &Capture,
    request: &Request,
    piece: &Piece<'_>,
    left: UnfinishedArguments,
    machine: &EngineArguments,
) -> Result<()> {
    let started = Instant::now();
    let planned = plan_part(capture, request, piece.shard)?;
    if let Some(part) = piece.earlier(Part::read, |part| part.is_like(&planned)) {
        return piece.tell("part", part.heads().count(), true, &[], started, "");
    }
    if planned.heads().next().is_none() {
        planned.write(piece.path)?;
        return piece.tell("part", 0, false, &[], started, "");
    }
    let mut machine = engine::open(machine, piece.talk)?;
    let origin = Origin::new(capture, request, &machine.name())?.of_shard(piece.shard);
    let existing = left.existing_of_piece(piece.force);
    let progress = Progress::new(piece.talk, request.decided());
    let (mut finished, mut unfinished) = unfinished::open(existing, piece.path, &origin, (piece.talk, progress))?;
    let found = machine.compress_part_from(capture, request, piece.shard, &mut finished, &mut unfinished);
    unfinished.finish();
    let written = found.and_then(|found| Ok((found.part.write(piece.path)?, found)));
    let (bytes, found) = match written {
        Ok(written) => {
            unfinished.remove()?;
            written
        }
        Err(error) => {
            unfinished.leave(&error);
            return Err(error);
        }
    };
    let means = Means::of(&found.outcomes);
    let error = means.result.probe.or(means.result.validation);
    let error = error.map_or_else(String::new, |errors| format!(", mean error {:.2e}", errors.merged));
    let more = format!(" ({} pairs, {}{error})", found.part.pairs(), size(bytes));
    piece.tell("part", found.outcomes.len(), false, &found.outcomes, started, &more)
}

/// Refuses to write over what is read.
pub(crate) fn check_apart(output: &Path, mut sources: impl Iterator<Item = impl AsRef<Path>>) -> Result<()> {
    if sources.any(|source| crate::compress::is_same(output, source.as_ref())) {
        return Err(Error::File {
            path: output.to_owned(),
            reason: "is read, and would be lost; choose another path for --output".to_owned(),
        });
    }
    Part::check_writable(output)
}
