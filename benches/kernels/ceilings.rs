//! What the machine can do at most, measured in the same run: arithmetic by a loop of fused multiply-adds, bandwidth by a copy.

use std::hint::black_box;
use std::time::Instant;

use kvsculpt::Result;
use kvsculpt::gpu::{Gpu, Kernel, Source};
use pulp::{Simd, WithSimd};

/// Operations and bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// f32 operations, a fused multiply-add counted as two.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

/// Bytes of an array that is copied: beyond every cache, within every device's binding.
const COPY_BYTES: usize = 64 << 20;
/// The best of so many runs counts: whatever else the machine does only makes one slower.
const RUNS: usize = 7;

/// The processor, all threads of the CPU engine at work.
pub fn processor() -> Ceilings {
    let threads = rayon::current_num_threads();
    const ROUNDS: u64 = 4_000_000;
    let flops = best(|| {
        let lanes = on_threads(threads, |_| pulp::Arch::new().dispatch(MultiplyAdds { rounds: ROUNDS }));
        (lanes.iter().sum::<u64>() * ROUNDS * 2) as f64
    });
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..threads)
        .map(|_| (vec![1; COPY_BYTES / threads], vec![2; COPY_BYTES / threads]))
        .collect();
    let bytes = best(|| {
        std::thread::scope(|scope| {
            for (source, target) in &mut pairs {
                scope.spawn(|| black_box(target).copy_from_slice(black_box(source)));
            }
        });
        (2 * (COPY_BYTES / threads) * threads) as f64
    });
    Ceilings { flops, bytes }
}

/// Work a second, the best of several runs; a run returns its work.
fn best(mut run: impl FnMut() -> f64) -> f64 {
    let rate = |_| {
        let started = Instant::now();
        let work = run();
        work / started.elapsed().as_secs_f64()
    };
    (0..RUNS).map(rate).fold(0.0, f64::max)
}

fn on_threads<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let work = &work;
                scope.spawn(move || work(thread))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("a thread")).collect()
    })
}

/// Independent chains of fused multiply-adds, enough to fill two units of a latency of five; returns how many additions one round
/// makes.
struct MultiplyAdds {
    rounds: u64,
}

impl WithSimd for MultiplyAdds {
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u64 {
        const CHAINS: usize = 10;
        let factor = simd.splat_f32s(black_box(0.999));
        let summand = simd.splat_f32s(black_box(1e-3));
        let mut chains = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..self.rounds {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, factor, summand);
            }
        }
        for chain in chains {
            black_box(simd.reduce_sum_f32s(chain));
        }
        (CHAINS * S::F32_LANES) as u64
    }
}

/// Additions in the text of a round: long, for software drivers pay for every turn of a loop.
const UNROLLED: u64 = 64;
/// Workgroups of 256.
const GROUPS: u32 = 4096;

/// The device.
pub fn device(gpu: &mut Gpu) -> Result<Ceilings> {
    let line = "        x = fma(x, a, b); y = fma(y, a, b); z = fma(z, a, b); w = fma(w, a, b);\n";
    let text = format!(
        "@group(0) @binding(0) var<storage, read_write> target_array: array<vec4<f32>>;
struct Params {{ factor: f32, summand: f32, rounds: u32 }}
var<immediate> params: Params;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    let a = vec4<f32>(params.factor);
    let b = vec4<f32>(params.summand);
    var x = vec4<f32>(f32(id.x));
    var y = x + 1.0;
    var z = x + 2.0;
    var w = x + 3.0;
    for (var round = 0u; round < params.rounds; round++) {{
{}    }}
    target_array[id.x] = x + y + z + w;
}}
",
        line.repeat(usize::try_from(UNROLLED).unwrap_or(1) / 4)
    );
    // The text lives as long as the bench.
    let source = Source::new("ceiling_arithmetic", Box::leak(text.into_boxed_str()));
    let arithmetic = Kernel::<[u32; 3]>::new(gpu, &source, "main")?;
    let target = gpu.zeros("target", GROUPS as usize * 256 * 4)?;
    let mut flops = 0.0_f64;
    let rounds = if gpu.is_software() { 4 } else { 256 };
    for _ in 0..RUNS {
        let seconds = timed(gpu, 3, |gpu| {
            let params = [0.999_f32.to_bits(), 1e-3_f32.to_bits(), rounds];
            arithmetic.record(gpu, &[&target], &params, [GROUPS, 1, 1])
        })?;
        let work = u64::from(GROUPS) * 256 * u64::from(rounds) * UNROLLED * 4 * 2;
        flops = flops.max(work as f64 / seconds);
    }
    Ok(Ceilings {
        flops,
        bytes: copy_bandwidth(gpu)?,
    })
}

fn copy_bandwidth(gpu: &mut Gpu) -> Result<f64> {
    const TEXT: &str = "@group(0) @binding(0) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> target_array: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    target_array[id.x] = source[id.x];
}
";
    let copy = Kernel::<[u32; 0]>::new(gpu, &Source::new("ceiling_copy", TEXT), "main")?;
    let source = gpu.zeros("source", COPY_BYTES / 4)?;
    let target = gpu.zeros("target", COPY_BYTES / 4)?;
    let groups = u32::try_from(COPY_BYTES / 16 / 256).unwrap_or(u32::MAX);
    let mut bytes = 0.0_f64;
    for _ in 0..RUNS {
        let seconds = timed(gpu, 3, |gpu| copy.record(gpu, &[&source, &target], &[], [groups, 1, 1]))?;
        bytes = bytes.max(2.0 * COPY_BYTES as f64 / seconds);
    }
    Ok(bytes)
}

/// Seconds a dispatch, several handed over at once.
fn timed(gpu: &mut Gpu, dispatches: u32, mut record: impl FnMut(&mut Gpu) -> Result<()>) -> Result<f64> {
    let nothing = gpu.zeros("nothing", 1)?;
    gpu.read(&nothing)?;
    let started = Instant::now();
    for _ in 0..dispatches {
        record(gpu)?;
    }
    gpu.read(&nothing)?;
    Ok(started.elapsed().as_secs_f64() / f64::from(dispatches))
}
