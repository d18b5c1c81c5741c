//! Text to tokens and back, from nothing but the GGUF file.

use super::vocabulary::{Kind, Vocabulary};
use super::{pipeline, sentencepiece};
use anyhow::{Result, anyhow, bail};
use candle_core::quantized::gguf_file::Content;
use std::collections::BTreeSet;
use tokenizers::tokenizer::step_decode_stream;

/// Names under which models end a turn or a text, whatever else their file says.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
];

/// Text that is to become tokens, with a say in what `<|im_start|>` in it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Written by the chat template: names of control tokens stand for them.
    Markup(String),
    /// Written by somebody else, a document or a question: names of control tokens are text like any other.
    Words(String),
}

/// The tokenizer of one model; cheap to share by reference, used from any thread.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Control tokens' text and ids, longest first: of two that begin at the same place the longer is meant.
    control: Vec<(String, u32)>,
    beginning: Option<u32>,
    ends: BTreeSet<u32>,
    size: usize,
    /// Whether a space is put before a text that begins anew (SentencePiece).
    space_first: bool,
}

impl Tokenizer {
    /// The tokenizer a GGUF file carries.
    ///
    /// # Errors
    /// In words for the user: a file without tokenizer, a damaged one, or one that would cut text differently from the model's own.
    pub fn from_gguf(content: &Content) -> Result<Self> {
        let vocabulary = Vocabulary::read(content)?;
        let inner = match vocabulary.text("tokenizer.ggml.model") {
            Some("gpt2") => pipeline::byte_level(&vocabulary)?,
            Some("llama") => sentencepiece::by_scores(&vocabulary)?,
            Some(other) => bail!(
                "the GGUF file's tokenizer is of the kind `{other}` (tokenizer.ggml.model), and only `gpt2` and `llama` are understood; \
                 use a model of the Llama, Mistral, Qwen 2, SmolLM or Gemma family"
            ),
            None => {
                bail!("the GGUF file names no kind of tokenizer (tokenizer.ggml.model); use a file that was converted with its tokenizer")
            }
        };
        let mut control: Vec<_> = vocabulary
            .of_kind(Kind::Control)
            .map(|(id, token)| (token.to_owned(), id))
            .collect();
        control.retain(|(token, _)| !token.is_empty());
        control.sort_by(|left, right| right.0.len().cmp(&left.0.len()).then_with(|| left.cmp(right)));
        Ok(Self {
            inner,
            control,
            beginning: beginning(&vocabulary),
            ends: ends(&vocabulary),
            size: vocabulary.tokens.len(),
            space_first: sentencepiece::puts_space_first(&vocabulary),
        })
    }

    /// The tokens of a text in which `<|im_start|>` and the like are nothing but text; no token is put before or after it.
    ///
    /// # Errors
    /// A text that the vocabulary does not cover.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| anyhow!("the text cannot be cut into tokens: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text in which the names of control tokens stand for them, as in a rendered chat template.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_pieces(&[Piece::Markup(text.to_owned())])
    }

    /// The tokens of all pieces joined: only a control token parts text, the border between two pieces does not.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_pieces(&self, pieces: &[Piece]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut text = String::new();
        for piece in pieces {
            let mut rest = match piece {
                Piece::Words(words) => {
                    text.push_str(words);
                    continue;
                }
                Piece::Markup(markup) => markup.as_str(),
            };
            while let Some((start, length, id)) = self.first_control(rest) {
                text.push_str(&rest[..start]);
                ids.extend(self.encode(&std::mem::take(&mut text))?);
                ids.push(id);
                rest = &rest[start + length..];
            }
            text.push_str(rest);
        }
        ids.extend(self.encode(&text)?);
        Ok(ids)
    }

    /// The tokens of pieces that go on from text already read: no space is put before them as before a text that begins anew.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_continued(&self, pieces: &[Piece]) -> Result<Vec<u32>> {
        if !self.space_first {
            return self.encode_pieces(pieces);
        }
        // A line break takes the space upon itself and joins with nothing after it: its tokens can be cut off again.
        let line_break = Piece::Words("\n".to_owned());
        let start = self.encode_pieces(std::slice::from_ref(&line_break))?;
        let ids = self.encode_pieces(&[std::slice::from_ref(&line_break), pieces].concat())?;
        match ids.strip_prefix(start.as_slice()) {
            Some(continued) => Ok(continued.to_vec()),
            None => self.encode_pieces(pieces),
        }
    }

    /// Where the first control token of a text begins, its length in bytes, its id.
    fn first_control(&self, text: &str) -> Option<(usize, usize, u32)> {
        let found = self
            .control
            .iter()
            .filter_map(|(token, id)| Some((text.find(token.as_str())?, token.len(), *id)));
        found.min_by_key(|&(start, length, _)| (start, std::cmp::Reverse(length)))
    }

    /// The text of tokens; control tokens leave nothing, bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// What the tokenizer's decoder reports.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|error| anyhow!("the tokens cannot be turned into text: {error}"))
    }

    /// Begins to turn tokens into text one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            ids: Vec::new(),
            prefix: String::new(),
            prefix_index: 0,
        }
    }

    /// The token that the model was taught to see before any text, where there is one.
    pub fn beginning(&self) -> Option<u32> {
        self.beginning
    }

    /// Whether a token ends a turn or a text: what is generated after it is not meant to be read.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// How many tokens the file names, control tokens included.
    pub fn vocabulary_size(&self) -> usize {
        self.size
    }
}

fn beginning(vocabulary: &Vocabulary<'_>) -> Option<u32> {
    // Files older than the key mean yes in the families that always begin so.
    let by_family = || {
        let llama3 = matches!(vocabulary.text("tokenizer.ggml.pre"), Some("llama-bpe" | "llama3" | "llama-v3"));
        llama3 || vocabulary.text("tokenizer.ggml.model") == Some("llama")
    };
    let wanted = vocabulary.flag("tokenizer.ggml.add_bos_token").unwrap_or_else(by_family);
    vocabulary.id("tokenizer.ggml.bos_token_id").filter(|_| wanted)
}

fn ends(vocabulary: &Vocabulary<'_>) -> BTreeSet<u32> {
    let keys = ["eos", "eot", "eom"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
    let by_key = keys.iter().filter_map(|key| vocabulary.id(key));
    let by_name = vocabulary
        .of_kind(Kind::Control)
        .filter(|(_, token)| ENDS.contains(token))
        .map(|(id, _)| id);
    by_key.chain(by_name).collect()
}

/// Text token by token: a character whose bytes are spread over several tokens is held back until it is whole.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

impl TextStream<'_> {
    /// What can be shown after one more token: often a word, empty while a character is not whole.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`], with the token.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let inner = &self.tokenizer.inner;
        let text = step_decode_stream(inner, vec![id], true, &mut self.ids, &mut self.prefix, &mut self.prefix_index)
            .map_err(|error| anyhow!("token {id} cannot be turned into text: {error}"))?;
        Ok(text.unwrap_or_default())
    }

    /// What was held back until now; U+FFFD for a character that never became whole.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let all = self.tokenizer.decode(&self.ids)?;
        Ok(all.strip_prefix(self.prefix.as_str()).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
#[path = "tokenizer/tests.rs"]
mod tests;
