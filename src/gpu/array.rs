//! Arrays on the device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use half::f16;

use super::device::Gpu;
use super::fault::{Faults, scoped};
use crate::error::{Error, Result};

/// The least buffer there is: room for one element of any type, so that an array of none can be bound too.
const LEAST_BYTES: u64 = 256;
/// Bytes written to the queue before they are handed over: the queue keeps a copy of them until then.
pub(super) const PORTION_BYTES: usize = 32 << 20;

/// What an array's elements are.
///
/// ```
/// use kvsculpt::gpu::{Element, Source};
///
/// // In half precision where an array's numbers allow it.
/// let text = Source::new("sum", "// …").alias("Store", Element::F16).text();
/// assert!(text.starts_with("enable f16;"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Rows of a table: whole numbers, or structs.
    Row,
}

/// The numbers of arrays and kernels that are gone, and what all arrays take that are there or not yet forgotten.
#[derive(Debug, Default)]
pub(super) struct Graveyard(Mutex<Plots>);

#[derive(Debug, Default)]
struct Plots {
    dead: Vec<u64>,
    /// Bytes of the dead, which bind groups still hold.
    dead_bytes: u64,
    /// Bytes of all.
    bytes: u64,
    /// The most that was.
    peak: u64,
}

impl Graveyard {
    fn plots(&self) -> MutexGuard<'_, Plots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an array that is made.
    fn register(&self, bytes: u64) {
        let mut plots = self.plots();
        plots.bytes += bytes;
        plots.peak = plots.peak.max(plots.bytes);
    }

    pub(super) fn bury(&self, identity: u64, bytes: u64) {
        let mut plots = self.plots();
        plots.dead.push(identity);
        plots.dead_bytes += bytes;
    }

    pub(super) fn empty(&self) -> Vec<u64> {
        let mut plots = self.plots();
        plots.bytes -= std::mem::take(&mut plots.dead_bytes);
        std::mem::take(&mut plots.dead)
    }

    /// The most bytes that arrays took at one time since this was asked last.
    fn take_peak(&self) -> u64 {
        let mut plots = self.plots();
        let now = plots.bytes - plots.dead_bytes;
        std::mem::replace(&mut plots.peak, now)
    }
}

/// A number of its own for each array and kernel of the program.
pub(super) fn new_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A one-dimensional array on the device, in a buffer of its own.
///
/// Its buffer may be longer than the array, so a kernel takes counts from its parameters or tables and never
/// from `arrayLength`.
///
/// ```no_run
/// use kvsculpt::gpu::{Array, Element, Gpu, Selection};
///
/// let mut gpu = Gpu::open(&Selection::default())?;
/// let array: Array = gpu.upload("keys", &[1.0, 2.0, 3.0])?;
/// assert_eq!((array.label(), array.len(), array.bytes()), ("keys", 3, 12));
/// assert!(array.element() == Element::F32 && !array.is_empty());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Array {
    pub(super) buffer: wgpu::Buffer,
    pub(super) identity: u64,
    label: &'static str,
    len: usize,
    element: Element,
    element_bytes: usize,
    graveyard: Arc<Graveyard>,
}

impl Drop for Array {
    fn drop(&mut self) {
        self.graveyard.bury(self.identity, self.buffer.size());
    }
}

impl Array {
    /// Its name in messages.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// How many elements it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What its elements are.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// Bytes of its elements.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.len * self.element_bytes) as u64
    }
}

impl Gpu {
    /// An array of `len` zeros in single precision.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming the array and its bytes.
    pub fn zeros(&mut self, label: &'static str, len: usize) -> Result<Array> {
        self.allocate(label, len, Element::F32, size_of::<f32>())
    }

    /// An array in single precision with these contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming the array and its bytes.
    pub fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<Array> {
        let array = self.allocate(label, data.len(), Element::F32, size_of::<f32>())?;
        self.put(&array, bytemuck::cast_slice(data))?;
        Ok(array)
    }

    /// An array in half precision with these contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming the array and its bytes.
    pub fn upload_half(&mut self, label: &'static str, data: &[f16]) -> Result<Array> {
        let array = self.allocate(label, data.len(), Element::F16, size_of::<f16>())?;
        self.put(&array, bytemuck::cast_slice(data))?;
        Ok(array)
    }

    /// A table with these rows: whole numbers, or structs laid out as the shader's.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming the table and its bytes.
    pub fn upload_rows<T: Pod>(&mut self, label: &'static str, rows: &[T]) -> Result<Array> {
        let array = self.allocate(label, rows.len(), Element::Row, size_of::<T>())?;
        self.put(&array, bytemuck::cast_slice(rows))?;
        Ok(array)
    }

    /// Overwrites the whole array, after all that was recorded before.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the array has not as many elements or is not in single precision.
    pub fn write(&mut self, array: &Array, data: &[f32]) -> Result<()> {
        if array.element != Element::F32 || array.len != data.len() {
            let what = format!("{:?} × {}", array.element, array.len);
            return Err(Error::Gpu(format!(
                "array `{}` ({what}) cannot take {} f32",
                array.label,
                data.len()
            )));
        }
        self.flush()?;
        self.put(array, bytemuck::cast_slice(data))
    }

    /// Overwrites a table's first rows, after all that was recorded before.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the table has fewer rows or rows of another size.
    pub fn write_rows<T: Pod>(&mut self, array: &Array, rows: &[T]) -> Result<()> {
        if array.element != Element::Row || array.element_bytes != size_of::<T>() || array.len < rows.len() {
            let what = format!("{} rows of {} bytes", array.len, array.element_bytes);
            let given = format!("{} rows of {} bytes", rows.len(), size_of::<T>());
            return Err(Error::Gpu(format!("table `{}` ({what}) cannot take {given}", array.label)));
        }
        self.flush()?;
        self.put(array, bytemuck::cast_slice(rows))
    }

    fn allocate(&mut self, label: &'static str, len: usize, element: Element, element_bytes: usize) -> Result<Array> {
        // Bind groups keep the buffers of arrays that are gone; their memory may be what is needed now.
        self.drop_dead_bind_groups();
        self.door().allocate(label, len, element, element_bytes, &self.graveyard)
    }

    /// A buffer of at least `bytes`, all zero.
    pub(super) fn buffer(&mut self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        self.drop_dead_bind_groups();
        self.door().buffer(label, bytes, usage)
    }

    /// Writes bytes to the array's beginning, in portions. The queue does it before anything submitted later.
    fn put(&mut self, array: &Array, data: &[u8]) -> Result<()> {
        self.faults.check()?;
        self.counts.writes += 1;
        self.counts.bytes_written += data.len() as u64;
        let mut offset = 0;
        for portion in data.chunks(PORTION_BYTES) {
            self.door().write(array, offset, portion)?;
            offset += portion.len() as u64;
            self.unsubmitted_bytes += portion.len() as u64;
            if self.unsubmitted_bytes >= PORTION_BYTES as u64 {
                self.flush_all()?;
            }
        }
        Ok(())
    }

    /// The most bytes that arrays and tables took at one time since this was asked last.
    pub(crate) fn take_peak_bytes(&mut self) -> u64 {
        self.drop_dead_bind_groups();
        self.graveyard.take_peak()
    }

    /// The device as far as arrays are made and written on it.
    fn door(&self) -> Door<'_> {
        Door {
            device: &self.device,
            queue: &self.queue,
            faults: &self.faults,
            most: self.max_array_bytes(),
        }
    }
}

/// What arrays are made and written through, on whatever thread.
#[derive(Clone, Copy)]
pub(super) struct Door<'a> {
    pub(super) device: &'a wgpu::Device,
    pub(super) queue: &'a wgpu::Queue,
    pub(super) faults: &'a Faults,
    /// The largest array in bytes.
    pub(super) most: u64,
}

impl Door<'_> {
    pub(super) fn allocate(
        self,
        label: &'static str,
        len: usize,
        element: Element,
        element_bytes: usize,
        graveyard: &Arc<Graveyard>,
    ) -> Result<Array> {
        let bytes = (len as u64).saturating_mul(element_bytes as u64);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(label, bytes, usage)?;
        graveyard.register(buffer.size());
        Ok(Array {
            buffer,
            identity: new_identity(),
            label,
            len,
            element,
            element_bytes,
            graveyard: Arc::clone(graveyard),
        })
    }

    fn buffer(self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        self.faults.check()?;
        let refuse = |available| Error::OutOfMemory {
            label: label.to_owned(),
            bytes,
            available,
        };
        let size = bytes
            .max(LEAST_BYTES)
            .checked_next_multiple_of(16)
            .ok_or_else(|| refuse(self.most))?;
        if size > self.most {
            return Err(refuse(self.most));
        }
        let descriptor = wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        };
        let (buffer, error) = scoped(self.device, || self.device.create_buffer(&descriptor));
        match error {
            Some(wgpu::Error::OutOfMemory { .. }) => Err(refuse(0)),
            Some(error) => Err(self.fail(&format!("array `{label}`: {error}"))),
            None => Ok(buffer),
        }
    }

    /// Writes one portion; its copy is with the queue until something is submitted.
    pub(super) fn write(self, array: &Array, offset: u64, portion: &[u8]) -> Result<()> {
        self.faults.check()?;
        // Copies are in whole words; the last bytes of an odd half-precision array are filled up.
        let whole = portion.len() - portion.len() % 4;
        let mut last = [0; 4];
        last[..portion.len() - whole].copy_from_slice(&portion[whole..]);
        let ((), error) = scoped(self.device, || {
            if whole > 0 {
                self.queue.write_buffer(&array.buffer, offset, &portion[..whole]);
            }
            if whole < portion.len() {
                self.queue.write_buffer(&array.buffer, offset + whole as u64, &last);
            }
        });
        match error {
            Some(error) => Err(self.fail(&format!("array `{}` cannot be written: {error}", array.label))),
            None => Ok(()),
        }
    }

    fn fail(self, message: &str) -> Error {
        self.faults.fail(self.device, self.queue, message)
    }
}
