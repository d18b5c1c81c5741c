//! Cooperative matrices (tensor cores): the shapes that an adapter has, and the one that products go by.

use std::fmt;

use serde::Serialize;
use wgpu::{Adapter, Backend, CooperativeMatrixProperties, CooperativeScalarType, Features};

use crate::error::{Error, Result};

/// Sides that shaders have matrices of, the better one first.
const SIDES: [u32; 2] = [16, 8];
/// Subgroups that share a workgroup's tile; `BLOCKS` in matrices.wgsl.
const SUBGROUPS: u32 = 4;
/// Invocations that every device has in a workgroup.
const INVOCATIONS: u32 = 256;

/// One kind of cooperative matrices: `rows × columns` sums of `terms` products.
///
/// ```
/// use kvsculpt::gpu::adapters;
///
/// for adapter in adapters() {
///     for shape in adapter.matrix_shapes {
///         println!("{}: {shape}", adapter.name); // such as 16×16×16 f16 → f32
///         assert!(shape.rows > 0 && shape.columns > 0 && shape.terms > 0);
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MatrixShape {
    /// Rows of the sums.
    pub rows: u32,
    /// Columns of the sums.
    pub columns: u32,
    /// Products that are added to each sum.
    pub terms: u32,
    /// What is multiplied: `f16`, `f32`, `i32` or `u32`.
    pub factors: &'static str,
    /// What the sums are.
    pub sums: &'static str,
}

impl From<CooperativeMatrixProperties> for MatrixShape {
    fn from(properties: CooperativeMatrixProperties) -> Self {
        let name = |scalar| match scalar {
            CooperativeScalarType::F16 => "f16",
            CooperativeScalarType::F32 => "f32",
            CooperativeScalarType::I32 => "i32",
            CooperativeScalarType::U32 => "u32",
        };
        Self {
            rows: properties.m_size,
            columns: properties.n_size,
            terms: properties.k_size,
            factors: name(properties.ab_type),
            sums: name(properties.cr_type),
        }
    }
}

impl fmt::Display for MatrixShape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rows,
            columns,
            terms,
            factors,
            sums,
        } = self;
        write!(formatter, "{rows}×{columns}×{terms} {factors} → {sums}")
    }
}

/// The cooperative matrices that products go by: square, of half-precision factors and single-precision sums.
///
/// ```no_run
/// use kvsculpt::gpu::{Gpu, Selection};
///
/// // Only where they are asked for; an adapter without them is refused.
/// let selection = Selection { cooperative_matrices: true, ..Selection::default() };
/// let matrices = Gpu::open(&selection)?.matrices().expect("what was asked for");
/// assert!([8, 16].contains(&matrices.side) && matrices.lanes() % 4 == 0);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Matrices {
    /// Rows, columns and terms: 8 or 16.
    pub side: u32,
    /// Invocations in the largest subgroup, at most 64.
    pub subgroup: u32,
}

impl Matrices {
    /// Lanes of a workgroup: four subgroups, whatever size the driver gives them.
    #[must_use]
    pub fn lanes(self) -> u32 {
        SUBGROUPS * self.subgroup
    }

    /// Those of an adapter, where it has any that the shaders can use.
    pub(super) fn of(adapter: &Adapter) -> Option<Self> {
        let (info, features) = (adapter.get_info(), adapter.features());
        // Metal's would take single precision as it is, without splitting: another kernel, which nobody has tried.
        let needed = Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16 | Features::SUBGROUP;
        if info.backend != Backend::Vulkan || !features.contains(needed) {
            return None;
        }
        usable(&shapes(adapter), info.subgroup_max_size)
    }

    /// # Errors
    /// [`Error::Unsupported`] with the shapes that the adapter has.
    pub(super) fn require(adapter: &Adapter) -> Result<Self> {
        Self::of(adapter).ok_or_else(|| {
            let shapes: Vec<String> = shapes(adapter).iter().map(MatrixShape::to_string).collect();
            Error::Unsupported {
                what: "cooperative matrices".into(),
                need: "8×8×8 or 16×16×16 f16 → f32 on Vulkan".into(),
                have: if shapes.is_empty() { "none".into() } else { shapes.join(", ") },
                remedy: "leave out --cooperative-matrices, or choose another adapter or a newer driver".into(),
            }
        })
    }
}

/// Every shape that shaders could use on this adapter.
pub(super) fn shapes(adapter: &Adapter) -> Vec<MatrixShape> {
    if !adapter.features().contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return Vec::new();
    }
    adapter.cooperative_matrix_properties().into_iter().map(MatrixShape::from).collect()
}

fn usable(shapes: &[MatrixShape], subgroup: u32) -> Option<Matrices> {
    let has = |side: &u32| {
        let wanted = MatrixShape {
            rows: *side,
            columns: *side,
            terms: *side,
            factors: "f16",
            sums: "f32",
        };
        shapes.contains(&wanted)
    };
    let side = SIDES.into_iter().find(has)?;
    (subgroup > 0 && SUBGROUPS * subgroup <= INVOCATIONS).then_some(Matrices { side, subgroup })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: u32, columns: u32, terms: u32, sums: &'static str) -> MatrixShape {
        MatrixShape {
            rows,
            columns,
            terms,
            factors: "f16",
            sums,
        }
    }

    #[test]
    fn the_largest_square_with_single_precision_sums_is_taken() {
        let (small, large) = (shape(8, 8, 8, "f32"), shape(16, 16, 16, "f32"));
        assert_eq!(usable(&[small, large], 32), Some(Matrices { side: 16, subgroup: 32 }));
        assert_eq!(usable(&[small], 8), Some(Matrices { side: 8, subgroup: 8 }));
        for none in [shape(16, 8, 16, "f32"), shape(16, 16, 16, "f16"), shape(16, 16, 8, "f32")] {
            assert_eq!(usable(&[none], 32), None, "{none}");
        }
        // Four subgroups of 128 would be more than every device has.
        assert_eq!(usable(&[large], 64).map(Matrices::lanes), Some(256));
        assert_eq!(usable(&[large], 128), None);
        assert_eq!(large.to_string(), "16×16×16 f16 → f32");
    }
}
