//! The subcommands, one file each, and what they share.

pub mod capture;
pub mod eval;

mod arguments;
mod progress;
mod results;
mod session;
