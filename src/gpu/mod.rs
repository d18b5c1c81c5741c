//! Runs kernels: the only folder that names wgpu.
//!
//! A [`Gpu`] is an open device with a recording of work not yet handed over. [`Array`]s live on it; a
//! [`Kernel`] is made from a [`Source`] and records dispatches over arrays:
//!
//! ```no_run
//! use kvsculpt::gpu::{Gpu, Kernel, Selection, Source};
//!
//! const DOUBLE: &str = "
//! @group(0) @binding(0) var<storage, read> source: array<f32>;
//! @group(0) @binding(1) var<storage, read_write> target: array<f32>;
//! struct Params { count: u32 }
//! var<immediate> params: Params;
//!
//! @compute @workgroup_size(LANES)
//! fn main(@builtin(global_invocation_id) id: vec3<u32>) {
//!     if (id.x < params.count) { target[id.x] = 2.0 * source[id.x]; }
//! }";
//!
//! # fn main() -> kvsculpt::Result<()> {
//! let mut gpu = Gpu::open(&Selection::default())?;
//! let double = Kernel::<[u32; 1]>::new(&gpu, &Source::new("double", DOUBLE).constant("LANES", 64), "main")?;
//! let source = gpu.upload("source", &[1.0, 2.0, 3.0])?;
//! let target = gpu.zeros("target", 3)?;
//! double.record(&mut gpu, &[&source, &target], &[3], [1, 1, 1])?;
//! assert_eq!(gpu.read(&target)?, [2.0, 4.0, 6.0]);
//! # Ok(())
//! # }
//! ```
//!
//! The order of calls is the order of effects. Recorded work is handed over in bounded portions; what fails there
//! surfaces at the next call that notices it, at the latest at [`Gpu::read`], and stays: after a failure no array
//! of that device is ever returned.

mod adapter;
mod array;
mod device;
mod fault;
mod kernel;
mod matrices;
mod readback;
mod recording;
mod reflect;
mod source;
mod timing;
mod trusted;
mod uniformity;
mod uploader;

pub use adapter::{AdapterSummary, Selection, adapters, chosen};
pub use array::{Array, Element};
pub use device::Gpu;
pub use kernel::Kernel;
pub use matrices::{Matrices, MatrixShape};
pub use reflect::{Binding, Reflection, reflect};
pub use source::Source;
pub use timing::Timing;
pub(crate) use uploader::Uploader;
pub use wgpu;
