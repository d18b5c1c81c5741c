//! The progress bar on standard error.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kvsculpt::solver::{Decided, Observer, PLANNING};

use crate::Talk;

/// Steps of the bar; finer than a terminal can show.
const STEPS: u64 = 10_000;

/// A bar with heads done, per cent and time left; nothing where standard error is no terminal. It has no colours.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// When work began, after reading and planning, and how far the bar was then; the time left is judged from there.
    began: Option<(Instant, f64)>,
    decided: Decided,
}

impl Progress {
    pub(crate) fn new(talk: Talk, decided: Decided) -> Self {
        // Log lines and a bar would overwrite each other.
        let target = if talk.quiet || talk.verbose {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(STEPS), target);
        // A template that did not parse would leave the library's plain bar: no reason to fail.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {bar:30} {percent:>3} %  {msg}") {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.set_message("reading");
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, began: None, decided }
    }

    /// Does something, such as writing a line, while the bar is out of the way.
    pub(crate) fn suspend(&self, work: impl FnOnce()) {
        self.bar.suspend(work);
    }

    /// Takes the bar away, so that what follows starts on an empty line.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
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
        let position = (fraction.clamp(0.0, 1.0) * STEPS as f64) as u64;
        self.bar.set_position(position);
        let planning = match self.decided {
            Decided::Curves if fraction < PLANNING => Some("measuring error curves"),
            Decided::Pilot if fraction < PLANNING => Some("a pilot decides lengths"),
            _ => None,
        };
        // How long the work itself takes is not known before it begins.
        if let Some(planning) = planning {
            self.bar.set_message(planning);
            return true;
        }
        let (began, from) = *self.began.get_or_insert_with(|| (Instant::now(), fraction));
        let part = (fraction - from) / (1.0 - from);
        let left = if (0.02..1.0).contains(&part) {
            let seconds = began.elapsed().as_secs_f64() * (1.0 - part) / part;
            format!(", about {} left", duration(seconds))
        } else {
            String::new()
        };
        self.bar.set_message(format!("{finished} of {heads} heads done{left}"));
        true
    }
}

/// Seconds as people say them.
pub(crate) fn duration(seconds: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration; casts saturate")]
    let whole = seconds.round() as u64;
    match whole {
        0..=9 => format!("{seconds:.1} s"),
        10..=119 => format!("{whole} s"),
        120..=7199 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
