//! Compresses the bundled cache while a frame loop of 60 Hz goes on, on the same wgpu device: no window, but a compute pass a frame.
//!
//! `cargo run --release --example frame_loop -- [--engine cpu] [--slice MILLISECONDS]`
//!
//! With `--engine cpu` there is no device: frames are a loop on the main thread, and the CPU engine has the other cores.

use std::error::Error;
use std::time::{Duration, Instant};

use kvsculpt::cache::Capture;
use kvsculpt::compressor::{Compressor, Step};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::gpu::{Gpu, wgpu};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::machine::Machine;
use kvsculpt::solver::Request;

static CAPTURE: &[u8] = include_bytes!("../tests/data/smollm2-layer20.safetensors");
const FRAME: Duration = Duration::from_micros(16_667);
/// Frames without compression.
const ALONE: usize = 120;
/// Points that a frame moves.
const POINTS: u32 = 1 << 14;

const POINTS_SHADER: &str = "
@group(0) @binding(0) var<storage, read_write> points: array<vec4<f32>>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var point = points[id.x] + vec4<f32>(f32(id.x));
    for (var turn = 0u; turn < 32u; turn += 1u) { point = sin(point.yzwx * 1.01 + 0.1); }
    points[id.x] = point;
}";

/// What an application does in a frame.
enum Scene {
    Device {
        device: wgpu::Device,
        queue: wgpu::Queue,
        pipeline: wgpu::ComputePipeline,
        points: wgpu::BindGroup,
    },
    Host(Vec<f32>),
}

impl Scene {
    fn on(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("points"),
            source: wgpu::ShaderSource::Wgsl(POINTS_SHADER.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("points"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("points"),
            size: 16 * u64::from(POINTS),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let points = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("points"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: buffer.as_entire_binding(),
            }],
        });
        Self::Device {
            device: device.clone(),
            queue: queue.clone(),
            pipeline,
            points,
        }
    }

    /// One frame, done when this returns.
    fn draw(&mut self) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Device {
                device,
                queue,
                pipeline,
                points,
            } => {
                let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, &*points, &[]);
                pass.dispatch_workgroups(POINTS / 64, 1, 1);
                drop(pass);
                let submission = queue.submit([encoder.finish()]);
                device.poll(wgpu::PollType::Wait {
                    submission_index: Some(submission),
                    timeout: Some(Duration::from_secs(60)),
                })?;
            }
            Self::Host(points) => {
                for point in points.iter_mut() {
                    *point = (0..32).fold(*point, |point, _| (point * 1.01 + 0.1).sin());
                }
            }
        }
        Ok(())
    }
}

/// What a frame took, from when it was due: behind other work of the same thread, or of the device.
#[derive(Default)]
struct Frames(Vec<Duration>);

impl Frames {
    /// Draws at 60 Hz and gives what is left of each frame, up to `slice`, to `spare`, until that says that it is done.
    fn run(scene: &mut Scene, slice: Duration, mut spare: impl FnMut(Duration) -> bool) -> Result<Self, Box<dyn Error>> {
        let mut frames = Self::default();
        loop {
            let due = Instant::now();
            scene.draw()?;
            // A tenth of the frame is left for the system.
            let left = (FRAME - FRAME / 10).saturating_sub(due.elapsed());
            let done = spare(slice.min(left));
            frames.0.push(due.elapsed());
            if done {
                return Ok(frames);
            }
            std::thread::sleep(FRAME.saturating_sub(due.elapsed()));
        }
    }

    fn say(mut self, what: &str) {
        self.0.sort_unstable();
        let milliseconds = |time: Duration| 1e3 * time.as_secs_f64();
        let Some(&worst) = self.0.last() else { return };
        let late = self.0.iter().filter(|&&time| time > FRAME).count();
        println!(
            "{what}: {} frames, median {:.1} ms, 99 in 100 within {:.1} ms, worst {:.1} ms, {late} longer than {:.1} ms",
            self.0.len(),
            milliseconds(self.0[self.0.len() / 2]),
            milliseconds(self.0[self.0.len() * 99 / 100]),
            milliseconds(worst),
            milliseconds(FRAME)
        );
    }
}

/// The application's own device, and two engines on it: one for each way of compressing, so that both have to compile their kernels.
fn on_device() -> Result<(Scene, [Machine; 2]), Box<dyn Error>> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let (required_features, required_limits) = Gpu::needs(&adapter)?;
    let descriptor = wgpu::DeviceDescriptor {
        required_features,
        required_limits,
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    let engine = || -> kvsculpt::Result<Machine> {
        let gpu = Gpu::from_device(adapter.get_info(), device.clone(), queue.clone())?;
        Ok(Machine::Gpu(Box::new(GpuEngine::new(gpu)?)))
    };
    if adapter.get_info().device_type == wgpu::DeviceType::Cpu {
        println!("The adapter is a software driver: frames and compression share the processor's cores, so this is no GPU's figure.");
    }
    Ok((Scene::on(&device, &queue), [engine()?, engine()?]))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut on_cpu, mut slice) = (false, Duration::from_millis(6));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next().as_deref()) {
            ("--engine", Some("cpu")) => on_cpu = true,
            ("--slice", Some(milliseconds)) => slice = Duration::try_from_secs_f64(milliseconds.parse::<f64>()?.clamp(0.0, 1e3) / 1e3)?,
            _ => return Err("usage: frame_loop [--engine cpu] [--slice MILLISECONDS]".into()),
        }
    }
    let (mut scene, [driven, blocking]) = if on_cpu {
        let machines = [Machine::Cpu(CpuEngine::new()), Machine::Cpu(CpuEngine::new())];
        (Scene::Host(vec![0.5; POINTS as usize / 2]), machines)
    } else {
        on_device()?
    };
    println!("compressing on {}, in slices of {:.1} ms", driven.name(), 1e3 * slice.as_secs_f64());
    let capture = Capture::from_bytes("the bundled cache", CAPTURE)?;
    let capture = std::sync::Arc::new(capture);

    let mut count = 0;
    let alone = Frames::run(&mut scene, slice, |_| {
        count += 1;
        count == ALONE
    })?;
    alone.say("frames alone        ");

    let mut compressor = Compressor::new(driven, std::sync::Arc::clone(&capture), Request::default())?;
    let begun = Instant::now();
    let beside = Frames::run(&mut scene, slice, |left| compressor.step(left) == Step::Ended)?;
    let seconds = begun.elapsed().as_secs_f64();
    let portions = compressor.portions();
    let short = compressor.finish()?;
    beside.say("frames beside it    ");

    let begun = Instant::now();
    let wanted = Compressor::new(blocking, capture, Request::default())?.finish()?;
    let blocked = begun.elapsed().as_secs_f64();
    println!(
        "compressed in {seconds:.2} s beside frames, in {portions} portions; without frames or pause in {blocked:.2} s; {:.1} times as long; {}",
        seconds / blocked,
        if short.compressed == wanted.compressed {
            "the same pairs"
        } else {
            "OTHER PAIRS"
        }
    );
    Ok(())
}
