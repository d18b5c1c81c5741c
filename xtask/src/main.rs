//! Project chores, started as `cargo xtask CHORE`; see [`USAGE`].

mod adapter;
mod api;
mod driver;
mod examples;
mod lavapipe;
mod lint;
mod model;
mod system_package;
mod test;
mod workspace;

use anyhow::{Result, bail};
use model::Model;
use std::process::ExitCode;
use workspace::Workspace;

const USAGE: &str = "\
Usage: cargo xtask CHORE

  test [-- ARGUMENTS]  find a Vulkan, Metal or DX12 driver, bring a software one where there is none, fetch the small model, run
                       every test; ARGUMENTS go to cargo test:  cargo xtask test -- --lib -- --nocapture
  model [NAME]         only fetch the models of tests and measurements into target/models: smollm2 (98 MB; the default), qwen (491 MB), all
  driver               only bring the driver and say how to start a program on it
  lint                 rustfmt, clippy and rustdoc, warnings being errors
  api [--write]        compare the library's public items with docs/public-api.txt, and name those whose docs show no example;
                       --write puts them there
  help                 this text

KVSCULPT_DRIVER=system    use what the machine has, ask no questions
KVSCULPT_DRIVER=lavapipe  use the software driver even where there is a GPU
";

#[derive(Debug, PartialEq, Eq)]
enum Chore {
    Test(Vec<String>),
    Model(&'static [&'static Model]),
    Driver,
    Lint,
    Api { write: bool },
    Help,
}

/// The chore the command line asks for; fails on an unknown chore and on arguments nobody would read.
fn parse(arguments: &[String]) -> Result<Chore> {
    let Some((name, rest)) = arguments.split_first() else {
        return Ok(Chore::Help);
    };
    let chore = match name.as_str() {
        "test" => {
            return match rest.split_first() {
                None => Ok(Chore::Test(Vec::new())),
                Some((separator, passed_on)) if separator == "--" => Ok(Chore::Test(passed_on.to_vec())),
                Some((stray, _)) => bail!("`{stray}`: arguments for cargo test go after `--`, as in `cargo xtask test -- {stray}`"),
            };
        }
        "model" => {
            return match rest {
                [] => Ok(Chore::Model(&[&model::SMOLLM2])),
                [one] => model::named(one).map(Chore::Model),
                [_, stray, ..] => bail!("`cargo xtask model` takes one name, got `{stray}` too"),
            };
        }
        "driver" => Chore::Driver,
        "lint" => Chore::Lint,
        "api" => {
            return match rest {
                [] => Ok(Chore::Api { write: false }),
                [one] if one == "--write" => Ok(Chore::Api { write: true }),
                [stray, ..] => bail!("`cargo xtask api` takes --write or nothing, got `{stray}`"),
            };
        }
        "help" | "--help" | "-h" => Chore::Help,
        _ => bail!("no chore is called `{name}`\n\n{USAGE}"),
    };
    match rest.first() {
        Some(stray) => bail!("`cargo xtask {name}` takes no arguments, got `{stray}`"),
        None => Ok(chore),
    }
}

fn perform(chore: Chore) -> Result<()> {
    match chore {
        Chore::Test(passed_on) => test::run(&Workspace::find()?, &passed_on),
        Chore::Model(models) => model::bring_all(&Workspace::find()?, models),
        Chore::Driver => driver::prepare(&Workspace::find()?),
        Chore::Lint => lint::run(&Workspace::find()?),
        Chore::Api { write } => api::run(&Workspace::find()?, write),
        Chore::Help => {
            print!("{USAGE}");
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    if let Some(code) = api::as_rustdoc() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match parse(&arguments).and_then(perform) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Chore> {
        parse(&line.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_after_the_separator_reach_cargo_test_untouched() {
        let passed_on = ["--test", "kernels", "--", "--nocapture"].map(String::from).to_vec();
        assert_eq!(parsed("test -- --test kernels -- --nocapture").unwrap(), Chore::Test(passed_on));
        assert_eq!(parsed("test --").unwrap(), Chore::Test(Vec::new()));
        assert_eq!(parsed("test").unwrap(), Chore::Test(Vec::new()));
    }

    #[test]
    fn stray_arguments_are_refused_with_the_way_out() {
        assert!(parsed("test --lib").unwrap_err().to_string().contains("cargo xtask test -- --lib"));
        assert!(parsed("lint now").unwrap_err().to_string().contains("`now`"));
        assert!(parsed("tset").unwrap_err().to_string().contains("Usage"));
    }

    #[test]
    fn models_are_asked_for_by_name() {
        assert_eq!(parsed("model").unwrap(), Chore::Model(&[&model::SMOLLM2]));
        assert_eq!(parsed("model qwen").unwrap(), Chore::Model(&[&model::QWEN]));
        assert_eq!(parsed("model all").unwrap(), Chore::Model(&[&model::SMOLLM2, &model::QWEN]));
        assert!(parsed("model gpt").unwrap_err().to_string().contains("`gpt`"));
        assert!(parsed("model qwen smollm2").unwrap_err().to_string().contains("`smollm2`"));
    }

    #[test]
    fn the_list_of_public_items_is_written_only_when_asked() {
        assert_eq!(parsed("api").unwrap(), Chore::Api { write: false });
        assert_eq!(parsed("api --write").unwrap(), Chore::Api { write: true });
        assert!(parsed("api now").unwrap_err().to_string().contains("`now`"));
    }

    #[test]
    fn no_chore_asks_for_help() {
        assert_eq!(parsed("").unwrap(), Chore::Help);
        assert_eq!(parsed("--help").unwrap(), Chore::Help);
    }
}
