//! Time spent on the device, kernel by kernel, where it can measure it.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};

use super::device::Gpu;
use crate::error::Result;

/// Timed dispatches in one submission.
const SLOTS: u32 = 64;
/// Bytes of one submission's times.
const BYTES: u64 = SLOTS as u64 * 16;

/// What one kernel cost so far.
///
/// ```no_run
/// use kvsculpt::gpu::{Gpu, Selection, Timing};
///
/// let mut gpu = Gpu::open(&Selection::default())?;
/// assert!(gpu.enable_timings());
/// // After some work:
/// let timings: Vec<Timing> = gpu.timings()?;
/// for timing in timings {
///     println!("{}: {:.3} ms a dispatch", timing.kernel, 1e3 * timing.seconds / timing.dispatches as f64);
/// }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Timing {
    /// The kernel.
    pub kernel: &'static str,
    /// Dispatches measured; those whose clock gave nonsense are not counted.
    pub dispatches: u64,
    /// Time on the device.
    pub seconds: f64,
}

/// Where one dispatch writes its begin and end.
#[derive(Debug)]
pub(super) struct Slot {
    queries: wgpu::QuerySet,
    first: u32,
}

impl Slot {
    pub(super) fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(self.first),
            end_of_pass_write_index: Some(self.first + 1),
        }
    }
}

/// Times of a submission under way.
#[derive(Debug)]
struct Pending {
    kernels: Vec<&'static str>,
    buffer: wgpu::Buffer,
    mapped: Receiver<bool>,
}

/// All that was measured, and what is being measured.
#[derive(Debug)]
pub(super) struct Timings {
    seconds_a_tick: f64,
    queries: Option<wgpu::QuerySet>,
    kernels: Vec<&'static str>,
    pending: Vec<Pending>,
    sums: BTreeMap<&'static str, (u64, f64)>,
}

impl Timings {
    /// The place for the next dispatch's times.
    pub(super) fn next(&mut self, device: &wgpu::Device, kernel: &'static str) -> Option<Slot> {
        let queries = self.queries.get_or_insert_with(|| {
            device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timings"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * SLOTS,
            })
        });
        let first = 2 * u32::try_from(self.kernels.len()).ok().filter(|&used| used < SLOTS)?;
        self.kernels.push(kernel);
        Some(Slot {
            queries: queries.clone(),
            first,
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.kernels.len() >= SLOTS as usize
    }

    /// Commands that bring the submission's times to the host.
    pub(super) fn resolve(&mut self, device: &wgpu::Device) -> Option<wgpu::CommandBuffer> {
        let queries = self.queries.as_ref().filter(|_| !self.kernels.is_empty())?;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timings"),
                size: BYTES,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let readable = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("timings") });
        let kernels = std::mem::take(&mut self.kernels);
        encoder.resolve_query_set(queries, 0..2 * u32::try_from(kernels.len()).unwrap_or(SLOTS), &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &readable, 0, BYTES);
        let (sender, mapped) = channel();
        encoder.map_buffer_on_submit(&readable, wgpu::MapMode::Read, 0..BYTES, move |outcome| {
            // Nobody listens once the timings are gone.
            let _ = sender.send(outcome.is_ok());
        });
        self.pending.push(Pending {
            kernels,
            buffer: readable,
            mapped,
        });
        Some(encoder.finish())
    }

    /// Adds up the times that have arrived.
    pub(super) fn collect(&mut self) {
        let (sums, seconds_a_tick) = (&mut self.sums, self.seconds_a_tick);
        self.pending.retain(|pending| match pending.mapped.try_recv() {
            Ok(true) => {
                if let Ok(view) = pending.buffer.get_mapped_range(0..BYTES) {
                    let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
                    for (kernel, pair) in pending.kernels.iter().zip(ticks.chunks_exact(2)) {
                        // Some drivers leave zeros or a reversed pair: no measurement.
                        if pair[0] != 0 && pair[1] > pair[0] {
                            let sum = sums.entry(kernel).or_default();
                            sum.0 += 1;
                            sum.1 += (pair[1] - pair[0]) as f64 * seconds_a_tick;
                        }
                    }
                }
                false
            }
            Ok(false) => false,
            Err(error) => error == std::sync::mpsc::TryRecvError::Empty,
        });
    }
}

impl Gpu {
    /// Measures every dispatch from here on, which makes each a pass of its own. `false` where the device cannot.
    pub fn enable_timings(&mut self) -> bool {
        if !self.features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            return false;
        }
        self.timings.get_or_insert_with(|| Timings {
            seconds_a_tick: f64::from(self.queue.get_timestamp_period()) * 1e-9,
            queries: None,
            kernels: Vec::new(),
            pending: Vec::new(),
            sums: BTreeMap::new(),
        });
        true
    }

    /// What each kernel cost since timings were enabled, the dearest first; none where they were not.
    ///
    /// # Errors
    /// Whatever went wrong since the last read.
    pub fn timings(&mut self) -> Result<Vec<Timing>> {
        self.flush()?;
        self.wait()?;
        if let Some(timings) = &mut self.timings {
            timings.collect();
        }
        let sums = self.timings.iter().flat_map(|timings| &timings.sums);
        let mut all: Vec<Timing> = sums
            .map(|(&kernel, &(dispatches, seconds))| Timing {
                kernel,
                dispatches,
                seconds,
            })
            .collect();
        all.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
        Ok(all)
    }
}
