//! `trial ← origin + t · direction`

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[derive(Debug)]
pub(super) struct Step {
    kernel: Kernel<()>,
    spec: Spec,
}

impl Step {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("step", include_str!("../../shaders/step.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        Ok(Self { kernel, spec: *spec })
    }

    /// `arrays` are origin, direction, lengths, trial.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 4]) -> Result<()> {
        let [origin, direction, lengths, trial] = arrays;
        let elements = table.most_elements(self.spec.dims.dim / 4);
        let grid = [self.spec.strides(elements), 1, table.len()];
        self.kernel
            .record(gpu, &[&table.rows, origin, direction, lengths, trial], &(), grid)
    }
}
