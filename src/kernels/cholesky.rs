//! `L Lᵀ = G + (ridge₀ + ridge₁ · mean diag G) I`, by blocks of 32 columns

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

/// Columns of a block; `BLOCK` in the shader.
const BLOCK: u32 = 32;
/// Rows or columns a workgroup of the panel and the trailing part; `PANEL_LANES` in the shader.
const PANEL_LANES: u32 = 64;
/// The most workgroups that share the rows of one head when L is filled.
const MOST_FILLING: u32 = 1024;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    first: u32,
}

#[derive(Debug)]
pub(super) struct Cholesky {
    mean: Kernel<Params>,
    fill: Kernel<Params>,
    diagonal: Kernel<Params>,
    panel: Kernel<Params>,
    trailing: Kernel<Params>,
}

impl Cholesky {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.reducing_source("cholesky", include_str!("../../shaders/cholesky.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let source = Self::source(spec);
        Ok(Self {
            mean: Kernel::new(gpu, &source, "mean")?,
            fill: Kernel::new(gpu, &source, "fill")?,
            diagonal: Kernel::new(gpu, &source, "diagonal")?,
            panel: Kernel::new(gpu, &source, "panel")?,
            trailing: Kernel::new(gpu, &source, "trailing")?,
        })
    }

    /// `arrays` are gram, ridge, factor, scalars.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 4]) -> Result<()> {
        let [gram, ridge, factor, scalars] = arrays;
        let arrays = [&table.rows, gram, ridge, factor, scalars];
        let (pairs, heads) = (table.most_pairs(), table.len());
        gpu.announce(table.work(|head| f64::from(head.pairs).powi(3) / 6.0))?;
        let start = Params { first: 0 };
        self.mean.record(gpu, &arrays, &start, [1, 1, heads])?;
        self.fill.record(gpu, &arrays, &start, [pairs.min(MOST_FILLING), 1, heads])?;
        for first in (0..pairs).step_by(BLOCK as usize) {
            let params = Params { first };
            let rest = pairs.saturating_sub(first + BLOCK);
            let panels = rest.div_ceil(PANEL_LANES);
            self.diagonal.record(gpu, &arrays, &params, [1, 1, heads])?;
            self.panel.record(gpu, &arrays, &params, [panels, 1, heads])?;
            self.trailing.record(gpu, &arrays, &params, [panels, rest.div_ceil(BLOCK), heads])?;
        }
        Ok(())
    }
}
