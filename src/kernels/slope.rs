//! `gradient · direction`, `max |gradient|`, `Σ |gradient|`

use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[derive(Debug)]
pub(super) struct Slope(Kernel<()>);

impl Slope {
    pub(super) fn source(spec: &Spec) -> Source {
        spec.reducing_source("slope", include_str!("../../shaders/slope.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        Kernel::new(gpu, &Self::source(spec), "main").map(Self)
    }

    /// `arrays` are gradient, direction, scalars.
    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: [&Array; 3]) -> Result<()> {
        let [gradient, direction, scalars] = arrays;
        self.0
            .record(gpu, &[&table.rows, gradient, direction, scalars], &(), [1, 1, table.len()])
    }
}
