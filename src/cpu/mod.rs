//! The CPU engine: every operation in f32 on the processor's cores, for machines with no GPU.
//!
//! Products and factorisations come from faer, threads from rayon. A task is a strand of one head's rows, or a strip
//! of its pairs, cut by that head's shape alone; sums over tasks are added in their order. So the result is the same,
//! bit for bit, on any number of threads and in any batch.

mod attention;
mod effects;
mod engine;
mod evaluate;
mod exponential;
mod layout;
mod lbfgs;
mod loss;
mod product;
mod scratch;
#[cfg(test)]
mod tests;
mod values;
mod vectorised;

use crate::engine::{Dims, Head};

/// Floats in the machine's memory.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{cpu::{Array, CpuEngine}, engine::Engine};
///
/// let mut engine = CpuEngine::new();
/// let array: Array = engine.upload("values", &[1.0, 2.0])?;
/// assert_eq!(engine.read(&array)?, [1.0, 2.0]);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Array {
    label: &'static str,
    data: Vec<f32>,
}

/// The heads an operation works on.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{cpu::{CpuEngine, Table}, engine::{Dims, Engine, Head}};
///
/// let mut engine = CpuEngine::new();
/// let heads = [Head { rows: 2, pairs: 3, ..Head::default() }];
/// let mut table: Table = engine.table(Dims { dim: 4, value_dim: 4 }, &heads)?;
/// // The same table for fewer heads, such as those that are not done yet.
/// engine.set_table(&mut table, &[])?;
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Table {
    dims: Dims,
    heads: Vec<Head>,
    capacity: usize,
}

impl Table {
    /// Channels of a key and of a value.
    fn widths(&self) -> (usize, usize) {
        (self.dims.dim as usize, self.dims.value_dim as usize)
    }
}

/// The engine; works on the current rayon thread pool.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{cpu::CpuEngine, options::Method, solver::{Request, compress}};
///
/// let mut request = Request::default();
/// request.options.method = Method::SelectFit;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
/// let (before, after) = short.bytes();
/// assert!(after < before / 3);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct CpuEngine {
    /// Partial gradients, kept from one evaluation to the next.
    partials: Vec<f32>,
}

impl CpuEngine {
    /// An engine with nothing allocated yet.
    ///
    /// ```
    /// use kvsculpt::{cpu::CpuEngine, engine::Engine};
    ///
    /// let engine = CpuEngine::new();
    /// println!("{}", engine.name());
    /// assert!(!engine.defers() && engine.max_array_bytes() > 1 << 30);
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}
