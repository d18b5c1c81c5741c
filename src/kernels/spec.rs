//! What changes a kernel's text: the numbers that both the shader's header and the host's grid are made from.

use crate::engine::Dims;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Matrices, Source};

/// Workgroup memory that a kernel may use: what every device has.
pub const WORKGROUP_BYTES: u32 = 16 << 10;
/// Rows and columns of a product's tile, where products go by tiles; `TILE` in tiles.wgsl.
pub(super) const TILE: u32 = 64;
/// Rows and columns of matrices in a product's tile, where products go by cooperative matrices; as in matrices.wgsl.
pub(super) const TILE_MATRICES: u32 = 4;
/// Floats that a lane may hold of a query, key, value or sum. GPUs have at most 255 registers a lane, and some dozens are needed besides.
const MOST_HELD: u32 = 192;
/// Unknowns that `solve` finds in one workgroup before many take them off the others. Shorter spans are more dispatches, longer ones leave
/// more to one workgroup: 64 was the fastest of 32, 64, 128 and no spans on lavapipe; a GPU is not expected to differ much, where a dispatch
/// takes about as long as a block of 32.
const SOLVE_SPAN: u32 = 64;
/// vec4 of a head that a workgroup of `lbfgs_parts` goes through: some for every lane, so that their loads overlap, and few enough that
/// a head of some hundred pairs occupies several workgroups.
pub(super) const DIRECTION_PART: u32 = 1024;
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
/// let facts = Machine { software: gpu.is_software(), subgroups: gpu.subgroup().is_some(), matrices: gpu.matrices() };
/// assert_eq!(Machine::of(&gpu), facts);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// It computes on the processor.
    pub software: bool,
    /// It has subgroup operations.
    pub subgroups: bool,
    /// The cooperative matrices that products are to go by, where it was opened for them.
    pub matrices: Option<Matrices>,
}

impl Machine {
    /// The facts of an open device.
    #[must_use]
    pub fn of(gpu: &Gpu) -> Self {
        Self {
            software: gpu.is_software(),
            subgroups: gpu.subgroup().is_some(),
            matrices: gpu.matrices(),
        }
    }

    /// How sums over a head's rows are cut. A GPU has room for thousands of lanes, which few heads of some hundred pairs do not fill; a
    /// software driver would only write and read more sums.
    /// ```
    /// use kvsculpt::kernels::Machine;
    ///
    /// let gpu = Machine { software: false, subgroups: true, matrices: None };
    /// assert_eq!(gpu.row_blocks().of(2048), 16);
    /// ```
    #[must_use]
    pub fn row_blocks(self) -> RowBlocks {
        let (least_rows, most) = if self.software { (512, 8) } else { (128, 32) };
        RowBlocks { least_rows, most }
    }
}

/// How a head's rows are cut into blocks, where sums over them are; part of a result's bits.
/// ```
/// use kvsculpt::kernels::RowBlocks;
///
/// let blocks = RowBlocks { least_rows: 128, most: 32 };
/// assert_eq!([1, 128, 129, 1_000_000].map(|rows| blocks.of(rows)), [1, 1, 2, 32]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct RowBlocks {
    /// The fewest rows in a block.
    pub least_rows: u32,
    /// The most blocks of a head's rows: bounds the memory of their sums.
    pub most: u32,
}

impl RowBlocks {
    /// Blocks of so many rows; the shaders' `row_block` is its twin.
    #[must_use]
    pub fn of(self, rows: u32) -> u32 {
        rows.div_ceil(self.least_rows.max(rows.div_ceil(self.most)))
    }
}

/// The numbers of one specialisation of the kernels, a pure function of [`Dims`] and [`Machine`].
///
/// ```
/// use kvsculpt::{engine::Dims, kernels::{Machine, Spec}};
///
/// let machine = Machine { software: false, subgroups: true, matrices: None };
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
    /// Whether `scores`, `weights`, `gram` and `rhs` go by tiles of 64 × 64 sums, a workgroup of 256 lanes each. A GPU has the lanes for
    /// them, and reads each operand 16 times less often; a software driver pays for every read of workgroup memory that differs by lane, and
    /// is four times faster with a row or column a lane.
    pub product_tiles: bool,
    /// Cooperative matrices that `gram` goes by instead.
    pub matrices: Option<Matrices>,
    /// Lanes of `attention`.
    pub attention_lanes: u32,
    /// Lanes of `attention` that share a row's channels: so many that none holds more than 192 floats on a GPU, which would
    /// have to keep the rest in memory; a software driver has its registers there anyway.
    pub attention_shares: u32,
    /// Pairs that `attention` stages at a time.
    pub attention_tile: u32,
    /// Pairs a workgroup of `scores`, `weights` and `rhs`, where they go by lanes.
    pub key_lanes: u32,
    /// Rows that `scores` and `weights` stage at a time.
    pub score_tile: u32,
    /// Rows that `effects` stages at a time.
    pub effect_tile: u32,
    /// Lanes of `effects`.
    pub effect_lanes: u32,
    /// Lanes of `effects` that share a pair's channels, as [`Spec::attention_shares`].
    pub effect_shares: u32,
    /// Rows that `key_gradient` stages at a time.
    pub gradient_tile: u32,
    /// Lanes of `key_gradient`.
    pub gradient_lanes: u32,
    /// Lanes of `key_gradient` that share a pair's channels, as [`Spec::attention_shares`].
    pub gradient_shares: u32,
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
    /// Whether `lbfgs_direction` gives a head to many workgroups, in a dispatch for every dot. One workgroup keeps a single core of a GPU busy
    /// with all of a head's history; for a software driver, whose cores are few, further dispatches cost more than they bring.
    pub direction_parts: bool,
    /// How sums over a head's rows are cut.
    pub row_blocks: RowBlocks,
    /// Unknowns that `solve` finds before it takes them off all others: a multiple of 32, part of the result's bits.
    pub solve_span: u32,
}

impl Spec {
    /// The numbers for these channels on this machine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for channels that are not a multiple of 4 from 4 to [`Dims::MOST`].
    pub fn new(dims: Dims, machine: Machine) -> Result<Self> {
        for (what, channels) in [("channels of a key", dims.dim), ("channels of a value", dims.value_dim)] {
            if !Dims::is_served(channels as usize) {
                return Err(Error::Unsupported {
                    what: what.into(),
                    need: channels.to_string(),
                    have: format!("kernels for multiples of 4 up to {}", Dims::MOST),
                    remedy: "fill the channels up with zeros".into(),
                });
            }
        }
        let Dims { dim, value_dim } = dims;
        let (attention_shares, gradient_shares) = if machine.software {
            (1, 1)
        } else {
            (shares(dims, dim + value_dim), shares(dims, 2 * dim + value_dim))
        };
        // Sharing lanes are added, as far as workgroup memory holds what they leave for each other.
        let lanes = |shares: u32| if machine.software { 128 } else { 64 * shares.min(2) };
        let (attention_lanes, gradient_lanes) = (lanes(attention_shares), lanes(gradient_shares));
        Ok(Self {
            dims,
            subgroups: machine.subgroups,
            product_tiles: !machine.software,
            matrices: machine.matrices,
            attention_lanes,
            attention_shares,
            attention_tile: tile(dim + value_dim + left_dots(attention_shares, attention_lanes)),
            key_lanes: if machine.software { 128 } else { 64 },
            score_tile: tile(dim + 1),
            effect_tile: tile(dim + dims.state_row() + 2 * left_dots(attention_shares, attention_lanes)),
            // What a lane holds is as much as in attention.
            effect_lanes: attention_lanes,
            effect_shares: attention_shares,
            gradient_tile: tile(dim + dims.state_row() + 2 * left_dots(gradient_shares, gradient_lanes)),
            gradient_lanes,
            gradient_shares,
            // A barrier costs a software driver for every lane, a GPU hides memory's latency behind more of them.
            reduce_lanes: if machine.software { 64 } else { 256 },
            element_lanes: if machine.software { 64 } else { 256 },
            gram_lanes: if machine.software { 32 } else { 64 },
            rhs_channels: rhs_channels(value_dim),
            solve_lanes: if machine.software { 64 } else { 32 },
            direction_parts: !machine.software,
            row_blocks: machine.row_blocks(),
            solve_span: SOLVE_SPAN,
        })
    }

    /// A kernel's whole text: header and prelude before its file.
    pub(super) fn source(&self, kernel: &'static str, text: &'static str) -> Source {
        let mut source = Source::new(kernel, text);
        for (name, value) in [
            ("DIM", self.dims.dim),
            ("VALUE_DIM", self.dims.value_dim),
            ("ATTENTION_LANES", self.attention_lanes),
            ("ATTENTION_SHARES", self.attention_shares),
            ("ATTENTION_TILE", self.attention_tile),
            ("KEY_LANES", self.key_lanes),
            ("SCORE_TILE", self.score_tile),
            ("EFFECT_TILE", self.effect_tile),
            ("EFFECT_LANES", self.effect_lanes),
            ("EFFECT_SHARES", self.effect_shares),
            ("GRADIENT_TILE", self.gradient_tile),
            ("GRADIENT_LANES", self.gradient_lanes),
            ("GRADIENT_SHARES", self.gradient_shares),
            ("REDUCE_LANES", self.reduce_lanes),
            ("ELEMENT_LANES", self.element_lanes),
            ("GRAM_LANES", self.gram_lanes),
            ("RHS_CHANNELS", self.rhs_channels),
            ("SOLVE_LANES", self.solve_lanes),
            ("SOLVE_SPAN", self.solve_span),
            ("ROW_BLOCK", self.row_blocks.least_rows),
            ("MOST_BLOCKS", self.row_blocks.most),
            ("MOST_HISTORY", MOST_HISTORY),
            ("DIRECTION_PART", DIRECTION_PART),
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

    /// The text of a kernel of which so many lanes share a row, and leave so many `dots` for each other.
    pub(super) fn sharing_source(&self, kernel: &'static str, text: &'static str, shares: u32, dots: u32) -> Source {
        let source = self.source(kernel, text);
        if shares > 1 {
            source
                .constant("DOTS", dots)
                .part("share_many", include_str!("../../shaders/share_many.wgsl"))
        } else {
            source.part("share_one", include_str!("../../shaders/share_one.wgsl"))
        }
    }

    /// A product's text: of the two files of a kernel the one by tiles, with what it shares with others, or the one by lanes.
    pub(super) fn product_source(
        &self,
        by_lanes: (&'static str, &'static str),
        by_tiles: (&'static str, &'static str),
        shared: (&'static str, &'static str),
    ) -> Source {
        if self.product_tiles {
            let tiles = ("tiles", include_str!("../../shaders/tiles.wgsl"));
            self.source(by_tiles.0, by_tiles.1).part(tiles.0, tiles.1).part(shared.0, shared.1)
        } else {
            self.source(by_lanes.0, by_lanes.1)
        }
    }

    /// A product's text by cooperative matrices, with what it shares with others.
    pub(super) fn matrices_source(
        &self,
        kernel: (&'static str, &'static str),
        matrices: Matrices,
        shared: (&'static str, &'static str),
    ) -> Source {
        self.source(kernel.0, kernel.1)
            .matrices(matrices.side)
            .constant("SIDE", matrices.side)
            .constant("MATRIX_LANES", matrices.lanes())
            .part("matrices", include_str!("../../shaders/matrices.wgsl"))
            .part(shared.0, shared.1)
    }

    /// Workgroups that stride over `elements` of a head.
    pub(super) fn strides(&self, elements: u64) -> u32 {
        let groups = elements.div_ceil(u64::from(self.element_lanes)).min(u64::from(MOST_STRIDES));
        u32::try_from(groups).unwrap_or(MOST_STRIDES)
    }
}

/// How many rows of `floats` fit into workgroup memory: at most 32, a multiple of 4.
fn tile(floats: u32) -> u32 {
    (WORKGROUP_BYTES / 4 / floats).min(32) / 4 * 4
}

/// The fewest lanes, a power of two, that share `floats` so that none holds more than [`MOST_HELD`]; 1 where channels cannot be shared
/// evenly.
fn shares(dims: Dims, floats: u32) -> u32 {
    let even = |shares: &u32| (dims.dim / 4).is_multiple_of(*shares) && (dims.value_dim / 4).is_multiple_of(*shares);
    [1, 2, 4]
        .into_iter()
        .filter(even)
        .find(|shares| floats <= shares * MOST_HELD)
        .unwrap_or(1)
}

/// Floats of a staged row that lanes leave for each other.
fn left_dots(shares: u32, lanes: u32) -> u32 {
    if shares > 1 { lanes } else { 0 }
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
        matrices: None,
    };
    const SOFTWARE: Machine = Machine { software: true, ..MACHINE };

    fn spec(dim: u32, value_dim: u32) -> Spec {
        Spec::new(Dims { dim, value_dim }, MACHINE).unwrap()
    }

    #[test]
    fn tiles_fill_workgroup_memory_and_no_more() {
        let tile = |dim, machine| Spec::new(Dims { dim, value_dim: dim }, machine).unwrap().attention_tile;
        assert_eq!([64, 128, 256].map(|dim| tile(dim, SOFTWARE)), [32, 16, 8]);
        // Less where lanes leave dots for each other.
        assert_eq!([64, 128, 256].map(|dim| tile(dim, MACHINE)), [32, 8, 4]);
        for dim in (4..=256).step_by(4) {
            for value_dim in (4..=256).step_by(4) {
                for machine in [SOFTWARE, MACHINE] {
                    fits(&Spec::new(Dims { dim, value_dim }, machine).unwrap());
                }
            }
        }
    }

    fn fits(spec: &Spec) {
        let Dims { dim, value_dim } = spec.dims;
        let dots = |shares, lanes| 4 * left_dots(shares, lanes);
        let attention = (dim + value_dim) * 4 + dots(spec.attention_shares, spec.attention_lanes);
        let effect = (dim + value_dim + 4) * 4 + 2 * dots(spec.effect_shares, spec.effect_lanes);
        let gradient = (dim + value_dim + 4) * 4 + 2 * dots(spec.gradient_shares, spec.gradient_lanes);
        for (tile, bytes) in [
            (spec.attention_tile, attention),
            (spec.effect_tile, effect),
            (spec.gradient_tile, gradient),
            (spec.score_tile, (dim + 1) * 4),
        ] {
            assert!(
                tile >= 4 && tile * bytes <= WORKGROUP_BYTES,
                "{tile} rows of {bytes} bytes, {spec:?}"
            );
        }
        assert!(value_dim.is_multiple_of(spec.rhs_channels) && spec.rhs_channels.is_multiple_of(4) && spec.rhs_channels <= 64);
    }

    #[test]
    fn a_gpu_shares_rows_that_its_registers_do_not_hold() {
        let shares = |dim, value_dim| {
            let spec = spec(dim, value_dim);
            [spec.attention_shares, spec.gradient_shares]
        };
        assert_eq!(
            [(32, 32), (64, 64), (96, 96)].map(|(dim, value_dim)| shares(dim, value_dim)),
            [[1, 1], [1, 1], [1, 2]]
        );
        assert_eq!(
            [(128, 128), (192, 128), (256, 256)].map(|(dim, value_dim)| shares(dim, value_dim)),
            [[2, 2], [2, 4], [4, 4]]
        );
        // 33 vec4 cannot be shared.
        assert_eq!(shares(132, 128), [1, 1]);
    }

    #[test]
    fn a_software_driver_gets_no_tiles_shares_or_parts() {
        let dims = Dims { dim: 256, value_dim: 256 };
        let spec = Spec::new(dims, SOFTWARE).unwrap();
        assert!(!spec.direction_parts && !spec.product_tiles && spec.attention_shares == 1 && spec.gradient_shares == 1);
        let spec = Spec::new(dims, MACHINE).unwrap();
        assert!(spec.direction_parts && spec.product_tiles);
    }

    #[test]
    fn channels_of_the_right_hand_side_are_shared_evenly() {
        assert_eq!([32, 64, 80, 96, 128, 256].map(rhs_channels), [32, 64, 40, 48, 64, 64]);
    }

    #[test]
    fn rows_are_cut_into_few_blocks() {
        let blocks = |machine: Machine| [1, 512, 513, 2688, 4096, 4097, 100_000].map(|rows| machine.row_blocks().of(rows));
        assert_eq!(blocks(SOFTWARE), [1, 1, 2, 6, 8, 8, 8]);
        assert_eq!(blocks(MACHINE), [1, 4, 5, 21, 32, 32, 32]);
    }

    #[test]
    fn odd_channels_are_refused() {
        for dim in [0, 2, 66, 260] {
            assert!(Spec::new(Dims { dim, value_dim: 64 }, MACHINE).is_err());
            assert!(Spec::new(Dims { dim: 64, value_dim: dim }, MACHINE).is_err());
        }
    }
}
