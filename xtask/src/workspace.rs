//! Where the checkout and its build folder are, and cargo started in them.

use anyhow::{Context, Result, bail};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks the environment that `cargo run` sets, so that a build folder copied to another checkout still works on that checkout.
    pub(crate) fn find() -> Result<Self> {
        let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
        let root = Path::new(&package).parent().context("xtask has no parent folder")?.to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => std::path::absolute(folder).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The cargo that started us, in the workspace root, building into the same folder as now.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        command.current_dir(&self.root).args(arguments);
        if env::var_os("CARGO_TARGET_DIR").is_some() {
            command.env("CARGO_TARGET_DIR", &self.target);
        }
        // Cargo sets these for xtask; handed down they would look to build scripts and tests like their own.
        for (name, _) in env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
            {
                command.env_remove(name);
            }
        }
        command
    }
}

/// Deletes the folders `PREFIX` + process number that runs left behind when they were killed half way; one still running has its process.
/// Ours has not begun: its number is a reused one. Where processes cannot be looked up nothing else is deleted.
pub(crate) fn remove_abandoned(parent: &Path, prefix: &str) {
    let is_running = |process: &str| !Path::new("/proc/self").exists() || Path::new("/proc").join(process).exists();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix(prefix) else { continue };
        if process == std::process::id().to_string() || !is_running(process) {
            // Only space is lost if this fails; nothing reads the folder.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs a command to its end with its output on ours; fails, quoting the command, unless it succeeds.
pub(crate) fn expect_success(command: &mut Command) -> Result<()> {
    let line = shown(command);
    eprintln!("xtask: {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs a command that cannot ask questions; its standard output. Fails with the line of its complaints that says most.
pub(crate) fn quiet_output(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}", telling_line(&errors));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// apt names the cause first and a summary last; other programs end with the cause.
fn telling_line(errors: &str) -> &str {
    let filled = || errors.lines().map(str::trim).filter(|line| !line.is_empty());
    let cause = filled().find(|line| line.starts_with("E:") || line.starts_with("W: Failed to fetch"));
    cause.or_else(|| filled().next_back()).unwrap_or("it gave no reason")
}

/// Program name and arguments, less the options (`-o…`) nobody wants to read.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default().to_string_lossy();
    let arguments = command
        .get_args()
        .map(|argument| argument.to_string_lossy())
        .filter(|argument| !argument.starts_with("-o"));
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::telling_line;

    #[test]
    fn the_cause_is_quoted_rather_than_the_summary() {
        let apt = "note\nW: Failed to fetch http://one.example/debian  Could not resolve\nE: Some index files failed to download.\n";
        assert_eq!(telling_line(apt), "W: Failed to fetch http://one.example/debian  Could not resolve");
        assert_eq!(telling_line("opening\nno such file\n\n"), "no such file");
        assert_eq!(telling_line("\n"), "it gave no reason");
    }
}
