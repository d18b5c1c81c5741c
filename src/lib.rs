//! kvsculpt

pub mod cache;
pub mod engine;
mod error;
pub mod gpu;
pub mod kernels;
pub mod options;
pub mod reference;
pub mod solver;

pub use error::{Error, Result};
pub use options::Options;
