//! The student's weights on the free pairs.

use super::dot;

/// `A_qj = e^{s q·c_j − l̂_q}`, `[rows, pairs]`.
///
/// Queries `[rows, dim]`, keys `[pairs, dim]`, mass l̂ `[rows]`. Rows sum to less than 1 where a base holds mass.
///
/// ```
/// use kvsculpt::reference::weights;
///
/// // Two pairs of score 0 where l̂ = ln 4: a quarter each, and half is the base's.
/// let weights = weights(&[0.0], &[1.0, -1.0], 1, &[4_f64.ln()], 1.0);
/// assert!(weights.iter().all(|weight| (weight - 0.25).abs() < 1e-12));
/// ```
#[must_use]
pub fn weights(queries: &[f64], keys: &[f64], dim: usize, mass: &[f64], scale: f64) -> Vec<f64> {
    let mut weights = Vec::new();
    for (query, mass) in queries.chunks_exact(dim).zip(mass) {
        weights.extend(keys.chunks_exact(dim).map(|key| (scale * dot(query, key) - mass).exp()));
    }
    weights
}
