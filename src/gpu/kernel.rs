//! A compiled kernel and its dispatches.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;

use super::array::{Array, Graveyard, new_identity};
use super::device::Gpu;
use super::fault::scoped;
use super::recording::Dispatch;
use super::reflect::{Reflection, reflect};
use super::source::Source;
use super::trusted;
use crate::error::{Error, Result};

/// A compiled kernel whose parameters are `P`, laid out as the shader's `struct Params`; `()` for none.
///
/// ```no_run
/// use kvsculpt::gpu::{Gpu, Kernel, Selection, Source};
///
/// let source = Source::new("double", "
///     @group(0) @binding(0) var<storage, read_write> numbers: array<f32>;
///     @compute @workgroup_size(1) fn main(@builtin(workgroup_id) id: vec3u) { numbers[id.x] *= 2.0; }
/// ");
/// let mut gpu = Gpu::open(&Selection::default())?;
/// let double = Kernel::<()>::new(&gpu, &source, "main")?;
/// assert_eq!(double.reflection().bindings.len(), 1);
/// let numbers = gpu.upload("numbers", &[1.0, 2.0])?;
/// double.record(&mut gpu, &[&numbers], &(), [2, 1, 1])?;
/// assert_eq!(gpu.read(&numbers)?, [2.0, 4.0]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Kernel<P> {
    name: &'static str,
    identity: u64,
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    reflection: Reflection,
    graveyard: Arc<Graveyard>,
    params: PhantomData<fn(P)>,
}

impl<P> Drop for Kernel<P> {
    fn drop(&mut self) {
        self.graveyard.bury(self.identity, 0);
    }
}

impl<P: Pod> Kernel<P> {
    /// Compiles a kernel, with its needs checked against the device.
    ///
    /// # Errors
    /// [`Error::Shader`] with the file and line; [`Error::Unsupported`] where the device has too little of something.
    pub fn new(gpu: &Gpu, source: &Source, entry_point: &str) -> Result<Self> {
        let reflection = reflect(source, entry_point)?;
        if reflection.immediate_bytes as usize != size_of::<P>() {
            let (shader, host) = (reflection.immediate_bytes, size_of::<P>());
            return Err(source.error(0, format!("its parameters have {shader} bytes, those of the host {host}")));
        }
        reflection.fits(source.kernel(), &gpu.limits, gpu.features)?;
        gpu.faults.check()?;
        let ((layout, pipeline), error) = scoped(&gpu.device, || compile(&gpu.device, source, entry_point, &reflection));
        if let Some(error) = error {
            return Err(source.error(0, error.to_string()));
        }
        Ok(Self {
            name: source.kernel(),
            identity: new_identity(),
            pipeline,
            layout,
            reflection,
            graveyard: Arc::clone(&gpu.graveyard),
            params: PhantomData,
        })
    }

    /// What the kernel's text says of itself.
    #[must_use]
    pub fn reflection(&self) -> &Reflection {
        &self.reflection
    }

    /// Records one dispatch over `arrays`, in the order of the bindings, of `grid` workgroups. An empty grid does nothing.
    ///
    /// # Errors
    /// [`Error::Gpu`] where arrays and bindings do not fit together, or one array is bound twice and written;
    /// [`Error::Unsupported`] for a grid beyond the device's limit; what went wrong before.
    pub fn record(&self, gpu: &mut Gpu, arrays: &[&Array], params: &P, grid: [u32; 3]) -> Result<()> {
        self.check(arrays)?;
        if grid.contains(&0) {
            return Ok(());
        }
        let widest = grid.into_iter().max().unwrap_or(0);
        if widest > gpu.max_grid() {
            return Err(Error::Unsupported {
                what: format!("workgroups of {}.wgsl in one dimension", self.name),
                need: widest.to_string(),
                have: gpu.max_grid().to_string(),
                remedy: "use a smaller --memory or fewer --layers, so that a batch holds less".into(),
            });
        }
        gpu.faults.check()?;
        let key = std::iter::once(self.identity)
            .chain(arrays.iter().map(|array| array.identity))
            .collect();
        let buffers: Vec<&wgpu::Buffer> = arrays.iter().map(|array| &array.buffer).collect();
        let bind_group = gpu.bind_group(key, &self.layout, &buffers)?;
        gpu.dispatch(&Dispatch {
            kernel: self.name,
            pipeline: &self.pipeline,
            bind_group: &bind_group,
            immediates: bytemuck::bytes_of(params),
            grid,
        })
    }

    fn check(&self, arrays: &[&Array]) -> Result<()> {
        let refuse = |reason: String| Err(Error::Gpu(format!("{}.wgsl: {reason}", self.name)));
        let bindings = &self.reflection.bindings;
        if arrays.len() != bindings.len() {
            return refuse(format!("{} arrays given, {} bound", arrays.len(), bindings.len()));
        }
        for (place, (array, binding)) in arrays.iter().zip(bindings).enumerate() {
            if array.element() != binding.element {
                let (have, need) = (array.element(), binding.element);
                return refuse(format!(
                    "`{}` takes {need:?}, array `{}` holds {have:?}",
                    binding.name,
                    array.label()
                ));
            }
            // wgpu refuses an array read and written in one dispatch, and lets one written under two names pass.
            let twin = (0..place).find(|&other| arrays[other].identity == array.identity);
            if let Some(other) = twin.filter(|&other| !(binding.read_only && bindings[other].read_only)) {
                let (first, second) = (&bindings[other].name, &binding.name);
                return refuse(format!("array `{}` is both `{first}` and `{second}` and written", array.label()));
            }
        }
        Ok(())
    }
}

fn compile(device: &wgpu::Device, source: &Source, entry: &str, reflection: &Reflection) -> (wgpu::BindGroupLayout, wgpu::ComputePipeline) {
    let label = Some(source.kernel());
    let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
        .zip(&reflection.bindings)
        .map(|(binding, array)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage {
                    read_only: array.read_only,
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: reflection.immediate_bytes,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&pipeline_layout),
        module: &trusted::module(device, source),
        entry_point: Some(entry),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    (layout, pipeline)
}
