//! A trial point on a line.

/// `origin + t · direction`.
#[must_use]
pub fn step(origin: &[f64], direction: &[f64], length: f64) -> Vec<f64> {
    origin
        .iter()
        .zip(direction)
        .map(|(origin, direction)| origin + length * direction)
        .collect()
}
