//! `score_j = Σ_q e^{s q·k_j − l_q}`, as sums of row blocks

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Element, Gpu, Kernel, Source};

use super::spec::{Spec, TILE};
use super::table::{Group, Table};

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    scale: f32,
    first: u32,
    pairs: u32,
}

#[derive(Debug)]
pub(super) struct Scores {
    kernel: Kernel<Params>,
    /// Pairs a workgroup.
    pairs: u32,
}

impl Scores {
    pub(super) fn source(spec: &Spec, keys: Element) -> Source {
        spec.product_source(
            ("scores", include_str!("../../shaders/scores.wgsl")),
            ("scores_tiles", include_str!("../../shaders/scores_tiles.wgsl")),
            ("tile_logits", include_str!("../../shaders/tile_logits.wgsl")),
        )
        .alias("KeyStore", keys)
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec, keys: Element) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec, keys), "main")?;
        let pairs = if spec.product_tiles { TILE } else { spec.key_lanes };
        Ok(Self { kernel, pairs })
    }

    /// Leaves the sums of a group's row blocks; `arrays` are queries, keys, state, partial.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, group: Group, arrays: [&Array; 4], scale: f32) -> Result<()> {
        let [queries, keys, state, partial] = arrays;
        let params = Params {
            scale,
            first: group.first,
            pairs: group.pairs,
        };
        gpu.announce(table.products(table.dims.dim))?;
        let grid = [group.most_pairs.div_ceil(self.pairs), group.blocks, group.heads];
        self.kernel
            .record(gpu, &[&table.rows, queries, keys, state, partial], &params, grid)
    }
}
