//! Arrays back from the device.

use std::sync::mpsc;

use half::f16;

use super::array::{Array, Element};
use super::device::Gpu;
use crate::error::{Error, Result};

/// Bytes read at once; also the largest staging buffer that is kept.
const PORTION_BYTES: u64 = 16 << 20;

impl Gpu {
    /// The array's elements, once everything recorded before is done.
    ///
    /// # Errors
    /// Whatever went wrong since the last read, here or at the device: nothing is returned from failed work.
    /// [`Error::Gpu`] for a table.
    pub fn read(&mut self, array: &Array) -> Result<Vec<f32>> {
        match array.element() {
            Element::F32 => {
                let mut values = vec![0.0; array.len()];
                self.read_bytes(array, bytemuck::cast_slice_mut(&mut values))?;
                Ok(values)
            }
            Element::F16 => {
                // Copies are in whole words.
                let mut values = vec![f16::ZERO; array.len().next_multiple_of(2)];
                self.read_bytes(array, bytemuck::cast_slice_mut(&mut values))?;
                Ok(values[..array.len()].iter().map(|value| value.to_f32()).collect())
            }
            Element::Row => Err(Error::Gpu(format!("table `{}` cannot be read as floats", array.label()))),
        }
    }

    fn read_bytes(&mut self, array: &Array, target: &mut [u8]) -> Result<()> {
        if target.is_empty() {
            self.flush_all()?;
            return self.wait();
        }
        let mut offset = 0;
        for portion in target.chunks_mut(usize::try_from(PORTION_BYTES).unwrap_or(usize::MAX)) {
            self.read_portion(array, offset, portion)?;
            offset += portion.len() as u64;
        }
        Ok(())
    }

    fn read_portion(&mut self, array: &Array, offset: u64, target: &mut [u8]) -> Result<()> {
        let bytes = target.len() as u64;
        self.counts.reads += 1;
        self.counts.bytes_read += bytes;
        // Taken out: a buffer whose reading fails may stay mapped and must not serve again.
        let kept = self.staging.take().filter(|kept| kept.size() >= bytes);
        let staging = match kept {
            Some(kept) => kept,
            None => self.buffer("staging", bytes, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?,
        };
        let (sender, receiver) = mpsc::channel();
        self.flush_with(|encoder| {
            encoder.copy_buffer_to_buffer(&array.buffer, offset, &staging, 0, bytes);
            encoder.map_buffer_on_submit(&staging, wgpu::MapMode::Read, 0..bytes, move |outcome| {
                // The receiver is gone only where the wait has failed.
                let _ = sender.send(outcome);
            });
        })?;
        self.wait()?;
        // Another thread that waits for the device may be the one that tells, a moment later.
        let mapped = match receiver.recv_timeout(self.time_out) {
            Ok(Ok(())) => staging.get_mapped_range(0..bytes).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it was not mapped".into()),
        };
        match mapped {
            Ok(view) => target.copy_from_slice(&view),
            Err(reason) => return Err(self.fail(&format!("array `{}` cannot be read: {reason}", array.label()))),
        }
        staging.unmap();
        self.staging = Some(staging);
        self.faults.check()
    }
}
