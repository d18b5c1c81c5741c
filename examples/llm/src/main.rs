//! The program `kvsculpt-llm`: one file a subcommand, in `commands`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kvsculpt_llm::commands::{capture, chat, eval, retrieval, sensitivity, tables};

/// A real language model over a compressed key-value cache, end to end.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Capture(capture::Arguments),
    Chat(chat::Arguments),
    Eval(eval::Arguments),
    Sensitivity(sensitivity::Arguments),
    Retrieval(retrieval::Arguments),
    Tables(tables::Arguments),
}

fn main() -> ExitCode {
    let done = match Program::parse().command {
        Command::Capture(arguments) => capture::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Retrieval(arguments) => retrieval::run(&arguments),
        Command::Sensitivity(arguments) => sensitivity::run(&arguments),
        Command::Tables(arguments) => tables::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // candle's errors carry a backtrace in their text where RUST_BACKTRACE is set.
            let text = format!("{error:#}");
            eprintln!("error: {}", text.split("\n   0: ").next().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}
