//! What attention would lose with each pair, were it dropped alone.

use super::{State, dot};

/// `effect_j = Σ_q p_qj² ‖v_j − y_q / 2‖²` with `p_qj = e^{s q·k_j − l_q}`, `[pairs]`.
///
/// Queries `[rows, dim]`, keys `[pairs, dim]`, values `[pairs, value_dim]`, the state of attention over all pairs.
///
/// Up to a factor it is the squared error of [`merged`](super::merged) that dropping pair j alone brings about. The context's output is
/// merged with a block of new tokens as heavy as itself, `m = (Σ_i p_i v_i + u) / 2`. Without pair j the numerator loses `p_j v_j` and the
/// weights' sum `p_j`, so to first order m moves by `−p_j (v_j − m) / 2`. Nothing is known of the block's output u but that it points
/// anywhere: on the mean over it, `‖v_j − m‖²` is `‖v_j − y / 2‖²` and a part that all pairs have in common.
///
/// ```
/// use kvsculpt::reference::{attention, effects};
///
/// // Two keys of score 0, values 4 and 0: y = 2, effects (4 − 1)² / 4 and (0 − 1)² / 4.
/// let state = attention(&[0.0], &[1.0, 1.0], &[4.0, 0.0], 1, 1, None, 1.0);
/// let effects = effects(&[0.0], &[1.0, 1.0], &[4.0, 0.0], 1, 1, &state, 1.0);
/// assert!((effects[0] - 2.25).abs() < 1e-12 && (effects[1] - 0.25).abs() < 1e-12);
/// ```
#[must_use]
pub fn effects(queries: &[f64], keys: &[f64], values: &[f64], dim: usize, value_dim: usize, state: &State, scale: f64) -> Vec<f64> {
    let of_row = |key: &[f64], value: &[f64], query: &[f64], output: &[f64], mass: f64| {
        let weight = (scale * dot(query, key) - mass).exp();
        let distance: f64 = value.iter().zip(output).map(|(value, output)| (value - output / 2.0).powi(2)).sum();
        weight * weight * distance
    };
    let rows = || queries.chunks_exact(dim).zip(state.output.chunks_exact(value_dim)).zip(&state.mass);
    let of_pair = |(key, value)| rows().map(|((query, output), mass)| of_row(key, value, query, output, *mass)).sum();
    keys.chunks_exact(dim).zip(values.chunks_exact(value_dim)).map(of_pair).collect()
}
