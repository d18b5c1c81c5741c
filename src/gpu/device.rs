//! The open device: what it must offer, and what a [`Gpu`] holds.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use wgpu::{AdapterInfo, DeviceType, Features, Limits};

use super::adapter::{Selection, choose};
use super::array::Graveyard;
use super::fault::Faults;
use super::matrices::Matrices;
use super::recording::Recording;
use super::timing::Timings;
use super::trusted;
use crate::error::{Error, Result};

/// Bytes of parameters a dispatch may have.
const IMMEDIATE_BYTES: u32 = 128;
/// Arrays a kernel may bind.
const STORAGE_BUFFERS: u32 = 8;
/// Features that kernels use where they are, with another way where they are not.
const OPTIONAL: Features = Features::SHADER_F16.union(Features::SUBGROUP).union(Features::TIMESTAMP_QUERY);

/// What has gone to a device and come back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) submissions: u64,
    pub(crate) reads: u64,
    pub(crate) bytes_read: u64,
    pub(crate) writes: u64,
    pub(crate) bytes_written: u64,
}

/// An open device with its queue and the work recorded but not yet handed over.
///
/// ```no_run
/// use std::time::Duration;
/// use kvsculpt::gpu::{Gpu, Selection, wgpu::Features};
///
/// let mut gpu = Gpu::open(&Selection::default())?;
/// println!("{}: grids of {}, {} bytes a workgroup, {} an array", gpu.name(), gpu.max_grid(), gpu.max_workgroup_bytes(), gpu.max_array_bytes());
/// if gpu.is_software() {
///     gpu.set_time_out(Duration::from_secs(1200));
/// }
/// assert_eq!(gpu.has_half(), gpu.device().features().contains(Features::SHADER_F16));
/// assert_eq!(gpu.subgroup().is_some(), gpu.device().features().contains(Features::SUBGROUP));
/// assert!(gpu.matrices().is_none()); // which the selection would have to ask for
///
/// let (numbers, rows) = (gpu.zeros("numbers", 2)?, gpu.upload_rows("rows", &[1_u32, 2])?);
/// let keys = gpu.upload("keys", &[0.5, -0.5])?;
/// let half = gpu.upload_half("half", &[half::f16::ONE])?;
/// gpu.write(&numbers, &[1.0, 2.0])?;
/// gpu.write_rows(&rows, &[3_u32])?;
/// gpu.announce(1e9)?; // before dispatches of so many multiplications
/// gpu.flush()?;
/// gpu.finish()?;
/// assert_eq!((gpu.read(&numbers)?, gpu.read(&keys)?, gpu.read(&half)?), (vec![1.0, 2.0], vec![0.5, -0.5], vec![1.0]));
///
/// if gpu.enable_timings() {
///     println!("{} kernels in {} submissions", gpu.timings()?.len(), gpu.submissions());
/// }
/// let fresh = gpu.reopen()?; // where this one was lost
/// assert_eq!(fresh.name(), gpu.name());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) info: AdapterInfo,
    /// What the adapter was opened by; `None` for an application's own device.
    selection: Option<Selection>,
    pub(super) limits: Limits,
    pub(super) features: Features,
    /// Cooperative matrices, where they were asked for.
    matrices: Option<Matrices>,
    pub(super) faults: Arc<Faults>,
    /// Arrays and kernels that are gone: their bind groups go too.
    pub(super) graveyard: Arc<Graveyard>,
    pub(super) bind_groups: HashMap<Vec<u64>, wgpu::BindGroup>,
    pub(super) recording: Option<Recording>,
    pub(super) in_flight: VecDeque<wgpu::SubmissionIndex>,
    /// Bytes given to the queue since the last submission; the queue holds a copy of them until then.
    pub(super) unsubmitted_bytes: u64,
    pub(super) counts: Counts,
    pub(super) staging: Option<wgpu::Buffer>,
    pub(super) time_out: Duration,
    pub(super) timings: Option<Timings>,
}

impl Gpu {
    /// Opens the adapter that the selection means, with exactly the features and limits that the kernels use.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] with those there are; [`Error::Unsupported`] where it lacks something.
    pub fn open(selection: &Selection) -> Result<Self> {
        let adapter = choose(selection)?;
        let (required_features, required_limits) = Self::needs(&adapter)?;
        let matrices = selection.cooperative_matrices.then(|| Matrices::require(&adapter)).transpose()?;
        let info = adapter.get_info();
        let mut descriptor = wgpu::DeviceDescriptor {
            label: Some("kvsculpt"),
            required_features,
            required_limits,
            ..Default::default()
        };
        if matrices.is_some() {
            descriptor.required_features |= Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            descriptor.experimental_features = trusted::experimental_features();
        }
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|error| Error::Gpu(format!("{} cannot be opened: {error}", info.name)))?;
        let mut gpu = Self::assemble(info, device, queue);
        gpu.selection = Some(selection.clone());
        gpu.matrices = matrices;
        gpu.faults.listen(&gpu.device);
        tracing::debug!(adapter = %gpu.name(), "opened");
        Ok(gpu)
    }

    /// The features and limits that an application's device should be opened with beside those of its own needs, so that kernels run on
    /// it as well as the adapter can: half precision, subgroups and times of kernels where it has them, and large arrays.
    ///
    /// ```no_run
    /// use kvsculpt::gpu::{Gpu, wgpu::{Adapter, DeviceDescriptor, Features}};
    ///
    /// fn descriptor(adapter: &Adapter) -> kvsculpt::Result<DeviceDescriptor<'static>> {
    ///     let (features, limits) = Gpu::needs(adapter)?;
    ///     assert!(features.contains(Features::IMMEDIATES));
    ///     // With what the application needs itself put to both.
    ///     Ok(DeviceDescriptor { required_features: features, required_limits: limits, ..Default::default() })
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what this adapter lacks.
    pub fn needs(adapter: &wgpu::Adapter) -> Result<(Features, Limits)> {
        require(adapter.features(), &adapter.limits())?;
        let features = Features::IMMEDIATES | (adapter.features() & OPTIONAL);
        Ok((features, wanted_limits(&adapter.limits())))
    }

    /// Works on an application's own device and queue, of which wgpu has as many handles as are wanted.
    ///
    /// The device needs the feature `IMMEDIATES`, `max_immediate_size` 128 and `max_storage_buffers_per_shader_stage` 8;
    /// [`needs`](Self::needs) says with what it does best. Its handlers for errors and loss stay the application's: errors of our own calls
    /// are caught in scopes, and a loss is noticed when work is waited for. Several may work on one device, each of them with its own
    /// arrays and errors.
    ///
    /// ```no_run
    /// use kvsculpt::gpu::{Gpu, wgpu};
    /// use kvsculpt::kernels::GpuEngine;
    ///
    /// # async fn open(adapter: wgpu::Adapter) -> Result<(), Box<dyn std::error::Error>> {
    /// let (features, limits) = Gpu::needs(&adapter)?;
    /// let descriptor = wgpu::DeviceDescriptor {
    ///     required_features: features, // | the application's
    ///     required_limits: limits,
    ///     ..Default::default()
    /// };
    /// let (device, queue) = adapter.request_device(&descriptor).await?;
    /// let engine = GpuEngine::new(Gpu::from_device(adapter.get_info(), device.clone(), queue.clone())?)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the feature or limit that the device was not opened with.
    pub fn from_device(info: AdapterInfo, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        require(device.features(), &device.limits())?;
        Ok(Self::assemble(info, device, queue))
    }

    /// A fresh device on the same adapter, for one that was lost.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::NoAdapter`] where another adapter is in its place; [`Error::Unsupported`] for an application's own
    /// device, which is the application's to open.
    pub fn reopen(&self) -> Result<Self> {
        let Some(selection) = &self.selection else {
            return Err(Error::Unsupported {
                what: "a fresh device".into(),
                need: "one that was opened here".into(),
                have: "the application's own".into(),
                remedy: "open another and begin again with it".into(),
            });
        };
        let mut fresh = Self::open(selection)?;
        if fresh.name() != self.name() {
            return Err(Error::NoAdapter(format!(
                "{} is gone, and {} is in its place",
                self.name(),
                fresh.name()
            )));
        }
        fresh.time_out = self.time_out;
        if self.timings.is_some() {
            fresh.enable_timings();
        }
        Ok(fresh)
    }

    fn assemble(info: AdapterInfo, device: wgpu::Device, queue: wgpu::Queue) -> Self {
        // A software driver may need minutes for what a GPU does in a second, and does not hang.
        let seconds = if info.device_type == DeviceType::Cpu { 600 } else { 60 };
        Self {
            limits: device.limits(),
            features: device.features(),
            device,
            queue,
            info,
            selection: None,
            matrices: None,
            faults: Arc::default(),
            graveyard: Arc::default(),
            bind_groups: HashMap::new(),
            recording: None,
            in_flight: VecDeque::new(),
            unsubmitted_bytes: 0,
            counts: Counts::default(),
            staging: None,
            time_out: Duration::from_secs(seconds),
            timings: None,
        }
    }

    /// The adapter and its driver in words, and whether products go by cooperative matrices, which round otherwise.
    #[must_use]
    pub fn name(&self) -> String {
        let AdapterInfo {
            name, driver, driver_info, ..
        } = &self.info;
        let mut words = match (driver.as_str(), driver_info.as_str()) {
            ("", "") => name.clone(),
            (driver, version) => format!("{name} ({})", format!("{driver} {version}").trim()),
        };
        if let Some(Matrices { side, .. }) = self.matrices {
            words += &format!(" with {side}×{side} matrices");
        }
        words
    }

    /// Whether the device computes on the processor.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.info.device_type == DeviceType::Cpu
    }

    /// Whether shaders may use half precision.
    #[must_use]
    pub fn has_half(&self) -> bool {
        self.features.contains(Features::SHADER_F16)
    }

    /// Smallest and largest subgroup, where shaders may use them.
    #[must_use]
    pub fn subgroup(&self) -> Option<(u32, u32)> {
        let sizes = (self.info.subgroup_min_size, self.info.subgroup_max_size);
        self.features.contains(Features::SUBGROUP).then_some(sizes)
    }

    /// The cooperative matrices that products go by, where [`Selection::cooperative_matrices`] asked for them; never on an
    /// application's own device.
    #[must_use]
    pub fn matrices(&self) -> Option<Matrices> {
        self.matrices
    }

    /// The largest single array in bytes.
    #[must_use]
    pub fn max_array_bytes(&self) -> u64 {
        self.limits.max_buffer_size.min(self.limits.max_storage_buffer_binding_size)
    }

    /// Bytes of memory shared within a workgroup.
    #[must_use]
    pub fn max_workgroup_bytes(&self) -> u32 {
        self.limits.max_compute_workgroup_storage_size
    }

    /// Workgroups in each dimension of a grid.
    #[must_use]
    pub fn max_grid(&self) -> u32 {
        self.limits.max_compute_workgroups_per_dimension
    }

    /// Portions of work handed to the queue so far.
    #[must_use]
    pub fn submissions(&self) -> u64 {
        self.counts.submissions
    }

    /// What has gone to the device and come back so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// How long one portion of work may take: 60 s at first, 600 s on a software driver.
    pub fn set_time_out(&mut self, time_out: Duration) {
        self.time_out = time_out;
    }

    /// Bind groups held for arrays and kernels that are still there.
    #[doc(hidden)]
    pub fn cached_bind_groups(&mut self) -> usize {
        self.drop_dead_bind_groups();
        self.bind_groups.len()
    }

    /// The device itself, for an application that shares it.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }
}

/// # Errors
/// The first thing that every kernel needs and these do not offer.
pub(super) fn require(features: Features, limits: &Limits) -> Result<()> {
    let unsupported = |what: &str, need: String, have: String, remedy: &str| {
        Err(Error::Unsupported {
            what: what.into(),
            need,
            have,
            remedy: remedy.into(),
        })
    };
    let remedy = "open the device with it, or choose another adapter or a newer driver";
    if !features.contains(Features::IMMEDIATES) {
        return unsupported("feature IMMEDIATES", "the feature".into(), "none".into(), remedy);
    }
    for (what, have, need) in [
        ("max_immediate_size", limits.max_immediate_size, IMMEDIATE_BYTES),
        (
            "max_storage_buffers_per_shader_stage",
            limits.max_storage_buffers_per_shader_stage,
            STORAGE_BUFFERS,
        ),
    ] {
        if have < need {
            return unsupported(&format!("limit {what}"), need.to_string(), have.to_string(), remedy);
        }
    }
    Ok(())
}

/// The usual limits, raised where kernels gain by it; never above what the adapter has.
fn wanted_limits(adapter: &Limits) -> Limits {
    let usual = Limits::default();
    let raised = Limits {
        max_buffer_size: adapter.max_buffer_size,
        max_storage_buffer_binding_size: adapter.max_storage_buffer_binding_size,
        max_immediate_size: IMMEDIATE_BYTES,
        max_compute_workgroup_storage_size: adapter.max_compute_workgroup_storage_size.min(48 << 10),
        max_compute_invocations_per_workgroup: adapter.max_compute_invocations_per_workgroup.min(1024),
        max_compute_workgroup_size_x: adapter.max_compute_workgroup_size_x.min(1024),
        ..usual
    };
    raised.or_worse_values_from(adapter)
}
