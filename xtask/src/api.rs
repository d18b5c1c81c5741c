//! `cargo xtask api`: the library's public items, set beside those that were written down at last; and whether each shows an example.
//!
//! What is gone or changed breaks applications and needs a new minor version (a major one from 1.0 on); what is new does not. Either is to be
//! seen in a review, so the list is in the repository and a change of it is a change of a file.

use crate::examples;
use crate::workspace::{Workspace, expect_success};
use anyhow::{Context, Result, bail};
use public_api::PublicApi;
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The list: the compiler that told it, then one item a line.
const LIST: &str = "docs/public-api.txt";
/// What the line of the compiler begins with.
const COMPILER: &str = "# ";
/// Set where this program is started in rustdoc's stead.
const STAND_IN: &str = "KVSCULPT_XTASK_RUSTDOC";

/// The exit code of rustdoc, where cargo started this program in its stead.
///
/// Rustdoc writes JSON only where unstable options are allowed. Allowing them for all of cargo would make it build every dependency again.
pub(crate) fn as_rustdoc() -> Option<ExitCode> {
    env::var_os(STAND_IN)?;
    let status = Command::new("rustdoc")
        .args(env::args_os().skip(1))
        .env("RUSTC_BOOTSTRAP", "1")
        .status();
    Some(match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Compares the items with the list, or writes them there.
pub(crate) fn run(workspace: &Workspace, write: bool) -> Result<()> {
    let path = workspace.root.join(LIST);
    let compiler = compiler()?;
    if !write {
        let text = read(&path)?;
        let told_by = text.lines().next().and_then(|line| line.strip_prefix(COMPILER)).unwrap_or_default();
        if told_by != compiler {
            // Compilers word the same item differently.
            eprintln!("xtask: {LIST} was made by {told_by}, and this is {compiler}: not compared");
            return Ok(());
        }
    }
    let program = env::current_exe().context("where xtask is")?;
    // All packages and one example: their dependencies are then those of the lints and the tests, feature for feature, and are not checked again.
    let arguments = ["doc", "--workspace", "--no-deps", "--lib", "--example", "frame_loop"];
    expect_success(
        workspace
            .cargo(&arguments)
            .env("RUSTDOC", program)
            .env("RUSTDOCFLAGS", "-Zunstable-options --output-format=json")
            .env(STAND_IN, "1"),
    )?;
    let json = workspace.target.join("doc/kvsculpt.json");
    let found = items(&json)?;
    if write {
        fs::write(&path, format!("{COMPILER}{compiler}\n{}\n", found.join("\n")))
            .with_context(|| format!("{} cannot be written", path.display()))?;
        eprintln!("xtask: {} public items are in {LIST}", found.len());
        return Ok(());
    }
    let (unshown, looked_at) = examples::missing(&json)?;
    if !unshown.is_empty() {
        bail!(
            "{} of {looked_at} public items lack an example in their docs, which CONTRIBUTING.md asks for:\n{}",
            unshown.len(),
            unshown.join("\n")
        );
    }
    let text = read(&path)?;
    let written: Vec<String> = text.lines().filter(|line| !line.starts_with(COMPILER)).map(str::to_owned).collect();
    let (gone, new) = difference(&written, &found);
    for (sign, lines) in [('-', &gone), ('+', &new)] {
        for line in lines {
            println!("{sign}{line}");
        }
    }
    if gone.is_empty() && new.is_empty() {
        eprintln!("xtask: the {} public items are those of {LIST}", found.len());
        return Ok(());
    }
    let breaks = if gone.is_empty() {
        "breaks nothing"
    } else {
        "breaks who uses what is gone or changed"
    };
    bail!(
        "{} public items are gone or changed and {} are new, which {breaks}; if it is meant, run `cargo xtask api --write` and say it in CHANGELOG.md",
        gone.len(),
        new.len()
    )
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} cannot be read; `cargo xtask api --write` makes it", path.display()))
}

/// `rustc 1.95`, without what changes nothing in the wording.
fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("rustc cannot be run")?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let number: Vec<&str> = version.split_whitespace().nth(1).unwrap_or_default().split('.').take(2).collect();
    Ok(format!("rustc {}", number.join(".")))
}

/// A line for every public item; traits that every type has are left out.
fn items(json: &Path) -> Result<Vec<String>> {
    let api: PublicApi = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .build()
        .with_context(|| {
            format!(
                "{} is not as expected; does public-api in xtask/Cargo.toml suit this compiler?",
                json.display()
            )
        })?;
    let mut lines: Vec<String> = api.items().map(ToString::to_string).collect();
    lines.sort();
    lines.dedup();
    Ok(lines)
}

/// Lines that only one of two sorted lists has.
fn difference(written: &[String], found: &[String]) -> (Vec<String>, Vec<String>) {
    let only = |of: &[String], other: &[String]| of.iter().filter(|line| !other.contains(line)).cloned().collect();
    (only(written, found), only(found, written))
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn what_is_gone_and_what_is_new_are_told_apart() {
        let list = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (written, found) = (list(&["fn a()", "fn b(u32)"]), list(&["fn a()", "fn b(u64)", "fn c()"]));
        assert_eq!(difference(&written, &found), (list(&["fn b(u32)"]), list(&["fn b(u64)", "fn c()"])));
        assert_eq!(difference(&found, &found), (Vec::new(), Vec::new()));
    }
}
