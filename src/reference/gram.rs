//! The matrix of the normal equations.

/// `G = AᵀA`, `[pairs, pairs]`, both triangles; A `[rows, pairs]`.
///
/// ```
/// use kvsculpt::reference::gram;
///
/// // A = [1, 2; 3, 4].
/// assert_eq!(gram(&[1.0, 2.0, 3.0, 4.0], 2), [10.0, 14.0, 14.0, 20.0]);
/// ```
#[must_use]
pub fn gram(weights: &[f64], pairs: usize) -> Vec<f64> {
    let mut gram = vec![0.0; pairs * pairs];
    for row in weights.chunks_exact(pairs) {
        for i in 0..pairs {
            for j in 0..pairs {
                gram[i * pairs + j] += row[i] * row[j];
            }
        }
    }
    gram
}
