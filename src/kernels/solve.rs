//! `W ← anchor + (L Lᵀ)⁻¹ R`, by spans of unknowns

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

/// Unknowns a workgroup beside a span; `BLOCK` in the shader.
const BLOCK: u32 = 32;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    first: u32,
}

#[derive(Debug)]
pub(super) struct Solve {
    down: Kernel<Params>,
    below: Kernel<Params>,
    up: Kernel<Params>,
    above: Kernel<Params>,
    finish: Kernel<Params>,
    spec: Spec,
}

impl Solve {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.source("solve", include_str!("../../shaders/solve.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let source = Self::source(spec);
        Ok(Self {
            down: Kernel::new(gpu, &source, "down")?,
            below: Kernel::new(gpu, &source, "below")?,
            up: Kernel::new(gpu, &source, "up")?,
            above: Kernel::new(gpu, &source, "above")?,
            finish: Kernel::new(gpu, &source, "finish")?,
            spec: *spec,
        })
    }

    /// `arrays` are factor, rhs, anchor, values.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 4]) -> Result<()> {
        let [factor, rhs, anchor, values] = arrays;
        let arrays = [&table.rows, factor, rhs, anchor, values];
        let (pairs, heads, span) = (table.most_pairs(), table.len(), self.spec.solve_span);
        let channels = self.spec.dims.value_dim.div_ceil(self.spec.solve_lanes);
        gpu.announce(table.work(|head| f64::from(head.pairs).powi(2) * f64::from(self.spec.dims.value_dim)))?;
        for first in (0..pairs).step_by(span as usize) {
            let params = Params { first };
            let below = pairs.saturating_sub(first + span).div_ceil(BLOCK);
            self.down.record(gpu, &arrays, &params, [channels, 1, heads])?;
            self.below.record(gpu, &arrays, &params, [channels, below, heads])?;
        }
        for first in (0..pairs).step_by(span as usize).rev() {
            let params = Params { first };
            self.up.record(gpu, &arrays, &params, [channels, 1, heads])?;
            self.above.record(gpu, &arrays, &params, [channels, first / BLOCK, heads])?;
        }
        let all = [channels, pairs.div_ceil(BLOCK), heads];
        self.finish.record(gpu, &arrays, &Params { first: 0 }, all)
    }
}
