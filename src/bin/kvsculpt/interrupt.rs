//! Ctrl-C and SIGTERM while there is something to keep.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit code of a program that a signal ended, by the shells' custom.
const BEYOND: i32 = 128;

/// How this run was interrupted: the exit code and the sentence that says it.
static INTERRUPTED: OnceLock<(u8, String)> = OnceLock::new();

/// Listens for signals. The first one is only noted, so that the work can end in order; the second ends the program at once.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// What hears signals, or where the system lets none be heard, what never hears one: then one ends the program as ever.
    pub(crate) fn listen() -> Self {
        let interrupt = Self { signal: Arc::default() };
        let once = Arc::new(AtomicBool::new(false));
        for (signal, number) in [(SIGINT, 2), (SIGTERM, 15)] {
            // The order decides: at the first signal the flag is not up yet.
            let registered = flag::register_conditional_shutdown(signal, BEYOND + signal, Arc::clone(&once))
                .and_then(|_| flag::register(signal, Arc::clone(&once)))
                .and_then(|_| flag::register_usize(signal, Arc::clone(&interrupt.signal), number));
            if let Err(error) = registered {
                tracing::warn!(%error, signal, "the system lets this signal not be heard");
            }
        }
        interrupt
    }

    /// Whether a signal has come.
    pub(crate) fn has_come(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }

    /// Notes what the program is to say and to return at its end.
    pub(crate) fn tell(&self, sentence: String) {
        let code = if self.signal.load(Ordering::Relaxed) == 15 { 143 } else { 130 };
        // Nothing is interrupted twice.
        let _ = INTERRUPTED.set((code, sentence));
    }
}

/// The exit code and the sentence, where the run was interrupted.
pub(crate) fn interrupted() -> Option<(u8, &'static str)> {
    INTERRUPTED.get().map(|(code, sentence)| (*code, sentence.as_str()))
}
