//! The two-loop recursion of L-BFGS, `direction ← −H g`: a workgroup a head, or many and a dispatch for each dot

use bytemuck::{Pod, Zeroable};

use crate::engine::{Dims, Head, History};
use crate::error::Result;
use crate::gpu::{Array, Gpu, Kernel, Source};

use super::spec::{DIRECTION_PART, MOST_HISTORY, Spec};
use super::table::Table;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct WholeParams {
    capacity: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    capacity: u32,
    age: u32,
    parts: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FinishParams {
    capacity: u32,
    parts: u32,
}

#[derive(Debug)]
pub(super) enum LbfgsDirection {
    Whole(Kernel<WholeParams>),
    Parts(Box<Parts>),
}

/// The kernels of a head's parts.
#[derive(Debug)]
pub(super) struct Parts {
    older: Kernel<Params>,
    newer: Kernel<Params>,
    last: Kernel<Params>,
    finish: Kernel<FinishParams>,
}

/// Parts of a head's elements whose sums are left.
fn parts(dims: Dims, pairs: u32) -> u64 {
    (u64::from(pairs) * u64::from(dims.dim / 4)).div_ceil(u64::from(DIRECTION_PART))
}

/// Floats that are left between dispatches for heads of at most so many pairs.
pub(super) fn sums(spec: &Spec, capacity: u32, most_pairs: u32, heads: u64) -> u64 {
    if spec.direction_parts {
        heads * (2 * u64::from(capacity) + 2) * parts(spec.dims, most_pairs)
    } else {
        0
    }
}

/// The most that [`sums`] can be for these heads, whatever the history.
pub(super) fn most_sums(spec: &Spec, heads: &[Head]) -> u64 {
    let most_pairs = heads.iter().map(|head| head.pairs).max().unwrap_or(0);
    sums(spec, MOST_HISTORY, most_pairs, heads.len() as u64)
}

/// What both ways take beside the history.
#[derive(Debug)]
pub(super) struct Arrays<'a> {
    pub(super) gradient: &'a Array,
    pub(super) direction: &'a Array,
    pub(super) scalars: &'a Array,
    /// Room for [`sums`].
    pub(super) sums: &'a Array,
}

impl LbfgsDirection {
    /// The texts of the way that is chosen.
    pub(super) fn sources(spec: &Spec) -> Vec<(Source, &'static [&'static str])> {
        if spec.direction_parts {
            vec![
                (Parts::source(spec), ["older", "newer", "last"].as_slice()),
                (Parts::finish_source(spec), &["main"]),
            ]
        } else {
            vec![(Self::whole_source(spec), &["main"])]
        }
    }

    fn whole_source(spec: &Spec) -> Source {
        spec.reducing_source("lbfgs_direction", include_str!("../../shaders/lbfgs_direction.wgsl"))
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        Ok(if spec.direction_parts {
            Self::Parts(Box::new(Parts::new(gpu, spec)?))
        } else {
            Self::Whole(Kernel::new(gpu, &Self::whole_source(spec), "main")?)
        })
    }

    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, history: &History<Array>, arrays: &Arrays<'_>) -> Result<()> {
        // A dot and a sum for each of s and y.
        let each = f64::from(4 * table.dims.dim) * f64::from(history.capacity);
        gpu.announce(table.work(|head| f64::from(head.pairs) * each))?;
        let History {
            capacity,
            steps,
            changes,
            curvatures,
            cursor,
        } = history;
        let Arrays {
            gradient,
            direction,
            scalars,
            sums,
        } = *arrays;
        let with = |written| [&table.rows, gradient, steps, changes, curvatures, cursor, direction, written];
        match self {
            Self::Whole(kernel) => kernel.record(gpu, &with(scalars), &WholeParams { capacity: *capacity }, [1, 1, table.len()]),
            Self::Parts(kernels) => kernels.record(gpu, table, *capacity, &with(sums), scalars),
        }
    }
}

impl Parts {
    fn source(spec: &Spec) -> Source {
        spec.reducing_source("lbfgs_parts", include_str!("../../shaders/lbfgs_parts.wgsl"))
    }

    fn finish_source(spec: &Spec) -> Source {
        spec.reducing_source("lbfgs_finish", include_str!("../../shaders/lbfgs_finish.wgsl"))
    }

    fn new(gpu: &Gpu, spec: &Spec) -> Result<Self> {
        let source = Self::source(spec);
        Ok(Self {
            older: Kernel::new(gpu, &source, "older")?,
            newer: Kernel::new(gpu, &source, "newer")?,
            last: Kernel::new(gpu, &source, "last")?,
            finish: Kernel::new(gpu, &Self::finish_source(spec), "main")?,
        })
    }

    /// `arrays` are the bindings in order, the last of them the sums.
    fn record(&self, gpu: &mut Gpu, table: &Table, capacity: u32, arrays: &[&Array; 8], scalars: &Array) -> Result<()> {
        let parts = u32::try_from(parts(table.dims, table.most_pairs())).unwrap_or(u32::MAX);
        let grid = [parts, 1, table.len()];
        for age in 0..capacity {
            self.older.record(gpu, arrays, &Params { capacity, age, parts }, grid)?;
        }
        for age in (0..capacity).rev() {
            self.newer.record(gpu, arrays, &Params { capacity, age, parts }, grid)?;
        }
        self.last.record(gpu, arrays, &Params { capacity, age: 0, parts }, grid)?;
        let params = FinishParams { capacity, parts };
        self.finish
            .record(gpu, &[arrays[0], arrays[7], scalars], &params, [1, 1, table.len()])
    }
}
