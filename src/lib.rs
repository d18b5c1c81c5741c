//! Makes a language model's key-value cache several times shorter while the model goes on speaking as before.
//!
//! # The method
//!
//! A cache holds, for each layer and KV head, N keys K and values V. Later queries q see of it only
//!
//! ```text
//! o(q) = softmax(s q Kᵀ) V        the attention output
//! l(q) = logsumexp(s q Kᵀ)        the mass
//! ```
//!
//! for attention over [context; new tokens] is `(e^l o + e^l' o') / (e^l + e^l')` whatever is appended. So a smaller set
//! of *free* pairs (C, W) that gives the same o and l for the queries to come may stand in for the cache. KVSculpt (arXiv
//! 2603.27819) does not choose such pairs among the cached ones; it optimises them, head by head:
//!
//! 0. **Budgets.** Heads differ a thousand times in what they need. Each head's error at a dozen lengths, on rows held out, decides how
//!    many pairs it gets of a given total ([`budget`]).
//! 1. **Rows.** Training queries: the newest at their own positions, and context queries turned to the positions that
//!    follow. The *teacher*, attention over all N pairs, says what each row should see.
//! 2. **Seed.** The k pairs whose loss the outputs would feel most, the first few (*sinks*) and the newest (*tail*) kept as they are.
//! 3. **Values.** For fixed keys the best values solve a linear least-squares problem: `(AᵀA + ρI) ΔW = Aᵀ(Y − Ŷ)`.
//! 4. **Keys.** For fixed values, L-BFGS on `(‖Ŷ − Y‖² + λ‖l̂ − l‖²) / n`, every head with its own line search.
//!    Where the cache's user can add one, a bias on each free pair's logit is fitted to the mass and refined with the keys.
//! 5. 3 and 4 in turn; **validation rows**, held out of every fit, decide which iterate of a head is returned, its own seed
//!    among them.
//!
//! The method is written once, in [`solver`], against the trait [`engine::Engine`]. Two engines implement it:
//! [`kernels::GpuEngine`], handwritten WGSL on Vulkan, Metal or DX12, and [`cpu::CpuEngine`] (feature `cpu`) for machines
//! without a GPU; [`machine`] chooses between them. Both are held to [`mod@reference`], plain f64 loops.
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//! use kvsculpt::{Options, cache::Capture, gpu::{Gpu, Selection}, kernels::GpuEngine, solver::{Request, compress}};
//!
//! # fn main() -> kvsculpt::Result<()> {
//! let capture = Capture::open(Path::new("cache.safetensors"))?;
//! let mut engine = GpuEngine::new(Gpu::open(&Selection::default())?)?;
//! let mut options = Options::default();
//! options.keep = 0.3;
//! let short = compress(&mut engine, &capture, &Request { options, ..Request::default() }, &mut ())?;
//! for head in &short.outcomes {
//!     println!("layer {} head {}: {} of {} pairs, {:?}", head.layer, head.head, head.kept, head.tokens, head.result.probe);
//! }
//! short.compressed.write(Path::new("short.safetensors"))?;
//! # Ok(())
//! # }
//! ```

pub mod batch;
pub mod budget;
pub mod cache;
#[cfg(feature = "cpu")]
pub mod cpu;
pub mod engine;
mod error;
pub mod formats;
pub mod gpu;
#[cfg(feature = "journal")]
pub mod journal;
pub mod kernels;
pub mod machine;
pub mod options;
pub mod reference;
pub mod self_test;
pub mod solver;
pub mod timed;

pub use error::{Error, Result};
pub use options::Options;
