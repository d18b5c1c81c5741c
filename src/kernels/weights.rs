//! `A_qj = e^{s q·c_j − l̂_q}` for a block of each head's rows

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    scale: f32,
    start: u32,
    end: u32,
}

#[derive(Debug)]
pub(super) struct Weights {
    kernel: Kernel<Params>,
    spec: Spec,
}

impl Weights {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("weights", include_str!("../../shaders/weights.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        Ok(Self { kernel, spec: *spec })
    }

    /// `arrays` are queries, keys, state, weights.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 4], scale: f32, rows: Range<u32>) -> Result<()> {
        let [queries, keys, state, weights] = arrays;
        let longest = table.most_rows().min(rows.end).saturating_sub(rows.start);
        let params = Params {
            scale,
            start: rows.start,
            end: rows.end,
        };
        gpu.announce(table.products(table.dims.dim))?;
        let grid = [
            table.most_pairs().div_ceil(self.spec.key_lanes),
            longest.div_ceil(self.spec.score_tile),
            table.len(),
        ];
        self.kernel
            .record(gpu, &[&table.rows, queries, keys, state, weights], &params, grid)
    }
}
