//! How time and memory grow with the context: `cargo run --release --example long_contexts -- [--chunk TOKENS] [CAPTURE|TOKENS …]`.
//!
//! Every capture named, or a drawn one of two heads for every number of tokens, is compressed by the CPU engine with the default
//! options at keep 0.3; memory is what the allocator gave out at most beside the capture, which stays in its file. The last two
//! columns are both divided by what the first line would have at so many times its tokens: 1 is linear growth.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kvsculpt::cache::{Capture, Context, Dtype, Layer, Pairing, Queries};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::solver::{Request, compress};
use kvsculpt::{Error, Options, Result};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const DIM: usize = 64;
const HEADS: usize = 2;
const GROUP: usize = 2;

fn main() -> Result<()> {
    let mut options = Options::default();
    let mut sources: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--chunk" {
            let chunk = arguments.next().and_then(|chunk| chunk.parse().ok());
            options.chunk = chunk.ok_or_else(|| refused("give a number of tokens after --chunk"))?;
        } else {
            sources.push(argument);
        }
    }
    if sources.is_empty() {
        sources = [2048, 4096, 8192, 16384, 32768].map(|tokens: usize| tokens.to_string()).into();
    }
    let folder = tempfile::tempdir().map_err(|error| refused(&format!("no temporary folder: {error}")))?;
    println!("  tokens  heads  chunks       s     MiB    probe error   s × linear  MiB × linear");
    let mut first = None;
    for source in &sources {
        let path = match source.parse() {
            Ok(tokens) => drawn(folder.path(), tokens)?,
            Err(_) => PathBuf::from(source),
        };
        let capture = Capture::open(&path)?;
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let started = Instant::now();
        let request = Request {
            options: options.clone(),
            ..Request::default()
        };
        let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
        let seconds = started.elapsed().as_secs_f64();
        let memory = (ALLOCATOR.peak_usage() - before) as f64 / f64::from(1 << 20);
        let errors: Vec<f64> = short.outcomes.iter().filter_map(|head| Some(head.result.probe?.merged)).collect();
        let size = (capture.tokens * short.outcomes.len()) as f64;
        let (base, base_seconds, base_memory) = *first.get_or_insert((size, seconds, memory));
        println!(
            "{:8} {:6} {:7} {seconds:7.2} {memory:7.1} {:14.5} {:12.2} {:13.2}",
            capture.tokens,
            short.outcomes.len(),
            short.outcomes.iter().map(|head| head.chunks).max().unwrap_or(1),
            errors.iter().sum::<f64>() / errors.len().max(1) as f64,
            seconds / base_seconds * base / size,
            memory / base_memory * base / size,
        );
    }
    Ok(())
}

fn refused(reason: &str) -> Error {
    Error::Shape {
        head: "long_contexts".to_owned(),
        reason: reason.to_owned(),
    }
}

/// A capture of two heads, one that looks at little and one that looks far back: keys share directions in stretches of the text, and
/// queries look for them.
fn drawn(folder: &Path, tokens: usize) -> Result<PathBuf> {
    let mut random = fastrand::Rng::with_seed(tokens as u64);
    let mut number = move || random.f32() + random.f32() + random.f32() - 1.5;
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for _ in 0..HEADS * tokens.div_ceil(64) {
        let topic: Vec<f32> = (0..DIM).map(|_| number()).collect();
        for _ in 0..64 {
            key.extend(topic.iter().map(|common| common + number()));
            value.extend(topic.iter().map(|common| 0.5 * common + number()));
        }
    }
    let mut queries = |rows: usize| {
        let sharpness = |head: usize| if head < GROUP { 1.0 } else { 3.0 };
        let heads = (0..HEADS * GROUP).flat_map(|head| std::iter::repeat_n(sharpness(head), rows * DIM));
        Some(Queries {
            data: heads.map(|sharpness| sharpness * number()).collect(),
            rows,
        })
    };
    let layer = Layer {
        index: 0,
        kv_heads: HEADS,
        query_heads: HEADS * GROUP,
        tokens,
        dim: DIM,
        value_dim: DIM,
        dtype: Dtype::F16,
        key,
        value,
        query: queries(tokens),
        reference_query: None,
        probe_query: queries(128),
    };
    let context = Context {
        tokens,
        next_position: tokens,
        scale: 1.0 / (DIM as f64).sqrt(),
        rope_theta: 10_000.0,
        rope_dim: DIM,
        pairing: Pairing::Half,
        rope_scaling: None,
        metadata: BTreeMap::new(),
    };
    let path = folder.join(format!("{tokens}.safetensors"));
    Capture::from_layers("drawn", context, vec![layer])?.write(&path, Dtype::F16)?;
    Ok(path)
}
