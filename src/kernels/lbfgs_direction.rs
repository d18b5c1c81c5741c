//! The two-loop recursion of L-BFGS, `direction ← −H g`

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
pub(super) struct LbfgsDirection(Kernel<Params>);

impl LbfgsDirection {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.reducing_source("lbfgs_direction", include_str!("../../shaders/lbfgs_direction.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        Kernel::new(gpu, &Self::source(spec), "main").map(Self)
    }

    /// `arrays` are gradient, direction, scalars.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, history: &History<Array>, arrays: [&Array; 3]) -> Result<()> {
        let [gradient, direction, scalars] = arrays;
        let History {
            capacity,
            steps,
            changes,
            curvatures,
            cursor,
        } = history;
        let arrays = [&table.rows, gradient, steps, changes, curvatures, cursor, direction, scalars];
        self.0.record(gpu, &arrays, &Params { capacity: *capacity }, [1, 1, table.len()])
    }
}
