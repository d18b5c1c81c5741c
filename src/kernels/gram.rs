//! `G += AᵀA` over a block of rows, lower triangle

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::engine::WEIGHT_ROWS;
use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

/// Rows of G a workgroup; `GRAM_ROWS` in the shader.
const ROWS: u32 = 16;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    start: u32,
    end: u32,
}

#[derive(Debug)]
pub(super) struct Gram {
    kernel: Kernel<Params>,
    lanes: u32,
}

impl Gram {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("gram", include_str!("../../shaders/gram.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        let lanes = spec.gram_lanes;
        Ok(Self { kernel, lanes })
    }

    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, weights: &Array, rows: Range<u32>, gram: &Array) -> Result<()> {
        let params = Params {
            start: rows.start,
            end: rows.end,
        };
        let pairs = table.most_pairs();
        gpu.announce(table.work(|head| f64::from(head.rows.min(WEIGHT_ROWS)) * f64::from(head.pairs).powi(2) / 2.0))?;
        let grid = [pairs.div_ceil(2 * self.lanes), pairs.div_ceil(ROWS), table.len()];
        self.kernel.record(gpu, &[&table.rows, weights, gram], &params, grid)
    }
}
