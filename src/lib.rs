//! kvsculpt

pub mod batch;
pub mod cache;
#[cfg(feature = "cpu")]
pub mod cpu;
pub mod engine;
mod error;
pub mod gpu;
pub mod options;
pub mod reference;
pub mod solver;

pub use error::{Error, Result};
pub use options::Options;
