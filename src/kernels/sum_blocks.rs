//! `total_j = Σ_b partial_bj`, in the order of the row blocks

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::{Group, Table};

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    first: u32,
    pairs: u32,
    width: u32,
}

#[derive(Debug)]
pub(super) struct SumBlocks {
    kernel: Kernel<Params>,
    spec: Spec,
}

impl SumBlocks {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("sum_blocks", include_str!("../../shaders/sum_blocks.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        Ok(Self { kernel, spec: *spec })
    }

    /// Adds the sums of a group's row blocks, `width` floats a pair.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, group: Group, width: u32, partial: &Array, total: &Array) -> Result<()> {
        let params = Params {
            first: group.first,
            pairs: group.pairs,
            width,
        };
        let elements = u64::from(group.most_pairs) * u64::from(width);
        let grid = [self.spec.strides(elements), 1, group.heads];
        self.kernel.record(gpu, &[&table.rows, partial, total], &params, grid)
    }
}
