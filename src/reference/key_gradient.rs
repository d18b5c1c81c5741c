//! The gradient of the loss in the free keys.

use super::{Loss, dot};

/// `∂loss/∂c_j = (2 s / rows) Σ_q p_qj (e·w_j − (e·ŷ − λδ)) q` with `p_qj = e^{s q·c_j − l̂}`, `[pairs, dim]`.
///
/// Queries `[rows, dim]`, keys `[pairs, dim]`, values `[pairs, value_dim]`; of `loss` the rows only, not the sums.
///
/// ```
/// use kvsculpt::reference::{State, attention, key_gradient, loss};
///
/// let (queries, keys, values) = ([1.0, -0.5], [0.3, -0.2], [1.0, 3.0]);
/// let teacher = State { output: vec![1.5, 2.0], mass: vec![0.5, 1.0] };
/// let at = |keys: &[f64]| loss(&attention(&queries, keys, &values, 1, 1, None, 1.0), &teacher, 0.7);
/// let gradient = key_gradient(&queries, &keys, &values, 1, &at(&keys), 1.0);
/// // By a finite difference.
/// let difference = (at(&[0.3 + 1e-5, -0.2]).value() - at(&[0.3 - 1e-5, -0.2]).value()) / 2e-5;
/// assert!((gradient[0] - difference).abs() < 1e-8);
/// ```
#[must_use]
pub fn key_gradient(queries: &[f64], keys: &[f64], values: &[f64], dim: usize, loss: &Loss, scale: f64) -> Vec<f64> {
    let rows = loss.mass.len();
    let value_dim = loss.error.len().checked_div(rows).unwrap_or(0);
    let mut gradient = vec![0.0; keys.len()];
    for (pair, gradient) in gradient.chunks_exact_mut(dim).enumerate() {
        let key = &keys[pair * dim..][..dim];
        let value = &values[pair * value_dim..][..value_dim];
        for (row, query) in queries.chunks_exact(dim).enumerate() {
            let weight = (scale * dot(query, key) - loss.mass[row]).exp();
            let error = &loss.error[row * value_dim..][..value_dim];
            let slope = 2.0 / rows as f64 * weight * (dot(error, value) - loss.correction[row]);
            for (gradient, query) in gradient.iter_mut().zip(query) {
                *gradient += scale * slope * query;
            }
        }
    }
    gradient
}
