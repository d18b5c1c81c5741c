//! Compresses a capture on the best GPU, from a program of your own, with progress.
//!
//! `cargo run --release --example compress -- CAPTURE OUT`

use std::path::Path;

use kvsculpt::cache::Capture;
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::solver::{Observer, Request, compress};
use kvsculpt::{Error, Options};

/// Prints each tenth as it passes; a window would draw a bar, and return `false` when its close button is pressed.
struct Tenths(u32);

impl Observer for Tenths {
    fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
        if fraction * 10.0 >= f64::from(self.0) {
            eprintln!("{:3.0} %, {finished} of {heads} heads done", fraction * 100.0);
            self.0 += 1;
        }
        true
    }
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, capture, out] = arguments.as_slice() else {
        eprintln!("usage: compress CAPTURE OUT");
        std::process::exit(2);
    };
    let capture = Capture::open(Path::new(capture))?;
    // An application with a wgpu device of its own hands it over instead: Gpu::from_device(info, device, queue).
    let mut engine = GpuEngine::new(Gpu::open(&Selection::default())?)?;
    let mut options = Options::default();
    options.keep = 0.3;
    let request = Request {
        options,
        ..Request::default()
    };
    let short = compress(&mut engine, &capture, &request, &mut Tenths(0))?;
    for head in &short.outcomes {
        println!(
            "layer {} head {}: {} of {} pairs, training loss {:.2e}",
            head.layer, head.head, head.kept, head.tokens, head.result.loss
        );
    }
    let (before, after) = short.bytes();
    println!("{before} → {after} bytes of keys and values");
    short.compressed.write(Path::new(out))?;
    Ok(())
}
