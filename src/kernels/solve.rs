//! `W ← anchor + (L Lᵀ)⁻¹ R`

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[derive(Debug)]
pub(super) struct Solve {
    kernel: Kernel<()>,
    spec: Spec,
}

impl Solve {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("solve", include_str!("../../shaders/solve.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        Ok(Self { kernel, spec: *spec })
    }

    /// `arrays` are factor, rhs, anchor, values.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 4]) -> Result<()> {
        let [factor, rhs, anchor, values] = arrays;
        gpu.announce(table.work(|head| f64::from(head.pairs).powi(2) * f64::from(self.spec.dims.value_dim)))?;
        let grid = [self.spec.dims.value_dim.div_ceil(self.spec.solve_lanes), 1, table.len()];
        self.kernel.record(gpu, &[&table.rows, factor, rhs, anchor, values], &(), grid)
    }
}
