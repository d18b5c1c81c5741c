//! Attention's outcome and how it is merged with pairs that never change.

use super::dot;
use crate::engine::NO_MASS;

/// What attention leaves of a set of pairs, row by row: all that later tokens can see of them.
///
/// ```
/// use kvsculpt::reference::State;
///
/// // One row: output (1, 2, 3, 4), mass 0.5.
/// let state = State::from_array(&[1.0, 2.0, 3.0, 4.0, 0.5, 0.0, 0.0, 0.0], 4);
/// assert_eq!((state.output[3], state.mass[0]), (4.0, 0.5));
/// assert_eq!(state.to_array(4)[4], 0.5);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// `o`, `[rows, value_dim]`.
    pub output: Vec<f64>,
    /// `l`, `[rows]`; [`NO_MASS`] where there is no pair.
    pub mass: Vec<f64>,
}

impl State {
    /// The same numbers from an engine's state array, `[rows, value_dim + 4]`.
    #[must_use]
    pub fn from_array(array: &[f32], value_dim: usize) -> Self {
        let rows = array.chunks_exact(value_dim + 4);
        Self {
            output: rows
                .clone()
                .flat_map(|row| row[..value_dim].iter().copied().map(f64::from))
                .collect(),
            mass: rows.map(|row| f64::from(row[value_dim])).collect(),
        }
    }

    /// An engine's state array, `[rows, value_dim + 4]`, rounded to f32.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "rounding to the engine's precision is what it is for")]
    pub fn to_array(&self, value_dim: usize) -> Vec<f32> {
        let mut array = Vec::with_capacity(self.mass.len() * (value_dim + 4));
        for (output, mass) in self.output.chunks_exact(value_dim).zip(&self.mass) {
            array.extend(output.iter().map(|&o| o as f32));
            array.extend([*mass as f32, 0.0, 0.0, 0.0]);
        }
        array
    }
}

/// `l = log(Σ_j e^{s q·k_j} + e^{l_base})`, `o = Σ_j e^{s q·k_j − l} v_j + e^{l_base − l} o_base`.
///
/// Queries `[rows, dim]`, keys `[pairs, dim]`, values `[pairs, value_dim]`. No base is one of output 0 and mass
/// [`NO_MASS`]; so no pairs and no base give just that.
///
/// ```
/// use kvsculpt::reference::attention;
///
/// // Scores 0 and ln 3: weights 1/4 and 3/4, mass ln 4.
/// let state = attention(&[1.0], &[0.0, 3_f64.ln()], &[0.0, 4.0], 1, 1, None, 1.0);
/// assert!((state.output[0] - 3.0).abs() < 1e-12 && (state.mass[0] - 4_f64.ln()).abs() < 1e-12);
/// // Merged with pairs that hold as much mass and say 1.
/// let merged = attention(&[1.0], &[0.0, 3_f64.ln()], &[0.0, 4.0], 1, 1, Some(&kvsculpt::reference::State { output: vec![1.0], ..state }), 1.0);
/// assert!((merged.output[0] - 2.0).abs() < 1e-12);
/// ```
#[must_use]
pub fn attention(queries: &[f64], keys: &[f64], values: &[f64], dim: usize, value_dim: usize, base: Option<&State>, scale: f64) -> State {
    let mut state = State::default();
    for (row, query) in queries.chunks_exact(dim).enumerate() {
        let scores: Vec<f64> = keys.chunks_exact(dim).map(|key| scale * dot(query, key)).collect();
        let base_mass = base.map_or(f64::from(NO_MASS), |base| base.mass[row]);
        let largest = scores.iter().copied().fold(base_mass, f64::max);
        let sum = (base_mass - largest).exp() + scores.iter().map(|score| (score - largest).exp()).sum::<f64>();
        let mass = largest + sum.ln();

        let base_weight = (base_mass - mass).exp();
        let mut output: Vec<f64> = match base {
            Some(base) => base.output[row * value_dim..][..value_dim]
                .iter()
                .map(|o| base_weight * o)
                .collect(),
            None => vec![0.0; value_dim],
        };
        for (score, value) in scores.iter().zip(values.chunks_exact(value_dim)) {
            let weight = (score - mass).exp();
            for (o, v) in output.iter_mut().zip(value) {
                *o += weight * v;
            }
        }
        state.output.extend(output);
        state.mass.push(mass);
    }
    state
}
