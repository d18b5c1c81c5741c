//! The machine that the arguments mean, or the machines.

use std::io::{self, Write as _};
use std::num::NonZeroU32;

use kvsculpt::machine::{Choice, Machine, choose_several};
use kvsculpt::{Error, Result};

use crate::Talk;
use crate::arguments::EngineArguments;

/// What the arguments choose, before anything is opened: at least one.
pub(crate) fn choices(arguments: &EngineArguments) -> Result<Vec<Choice>> {
    let choices = choose_several(arguments.engine.into(), &arguments.selection())?;
    let shares = arguments.shares.len();
    if shares > 0 && shares != choices.len() {
        return Err(Error::Options {
            option: "--shares",
            reason: format!(
                "has {shares} numbers, and --adapter names {}; give one number for each",
                choices.len()
            ),
        });
    }
    Ok(choices)
}

/// Opens them; says on standard error where the CPU engine takes over unasked.
pub(crate) fn open(arguments: &EngineArguments, talk: Talk) -> Result<Machine> {
    opened(&choices(arguments)?, arguments, talk)
}

fn opened(choices: &[Choice], arguments: &EngineArguments, talk: Talk) -> Result<Machine> {
    for notice in choices.iter().filter_map(|choice| choice.notice.as_ref()) {
        if !talk.quiet {
            // A closed standard error is no reason to stop.
            let _ = writeln!(io::stderr(), "note: {notice}");
        }
    }
    let shares = arguments.shares.iter().copied().chain(std::iter::repeat(NonZeroU32::MIN));
    let machines = choices.iter().zip(shares).map(|(choice, share)| Ok((choice.open()?, share)));
    Machine::several(machines.collect::<Result<_>>()?)
}

/// [`open`] for work that is not shared.
pub(crate) fn open_one(arguments: &EngineArguments, talk: Talk) -> Result<Machine> {
    let choices = choices(arguments)?;
    if choices.len() > 1 {
        return Err(Error::Options {
            option: "--adapter",
            reason: "names several, and this work is not shared; name one".into(),
        });
    }
    opened(&choices, arguments, talk)
}
