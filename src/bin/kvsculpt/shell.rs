//! `kvsculpt completions` and `kvsculpt man`: what shells and `man` want to know of the program, made from its arguments.

use std::path::PathBuf;

use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate};
use kvsculpt::{Error, Result};

use crate::{Program, print};

/// Print completions for a shell.
///
/// For bash: `kvsculpt completions bash > ~/.local/share/bash-completion/completions/kvsculpt`
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page, or write one for each subcommand.
///
/// To read it: `kvsculpt man | man -l -`
#[derive(Debug, clap::Args)]
pub(crate) struct ManArguments {
    /// Write kvsculpt.1 and a page for each subcommand into this folder instead
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(crate) fn completions(arguments: &CompletionArguments) -> Result<()> {
    let mut command = Program::command();
    let mut text = Vec::new();
    generate(arguments.shell, &mut command, "kvsculpt", &mut text);
    print(&String::from_utf8_lossy(&text))
}

pub(crate) fn man(arguments: &ManArguments) -> Result<()> {
    let mut command = Program::command();
    // Gives subcommands the options that hold for all of them.
    command.build();
    let Some(folder) = &arguments.folder else {
        return print(&String::from_utf8_lossy(&page(command)?));
    };
    let subcommands = command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help");
    let mut pages = vec![("kvsculpt.1".to_owned(), page(command.clone())?)];
    for subcommand in subcommands {
        let name = format!("kvsculpt-{}", subcommand.get_name());
        pages.push((format!("{name}.1"), page(subcommand.clone())?));
    }
    for (name, page) in pages {
        let path = folder.join(name);
        kvsculpt::cache::write_whole(&path, &page)?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

fn page(command: Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    let manual = clap_mangen::Man::new(command).source(concat!("kvsculpt ", env!("CARGO_PKG_VERSION")));
    manual.render(&mut page).map_err(|error| Error::File {
        path: "the manual page".into(),
        reason: format!("cannot be made: {error}"),
    })?;
    Ok(page)
}
