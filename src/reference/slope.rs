//! What the line search asks of a gradient.

use super::dot;

/// A gradient seen along a direction.
///
/// ```
/// use kvsculpt::reference::{Slope, slope};
///
/// // Not a number anywhere is not a number in the largest.
/// let Slope { largest, .. } = slope(&[1.0, f64::NAN], &[0.0, 0.0]);
/// assert!(largest.is_nan());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// `gradient · direction`.
    pub slope: f64,
    /// `max |gradient|`; NaN if any element is.
    pub largest: f64,
    /// `Σ |gradient|`.
    pub sum: f64,
}

/// `gradient · direction`, `max |gradient|` and `Σ |gradient|`.
///
/// ```
/// use kvsculpt::reference::{Slope, slope};
///
/// assert_eq!(slope(&[1.0, -3.0], &[2.0, 1.0]), Slope { slope: -1.0, largest: 3.0, sum: 4.0 });
/// ```
#[must_use]
pub fn slope(gradient: &[f64], direction: &[f64]) -> Slope {
    Slope {
        slope: dot(gradient, direction),
        largest: if gradient.iter().any(|g| g.is_nan()) {
            f64::NAN // f64::max would drop it
        } else {
            gradient.iter().fold(0.0, |largest, g| g.abs().max(largest))
        },
        sum: gradient.iter().map(|g| g.abs()).sum(),
    }
}
