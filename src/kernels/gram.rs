//! `G += AᵀA` over a block of rows, lower triangle

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::engine::WEIGHT_ROWS;
use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::{Spec, TILE, TILE_MATRICES};
use super::table::Table;

/// Rows of G a workgroup of lanes; `GRAM_ROWS` in gram.wgsl.
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
    /// Columns and rows of G a workgroup.
    tile: [u32; 2],
}

impl Gram {
    pub(super) fn source(spec: &Spec) -> Source {
        let shared = ("tile_weights", include_str!("../../shaders/tile_weights.wgsl"));
        if let Some(matrices) = spec.matrices {
            let by_matrices = ("gram_matrices", include_str!("../../shaders/gram_matrices.wgsl"));
            return spec.matrices_source(by_matrices, matrices, shared);
        }
        spec.product_source(
            ("gram", include_str!("../../shaders/gram.wgsl")),
            ("gram_tiles", include_str!("../../shaders/gram_tiles.wgsl")),
            shared,
        )
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        let tile = match spec.matrices {
            Some(matrices) => [TILE_MATRICES * matrices.side; 2],
            None if spec.product_tiles => [TILE; 2],
            None => [2 * spec.gram_lanes, ROWS],
        };
        Ok(Self { kernel, tile })
    }

    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, weights: &Array, rows: Range<u32>, gram: &Array) -> Result<()> {
        let params = Params {
            start: rows.start,
            end: rows.end,
        };
        let pairs = table.most_pairs();
        gpu.announce(table.work(|head| f64::from(head.rows.min(WEIGHT_ROWS)) * f64::from(head.pairs).powi(2) / 2.0))?;
        let [columns, rows] = self.tile.map(|side| pairs.div_ceil(side));
        self.kernel
            .record(gpu, &[&table.rows, weights, gram], &params, [columns, rows, table.len()])
    }
}
