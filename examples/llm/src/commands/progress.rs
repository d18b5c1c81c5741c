//! One line on standard error that says what is being done, and how far it is.

use std::io::{ErrorKind, Write as _, stdout};
use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use kvsculpt::solver::Observer;

/// Steps of the bar.
const STEPS: u64 = 10_000;

/// A bar for one piece of work after the other; nothing where standard error is no terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    what: String,
}

impl Progress {
    /// An empty line.
    #[must_use]
    pub fn new() -> Self {
        let bar = ProgressBar::new(STEPS);
        // A template that did not parse would leave the library's plain bar: no reason to fail.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {bar:30} {percent:>3} %  {msg}") {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, what: String::new() }
    }

    /// Begins something.
    pub fn begin(&mut self, what: impl Into<String>) {
        self.what = what.into();
        // Where there is no terminal for a bar, a line a piece of work.
        if self.bar.is_hidden() {
            eprintln!("{} …", self.what);
        }
        self.bar.reset();
        self.bar.set_message(self.what.clone());
    }

    /// Says how far it is: `done` of `all`.
    pub fn at(&self, done: usize, all: usize) {
        self.bar.set_position(STEPS * done as u64 / all.max(1) as u64);
    }

    /// Prints a line to standard output, above this one.
    ///
    /// # Errors
    /// As [`print()`].
    pub fn print(&self, text: &str) -> Result<()> {
        self.bar.suspend(|| print(&format!("{text}\n")))
    }

    /// Prints to standard error above the line.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Takes the line away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Prints to standard output at once. Where nobody reads any more, as behind `head`, the program ends without a word.
///
/// # Errors
/// Whatever else keeps it from being written.
pub fn print(text: &str) -> Result<()> {
    let mut output = stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("standard output cannot be written"),
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Observer for Progress {
    fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a small number")]
        self.bar.set_position((fraction.clamp(0.0, 1.0) * STEPS as f64) as u64);
        self.bar.set_message(format!("{}: {finished} of {heads} heads done", self.what));
        true
    }
}
