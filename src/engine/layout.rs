//! Where heads lie in the arrays of their batch, and what stands at which place.

use bytemuck::{Pod, Zeroable};

/// Rows of a head whose weights are held at once; the normal equations are summed block by block.
pub const WEIGHT_ROWS: u32 = 1024;

/// The mass of no pairs at all: finite, so that shaders need no infinity, and `exp(NO_MASS − l)` is 0 for every real `l`.
pub const NO_MASS: f32 = -1.0e30;

/// Scalars a head, see [`scalar`].
pub const SCALARS: usize = 16;

/// The places in a head's row of `scalars`.
pub mod scalar {
    /// `Σ ‖ŷ − y‖²` over the head's rows (from `loss`).
    pub const OUTPUT: usize = 0;
    /// `Σ (l̂ − l)²` (from `loss`).
    pub const MASS: usize = 1;
    /// `Σ ‖y‖²` (from `loss`).
    pub const SCALE: usize = 2;
    /// How many rows are not finite (from `loss`).
    pub const NOT_FINITE: usize = 3;
    /// `gradient · direction` (from `slope`).
    pub const SLOPE: usize = 4;
    /// `max |gradient|` (from `slope`); not finite if any element is not.
    pub const GRADIENT_MAX: usize = 5;
    /// `Σ |gradient|` (from `slope`).
    pub const GRADIENT_SUM: usize = 6;
    /// `gradient · direction` of the new direction (from `lbfgs_direction`).
    pub const DIRECTION_SLOPE: usize = 8;
    /// `max |direction|` (from `lbfgs_direction`).
    pub const DIRECTION_MAX: usize = 9;
    /// `s·y` of the newest curvature pair, of use or not (from `lbfgs_push`).
    pub const CURVATURE: usize = 10;
    /// 1 if every pivot was positive and finite, else 0 (from `cholesky`).
    pub const FACTORED: usize = 12;
    /// The mean of the Gram's diagonal, before the ridge (from `cholesky`).
    pub const DIAGONAL: usize = 13;
}

/// Channels of keys and of values: the same for all heads of a batch, multiples of 4, at most [`MOST`](Self::MOST).
///
/// ```
/// use kvsculpt::engine::Dims;
///
/// let dims = Dims { dim: 128, value_dim: 64 };
/// assert_eq!(dims.state_row(), 68);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Dims {
    /// Channels of a key or query.
    pub dim: u32,
    /// Channels of a value.
    pub value_dim: u32,
}

impl Dims {
    /// The most channels that there are kernels for.
    ///
    /// ```
    /// use kvsculpt::{cache::Generator, engine::Dims};
    ///
    /// let mut generator = Generator::default();
    /// generator.dim = Dims::MOST as usize;
    /// assert!(generator.validate().is_ok());
    /// generator.dim += 4;
    /// assert!(generator.validate().is_err());
    /// ```
    pub const MOST: u32 = 256;

    /// Whether there are kernels for so many channels.
    pub(crate) fn is_served(channels: usize) -> bool {
        channels.is_multiple_of(4) && (4..=Self::MOST as usize).contains(&channels)
    }

    /// Floats in a row of a state or error array: the value channels and four more.
    ///
    /// ```
    /// use kvsculpt::engine::Dims;
    ///
    /// // Outputs, the mass, and three zeros.
    /// assert_eq!(Dims { dim: 64, value_dim: 64 }.state_row(), 68);
    /// ```
    #[must_use]
    pub fn state_row(self) -> u32 {
        self.value_dim + 4
    }
}

/// Where one head lies in the arrays of its batch; one row of a table, as the shaders read it.
///
/// ```
/// use kvsculpt::engine::Head;
///
/// // Two heads of 10 and 20 pairs, each seen by 8 rows, one after the other.
/// let first = Head { rows: 8, pairs: 10, ..Head::default() };
/// let second = Head { index: 1, row: 8, rows: 8, pair: 10, pairs: 20, square: 10 * 10, weights: 8 * 10, padding: 0 };
/// assert_eq!((first.row + first.rows, first.pair + first.pairs), (second.row, second.pair));
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// The head's number in its batch: its row in `scalars` and in every other array with one row a head.
    pub index: u32,
    /// First query row.
    pub row: u32,
    /// Query rows, n.
    pub rows: u32,
    /// First pair.
    pub pair: u32,
    /// Pairs, k (or N, where the table is over the full cache).
    pub pairs: u32,
    /// First element of the head's square in `gram` and `factor`.
    pub square: u32,
    /// First element of the head's block in `weights`.
    pub weights: u32,
    /// 0; makes the row 32 bytes long. An engine may keep a number of its own here in its copy of a table.
    pub padding: u32,
}
