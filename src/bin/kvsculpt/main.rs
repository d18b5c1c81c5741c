//! The program `kvsculpt`: one file a subcommand.
//!
//! Data goes to standard output, everything else to standard error. The exit codes are in [`EXIT_CODES`].

mod allocate;
mod arguments;
mod bench;
mod compare;
mod compress;
mod config;
mod convert;
mod curves;
mod demo;
mod destination;
mod devices;
mod doctor;
mod dry_run;
mod engine;
mod finer;
mod formats;
mod generate;
mod html;
mod input;
mod inspect;
mod interrupt;
mod lengths;
mod made;
mod memory;
mod merge;
mod page;
mod progress;
mod report;
mod shards;
mod shell;
mod statistics;
mod table;
mod timings;
mod unfinished;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kvsculpt::{Error, Result};
use tracing_subscriber::EnvFilter;

/// What scripts can tell apart; [`exit_code`] gives them.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  another error
  2  options without meaning, or none for this capture
  3  a file that cannot be read, understood or written
  4  no adapter, or none that suffices
  5  trouble on the GPU, a machine that fails its self-test, or too little memory
  6  the disk is full, or writing failed
130  interrupted, and 143 by SIGTERM; what was finished is kept, see `compress --resume`";

/// Makes a language model's key-value cache several times shorter.
///
/// For every KV head a few free key-value pairs are fitted so that they answer the head's queries as all its pairs did; sinks and
/// the newest pairs stay as they are. `kvsculpt demo` shows it on a small real cache and needs no set-up.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100, infer_long_args = false, after_help = EXIT_CODES)]
struct Program {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    talk: Talk,
}

/// How much is said on standard error.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Talk {
    /// Log what happens to standard error; RUST_LOG chooses what
    #[arg(short, long, global = true, display_order = 100)]
    verbose: bool,
    /// No progress bar and no notices
    #[arg(short, long, global = true, display_order = 100)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Allocate(allocate::Arguments),
    Compare(compare::Arguments),
    Completions(shell::CompletionArguments),
    Bench(Box<bench::Arguments>),
    Compress(Box<compress::Arguments>),
    Convert(Box<convert::Arguments>),
    Curves(Box<curves::Arguments>),
    Demo(demo::Arguments),
    Devices(devices::Arguments),
    Doctor(doctor::Arguments),
    Inspect(inspect::Arguments),
    Man(shell::ManArguments),
    Merge(merge::Arguments),
    Report(page::Arguments),
    Statistics(statistics::Arguments),
    Generate(generate::Arguments),
}

fn main() -> ExitCode {
    let program = Program::parse();
    if program.talk.verbose {
        log_to_stderr();
    }
    let done = match &program.command {
        Command::Allocate(arguments) => allocate::run(arguments, program.talk),
        Command::Compare(arguments) => compare::run(arguments, program.talk),
        Command::Completions(arguments) => shell::completions(arguments),
        Command::Bench(arguments) => bench::run(arguments, program.talk),
        Command::Compress(arguments) => compress::run(arguments, program.talk),
        Command::Convert(arguments) => convert::run(arguments),
        Command::Curves(arguments) => curves::run(arguments, program.talk),
        Command::Demo(arguments) => demo::run(arguments, program.talk),
        Command::Devices(arguments) => devices::run(arguments, program.talk),
        Command::Doctor(arguments) => doctor::run(arguments, program.talk),
        Command::Inspect(arguments) => inspect::run(arguments, program.talk),
        Command::Man(arguments) => shell::man(arguments),
        Command::Merge(arguments) => merge::run(arguments),
        Command::Report(arguments) => page::run(arguments, program.talk),
        Command::Statistics(arguments) => statistics::run(arguments, program.talk),
        Command::Generate(arguments) => generate::run(arguments, program.talk),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (code, sentence) = match interrupt::interrupted() {
                Some((code, sentence)) if matches!(error, Error::Cancelled) => (code, sentence.to_owned()),
                _ => (exit_code(&error), error.to_string()),
            };
            // Nobody left to tell where standard error is closed.
            let _ = writeln!(io::stderr(), "error: {sentence}");
            ExitCode::from(code)
        }
    }
}

/// One code a class of errors, so that scripts can tell them apart.
fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Options { .. } => 2,
        Error::File { .. } | Error::Shape { .. } => 3,
        Error::NoAdapter(_) | Error::Unsupported { .. } => 4,
        Error::Write { .. } => 6,
        Error::Cancelled => 130,
        Error::Shader { .. }
        | Error::OutOfMemory { .. }
        | Error::DeviceLost(_)
        | Error::Timeout { .. }
        | Error::Gpu(_)
        | Error::SelfTest { .. } => 5,
        _ => 1,
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,kvsculpt=debug"));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .init();
}

/// Writes to standard output; a reader that has gone away is no error.
fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Write {
            path: "standard output".into(),
            reason: format!("cannot be written: {error}"),
        }),
        _ => Ok(()),
    }
}

/// An object as one line of JSON.
fn json(object: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string(object).map_err(|error| Error::File {
        path: "standard output".into(),
        reason: format!("the report is no JSON: {error}"),
    })?;
    Ok(text + "\n")
}

/// Writes it to standard output.
fn print_json(object: &impl serde::Serialize) -> Result<()> {
    print(&json(object)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Program::command().debug_assert();
    }
}
