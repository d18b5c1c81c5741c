//! Between text and tokens: the tokenizer of a GGUF file and its chat template.

mod pipeline;
mod sentencepiece;
mod template;
mod tokenizer;
mod vocabulary;

pub use template::{Conversation, Message, Role, Template};
pub use tokenizer::{Piece, TextStream, Tokenizer};
