//! The summed weight of each key.

use super::dot;

/// `score_j = Σ_q e^{s q·k_j − l_q}`, `[pairs]`.
///
/// Queries `[rows, dim]`, keys `[pairs, dim]`, mass `[rows]`.
///
/// ```
/// use kvsculpt::reference::scores;
///
/// // Two rows that see two keys alike: a half of each.
/// let mass = [2_f64.ln(); 2];
/// let scores = scores(&[0.0, 0.0], &[1.0, -1.0], 1, &mass, 1.0);
/// assert!(scores.iter().all(|score| (score - 1.0).abs() < 1e-12));
/// ```
#[must_use]
pub fn scores(queries: &[f64], keys: &[f64], dim: usize, mass: &[f64], scale: f64) -> Vec<f64> {
    let rows = || queries.chunks_exact(dim).zip(mass);
    keys.chunks_exact(dim)
        .map(|key| rows().map(|(query, mass)| (scale * dot(query, key) - mass).exp()).sum())
        .collect()
}
