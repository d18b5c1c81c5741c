//! The factor of the normal equations' matrix.

/// The mean of the diagonal of `G`, `[pairs, pairs]`; what a relative ridge is measured by.
///
/// ```
/// use kvsculpt::reference::mean_diagonal;
///
/// assert_eq!(mean_diagonal(&[3.0, 9.0, 9.0, 4.0], 2), 3.5);
/// ```
#[must_use]
pub fn mean_diagonal(gram: &[f64], pairs: usize) -> f64 {
    (0..pairs).map(|i| gram[i * pairs + i]).sum::<f64>() / pairs as f64
}

/// `L Lᵀ = G + (ridge₀ + ridge₁ · mean diag G) I`, L `[pairs, pairs]`, lower triangular with zeros above.
///
/// Reads the lower triangle of G only. `None` where a pivot is not positive and finite.
///
/// ```
/// use kvsculpt::reference::cholesky;
///
/// // [4, 2; 2, 5], with 1 added to the diagonal on the way.
/// assert_eq!(cholesky(&[3.0, 2.0, 2.0, 4.0], 2, [1.0, 0.0]), Some(vec![2.0, 0.0, 1.0, 2.0]));
/// assert_eq!(cholesky(&[-1.0], 1, [0.0, 0.0]), None);
/// ```
#[must_use]
pub fn cholesky(gram: &[f64], pairs: usize, ridge: [f64; 2]) -> Option<Vec<f64>> {
    let ridge = ridge[0] + ridge[1] * mean_diagonal(gram, pairs);
    let mut factor = vec![0.0; pairs * pairs];
    for row in 0..pairs {
        for column in 0..=row {
            let known: f64 = (0..column).map(|i| factor[row * pairs + i] * factor[column * pairs + i]).sum();
            let rest = gram[row * pairs + column] - known;
            factor[row * pairs + column] = if column < row {
                rest / factor[column * pairs + column]
            } else {
                let pivot = rest + ridge;
                if !(pivot > 0.0 && pivot.is_finite()) {
                    return None;
                }
                pivot.sqrt()
            };
        }
    }
    Some(factor)
}
