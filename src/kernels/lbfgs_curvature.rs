//! `ρ = 1 / s·y`, `γ = s·y / y·y` of the newest pair; 0 where it is of no use

use bytemuck::{Pod, Zeroable};

use crate::engine::History;
use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    capacity: u32,
}

#[derive(Debug)]
pub(super) struct LbfgsCurvature(Kernel<Params>);

impl LbfgsCurvature {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.reducing_source("lbfgs_curvature", include_str!("../../shaders/lbfgs_curvature.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        Kernel::new(gpu, &Self::source(spec), "main").map(Self)
    }

    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, history: &History<Array>, scalars: &Array) -> Result<()> {
        let History {
            capacity,
            steps,
            changes,
            curvatures,
            cursor,
        } = history;
        let arrays = [&table.rows, cursor, steps, changes, curvatures, scalars];
        self.0.record(gpu, &arrays, &Params { capacity: *capacity }, [1, 1, table.len()])
    }
}
