//! The choice of a driver for this machine, and how a program is started on it.

use crate::lavapipe::Lavapipe;
use crate::workspace::Workspace;
use crate::{adapter, lavapipe, system_package};
use anyhow::{Context, Result, bail};
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

/// Says what to run the tests on, whatever the machine has: `system` or `lavapipe`.
const CHOICE: &str = "KVSCULPT_DRIVER";
/// How cargo is told to start test programs; x86-64 Linux is the only target a driver is brought to.
const CARGO_RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";
/// How tests that start the program themselves learn of the same.
const TEST_RUNNER: &str = "KVSCULPT_TEST_RUNNER";

#[derive(Debug)]
pub(crate) enum Driver {
    /// Whatever the machine offers.
    System(String),
    /// The machine's own software driver, pinned so that no other is picked.
    SystemLavapipe(PathBuf),
    /// Unpacked into the build folder.
    Lavapipe(Lavapipe),
    /// The user has set a runner: theirs to choose.
    Runner(OsString),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Detect,
    System,
    Software,
}

fn choice(value: Option<&str>) -> Result<Choice> {
    match value {
        None | Some("") => Ok(Choice::Detect),
        Some("system") => Ok(Choice::System),
        Some("lavapipe") => Ok(Choice::Software),
        Some(other) => bail!("{CHOICE} is `{other}`; it may be `system` or `lavapipe`"),
    }
}

impl Driver {
    /// A GPU's driver where there is one, else a recent lavapipe, else the system's; fails with what to install where none can be had.
    pub(crate) fn choose(workspace: &Workspace) -> Result<Self> {
        let choice = choice(env::var(CHOICE).ok().as_deref())?;
        if choice == Choice::System {
            return Ok(Self::System(format!("the system's ({CHOICE}=system)")));
        }
        if cfg!(target_os = "macos") {
            return Ok(Self::System("Metal".into()));
        }
        if cfg!(windows) {
            return Ok(Self::System(
                "DX12 or Vulkan; Windows brings its own software adapter (WARP)".into(),
            ));
        }
        if let Some(runner) = env::var_os(CARGO_RUNNER) {
            return Ok(Self::Runner(runner));
        }
        let found = adapter::find();
        if let (Choice::Detect, Some(gpu)) = (choice, found.gpu) {
            return Ok(Self::System(format!("the system's {} ({})", gpu.library, gpu.file.display())));
        }
        let reason = match lavapipe::bring(&workspace.target) {
            Ok(lavapipe) => return Ok(Self::Lavapipe(lavapipe)),
            Err(reason) => reason,
        };
        eprintln!("xtask: no recent lavapipe: {reason:#}");
        if let Some(software) = found.software {
            return Ok(Self::SystemLavapipe(software.file));
        }
        system_package::install()?;
        let installed = adapter::find()
            .software
            .context("the package is installed, but the Vulkan loader or lavapipe's manifest is missing")?;
        Ok(Self::SystemLavapipe(installed.file))
    }

    /// Has cargo, and the tests it runs, start programs on this driver.
    pub(crate) fn apply(&self, cargo: &mut Command) {
        match self {
            Self::System(_) => {}
            Self::SystemLavapipe(manifest) => {
                cargo.env("VK_DRIVER_FILES", manifest).env("VK_ICD_FILENAMES", manifest);
            }
            Self::Lavapipe(lavapipe) => {
                cargo.env(CARGO_RUNNER, lavapipe.runner()).env(TEST_RUNNER, lavapipe.runner());
            }
            Self::Runner(runner) => {
                cargo.env(TEST_RUNNER, runner);
            }
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(description) => formatter.write_str(description),
            Self::SystemLavapipe(manifest) => write!(
                formatter,
                "the system's lavapipe ({}), slower than a recent one",
                manifest.display()
            ),
            Self::Lavapipe(lavapipe) => write!(formatter, "lavapipe, Mesa {}, in {}", lavapipe.version, lavapipe.folder.display()),
            Self::Runner(runner) => write!(formatter, "that of {CARGO_RUNNER}={}", runner.display()),
        }
    }
}

/// `cargo xtask driver`: brings the driver, then shows how to use it.
pub(crate) fn prepare(workspace: &Workspace) -> Result<()> {
    let driver = Driver::choose(workspace)?;
    println!("driver: {driver}");
    match &driver {
        Driver::System(_) => println!("Nothing to bring: programs find it by themselves."),
        Driver::SystemLavapipe(manifest) => println!("VK_DRIVER_FILES={} cargo run --release -- devices", manifest.display()),
        Driver::Lavapipe(lavapipe) => {
            let run = lavapipe.runner();
            println!(
                "{} target/release/kvsculpt devices",
                run.strip_prefix(&workspace.root).unwrap_or(&run).display()
            );
            println!("{CARGO_RUNNER}={} cargo test", run.display());
        }
        Driver::Runner(runner) => println!("{} target/release/kvsculpt devices", runner.display()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_has_two_words() {
        assert_eq!(choice(None).unwrap(), Choice::Detect);
        assert_eq!(choice(Some("")).unwrap(), Choice::Detect);
        assert_eq!(choice(Some("system")).unwrap(), Choice::System);
        assert_eq!(choice(Some("lavapipe")).unwrap(), Choice::Software);
        assert!(choice(Some("swiftshader")).unwrap_err().to_string().contains("`swiftshader`"));
    }
}
