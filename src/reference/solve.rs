//! New values from the factored normal equations.

/// `W = anchor + (L Lᵀ)⁻¹ R`, `[pairs, value_dim]`; reads the lower triangle of L, `[pairs, pairs]`, only.
///
/// ```
/// use kvsculpt::reference::solve;
///
/// // L = 2, so L Lᵀ = 4; two channels.
/// assert_eq!(solve(&[2.0], &[4.0, 8.0], &[10.0, 10.0], 1, 2), [11.0, 12.0]);
/// ```
#[must_use]
pub fn solve(factor: &[f64], rhs: &[f64], anchor: &[f64], pairs: usize, value_dim: usize) -> Vec<f64> {
    let mut values = anchor.to_vec();
    for channel in 0..value_dim {
        let mut x: Vec<f64> = (0..pairs).map(|pair| rhs[pair * value_dim + channel]).collect();
        for row in 0..pairs {
            let known: f64 = (0..row).map(|i| factor[row * pairs + i] * x[i]).sum();
            x[row] = (x[row] - known) / factor[row * pairs + row];
        }
        for row in (0..pairs).rev() {
            let known: f64 = (row + 1..pairs).map(|i| factor[i * pairs + row] * x[i]).sum();
            x[row] = (x[row] - known) / factor[row * pairs + row];
        }
        for (pair, x) in x.iter().enumerate() {
            values[pair * value_dim + channel] += x;
        }
    }
    values
}
