//! A trial point on a line.

/// `origin + t · direction`.
///
/// ```
/// use kvsculpt::reference::step;
///
/// assert_eq!(step(&[1.0, 1.0], &[2.0, -4.0], 0.5), [2.0, -1.0]);
/// ```
#[must_use]
pub fn step(origin: &[f64], direction: &[f64], length: f64) -> Vec<f64> {
    origin
        .iter()
        .zip(direction)
        .map(|(origin, direction)| origin + length * direction)
        .collect()
}
