//! The GPU engine: one small file a shader, under the shader's name, each with its parameters, its arrays in the order
//! of the bindings and its grid.
//!
//! A [`Spec`] holds the numbers that a kernel's text and its grid are made from. [`GpuEngine`] compiles a kernel when
//! it is first asked for and keeps it; [`sources`] gives the text of all of them with no device.

mod attention;
mod cholesky;
mod copy_pairs;
mod effects;
mod engine;
mod gram;
mod key_gradient;
mod lbfgs_curvature;
mod lbfgs_direction;
mod lbfgs_move;
mod lbfgs_push;
mod loss;
mod rhs;
mod scores;
mod slope;
mod solve;
mod spec;
mod step;
mod sum_blocks;
mod table;
mod weights;

pub use engine::GpuEngine;
pub use spec::{Machine, RowBlocks, Spec, WORKGROUP_BYTES};
pub use table::Table;

use crate::gpu::{Element, Source};

/// The text of every kernel in every store that it comes in, each with its entry points.
///
/// ```
/// use kvsculpt::{engine::Dims, gpu::reflect, kernels::{Machine, Spec, sources}};
///
/// let spec = Spec::new(Dims { dim: 64, value_dim: 64 }, Machine { software: false, subgroups: true, matrices: None })?;
/// // Every kernel's text is checked without a device.
/// for (source, entry_points) in sources(&spec) {
///     for entry_point in entry_points {
///         assert!(reflect(&source, entry_point)?.workgroup_bytes <= kvsculpt::kernels::WORKGROUP_BYTES);
///     }
/// }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[must_use]
pub fn sources(spec: &Spec) -> Vec<(Source, &'static [&'static str])> {
    const MAIN: &[&str] = &["main"];
    let stores = [Element::F32, Element::F16];
    let mut sources = vec![
        (
            cholesky::Cholesky::source(spec),
            ["mean", "fill", "diagonal", "panel", "trailing"].as_slice(),
        ),
        (copy_pairs::CopyPairs::source(spec), MAIN),
        (gram::Gram::source(spec), MAIN),
        (key_gradient::KeyGradient::source(spec), MAIN),
        (lbfgs_curvature::LbfgsCurvature::source(spec), MAIN),
        (lbfgs_move::LbfgsMove::source(spec), MAIN),
        (lbfgs_push::LbfgsPush::source(spec), MAIN),
        (loss::Loss::source(spec), ["rows", "finish"].as_slice()),
        (rhs::Rhs::source(spec), MAIN),
        (slope::Slope::source(spec), MAIN),
        (solve::Solve::source(spec), ["down", "below", "up", "above", "finish"].as_slice()),
        (step::Step::source(spec), MAIN),
        (sum_blocks::SumBlocks::source(spec), MAIN),
        (weights::Weights::source(spec), MAIN),
    ];
    sources.extend(lbfgs_direction::LbfgsDirection::sources(spec));
    for keys in stores {
        sources.push((scores::Scores::source(spec, keys), MAIN));
        sources.extend(stores.map(|values| (attention::Attention::source(spec, keys, values), MAIN)));
        sources.extend(stores.map(|values| (effects::Effects::source(spec, keys, values), MAIN)));
    }
    sources
}
