//! What the machine can do at most, measured in the same run: arithmetic by a loop of fused multiply-adds, bandwidth by a copy.

use std::hint::black_box;
use std::time::Instant;

use kvsculpt::Result;
use kvsculpt::gpu::{Gpu, Kernel, Source};
use pulp::{Simd, WithSimd};

/// Operations and bytes a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ceilings {
    /// f32 operations, a fused multiply-add counted as two.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

impl Ceilings {
    /// The higher of each.
    pub fn or(self, other: Self) -> Self {
        Self {
            flops: self.flops.max(other.flops),
            bytes: self.bytes.max(other.bytes),
        }
    }
}

/// Bytes of an array that is copied: beyond every cache, within every device's binding.
const COPY_BYTES: usize = 64 << 20;
/// The best of so many runs counts, each of a few milliseconds: whatever else the machine does only makes one slower.
const RUNS: usize = 60;

/// The processor, all threads of the CPU engine at work.
pub fn processor() -> Ceilings {
    let threads = rayon::current_num_threads();
    const ROUNDS: u64 = 1_000_000;
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

/// Fused multiply-adds in the text of a round: many, for software drivers pay for every turn of a loop.
const UNROLLED: usize = 64;

/// The device. Drivers differ in what they do best, so there are several kernels of each sort, and the best counts.
pub fn device(gpu: &mut Gpu) -> Result<Ceilings> {
    let mut ceilings = Ceilings::default();
    for (chains, lanes) in [(4, 4), (2, 4), (8, 1)] {
        ceilings.flops = ceilings.flops.max(arithmetic(gpu, chains, lanes)?);
    }
    for lanes in [4, 1] {
        ceilings.bytes = ceilings.bytes.max(copy(gpu, lanes)?);
    }
    Ok(ceilings)
}

fn vector(lanes: usize) -> &'static str {
    if lanes == 4 { "vec4<f32>" } else { "f32" }
}

/// A kernel whose text lives as long as the bench.
fn kernel<P: bytemuck::Pod>(gpu: &Gpu, name: &'static str, text: String) -> Result<Kernel<P>> {
    Kernel::new(gpu, &Source::new(name, Box::leak(text.into_boxed_str())), "main")
}

/// Operations a second of so many independent chains of multiply-adds an invocation.
fn arithmetic(gpu: &mut Gpu, chains: usize, lanes: usize) -> Result<f64> {
    let vector = vector(lanes);
    let each = |line: &dyn Fn(usize) -> String| (0..chains).map(line).collect::<String>();
    let start = each(&|chain| format!("    var x{chain} = {vector}(f32(id.x) + {chain}.0);\n"));
    let line = each(&|chain| format!("        x{chain} = fma(x{chain}, a, b);\n"));
    let sum = (0..chains).map(|chain| format!("x{chain}")).collect::<Vec<_>>().join(" + ");
    let text = format!(
        "@group(0) @binding(0) var<storage, read_write> results: array<{vector}>;
struct Params {{ factor: f32, summand: f32, rounds: u32 }}
var<immediate> params: Params;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    let a = {vector}(params.factor);
    let b = {vector}(params.summand);
{start}    for (var round = 0u; round < params.rounds; round++) {{
{}    }}
    results[id.x] = {sum};
}}
",
        line.repeat(UNROLLED / chains)
    );
    let kernel = kernel::<[u32; 3]>(gpu, "ceiling_arithmetic", text)?;
    let (groups, rounds): (u32, u32) = if gpu.is_software() { (128, 16) } else { (2048, 512) };
    let results = gpu.zeros("results", groups as usize * 256 * lanes)?;
    let params = [0.999_f32.to_bits(), 1e-3_f32.to_bits(), rounds];
    let work = f64::from(groups) * 256.0 * f64::from(rounds) * (2 * UNROLLED * lanes) as f64;
    fastest(gpu, work, |gpu| kernel.record(gpu, &[&results], &params, [groups, 1, 1]))
}

/// Bytes a second read and written, one element an invocation.
fn copy(gpu: &mut Gpu, lanes: usize) -> Result<f64> {
    let vector = vector(lanes);
    let text = format!(
        "@group(0) @binding(0) var<storage, read> source: array<{vector}>;
@group(0) @binding(1) var<storage, read_write> results: array<{vector}>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {{
    let at = id.y * groups.x * 256u + id.x;
    results[at] = source[at];
}}
"
    );
    let kernel = kernel::<[u32; 0]>(gpu, "ceiling_copy", text)?;
    let source = gpu.zeros("source", COPY_BYTES / 4)?;
    let results = gpu.zeros("results", COPY_BYTES / 4)?;
    let groups = u32::try_from(COPY_BYTES / 4 / lanes / 256).unwrap_or(u32::MAX);
    let grid = [groups.min(1 << 14), groups.div_ceil(1 << 14), 1];
    fastest(gpu, 2.0 * COPY_BYTES as f64, |gpu| {
        kernel.record(gpu, &[&source, &results], &[], grid)
    })
}

/// Work a second, the best of several runs.
fn fastest(gpu: &mut Gpu, work: f64, mut record: impl FnMut(&mut Gpu) -> Result<()>) -> Result<f64> {
    let mut rate = 0.0_f64;
    for _ in 0..RUNS / 2 {
        rate = rate.max(work / timed(gpu, 2, &mut record)?);
    }
    Ok(rate)
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
