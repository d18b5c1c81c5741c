//! The matrix of the normal equations.

/// `G = AᵀA`, `[pairs, pairs]`, both triangles; A `[rows, pairs]`.
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
