//! `∂loss/∂c_j = (2 s / rows) Σ_q p_qj (e·w_j − (e·ŷ − λδ)) q`, as sums of row blocks

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

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
pub(super) struct KeyGradient {
    kernel: Kernel<Params>,
    /// Pairs a workgroup.
    pairs: u32,
}

impl KeyGradient {
    pub(super) fn source(spec: &Spec) -> Source {
        let dots = 2 * spec.gradient_tile * spec.gradient_lanes;
        let text = include_str!("../../shaders/key_gradient.wgsl");
        spec.sharing_source("key_gradient", text, spec.gradient_shares, dots)
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        let pairs = spec.gradient_lanes / spec.gradient_shares;
        Ok(Self { kernel, pairs })
    }

    /// Leaves the sums of a group's row blocks; `arrays` are queries, keys, values, error, partial.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, group: Group, arrays: [&Array; 5], scale: f32) -> Result<()> {
        let [queries, keys, values, error, partial] = arrays;
        let params = Params {
            scale,
            first: group.first,
            pairs: group.pairs,
        };
        gpu.announce(table.products(2 * table.dims.dim + table.dims.value_dim))?;
        let grid = [group.most_pairs.div_ceil(self.pairs), group.blocks, group.heads];
        self.kernel
            .record(gpu, &[&table.rows, queries, keys, values, error, partial], &params, grid)
    }
}
