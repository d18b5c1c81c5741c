//! The subcommands, one file each, and what they share.

pub mod arguments;
pub mod capture;
pub mod chat;
pub mod choice;
pub mod eval;
pub mod haystack;
pub mod passage;
pub mod progress;
pub mod queries;
pub mod recorded;
pub mod results;
pub mod retrieval;
pub mod sensitivity;
pub mod session;
pub mod tables;
pub mod variant;
pub mod words;
