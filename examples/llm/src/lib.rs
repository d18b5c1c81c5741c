//! A real language model over a compressed cache, end to end.

pub mod model;
pub mod source;
pub mod text;
