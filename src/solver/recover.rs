//! What is done where the machine fails in the midst of the work.

use super::compress::compress_from;
use super::supply::USUAL_SLICE;
use super::{Compression, Finished, Observer, Request, estimate};
use crate::cache::Capture;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// [`compress_from`], tried again where the machine fails, with the same bytes as if it had not: a device that is lost is
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
/// As [`compress_from`]; the failure itself where trying again does not help.
pub fn compress_recovering<E: Engine>(
    engine: &mut E,
    capture: &Capture,
    request: &Request,
    finished: &mut Finished,
    observer: &mut dyn Observer,
) -> Result<Compression> {
    recovering(engine, capture, request, observer, |engine, request, observer| {
        compress_from(engine, capture, request, finished, observer)
    })
}

/// Attempts some work of a request, again where the machine fails; only the request's memory changes.
pub(super) fn recovering<E: Engine, T>(
    engine: &mut E,
    capture: &Capture,
    request: &Request,
    observer: &mut dyn Observer,
    mut attempt: impl FnMut(&mut E, &Request, &mut dyn Observer) -> Result<T>,
) -> Result<T> {
    let mut request = request.clone();
    let (mut lost, mut refused) = (false, None);
    loop {
        let error = match attempt(engine, &request, observer) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match error {
            Error::DeviceLost(reason) if lost => {
                return Err(Error::DeviceLost(format!(
                    "{reason}; it was the second time, so the driver or the device needs looking after, or --engine cpu does without"
                )));
            }
            Error::DeviceLost(reason) => {
                lost = true;
                // Why no fresh one could be had says less than the loss itself.
                engine
                    .reopen()
                    .map_err(|fresh| Error::DeviceLost(format!("{reason}; and no fresh one could be opened: {fresh}")))?;
                observer.retried(&Error::DeviceLost(reason));
            }
            Error::OutOfMemory { available: 0, .. } if request.memory.is_none_or(|memory| memory > 1) => {
                let memory = request.memory.unwrap_or_else(|| thought(engine, capture, &request));
                observer.retried(&error);
                request.memory = Some((memory / 2).max(1));
                refused = Some((memory, error));
            }
            // So little that one head alone needs more: the least that will do, unless that was refused.
            Error::OutOfMemory { bytes, .. }
                if request.memory.is_some_and(|memory| bytes > memory) && refused.as_ref().is_some_and(|refused| bytes < refused.0) =>
            {
                request.memory = Some(bytes);
            }
            other => {
                return Err(refused
                    .filter(|_| matches!(other, Error::OutOfMemory { .. }))
                    .map_or(other, |refused| refused.1));
            }
        }
    }
}

/// The bytes that a request without a bound uses, about.
fn thought<E: Engine>(engine: &E, capture: &Capture, request: &Request) -> u64 {
    let most = USUAL_SLICE.saturating_add(engine.max_array_bytes().max(1 << 30));
    let used = estimate(engine, capture, request).map_or(most, |estimate| estimate.host_bytes.saturating_add(estimate.device_bytes));
    used.min(most)
}
