//! The gate between who drives a compression and the thread that works: leave is given there, and waited for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Progress;
use crate::error::{Error, Result};

/// What part of the time that is given one portion of work should take at most: what is left of it at the end is lost.
const PORTIONS: f64 = 4.0;

/// What the worker may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// Nothing.
    None,
    /// Whatever is done by then, and one portion in any case where `one`.
    Until { end: Instant, one: bool },
    /// Everything.
    Unlimited,
    /// It is to end.
    Cancelled,
}

/// What both sides know.
#[derive(Debug)]
struct State {
    leave: Leave,
    /// The time that was given last; portions are cut by it.
    slice: Option<Duration>,
    /// Whether the worker waits for leave, with nothing under way.
    standing: bool,
    ended: bool,
    progress: Progress,
    portions: u64,
}

/// What the worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Go on.
    Go,
    /// Not before what is under way is done.
    Settle,
}

/// Whether so many seconds from now are over by then.
fn fits(seconds: f64, end: Instant) -> bool {
    let left = end.saturating_duration_since(Instant::now());
    !left.is_zero() && seconds <= left.as_secs_f64()
}

/// Both sides' state, and what wakes them.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                leave: Leave::None,
                slice: None,
                standing: false,
                ended: false,
                progress: Progress::default(),
                portions: 0,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    // The worker's side.

    /// Waits until a portion may begin that should take so many seconds, with what is under way. Where anything is, the answer may
    /// be that it has to be done first.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub(super) fn pass(&self, seconds: f64, is_settled: bool) -> Result<Answer> {
        let mut state = self.lock();
        loop {
            match state.leave {
                Leave::Cancelled => return Err(Error::Cancelled),
                Leave::Unlimited => break,
                Leave::Until { one: true, end } => {
                    state.leave = Leave::Until { one: false, end };
                    self.changed.notify_all();
                    break;
                }
                Leave::Until { end, .. } if fits(seconds, end) => break,
                _ if !is_settled => return Ok(Answer::Settle),
                _ => {
                    state.leave = Leave::None;
                    state.standing = true;
                    self.changed.notify_all();
                    state = self.wait(state);
                }
            }
        }
        state.standing = false;
        state.portions += 1;
        Ok(Answer::Go)
    }

    /// Seconds that a portion should take at most; `None`: no bound.
    pub(super) fn portion(&self) -> Option<f64> {
        let state = self.lock();
        let slice = state.slice.filter(|_| state.leave != Leave::Unlimited)?;
        Some(slice.as_secs_f64() / PORTIONS)
    }

    /// Takes note of progress; whether to go on.
    pub(super) fn note(&self, progress: Progress) -> bool {
        let mut state = self.lock();
        state.progress = progress;
        state.leave != Leave::Cancelled
    }

    /// The worker is done.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.changed.notify_all();
    }

    // The driver's side.

    /// Gives leave for so long and returns when it is used up or the work has ended; whether it has. A worker that waits begins one
    /// portion at least.
    pub(super) fn give(&self, at_most: Duration) -> bool {
        let Some(end) = Instant::now().checked_add(at_most) else {
            return self.give_all();
        };
        let mut state = self.lock();
        let mut waits = state.standing;
        state.leave = Leave::Until { end, one: true };
        state.slice = Some(at_most);
        state.standing = false;
        self.changed.notify_all();
        while !state.ended && !state.standing {
            waits &= state.leave == Leave::Until { end, one: true };
            let left = end.saturating_duration_since(Instant::now());
            state = match (waits, left.is_zero()) {
                (true, _) => self.wait(state),
                (false, true) => break,
                (false, false) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        if !state.ended {
            // What was not begun in this time waits for the next.
            state.leave = Leave::None;
        }
        state.ended
    }

    /// Gives leave for everything and waits for the end.
    pub(super) fn give_all(&self) -> bool {
        let mut state = self.lock();
        if state.leave != Leave::Cancelled {
            state.leave = Leave::Unlimited;
        }
        self.changed.notify_all();
        while !state.ended {
            state = self.wait(state);
        }
        true
    }

    /// Waits until nothing is under way.
    pub(super) fn settle(&self) {
        let mut state = self.lock();
        while !state.ended && !state.standing {
            state = self.wait(state);
        }
    }

    pub(super) fn cancel(&self) {
        self.lock().leave = Leave::Cancelled;
        self.changed.notify_all();
    }

    pub(super) fn progress(&self) -> Progress {
        self.lock().progress
    }

    pub(super) fn portions(&self) -> u64 {
        self.lock().portions
    }
}
