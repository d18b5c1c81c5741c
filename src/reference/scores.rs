//! The summed weight of each key.

use super::dot;

/// `score_j = Σ_q e^{s q·k_j − l_q}`, `[pairs]`.
///
/// Queries `[rows, dim]`, keys `[pairs, dim]`, mass `[rows]`.
#[must_use]
pub fn scores(queries: &[f64], keys: &[f64], dim: usize, mass: &[f64], scale: f64) -> Vec<f64> {
    let rows = || queries.chunks_exact(dim).zip(mass);
    keys.chunks_exact(dim)
        .map(|key| rows().map(|(query, mass)| (scale * dot(query, key) - mass).exp()).sum())
        .collect()
}
