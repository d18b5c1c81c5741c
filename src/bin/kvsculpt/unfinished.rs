//! What is finished of an output that is not whole yet: kept beside it while the work goes on, so that nothing is lost.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kvsculpt::journal::{Existing, Journal, Origin};
use kvsculpt::solver::{Finished, FinishedHead, Lengths, Observer};
use kvsculpt::{Error, Result};

use crate::Talk;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// What to do with what an interrupted run has left.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct UnfinishedArguments {
    /// Go on from what an interrupted run of the same command had finished, where there is any; it is kept in the file OUTPUT.partial
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// Begin anew and throw away what an interrupted run had finished
    #[arg(long, conflicts_with_all = ["resume", "dry_run"])]
    restart: bool,
}

impl UnfinishedArguments {
    /// Of a whole output: who says neither is asked.
    pub(crate) fn existing(self) -> Existing {
        self.or(Existing::Refuse)
    }

    /// Of a piece, which a job runner starts again as it was started first: it goes on by itself. What is done anew has nothing to go on
    /// from.
    pub(crate) fn existing_of_piece(self, anew: bool) -> Existing {
        self.or(if anew { Existing::Restart } else { Existing::Adopt })
    }

    fn or(self, unsaid: Existing) -> Existing {
        match (self.resume, self.restart) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Restart,
            _ => unsaid,
        }
    }
}

/// Follows a compression, and keeps what it finishes until the output is whole.
pub(crate) struct Unfinished {
    journal: Option<Journal>,
    /// Where that is, or was.
    path: PathBuf,
    progress: Progress,
    interrupt: Interrupt,
    talk: Talk,
    /// Heads that are kept, and whether anything is.
    heads: usize,
    has_any: bool,
    /// Whether the journal takes nothing more. It is held on to: its lock keeps others from this output.
    gave_up: bool,
}

/// What an interrupted run left, and where the next is kept.
pub(crate) fn open(
    existing: Existing,
    output: &Path,
    origin: &Origin,
    (talk, progress): (Talk, Progress),
) -> Result<(Finished, Unfinished)> {
    let path = Journal::path_of(output);
    let interrupt = Interrupt::listen();
    let mut unfinished = Unfinished {
        journal: None,
        path,
        progress,
        interrupt,
        talk,
        heads: 0,
        has_any: false,
        gave_up: false,
    };
    let opened = match Journal::open(&unfinished.path, origin, existing) {
        Ok(opened) => opened,
        // The output may still fit, or be elsewhere by then.
        Err(error @ Error::Write { .. }) => {
            unfinished.give_up(&error);
            return Ok((Finished::default(), unfinished));
        }
        Err(error) => return Err(error),
    };
    unfinished.journal = Some(opened.journal);
    unfinished.heads = opened.finished.heads.len();
    unfinished.has_any = unfinished.heads > 0 || opened.finished.lengths.is_some();
    if opened.dropped > 0 {
        let path = unfinished.path.display();
        unfinished.note(&format!(
            "the end of {path} was cut off or damaged; what it held is worked on again"
        ));
    }
    if unfinished.has_any {
        unfinished.note(&match unfinished.heads {
            0 => "going on from lengths that are decided; no head is finished".to_owned(),
            1 => "going on from 1 finished head".to_owned(),
            heads => format!("going on from {heads} finished heads"),
        });
    }
    Ok((opened.finished, unfinished))
}

impl Unfinished {
    /// Says something beside the bar.
    fn note(&self, text: &str) {
        if !self.talk.quiet {
            self.progress.suspend(|| {
                // A closed standard error is no reason to stop.
                let _ = writeln!(io::stderr(), "note: {text}");
            });
        }
    }

    /// Goes on without a journal: keeping the work safe must not be what ends it.
    fn give_up(&mut self, error: &Error) {
        self.gave_up = true;
        self.note(&format!(
            "{error}; the work goes on, and what is finished from here on would be lost if it were interrupted"
        ));
    }

    fn keep(&mut self, add: impl FnOnce(&mut Journal) -> Result<()>) -> bool {
        let Some(journal) = self.journal.as_mut().filter(|_| !self.gave_up) else {
            return false;
        };
        match add(journal) {
            Ok(()) => {
                self.has_any = true;
                true
            }
            Err(error) => {
                self.give_up(&error);
                false
            }
        }
    }

    /// Takes the bar away, so that what follows starts on an empty line.
    pub(crate) fn finish(&self) {
        self.progress.finish();
    }

    /// Takes what was kept away, once everything is written.
    pub(crate) fn remove(self) -> Result<()> {
        // One that could not be begun is not ours.
        self.journal.map_or(Ok(()), Journal::remove)
    }

    /// Says what became of the work where it ends before its end, and leaves nothing behind that is of no use.
    pub(crate) fn leave(mut self, error: &Error) {
        self.finish();
        let path = self.path.display();
        let kept = match self.heads {
            0 => format!("the lengths that were decided are in {path}"),
            1 => format!("1 finished head is in {path}"),
            heads => format!("{heads} finished heads are in {path}"),
        };
        let kept = format!("{kept}, and the same command with --resume goes on from there");
        if matches!(error, Error::Cancelled) {
            self.interrupt.tell(if self.has_any {
                format!("interrupted; {kept}")
            } else if self.gave_up {
                "interrupted; nothing that was finished could be kept".to_owned()
            } else {
                "interrupted before anything was finished".to_owned()
            });
        } else if self.has_any {
            self.note(&kept);
        }
        if !self.has_any
            && let Some(journal) = self.journal.take()
        {
            // Empty, and so of no harm.
            let _ = journal.remove();
        }
    }
}

impl Observer for Unfinished {
    fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
        self.progress.progress(finished, heads, fraction) && !self.interrupt.has_come()
    }

    fn decided(&mut self, lengths: &Lengths) -> Result<()> {
        self.keep(|journal| journal.add_lengths(lengths));
        Ok(())
    }

    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        if self.keep(|journal| journal.add_head(head)) {
            self.heads += 1;
        }
        Ok(())
    }

    fn retried(&mut self, why: &Error) {
        self.note(&match why {
            Error::OutOfMemory { .. } => "memory that was thought to be there was refused; going on with half of it".to_owned(),
            error => format!("{error}; going on with a fresh one"),
        });
    }
}
