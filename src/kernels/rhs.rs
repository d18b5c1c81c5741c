//! `R −= Aᵀ e` over a block of rows

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    start: u32,
    end: u32,
}

#[derive(Debug)]
pub(super) struct Rhs {
    kernel: Kernel<Params>,
    spec: Spec,
}

impl Rhs {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("rhs", include_str!("../../shaders/rhs.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        Ok(Self { kernel, spec: *spec })
    }

    /// `arrays` are weights, error, rhs.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 3], rows: Range<u32>) -> Result<()> {
        let [weights, error, rhs] = arrays;
        gpu.announce(table.products(table.dims.value_dim))?;
        let params = Params {
            start: rows.start,
            end: rows.end,
        };
        let grid = [
            table.most_pairs().div_ceil(self.spec.key_lanes),
            self.spec.dims.value_dim / self.spec.rhs_channels,
            table.len(),
        ];
        self.kernel.record(gpu, &[&table.rows, weights, error, rhs], &params, grid)
    }
}
