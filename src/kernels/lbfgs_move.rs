//! `origin ← origin + t d`, `gradient ← g₊`

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[derive(Debug)]
pub(super) struct LbfgsMove {
    kernel: Kernel<()>,
    spec: Spec,
}

impl LbfgsMove {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("lbfgs_move", include_str!("../../shaders/lbfgs_move.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        Ok(Self { kernel, spec: *spec })
    }

    /// `arrays` are lengths, direction, `new_gradient`, gradient, origin.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 5]) -> Result<()> {
        let [lengths, direction, new_gradient, gradient, origin] = arrays;
        let elements = table.most_elements(self.spec.dims.dim / 4);
        let grid = [self.spec.strides(elements), 1, table.len()];
        self.kernel
            .record(gpu, &[&table.rows, lengths, direction, new_gradient, gradient, origin], &(), grid)
    }
}
