//! `target ← source` for the pairs of a table's heads

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    width: u32,
}

#[derive(Debug)]
pub(super) struct CopyPairs {
    kernel: Kernel<Params>,
    spec: Spec,
}

impl CopyPairs {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("copy_pairs", include_str!("../../shaders/copy_pairs.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec), "main")?;
        Ok(Self { kernel, spec: *spec })
    }

    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, width: u32, source: &Array, target: &Array) -> Result<()> {
        let grid = [self.spec.strides(table.most_elements(width)), 1, table.len()];
        self.kernel.record(gpu, &[&table.rows, source, target], &Params { width }, grid)
    }
}
