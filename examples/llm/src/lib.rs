//! A real language model, end to end: capture its cache, compress it with [`kvsculpt`], and let the model go on speaking over
//! the short one.
//!
//! The path of a text: [`model`] reads it ([`reading`]), [`record`] makes a capture of what was seen, `kvsculpt` compresses the
//! capture, [`model::Cache::compressed`] puts the result in the cache's place, and the model goes on. [`measure`] says what that
//! costs; [`commands`] are the program's subcommands.

pub mod commands;
pub mod measure;
pub mod model;
pub mod reading;
pub mod record;
pub mod source;
pub mod text;
