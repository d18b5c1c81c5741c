//! `A_qj = e^{s q·c_j − l̂_q}` for a block of each head's rows

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::{Spec, TILE};
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
    /// Pairs and rows a workgroup.
    tile: [u32; 2],
}

impl Weights {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.product_source(
            ("weights", include_str!("../../shaders/weights.wgsl")),
            ("weights_tiles", include_str!("../../shaders/weights_tiles.wgsl")),
            ("tile_logits", include_str!("../../shaders/tile_logits.wgsl")),
        )
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        let tile = if spec.product_tiles {
            [TILE; 2]
        } else {
            [spec.key_lanes, spec.score_tile]
        };
        Ok(Self { kernel, tile })
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
        let [pairs_each, rows_each] = self.tile;
        let grid = [table.most_pairs().div_ceil(pairs_each), longest.div_ceil(rows_each), table.len()];
        self.kernel
            .record(gpu, &[&table.rows, queries, keys, state, weights], &params, grid)
    }
}
