//! Arrays made and written from another thread, while the device works on something else.
//!
//! A write is copied into memory of the queue's at once, and from there into the array by the next submission, be it the other
//! thread's. So what the host does for an upload runs beside the device's work, and what the device does for it falls between two portions of
//! that work. The array is nobody's but the uploader's until it is handed over, and whatever is submitted after that finds it written.

use std::sync::Arc;
use std::time::Duration;

use bytemuck::Pod;
use half::f16;

use super::array::{Array, Door, Element, Graveyard, PORTION_BYTES};
use super::device::Gpu;
use super::fault::{Faults, scoped};
use crate::error::{Error, Result};

/// Makes arrays on a device that is at work.
#[derive(Debug)]
pub(crate) struct Uploader {
    device: wgpu::Device,
    queue: wgpu::Queue,
    faults: Arc<Faults>,
    graveyard: Arc<Graveyard>,
    most: u64,
    has_half: bool,
    time_out: Duration,
    /// Bytes given to the queue and perhaps not yet submitted.
    unsubmitted: usize,
}

impl Gpu {
    /// For another thread to make arrays by.
    pub(crate) fn uploader(&self) -> Uploader {
        Uploader {
            device: self.device.clone(),
            queue: self.queue.clone(),
            faults: Arc::clone(&self.faults),
            graveyard: Arc::clone(&self.graveyard),
            most: self.max_array_bytes(),
            has_half: self.has_half(),
            time_out: self.time_out,
            unsubmitted: 0,
        }
    }
}

impl Uploader {
    /// Whether shaders may use half precision.
    pub(crate) fn has_half(&self) -> bool {
        self.has_half
    }

    /// As [`Gpu::upload`].
    pub(crate) fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<Array> {
        self.array(label, data, Element::F32)
    }

    /// As [`Gpu::upload_half`].
    pub(crate) fn upload_half(&mut self, label: &'static str, data: &[f16]) -> Result<Array> {
        self.array(label, data, Element::F16)
    }

    fn array<T: Pod>(&mut self, label: &'static str, data: &[T], element: Element) -> Result<Array> {
        let door = Door {
            device: &self.device,
            queue: &self.queue,
            faults: &self.faults,
            most: self.most,
        };
        let array = door.allocate(label, data.len(), element, size_of::<T>(), &self.graveyard)?;
        let mut offset = 0;
        for portion in bytemuck::cast_slice::<T, u8>(data).chunks(PORTION_BYTES) {
            door.write(&array, offset, portion)?;
            offset += portion.len() as u64;
            self.unsubmitted += portion.len();
            if self.unsubmitted >= PORTION_BYTES {
                self.unsubmitted = 0;
                self.settle()?;
            }
        }
        Ok(array)
    }

    /// Waits until what was written is in its place, so that the queue holds no more than a portion of it.
    fn settle(&self) -> Result<()> {
        let (submission, error) = scoped(&self.device, || self.queue.submit(std::iter::empty()));
        if let Some(error) = error {
            return Err(self.faults.fail(&self.device, &self.queue, &error.to_string()));
        }
        let waited = self.device.poll(wgpu::PollType::Wait {
            submission_index: Some(submission),
            timeout: Some(self.time_out),
        });
        self.faults.check()?;
        // Whoever waits for the device itself finds out what is behind it.
        waited.map(drop).map_err(|error| Error::Gpu(error.to_string()))
    }
}
