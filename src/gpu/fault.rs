//! What went wrong behind our back: a lost device, errors that no call returned.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// The first loss and the first error of a device. Both stay: nothing computed after them can be trusted.
#[derive(Debug, Default)]
pub(super) struct Faults {
    lost: OnceLock<String>,
    error: Mutex<Option<String>>,
}

impl Faults {
    /// Listens on a device that is ours alone. Without this wgpu panics on an error that nobody asked for.
    pub(super) fn listen(self: &Arc<Self>, device: &wgpu::Device) {
        let faults = Arc::clone(self);
        device.set_device_lost_callback(move |reason, message| faults.lose(format!("{reason:?}: {message}")));
        let faults = Arc::clone(self);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| faults.note(error.to_string())));
    }

    /// Notes the device's loss.
    pub(super) fn lose(&self, reason: String) {
        // A second loss adds nothing.
        let _ = self.lost.set(reason);
    }

    /// Notes an error, unless there was one before.
    pub(super) fn note(&self, message: String) {
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(message);
    }

    /// Notes that a call failed, for good, and says why: the device's loss is behind many an odd message.
    pub(super) fn fail(&self, device: &wgpu::Device, queue: &wgpu::Queue, message: &str) -> Error {
        let (nothing, _) = scoped(device, || queue.submit(std::iter::empty()));
        let waited = device.poll(wgpu::PollType::Wait {
            submission_index: Some(nothing),
            timeout: Some(Duration::from_millis(1)),
        });
        if let Err(error @ wgpu::PollError::WrongSubmissionIndex(..)) = waited {
            self.lose(error.to_string());
        }
        self.note(message.to_owned());
        self.check().err().unwrap_or_else(|| Error::Gpu(message.to_owned()))
    }

    /// # Errors
    /// What was noted so far.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(reason) = self.lost.get() {
            return Err(Error::DeviceLost(reason.clone()));
        }
        match &*self.error.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(message) => Err(Error::Gpu(message.clone())),
            None => Ok(()),
        }
    }
}

/// Runs `work` and returns beside its result the first error that the device raised meanwhile on this thread.
pub(super) fn scoped<T>(device: &wgpu::Device, work: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let outcome = work();
    let internal = pollster::block_on(internal.pop());
    let memory = pollster::block_on(memory.pop());
    let validation = pollster::block_on(validation.pop());
    (outcome, memory.or(internal).or(validation))
}
