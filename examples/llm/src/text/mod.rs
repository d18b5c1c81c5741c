//! Between text and tokens: the tokenizer of a GGUF file and its chat template.

mod pipeline;
mod tokenizer;
mod vocabulary;

pub use tokenizer::{Piece, TextStream, Tokenizer};
