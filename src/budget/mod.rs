//! Who gets how many pairs: error curves, allocation, targets, and the files that keep them.
//!
//! A head's error falls with the pairs it may store, and in some heads a thousand times faster than in others. Given a
//! [`Curve`] for each head, [`allocate`] shares out a total so that the weighted sum of errors is least, and [`least_total`]
//! finds the smallest total that an error allows; [`published`] is the paper's rule, which knows one error a head. Lengths
//! count what a head stores: sinks, free pairs and tail. Everything here is arithmetic on small tables; what makes the curves
//! is elsewhere.

mod allocate;
mod curve;
mod file;
mod hull;
mod joined;
pub(crate) mod json;
mod picture;
mod plan;
mod published;
mod target;
mod weights;

pub use allocate::allocate;
pub use curve::{Curve, Point};
pub use file::Budgets;
pub use joined::joined;
pub use picture::{heat_map, length_table};
pub use plan::Scope;
pub use published::published;
pub use target::least_total;
pub use weights::Weights;

#[cfg(test)]
mod tests;
