//! What is measured of a model that goes on over a short cache.

mod divergence;

pub use divergence::{Distributions, Divergence};
