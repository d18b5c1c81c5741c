//! Says what is right: every operation of [`engine`](crate::engine) for one head, in f64, in plain loops written from
//! the formula and never from an engine. Slow; for tests and benches.
//!
//! Matrices are row-major slices; a function takes them with the sizes it needs, and reads the number of rows from
//! their lengths. Slices that do not fit together are a mistake of the caller and panic at the index.

mod attention;
mod cholesky;
mod effects;
mod gram;
mod key_gradient;
mod lbfgs;
mod loss;
pub mod merged;
mod rhs;
mod scores;
mod slope;
mod solve;
mod step;
mod weights;

pub use attention::{State, attention};
pub use cholesky::{cholesky, mean_diagonal};
pub use effects::effects;
pub use gram::gram;
pub use key_gradient::key_gradient;
pub use lbfgs::{Pushed, curvature, direction, push};
pub use loss::{Loss, loss};
pub use rhs::rhs;
pub use scores::scores;
pub use slope::{Slope, slope};
pub use solve::solve;
pub use step::step;
pub use weights::weights;

/// `Σ_i a_i b_i`.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
