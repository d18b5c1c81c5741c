//! What changes a kernel's text: the numbers that both the shader's header and the host's grid are made from.

use crate::engine::Dims;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Source};

/// Workgroup memory that a kernel may use: what every device has.
pub const WORKGROUP_BYTES: u32 = 16 << 10;
/// The fewest rows in a block, where sums over a head's rows are cut into blocks.
const ROW_BLOCK: u32 = 512;
/// The most blocks of a head's rows: bounds the memory of their sums.
const MOST_BLOCKS: u32 = 8;
/// The longest curvature history that `lbfgs_direction` can follow.
pub(super) const MOST_HISTORY: u32 = 256;
/// The most workgroups that stride over one head's elements.
const MOST_STRIDES: u32 = 1024;

/// What a device is, as far as kernels differ by it.
///
/// ```no_run
/// use kvsculpt::{gpu::{Gpu, Selection}, kernels::Machine};
///
/// let gpu = Gpu::open(&Selection::default())?;
/// assert_eq!(Machine::of(&gpu), Machine { software: gpu.is_software(), subgroups: gpu.subgroup().is_some() });
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// It computes on the processor.
    pub software: bool,
    /// It has subgroup operations.
    pub subgroups: bool,
}

impl Machine {
    /// The facts of an open device.
    #[must_use]
    pub fn of(gpu: &Gpu) -> Self {
        Self {
            software: gpu.is_software(),
            subgroups: gpu.subgroup().is_some(),
        }
    }
}

/// The numbers of one specialisation of the kernels, a pure function of [`Dims`] and [`Machine`].
///
/// ```
/// use kvsculpt::{engine::Dims, kernels::{Machine, Spec}};
///
/// let machine = Machine { software: false, subgroups: true };
/// let spec = Spec::new(Dims { dim: 128, value_dim: 128 }, machine)?;
/// assert!(spec.subgroups && spec.attention_lanes > 0);
/// // Channels are multiples of 4.
/// assert!(Spec::new(Dims { dim: 126, value_dim: 128 }, machine).is_err());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Spec {
    /// Channels.
    pub dims: Dims,
    /// Whether reductions go through subgroups.
    pub subgroups: bool,
    /// Rows a workgroup of `attention`.
    pub attention_lanes: u32,
    /// Pairs that `attention` stages at a time.
    pub attention_tile: u32,
    /// Pairs a workgroup of `scores`, `weights`, `rhs` and `key_gradient`.
    pub key_lanes: u32,
    /// Rows that `scores` and `weights` stage at a time.
    pub score_tile: u32,
    /// Rows that `key_gradient` stages at a time.
    pub gradient_tile: u32,
    /// Lanes of workgroups that sum.
    pub reduce_lanes: u32,
    /// Lanes of workgroups that go through elements one by one.
    pub element_lanes: u32,
    /// Lanes of `gram`, each with two columns.
    pub gram_lanes: u32,
    /// Value channels an invocation of `rhs` holds.
    pub rhs_channels: u32,
    /// Value channels a workgroup of `solve`.
    pub solve_lanes: u32,
}

impl Spec {
    /// The numbers for these channels on this machine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for channels that are not a multiple of 4 between 4 and 256.
    pub fn new(dims: Dims, machine: Machine) -> Result<Self> {
        for (what, channels) in [("channels of a key", dims.dim), ("channels of a value", dims.value_dim)] {
            if !channels.is_multiple_of(4) || !(4..=256).contains(&channels) {
                return Err(Error::Unsupported {
                    what: what.into(),
                    need: channels.to_string(),
                    have: "kernels for multiples of 4 up to 256".into(),
                    remedy: "fill the channels up with zeros".into(),
                });
            }
        }
        Ok(Self {
            dims,
            subgroups: machine.subgroups,
            attention_lanes: if machine.software { 128 } else { 64 },
            attention_tile: tile(dims.dim + dims.value_dim),
            key_lanes: if machine.software { 128 } else { 64 },
            score_tile: tile(dims.dim + 1),
            gradient_tile: tile(dims.dim + dims.state_row()),
            // A barrier costs a software driver for every lane, a GPU hides memory's latency behind more of them.
            reduce_lanes: if machine.software { 64 } else { 256 },
            element_lanes: if machine.software { 64 } else { 256 },
            gram_lanes: if machine.software { 32 } else { 64 },
            rhs_channels: rhs_channels(dims.value_dim),
            solve_lanes: if machine.software { 64 } else { 32 },
        })
    }

    /// A kernel's whole text: header and prelude before its file.
    pub(super) fn source(&self, kernel: &'static str, text: &'static str) -> Source {
        let mut source = Source::new(kernel, text);
        for (name, value) in [
            ("DIM", self.dims.dim),
            ("VALUE_DIM", self.dims.value_dim),
            ("ATTENTION_LANES", self.attention_lanes),
            ("ATTENTION_TILE", self.attention_tile),
            ("KEY_LANES", self.key_lanes),
            ("SCORE_TILE", self.score_tile),
            ("GRADIENT_TILE", self.gradient_tile),
            ("REDUCE_LANES", self.reduce_lanes),
            ("ELEMENT_LANES", self.element_lanes),
            ("GRAM_LANES", self.gram_lanes),
            ("RHS_CHANNELS", self.rhs_channels),
            ("SOLVE_LANES", self.solve_lanes),
            ("ROW_BLOCK", ROW_BLOCK),
            ("MOST_BLOCKS", MOST_BLOCKS),
            ("MOST_HISTORY", MOST_HISTORY),
        ] {
            source = source.constant(name, value);
        }
        source.part("prelude", include_str!("../../shaders/prelude.wgsl")).loops_end()
    }

    /// The same for a kernel that sums over workgroups.
    pub(super) fn reducing_source(&self, kernel: &'static str, text: &'static str) -> Source {
        let source = self.source(kernel, text);
        if self.subgroups {
            source.part("reduce_subgroup", include_str!("../../shaders/reduce_subgroup.wgsl"))
        } else {
            source.part("reduce_shared", include_str!("../../shaders/reduce_shared.wgsl"))
        }
    }

    /// Workgroups that stride over `elements` of a head.
    pub(super) fn strides(&self, elements: u64) -> u32 {
        let groups = elements.div_ceil(u64::from(self.element_lanes)).min(u64::from(MOST_STRIDES));
        u32::try_from(groups).unwrap_or(MOST_STRIDES)
    }
}

/// Blocks that a head's rows are cut into, where sums over them are; the shaders' `row_block` is its twin.
pub(super) fn row_blocks(rows: u32) -> u32 {
    rows.div_ceil(ROW_BLOCK.max(rows.div_ceil(MOST_BLOCKS)))
}

/// How many rows of `floats` fit into workgroup memory: at most 32, a multiple of 4.
fn tile(floats: u32) -> u32 {
    (WORKGROUP_BYTES / 4 / floats).min(32) / 4 * 4
}

/// The fewest equal shares of a value's channels with at most 64 in each.
fn rhs_channels(value_dim: u32) -> u32 {
    let quads = value_dim / 4;
    (value_dim.div_ceil(64)..=quads)
        .find(|&parts| quads.is_multiple_of(parts))
        .map_or(4, |parts| value_dim / parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        software: false,
        subgroups: true,
    };

    fn spec(dim: u32, value_dim: u32) -> Spec {
        Spec::new(Dims { dim, value_dim }, MACHINE).unwrap()
    }

    #[test]
    fn tiles_fill_workgroup_memory_and_no_more() {
        assert_eq!(spec(64, 64).attention_tile, 32);
        assert_eq!(spec(128, 128).attention_tile, 16);
        assert_eq!(spec(256, 256).attention_tile, 8);
        for dim in (4..=256).step_by(4) {
            for value_dim in (4..=256).step_by(4) {
                let spec = spec(dim, value_dim);
                assert!(spec.attention_tile >= 4 && spec.gradient_tile >= 4 && spec.score_tile >= 4);
                assert!(spec.attention_tile * (dim + value_dim) * 4 <= WORKGROUP_BYTES);
                assert!(spec.gradient_tile * (dim + value_dim + 4) * 4 <= WORKGROUP_BYTES);
                assert!(spec.score_tile * (dim + 1) * 4 <= WORKGROUP_BYTES);
                assert!(value_dim.is_multiple_of(spec.rhs_channels) && spec.rhs_channels.is_multiple_of(4) && spec.rhs_channels <= 64);
            }
        }
    }

    #[test]
    fn channels_of_the_right_hand_side_are_shared_evenly() {
        assert_eq!([32, 64, 80, 96, 128, 256].map(rhs_channels), [32, 64, 40, 48, 64, 64]);
    }

    #[test]
    fn rows_are_cut_into_few_blocks() {
        assert_eq!([1, 512, 513, 2688, 4096, 4097, 100_000].map(row_blocks), [1, 1, 2, 6, 8, 8, 8]);
    }

    #[test]
    fn odd_channels_are_refused() {
        for dim in [0, 2, 66, 260] {
            assert!(Spec::new(Dims { dim, value_dim: 64 }, MACHINE).is_err());
            assert!(Spec::new(Dims { dim: 64, value_dim: dim }, MACHINE).is_err());
        }
    }
}
