//! β, a number added to the logit of each free pair, as one more channel of the keys.
//!
//! Every query has the same constant c there, so `s q·k + β` is an ordinary scaled product with `β = s c x`, x being the
//! key's element: attention, loss, gradient and L-BFGS take β along without knowing of it. c is the root mean square of
//! the queries' other elements, which keeps the new channel's curvature like that of the others.

use super::rows::Rows;

/// Channels a bias adds to keys and queries: one that is used, and dims are multiples of 4.
pub(crate) const CHANNELS: usize = 4;

/// Bounds of e^β at the start: a free pair may stand for many, and is never nearly lost.
const MULTIPLIERS: (f32, f32) = (0.05, 100.0);

/// The bias that a multiplier of the mass fit starts from.
pub(crate) fn start(multiplier: f32) -> f32 {
    multiplier.clamp(MULTIPLIERS.0, MULTIPLIERS.1).ln()
}

/// Appends rows of `dim` floats to `target`, each with the channels of a bias behind it, the first of them `first`.
pub(crate) fn widen(rows: &[f32], dim: usize, first: f32, target: &mut Vec<f32>) {
    for row in rows.chunks_exact(dim) {
        target.extend_from_slice(row);
        target.extend_from_slice(&[first, 0.0, 0.0, 0.0]);
    }
}

/// Gives all rows the constant of the bias, and returns it.
pub(crate) fn widen_rows(rows: &mut Rows, dim: usize) -> f32 {
    let squares: f64 = rows.training.iter().map(|&x| f64::from(x).powi(2)).sum();
    #[allow(clippy::cast_possible_truncation, reason = "a size needs no more than single precision")]
    let size = (squares / rows.training.len().max(1) as f64).sqrt() as f32;
    let constant = if size.is_finite() && size > 0.0 { size } else { 1.0 };
    for rows in [&mut rows.training, &mut rows.validation, &mut rows.probe] {
        let mut wide = Vec::with_capacity(rows.len() / dim * (dim + CHANNELS));
        widen(rows, dim, constant, &mut wide);
        *rows = wide;
    }
    constant
}

/// Divides keys as the engine sees them into keys as they are stored and biases.
pub(crate) fn divide(keys: &[f32], dim: usize, factor: f32) -> (Vec<f32>, Vec<f32>) {
    let pairs = keys.chunks_exact(dim + CHANNELS);
    let bias = pairs.clone().map(|key| factor * key[dim]).collect();
    (pairs.flat_map(|key| &key[..dim]).copied().collect(), bias)
}
