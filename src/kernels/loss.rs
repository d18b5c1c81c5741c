//! `e = ŷ − y`, `δ = l̂ − l`, and the sums of the loss `(Σ‖e‖² + λ Σδ²) / rows`

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    blocks: u32,
}

#[derive(Debug)]
pub(super) struct Loss {
    rows: Kernel<Params>,
    finish: Kernel<Params>,
    lanes: u32,
}

impl Loss {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.reducing_source("loss", include_str!("../../shaders/loss.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let source = Self::source(spec);
        Ok(Self {
            rows: Kernel::new(gpu, &source, "rows")?,
            finish: Kernel::new(gpu, &source, "finish")?,
            lanes: spec.reduce_lanes,
        })
    }

    /// `arrays` are state, teacher, `mass_weight`, error, sums, scalars; sums has at least [`sums`] floats.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 6]) -> Result<()> {
        let [state, teacher, mass_weight, error, sums, scalars] = arrays;
        let blocks = table.most_rows().div_ceil(self.lanes);
        let arrays = [&table.rows, state, teacher, mass_weight, error, sums, scalars];
        self.rows.record(gpu, &arrays, &Params { blocks }, [blocks, 1, table.len()])?;
        self.finish.record(gpu, &arrays, &Params { blocks }, [1, 1, table.len()])
    }
}

/// Floats that hold the sums of all row blocks.
pub(super) fn sums(spec: &Spec, most_rows: u32, heads: u64) -> u64 {
    u64::from(most_rows.div_ceil(spec.reduce_lanes)) * heads * 4
}
