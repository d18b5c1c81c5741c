//! What is done where the machine fails in the midst of the work.

use super::compress::run;
use super::curves::Grid;
use super::estimate::estimate_by;
use super::jobs::{Alone, Audience, Hands, Single, Task};
use super::supply::{Supply, USUAL_SLICE};
use super::{Compression, Finished, FinishedHead, Observer, Request, Timings};
use crate::budget::Curve;
use crate::cache::Capture;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::Options;

/// [`compress_from`](super::compress_from), tried again where the machine fails, with the same bytes as if it had not: a device that is lost is
/// [opened afresh](Engine::reopen), once; where memory that was thought to be there is refused, less is used, half of it each time, down to
/// what one head takes. What was finished before is not done again. The observer is [told](Observer::retried).
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{Error, cpu::CpuEngine, solver::{Finished, Observer, compress_recovering}};
///
/// struct Log;
/// impl Observer for Log {
///     fn retried(&mut self, why: &Error) {
///         eprintln!("{why}; going on");
///     }
/// }
/// let mut finished = Finished::default();
/// let short = compress_recovering(&mut CpuEngine::new(), &capture, &request, &mut finished, &mut Log)?;
/// assert_eq!(short.outcomes.len(), 3);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// As [`compress_from`](super::compress_from); the failure itself where trying again does not help.
pub fn compress_recovering<E: Engine>(
    engine: &mut E,
    capture: &Capture,
    request: &Request,
    finished: &mut Finished,
    observer: &mut dyn Observer,
) -> Result<Compression> {
    let (mut machine, mut recovery) = (Alone(engine), Recovery::new(request.memory));
    run(
        &mut Recovering::new(&mut machine, &mut recovery),
        capture,
        request,
        finished,
        observer,
    )
}

/// What a machine's failures have come to so far.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Bytes that are still used.
    memory: Option<u64>,
    /// Whether the device was lost before.
    lost: bool,
    /// The least memory that was refused, and how.
    refused: Option<(u64, Error)>,
}

impl Recovery {
    pub(super) fn new(memory: Option<u64>) -> Self {
        Self {
            memory,
            lost: false,
            refused: None,
        }
    }

    /// Does what can be done about a failure of work on these heads, and returns what is to be told of it.
    ///
    /// # Errors
    /// The failure, where nothing can be done.
    fn after(&mut self, error: Error, machine: &mut dyn Single, supply: &Supply<'_>) -> Result<Option<Error>> {
        match error {
            Error::DeviceLost(reason) if self.lost => Err(Error::DeviceLost(format!(
                "{reason}; it was the second time, so the driver or the device needs looking after, or --engine cpu does without"
            ))),
            Error::DeviceLost(reason) => {
                self.lost = true;
                // Why no fresh one could be had says less than the loss itself.
                machine
                    .reopen()
                    .map_err(|fresh| Error::DeviceLost(format!("{reason}; and no fresh one could be opened: {fresh}")))?;
                Ok(Some(Error::DeviceLost(reason)))
            }
            Error::OutOfMemory {
                label,
                bytes,
                available: 0,
            } if self.memory.is_none_or(|memory| memory > 1) => {
                let memory = self.memory.unwrap_or_else(|| thought(machine, supply));
                self.memory = Some((memory / 2).max(1));
                let refusal = |label| Error::OutOfMemory {
                    label,
                    bytes,
                    available: 0,
                };
                self.refused = Some((memory, refusal(label.clone())));
                Ok(Some(refusal(label)))
            }
            // So little that one head alone needs more: the least that will do, unless that was refused.
            Error::OutOfMemory { bytes, .. }
                if self.memory.is_some_and(|memory| bytes > memory) && self.refused.as_ref().is_some_and(|refused| bytes < refused.0) =>
            {
                self.memory = Some(bytes);
                Ok(None)
            }
            other => Err(self
                .refused
                .take()
                .filter(|_| matches!(other, Error::OutOfMemory { .. }))
                .map_or(other, |refused| refused.1)),
        }
    }
}

/// The bytes that work without a bound uses, about.
fn thought(machine: &dyn Single, supply: &Supply<'_>) -> u64 {
    let most = USUAL_SLICE.saturating_add(machine.max_array_bytes().max(1 << 30));
    let unbound = |supply: &Supply<'_>, free: &[Vec<usize>]| machine.needs(supply, free);
    let used = estimate_by(supply.capture, supply.request, unbound)
        .map_or(most, |estimate| estimate.host_bytes.saturating_add(estimate.device_bytes));
    used.min(most)
}

/// One machine that tries again where it fails; of the heads that are fitted only those that were not finished before.
pub(super) struct Recovering<'a> {
    machine: &'a mut dyn Single,
    recovery: &'a mut Recovery,
}

impl<'a> Recovering<'a> {
    pub(super) fn new(machine: &'a mut dyn Single, recovery: &'a mut Recovery) -> Self {
        Self { machine, recovery }
    }

    fn attempt<T>(
        &mut self,
        task: Task<'_>,
        done: &[bool],
        mut job: impl FnMut(&mut dyn Hands, Task<'_>, &[bool]) -> Result<T>,
    ) -> Result<T> {
        let mut noting = Noting {
            audience: task.audience,
            supply: task.supply,
            done: done.to_vec(),
        };
        loop {
            let supply = task.supply.within(self.recovery.memory);
            let done = noting.done.clone();
            let attempt = Task {
                supply: &supply,
                audience: &mut noting,
                ..task
            };
            let error = match job(&mut *self.machine, attempt, &done) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            if let Some(told) = self.recovery.after(error, self.machine, &supply)? {
                noting.audience.retried(told);
            }
        }
    }
}

impl Hands for Recovering<'_> {
    fn curves(&mut self, task: Task<'_>, grid: &Grid, options: &Options) -> Result<Vec<Curve>> {
        self.attempt(task, &[], |machine, task, _| machine.curves(task, grid, options))
    }

    fn losses(&mut self, task: Task<'_>, free: &[Vec<usize>], options: &Options) -> Result<Vec<f64>> {
        self.attempt(task, &[], |machine, task, _| machine.losses(task, free, options))
    }

    fn fit(&mut self, task: Task<'_>, free: &[Vec<usize>], done: &[bool], options: &Options, timings: &mut Timings) -> Result<()> {
        self.attempt(task, done, |machine, task, done| machine.fit(task, free, done, options, timings))
    }
}

/// Notes which heads are finished.
struct Noting<'a> {
    audience: &'a mut dyn Audience,
    supply: &'a Supply<'a>,
    done: Vec<bool>,
}

impl Audience for Noting<'_> {
    fn progress(&mut self, finished: usize, fraction: f64) -> bool {
        self.audience.progress(finished, fraction)
    }

    fn finished(&mut self, head: FinishedHead) -> Result<()> {
        let (layer, number) = (head.outcome.layer, head.outcome.head);
        self.audience.finished(head)?;
        let place = self
            .supply
            .places
            .iter()
            .position(|place| (place.layer, place.head) == (layer, number));
        if let Some(done) = place.and_then(|place| self.done.get_mut(place)) {
            *done = true;
        }
        Ok(())
    }

    fn retried(&mut self, why: Error) {
        self.audience.retried(why);
    }
}
