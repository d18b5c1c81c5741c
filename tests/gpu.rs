//! The device and small kernels on it. Without an adapter these tests fail and say which package brings one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

use half::f16;
use kvsculpt::Error;
use kvsculpt::gpu::{self, Array, Element, Gpu, Kernel, Selection, Source, wgpu};

/// `output[i] ← factor · source[i] + shift`.
const SCALE: &str = "struct Params { count: u32, factor: f32, shift: f32 }
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> source: array<Store>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < params.count) { output[id.x] = params.factor * f32(source[id.x]) + params.shift; }
}
";

/// `sums[h] ← Σ` of the elements that the table's row h names, by halves in workgroup memory.
const SUM: &str = "struct Head { first: u32, count: u32 }
@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
var<workgroup> partial: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    var sum = 0.0;
    for (var i = lane; i < head.count; i += LANES) { sum += source[head.first + i]; }
    partial[lane] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) { partial[lane] += partial[lane + half]; }
    }
    if (lane == 0u) { sums[group.z] = partial[0]; }
}
";

#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Scale {
    count: u32,
    factor: f32,
    shift: f32,
}

fn open() -> Gpu {
    let gpu = Gpu::open(&Selection::default()).unwrap_or_else(|error| panic!("{error}"));
    println!("adapter: {}", gpu.name());
    gpu
}

fn source(kernel: &'static str, text: &'static str) -> Source {
    Source::new(kernel, text).alias("Store", Element::F32).constant("LANES", 64)
}

fn scale(kernel: &Kernel<Scale>, gpu: &mut Gpu, from: &Array, to: &Array, factor: f32, shift: f32) -> kvsculpt::Result<()> {
    let count = u32::try_from(from.len()).unwrap();
    let params = Scale { count, factor, shift };
    kernel.record(gpu, &[from, to], &params, [count.div_ceil(64), 1, 1])
}

#[test]
fn a_kernel_computes_and_an_empty_grid_does_nothing() {
    let mut gpu = open();
    let kernel = Kernel::new(&gpu, &source("scale", SCALE), "main").unwrap();
    for len in [1, 63, 64, 65, 1000] {
        let data: Vec<f32> = (0..len).map(|i| i as f32 - 3.5).collect();
        let from = gpu.upload("from", &data).unwrap();
        let to = gpu.upload("to", &vec![f32::NAN; len]).unwrap();
        scale(&kernel, &mut gpu, &from, &to, 2.0, 1.0).unwrap();
        let expected: Vec<f32> = data.iter().map(|x| 2.0 * x + 1.0).collect();
        assert_eq!(gpu.read(&to).unwrap(), expected, "{len}");
    }
    let none = gpu.upload("none", &[]).unwrap();
    let to = gpu.upload("to", &[7.0]).unwrap();
    scale(&kernel, &mut gpu, &none, &to, 2.0, 1.0).unwrap();
    assert_eq!(gpu.read(&to).unwrap(), [7.0]);
    assert!(gpu.read(&none).unwrap().is_empty());
}

#[test]
fn a_device_may_move_to_another_thread() {
    let mut gpu = open();
    let array = gpu.upload("array", &[4.0]).unwrap();
    let read = std::thread::spawn(move || gpu.read(&array).unwrap()).join().unwrap();
    assert_eq!(read, [4.0]);
}

#[test]
fn half_precision_is_stored_and_read_where_the_device_has_it() {
    let mut gpu = open();
    let data: Vec<f16> = (0..101).map(|i| f16::from_f32(i as f32 / 8.0 - 5.0)).collect();
    let values: Vec<f32> = data.iter().map(|x| x.to_f32()).collect();
    let from = gpu.upload_half("from", &data).unwrap();
    assert_eq!(gpu.read(&from).unwrap(), values);
    let kernel = Kernel::new(
        &gpu,
        &Source::new("scale", SCALE).alias("Store", Element::F16).constant("LANES", 64),
        "main",
    );
    if !gpu.has_half() {
        assert!(matches!(kernel, Err(Error::Unsupported { .. })));
        return;
    }
    let kernel = kernel.unwrap();
    let to = gpu.zeros("to", data.len()).unwrap();
    scale(&kernel, &mut gpu, &from, &to, 1.0, 0.0).unwrap();
    assert_eq!(gpu.read(&to).unwrap(), values);
    let wrong = gpu.zeros("wrong", data.len()).unwrap();
    let error = scale(&kernel, &mut gpu, &wrong, &to, 1.0, 0.0).unwrap_err().to_string();
    assert!(error.contains("`wrong`") && error.contains("F16"), "{error}");
}

#[test]
fn heads_of_a_table_share_a_dispatch_and_a_table_may_shrink() {
    let mut gpu = open();
    let kernel = Kernel::<()>::new(&gpu, &source("sum", SUM), "main").unwrap();
    assert_eq!(kernel.reflection().workgroup_bytes, 256);
    let data: Vec<f32> = (0..500).map(|i| (i % 17) as f32).collect();
    let from = gpu.upload("from", &data).unwrap();
    let sums = gpu.zeros("sums", 3).unwrap();
    let rows: [[u32; 2]; 3] = [[0, 1], [1, 400], [401, 99]];
    let table = gpu.upload_rows("table", &rows).unwrap();
    let expected = rows.map(|[first, count]| data[first as usize..(first + count) as usize].iter().sum::<f32>());
    kernel.record(&mut gpu, &[&table, &from, &sums], &(), [1, 1, 3]).unwrap();
    assert_eq!(gpu.read(&sums).unwrap(), expected);
    // The dispatch before must still see the old rows.
    gpu.write(&sums, &[-1.0; 3]).unwrap();
    kernel.record(&mut gpu, &[&table, &from, &sums], &(), [1, 1, 3]).unwrap();
    gpu.write_rows(&table, &[[2_u32, 1]]).unwrap();
    kernel.record(&mut gpu, &[&table, &from, &sums], &(), [1, 1, 1]).unwrap();
    assert_eq!(gpu.read(&sums).unwrap(), [2.0, expected[1], expected[2]]);
    assert!(gpu.write_rows(&table, &[[0_u32; 2]; 4]).is_err());
}

#[test]
fn the_order_of_calls_is_the_order_of_effects() {
    let mut gpu = open();
    let kernel = Kernel::new(&gpu, &source("scale", SCALE), "main").unwrap();
    let one = gpu.upload("one", &[1.0]).unwrap();
    let two = gpu.zeros("two", 1).unwrap();
    let three = gpu.zeros("three", 1).unwrap();
    scale(&kernel, &mut gpu, &one, &two, 10.0, 0.0).unwrap();
    gpu.write(&one, &[5.0]).unwrap();
    scale(&kernel, &mut gpu, &one, &three, 10.0, 0.0).unwrap();
    assert_eq!(gpu.read(&two).unwrap(), [10.0]);
    assert_eq!(gpu.read(&three).unwrap(), [50.0]);
    // More than fits in one portion of work, each step reading what the last has written.
    let mut pair = (one, two);
    gpu.write(&pair.0, &[0.0]).unwrap();
    for _ in 0..1500 {
        scale(&kernel, &mut gpu, &pair.0, &pair.1, 1.0, 1.0).unwrap();
        pair = (pair.1, pair.0);
    }
    assert_eq!(gpu.read(&pair.0).unwrap(), [1500.0]);
}

#[test]
fn arrays_longer_than_a_portion_come_back_whole() {
    let mut gpu = open();
    let data: Vec<f32> = (0..(10 << 20) + 3).map(|i| (i % 1_000_003) as f32).collect();
    let array = gpu.upload("long", &data).unwrap();
    assert!(gpu.read(&array).unwrap() == data);
}

#[test]
fn an_array_too_large_is_refused_by_name_and_bytes() {
    let mut gpu = open();
    let len = usize::try_from(gpu.max_array_bytes() / 4 + 1).unwrap();
    let Err(Error::OutOfMemory { label, bytes, available }) = gpu.zeros("queries", len) else {
        panic!("an array above the limit was made");
    };
    assert_eq!(
        (label.as_str(), bytes, available),
        ("queries", len as u64 * 4, gpu.max_array_bytes())
    );
    assert!(gpu.zeros("queries", usize::MAX).is_err());
    // The device is as good as before.
    let array = gpu.upload("small", &[1.0, 2.0]).unwrap();
    assert_eq!(gpu.read(&array).unwrap(), [1.0, 2.0]);
}

#[test]
fn an_unknown_adapter_is_refused_with_those_there_are() {
    let all = gpu::adapters();
    assert!(!all.is_empty(), "{}", Gpu::open(&Selection::default()).unwrap_err());
    let open = |adapter: &str| {
        Gpu::open(&Selection {
            adapter: Some(adapter.into()),
            ..Selection::default()
        })
    };
    let error = open("no such adapter").unwrap_err();
    assert!(matches!(error, Error::NoAdapter(_)));
    assert!(error.to_string().contains(&all[0].name), "{error}");
    for adapter in [all[0].name.to_uppercase(), "0".into()] {
        assert!(open(&adapter).unwrap().name().contains(&all[0].name));
    }
}

#[test]
fn mistakes_in_a_shader_are_told_by_file_and_line() {
    let gpu = open();
    for (part, text, file, line) in [
        (
            "fn one() -> u32 { return 1u; }",
            "fn two() -> u32 {\n    return tree();\n}\n",
            "broken",
            2,
        ),
        ("\n\nfn one() -> u32 { return 1.0; }", "", "prelude", 3),
        ("", "fn two(a: f32) -> u32 {\n let b = a + 1u; return 1u; }", "broken", 2),
    ] {
        let source = source("broken", text).part("prelude", part);
        let error = Kernel::<()>::new(&gpu, &source, "main").unwrap_err();
        let Error::Shader { kernel, line: found, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((kernel, found), (file, line));
    }
    let error = Kernel::<[u32; 2]>::new(&gpu, &source("scale", SCALE), "main")
        .unwrap_err()
        .to_string();
    assert!(error.contains("12 bytes") && error.contains('8'), "{error}");
    let error = Kernel::<Scale>::new(&gpu, &source("scale", SCALE), "absent")
        .unwrap_err()
        .to_string();
    assert!(error.contains("`absent`"), "{error}");
}

#[test]
fn what_wgpu_leaves_unchecked_is_checked() {
    let gpu = open();
    let greedy = "var<workgroup> large: array<f32, 100000>;
@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) lane: u32) { large[lane] = 1.0; }";
    let error = Kernel::<()>::new(&gpu, &Source::new("greedy", greedy), "main")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("workgroup memory of greedy.wgsl") && error.contains("400000"),
        "{error}"
    );
    let crowd = "@compute @workgroup_size(64, 64, 64) fn main() {}";
    assert!(Kernel::<()>::new(&gpu, &Source::new("crowd", crowd), "main").is_err());
    let barrier = "var<workgroup> x: u32;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    if (lane < 3u) {
        workgroupBarrier();
    }
    x = lane;
}";
    let error = Kernel::<()>::new(&gpu, &Source::new("barrier", barrier), "main").unwrap_err();
    assert!(
        matches!(
            error,
            Error::Shader {
                kernel: "barrier",
                line: 5,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn arrays_and_grids_that_do_not_fit_are_refused() {
    let mut gpu = open();
    let kernel = Kernel::new(&gpu, &source("scale", SCALE), "main").unwrap();
    let array = gpu.zeros("array", 10).unwrap();
    let error = scale(&kernel, &mut gpu, &array, &array, 1.0, 1.0).unwrap_err().to_string();
    assert!(error.contains("`source`") && error.contains("`output`"), "{error}");
    let params = Scale {
        count: 10,
        factor: 1.0,
        shift: 1.0,
    };
    assert!(kernel.record(&mut gpu, &[&array], &params, [1, 1, 1]).is_err());
    let other = gpu.zeros("other", 10).unwrap();
    let wide = [gpu.max_grid() + 1, 1, 1];
    assert!(matches!(
        kernel.record(&mut gpu, &[&array, &other], &params, wide),
        Err(Error::Unsupported { .. })
    ));
    assert!(gpu.write(&other, &[1.0; 9]).is_err());
    // None of it reached the device.
    assert_eq!(gpu.read(&other).unwrap(), [0.0; 10]);
}

#[test]
fn arrays_that_are_gone_do_not_pile_up() {
    let mut gpu = open();
    let kernel = Kernel::new(&gpu, &source("scale", SCALE), "main").unwrap();
    let from = gpu.upload("from", &[1.0]).unwrap();
    for turn in 0..200 {
        let to = gpu.zeros("to", 1 << 16).unwrap();
        scale(&kernel, &mut gpu, &from, &to, turn as f32, 0.0).unwrap();
        assert_eq!(gpu.cached_bind_groups(), 1);
        if turn % 50 == 0 {
            assert_eq!(gpu.read(&to).unwrap()[0], turn as f32);
        }
    }
    assert_eq!(gpu.cached_bind_groups(), 0);
}

#[test]
fn a_lost_device_is_an_error_and_stays_one() {
    let mut gpu = open();
    let kernel = Kernel::new(&gpu, &source("scale", SCALE), "main").unwrap();
    let from = gpu.upload("from", &[1.0]).unwrap();
    let to = gpu.zeros("to", 1).unwrap();
    scale(&kernel, &mut gpu, &from, &to, 2.0, 0.0).unwrap();
    gpu.device().destroy();
    for _ in 0..2 {
        let error = gpu.read(&to).unwrap_err();
        assert!(matches!(error, Error::DeviceLost(_)), "{error}");
    }
    assert!(matches!(gpu.zeros("more", 1), Err(Error::DeviceLost(_))));
    let error = gpu.upload("more", &[1.0]).unwrap_err();
    assert!(matches!(error, Error::DeviceLost(_)), "{error}");
    assert!(scale(&kernel, &mut gpu, &from, &to, 2.0, 0.0).is_err());
}

fn app_device(features: wgpu::Features, immediates: u32) -> (wgpu::AdapterInfo, wgpu::Device, wgpu::Queue) {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))
        .expect("an adapter; the package mesa-vulkan-drivers brings a software driver");
    let descriptor = wgpu::DeviceDescriptor {
        required_features: features,
        required_limits: wgpu::Limits {
            max_immediate_size: immediates,
            ..wgpu::Limits::default()
        },
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    (adapter.get_info(), device, queue)
}

#[test]
fn an_applications_own_device_will_do() {
    let (info, device, queue) = app_device(wgpu::Features::IMMEDIATES, 128);
    let mut gpu = Gpu::from_device(info, device.clone(), queue).unwrap();
    let kernel = Kernel::new(&gpu, &source("scale", SCALE), "main").unwrap();
    let from = gpu.upload("from", &[1.0, 2.0]).unwrap();
    let to = gpu.zeros("to", 2).unwrap();
    scale(&kernel, &mut gpu, &from, &to, 3.0, 0.5).unwrap();
    assert_eq!(gpu.read(&to).unwrap(), [3.5, 6.5]);
    scale(&kernel, &mut gpu, &from, &to, 3.0, 0.5).unwrap();
    device.destroy();
    for _ in 0..2 {
        let error = gpu.read(&to).unwrap_err();
        assert!(matches!(error, Error::DeviceLost(_)), "{error}");
    }
}

#[test]
fn an_applications_device_without_what_we_need_is_refused_by_name() {
    let (info, device, queue) = app_device(wgpu::Features::empty(), 0);
    let error = Gpu::from_device(info, device, queue).unwrap_err().to_string();
    assert!(error.contains("IMMEDIATES"), "{error}");
    let (info, device, queue) = app_device(wgpu::Features::IMMEDIATES, 16);
    let error = Gpu::from_device(info, device, queue).unwrap_err().to_string();
    assert!(
        error.contains("max_immediate_size") && error.contains("16") && error.contains("128"),
        "{error}"
    );
}

#[test]
fn work_that_takes_too_long_is_given_up() {
    const LONG: &str = "struct Params { turns: u32 }
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> sums: array<f32>;
@compute @workgroup_size(LANES)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var sum = 0.0;
    for (var i = 0u; i < params.turns; i += 1u) { sum = sin(sum + f32(i)); }
    sums[id.x] = sum;
}
";
    let mut gpu = open();
    let kernel = Kernel::new(&gpu, &source("long", LONG), "main").unwrap();
    let sums = gpu.zeros("sums", 64).unwrap();
    // Compiled and warm, so that what follows is the work alone.
    kernel.record(&mut gpu, &[&sums], &[1_u32], [1, 1, 1]).unwrap();
    gpu.read(&sums).unwrap();
    gpu.set_time_out(Duration::from_millis(1));
    kernel.record(&mut gpu, &[&sums], &[2_000_000_u32], [1, 1, 1]).unwrap();
    let error = gpu.read(&sums).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    // Nothing is returned from that device any more.
    assert!(gpu.read(&sums).is_err());
}

#[test]
fn dispatches_are_timed_where_the_device_has_a_clock() {
    let mut gpu = open();
    let kernel = Kernel::new(&gpu, &source("scale", SCALE), "main").unwrap();
    let from = gpu.zeros("from", 1 << 18).unwrap();
    let to = gpu.zeros("to", 1 << 18).unwrap();
    assert!(gpu.timings().unwrap().is_empty());
    let can = gpu.enable_timings();
    for _ in 0..100 {
        scale(&kernel, &mut gpu, &from, &to, 2.0, 1.0).unwrap();
    }
    assert_eq!(gpu.read(&to).unwrap()[7], 1.0);
    let timings = gpu.timings().unwrap();
    if can {
        assert_eq!(timings.len(), 1);
        assert_eq!(timings[0].kernel, "scale");
        assert!(timings[0].dispatches <= 100 && timings[0].seconds > 0.0, "{timings:?}");
    }
}

#[test]
fn two_share_a_device_and_its_handlers_stay_the_applications() {
    let (info, device, queue) = app_device(wgpu::Features::IMMEDIATES, 128);
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let hears = std::sync::Arc::clone(&heard);
    device.on_uncaptured_error(std::sync::Arc::new(move |error: wgpu::Error| {
        hears.lock().unwrap().push(error.to_string())
    }));
    let mut both = [(); 2].map(|()| Gpu::from_device(info.clone(), device.clone(), queue.clone()).unwrap());
    let kernels = both
        .each_ref()
        .map(|gpu| Kernel::new(gpu, &source("scale", SCALE), "main").unwrap());
    let arrays = both
        .each_mut()
        .map(|gpu| (gpu.upload("from", &[1.0, 2.0]).unwrap(), gpu.zeros("to", 2).unwrap()));
    // Recorded in turn, each in its own order.
    for factor in [3.0, 5.0] {
        for ((gpu, kernel), (from, to)) in both.iter_mut().zip(&kernels).zip(&arrays) {
            scale(kernel, gpu, from, to, factor, 0.5).unwrap();
        }
    }
    for (gpu, (_, to)) in both.iter_mut().zip(&arrays) {
        assert_eq!(gpu.read(to).unwrap(), [5.5, 10.5]);
    }
    // A mistake of one is its own error: neither the other's, nor the application's.
    let [one, other] = &mut both;
    let wrong = Kernel::<()>::new(
        one,
        &source("wrong", "@compute @workgroup_size(1) fn main() { nonsense(); }"),
        "main",
    );
    assert!(wrong.is_err());
    assert_eq!(other.read(&arrays[1].1).unwrap(), [5.5, 10.5]);
    assert!(heard.lock().unwrap().is_empty());
    // The application's mistakes still reach it.
    let descriptor = wgpu::BufferDescriptor {
        label: None,
        size: u64::MAX - 15,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    };
    let _ = device.create_buffer(&descriptor);
    assert_eq!(heard.lock().unwrap().len(), 1);
    assert_eq!(other.read(&arrays[1].1).unwrap(), [5.5, 10.5]);
}

#[test]
fn a_submission_is_bounded_by_the_work_announced() {
    let mut gpu = open();
    let kernel = Kernel::new(&gpu, &source("scale", SCALE), "main").unwrap();
    let from = gpu.upload("from", &[1.0, 2.0]).unwrap();
    let to = gpu.zeros("to", 2).unwrap();
    let mut submissions = |work: f64| {
        gpu.flush().unwrap();
        let before = gpu.submissions();
        for _ in 0..6 {
            gpu.announce(work).unwrap();
            scale(&kernel, &mut gpu, &from, &to, 3.0, 0.5).unwrap();
        }
        gpu.flush().unwrap();
        assert_eq!(gpu.read(&to).unwrap(), [3.5, 6.5]);
        // Reading is one more.
        gpu.submissions() - before - 1
    };
    assert_eq!(submissions(1e6), 1);
    assert_eq!(submissions(1.5e10), 3);
    // What is too much alone goes alone.
    assert_eq!(submissions(1e13), 6);
}
