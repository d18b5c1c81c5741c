//! `s = t d`, `y = g₊ − g`, into the cursor's newest slot

use bytemuck::{Pod, Zeroable};

use crate::engine::History;
use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    capacity: u32,
}

#[derive(Debug)]
pub(super) struct LbfgsPush {
    kernel: Kernel<Params>,
    spec: Spec,
}

impl LbfgsPush {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("lbfgs_push", include_str!("../../shaders/lbfgs_push.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        Ok(Self { kernel, spec: *spec })
    }

    /// `arrays` are lengths, direction, `new_gradient`, gradient.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, history: &History<Array>, arrays: [&Array; 4]) -> Result<()> {
        let [lengths, direction, new_gradient, gradient] = arrays;
        let params = Params {
            capacity: history.capacity,
        };
        let arrays = [
            &table.rows,
            lengths,
            direction,
            new_gradient,
            gradient,
            &history.cursor,
            &history.steps,
            &history.changes,
        ];
        let elements = table.most_elements(self.spec.dims.dim / 4);
        self.kernel
            .record(gpu, &arrays, &params, [self.spec.strides(elements), 1, table.len()])
    }
}
