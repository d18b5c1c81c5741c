//! The right-hand side of the normal equations.

/// `R = −Aᵀ e`, `[pairs, value_dim]`; A `[rows, pairs]`, e `[rows, value_dim]`.
///
/// ```
/// use kvsculpt::reference::rhs;
///
/// // −(0.5 · 2 + 0.25 · 4): one pair, two rows, one channel.
/// assert_eq!(rhs(&[0.5, 0.25], &[2.0, 4.0], 1, 1), [-2.0]);
/// ```
#[must_use]
pub fn rhs(weights: &[f64], error: &[f64], pairs: usize, value_dim: usize) -> Vec<f64> {
    let mut rhs = vec![0.0; pairs * value_dim];
    for (weights, error) in weights.chunks_exact(pairs).zip(error.chunks_exact(value_dim)) {
        for (weight, rhs) in weights.iter().zip(rhs.chunks_exact_mut(value_dim)) {
            for (rhs, error) in rhs.iter_mut().zip(error) {
                *rhs -= weight * error;
            }
        }
    }
    rhs
}
