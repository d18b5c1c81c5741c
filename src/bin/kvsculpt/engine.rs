//! The machine that the arguments mean.

use std::io::{self, Write as _};

use kvsculpt::Result;
use kvsculpt::machine::{Choice, Machine, choose};

use crate::Talk;
use crate::arguments::EngineArguments;

/// What the arguments choose, before anything is opened.
pub(crate) fn choice(arguments: &EngineArguments) -> Result<Choice> {
    choose(arguments.engine.into(), &arguments.selection())
}

/// Opens it; says on standard error where the CPU engine takes over unasked.
pub(crate) fn open(arguments: &EngineArguments, talk: Talk) -> Result<Machine> {
    let choice = choice(arguments)?;
    if let (Some(notice), false) = (&choice.notice, talk.quiet) {
        // A closed standard error is no reason to stop.
        let _ = writeln!(io::stderr(), "note: {notice}");
    }
    choice.open()
}
