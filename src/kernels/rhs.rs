//! `R −= Aᵀ e` over a block of rows

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::{Spec, TILE};
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
    /// Pairs and channels a workgroup.
    tile: [u32; 2],
}

impl Rhs {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.product_source(
            ("rhs", include_str!("../../shaders/rhs.wgsl")),
            ("rhs_tiles", include_str!("../../shaders/rhs_tiles.wgsl")),
            ("tile_weights", include_str!("../../shaders/tile_weights.wgsl")),
        )
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        let tile = if spec.product_tiles {
            [TILE; 2]
        } else {
            [spec.key_lanes, spec.rhs_channels]
        };
        Ok(Self { kernel, tile })
    }

    /// `arrays` are weights, error, rhs.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 3], rows: Range<u32>) -> Result<()> {
        let [weights, error, rhs] = arrays;
        gpu.announce(table.products(table.dims.value_dim))?;
        let params = Params {
            start: rows.start,
            end: rows.end,
        };
        let [pairs, channels] = self.tile;
        let grid = [
            table.most_pairs().div_ceil(pairs),
            table.dims.value_dim.div_ceil(channels),
            table.len(),
        ];
        self.kernel.record(gpu, &[&table.rows, weights, error, rhs], &params, grid)
    }
}
