//! `effect_j = Σ_q p_qj² ‖v_j − y_q / 2‖²`, as sums of row blocks

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Element, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::{Group, Table};

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    scale: f32,
    first: u32,
    pairs: u32,
}

#[derive(Debug)]
pub(super) struct Effects {
    kernel: Kernel<Params>,
    /// Pairs a workgroup.
    pairs: u32,
}

impl Effects {
    pub(super) fn source(spec: &Spec, keys: Element, values: Element) -> Source {
        let dots = 2 * spec.effect_tile * spec.effect_lanes;
        let text = include_str!("../../shaders/effects.wgsl");
        spec.sharing_source("effects", text, spec.effect_shares, dots)
            .alias("KeyStore", keys)
            .alias("ValueStore", values)
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec, keys: Element, values: Element) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec, keys, values), "main")?;
        let pairs = spec.effect_lanes / spec.effect_shares;
        Ok(Self { kernel, pairs })
    }

    /// Leaves the sums of a group's row blocks; `arrays` are queries, keys, values, state, partial.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, group: Group, arrays: [&Array; 5], scale: f32) -> Result<()> {
        let [queries, keys, values, state, partial] = arrays;
        let params = Params {
            scale,
            first: group.first,
            pairs: group.pairs,
        };
        gpu.announce(table.products(table.dims.dim + table.dims.value_dim))?;
        let grid = [group.most_pairs.div_ceil(self.pairs), group.blocks, group.heads];
        self.kernel
            .record(gpu, &[&table.rows, queries, keys, values, state, partial], &params, grid)
    }
}
