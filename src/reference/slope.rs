//! What the line search asks of a gradient.

use super::dot;

/// A gradient seen along a direction.
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
