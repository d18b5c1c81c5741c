//! What is measured of a model that goes on over a short cache.

mod divergence;
pub mod planting;
pub mod recall;
pub mod sensitivities;
pub mod sensitivity;

pub use divergence::{Distributions, Divergence};
