//! Work recorded and handed over in bounded portions.
//!
//! One submission holds at most [`DISPATCHES`] dispatches and, as far as the engine tells of it, [`WORK`]; at most
//! [`IN_FLIGHT`] of them wait at the device at a time. So a system's watchdog sees pauses. A single dispatch of more work is a
//! submission of its own and no shorter than that.

use super::device::Gpu;
use super::fault::scoped;
use crate::error::{Error, Result};

/// Dispatches in one submission.
const DISPATCHES: usize = 64;
/// Multiplications and additions in one submission: half a second of a slow GPU, some milliseconds of a fast one.
const WORK: f64 = 3.2e10;
/// Submissions handed over and not waited for.
const IN_FLIGHT: usize = 8;

/// Commands not yet handed over.
#[derive(Debug)]
pub(super) struct Recording {
    // Declared first: a pass ends before its encoder goes.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: wgpu::CommandEncoder,
    dispatches: usize,
    work: f64,
}

/// One dispatch, with everything checked.
#[derive(Debug)]
pub(super) struct Dispatch<'a> {
    pub(super) kernel: &'static str,
    pub(super) pipeline: &'a wgpu::ComputePipeline,
    pub(super) bind_group: &'a wgpu::BindGroup,
    pub(super) immediates: &'a [u8],
    pub(super) grid: [u32; 3],
}

impl Gpu {
    /// Adds a dispatch to the recording.
    pub(super) fn dispatch(&mut self, dispatch: &Dispatch<'_>) -> Result<()> {
        let mut recording = self.take_recording();
        let timestamps = match &mut self.timings {
            Some(timings) => timings.next(&self.device, dispatch.kernel),
            None => None,
        };
        let ((), error) = scoped(&self.device, || {
            if timestamps.is_some() {
                // Times are taken where a pass begins and ends, so a timed dispatch has a pass of its own.
                recording.pass = None;
            }
            let Recording { pass, encoder, .. } = &mut recording;
            let pass = pass.get_or_insert_with(|| {
                let descriptor = wgpu::ComputePassDescriptor {
                    label: timestamps.as_ref().map(|_| dispatch.kernel),
                    timestamp_writes: timestamps.as_ref().map(super::timing::Slot::writes),
                };
                encoder.begin_compute_pass(&descriptor).forget_lifetime()
            });
            pass.set_pipeline(dispatch.pipeline);
            pass.set_bind_group(0, dispatch.bind_group, &[]);
            if !dispatch.immediates.is_empty() {
                pass.set_immediates(0, dispatch.immediates);
            }
            let [x, y, z] = dispatch.grid;
            pass.dispatch_workgroups(x, y, z);
            if timestamps.is_some() {
                recording.pass = None;
            }
        });
        recording.dispatches += 1;
        let full = recording.dispatches >= DISPATCHES || self.timings.as_ref().is_some_and(super::timing::Timings::is_full);
        self.recording = Some(recording);
        if let Some(error) = error {
            return Err(self.fail(&format!("{}.wgsl: {error}", dispatch.kernel)));
        }
        if full { self.flush() } else { Ok(()) }
    }

    fn take_recording(&mut self) -> Recording {
        let device = &self.device;
        self.recording.take().unwrap_or_else(|| Recording {
            pass: None,
            encoder: device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("kvsculpt") }),
            dispatches: 0,
            work: 0.0,
        })
    }

    /// Announces dispatches of so many multiplications and additions; what is recorded before is handed over where it would be too much
    /// together.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn announce(&mut self, work: f64) -> Result<()> {
        if self
            .recording
            .as_ref()
            .is_some_and(|recording| recording.work > 0.0 && recording.work + work > WORK)
        {
            self.flush()?;
        }
        let mut recording = self.take_recording();
        recording.work += work;
        self.recording = Some(recording);
        Ok(())
    }

    /// Hands over what is recorded, without waiting for it, unless too much is under way.
    ///
    /// # Errors
    /// What went wrong so far; [`Error::Timeout`] where the device falls behind.
    pub fn flush(&mut self) -> Result<()> {
        match self.recording.take() {
            Some(recording) => self.submit(recording),
            None => self.faults.check(),
        }
    }

    /// Hands over what is recorded and waits until the device has done all of it.
    ///
    /// # Errors
    /// What went wrong so far; [`Error::Timeout`] where a portion takes too long.
    pub fn finish(&mut self) -> Result<()> {
        if self.unsubmitted_bytes > 0 {
            self.flush_all()?;
        } else {
            self.flush()?;
        }
        self.wait()
    }

    /// Hands over also what was only written.
    pub(super) fn flush_all(&mut self) -> Result<()> {
        let recording = self.take_recording();
        self.submit(recording)
    }

    /// Adds commands after all that is recorded and hands everything over.
    pub(super) fn flush_with(&mut self, commands: impl FnOnce(&mut wgpu::CommandEncoder)) -> Result<()> {
        let mut recording = self.take_recording();
        recording.pass = None;
        commands(&mut recording.encoder);
        self.submit(recording)
    }

    fn submit(&mut self, recording: Recording) -> Result<()> {
        self.faults.check()?;
        let (timings, device, queue) = (&mut self.timings, &self.device, &self.queue);
        let (index, error) = scoped(device, || {
            let Recording { pass, encoder, .. } = recording;
            drop(pass);
            let commands = encoder.finish();
            // Some drivers resolve times too early in the same commands (gfx-rs/wgpu issue 6406).
            let resolve = timings.as_mut().and_then(|timings| timings.resolve(device));
            queue.submit(std::iter::once(commands).chain(resolve))
        });
        self.unsubmitted_bytes = 0;
        self.counts.submissions += 1;
        if let Some(error) = error {
            return Err(self.fail(&error.to_string()));
        }
        self.in_flight.push_back(index);
        while self.in_flight.len() > IN_FLIGHT {
            self.wait_for_oldest()?;
        }
        self.faults.check()
    }

    /// Waits until all that was handed over is done.
    pub(super) fn wait(&mut self) -> Result<()> {
        // One by one: the time-out is for a portion of work, however much is under way.
        while !self.in_flight.is_empty() {
            self.wait_for_oldest()?;
        }
        self.faults.check()
    }

    fn wait_for_oldest(&mut self) -> Result<()> {
        let Some(submission) = self.in_flight.pop_front() else {
            return Ok(());
        };
        let waited = self.device.poll(wgpu::PollType::Wait {
            submission_index: Some(submission),
            timeout: Some(self.time_out),
        });
        // A lost device answers a wait with nonsense, so its loss is asked for first.
        self.faults.check()?;
        match waited {
            Ok(_) => {
                if let Some(timings) = &mut self.timings {
                    timings.collect();
                }
                Ok(())
            }
            Err(wgpu::PollError::Timeout) => {
                let seconds = self.time_out.as_secs();
                self.faults.note(format!("the device did not finish within {seconds} s"));
                Err(Error::Timeout { seconds })
            }
            Err(error @ wgpu::PollError::WrongSubmissionIndex(..)) => {
                // Only a device that is gone forgets what it was given.
                self.faults.lose(error.to_string());
                self.faults.check()
            }
        }
    }

    /// Notes that a call failed, for good, and says why.
    pub(super) fn fail(&self, message: &str) -> Error {
        self.faults.fail(&self.device, &self.queue, message)
    }

    /// The bind group for a kernel (by number) and its arrays, made once.
    pub(super) fn bind_group(
        &mut self,
        key: Vec<u64>,
        layout: &wgpu::BindGroupLayout,
        buffers: &[&wgpu::Buffer],
    ) -> Result<wgpu::BindGroup> {
        self.drop_dead_bind_groups();
        if let Some(found) = self.bind_groups.get(&key) {
            return Ok(found.clone());
        }
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let descriptor = wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        };
        let (bind_group, error) = scoped(&self.device, || self.device.create_bind_group(&descriptor));
        if let Some(error) = error {
            return Err(self.fail(&error.to_string()));
        }
        self.bind_groups.insert(key, bind_group.clone());
        Ok(bind_group)
    }

    /// Forgets the bind groups of arrays and kernels that are gone.
    pub(super) fn drop_dead_bind_groups(&mut self) {
        let dead = self.graveyard.empty();
        if !dead.is_empty() {
            self.bind_groups
                .retain(|key, _| !key.iter().any(|identity| dead.contains(identity)));
        }
    }
}
