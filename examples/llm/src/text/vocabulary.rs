//! The vocabulary as a GGUF file holds it: tokens in the order of their ids, what kind each is, and which have a role.

use anyhow::{Context, Result, anyhow, bail};
use candle_core::quantized::gguf_file::{Content, Value};

/// What a token stands for, by the numbers that GGUF files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text, reached by merging.
    Normal,
    /// Stands for text that no token covers.
    Unknown,
    /// Never text: the start of a turn, the end of a document.
    Control,
    /// Text that is always one token wherever it occurs.
    UserDefined,
    /// A row of the embedding without a meaning.
    Unused,
    /// One byte, for text that no other token covers.
    Byte,
}

/// Tokens and their kinds; an id is a place in both.
#[derive(Debug)]
pub(super) struct Vocabulary<'a> {
    content: &'a Content,
    pub(super) tokens: Vec<&'a str>,
    pub(super) kinds: Vec<Kind>,
}

impl<'a> Vocabulary<'a> {
    /// Reads tokens and kinds; fails where the file has no tokens or as many kinds as it should not have.
    pub(super) fn read(content: &'a Content) -> Result<Self> {
        let tokens = strings(content, "tokenizer.ggml.tokens")?;
        // A token's id is a u32 everywhere below.
        u32::try_from(tokens.len()).context("the vocabulary of the GGUF file has more than 2³² tokens; use another file of the model")?;
        let kinds = match content.metadata.get("tokenizer.ggml.token_type") {
            None => vec![Kind::Normal; tokens.len()],
            Some(value) => {
                let numbers = array(value, "tokenizer.ggml.token_type")?;
                numbers.iter().map(kind).collect::<Result<Vec<_>>>()?
            }
        };
        if kinds.len() != tokens.len() {
            bail!(
                "the GGUF file has {} tokens but {} token types: it is damaged; download it again",
                tokens.len(),
                kinds.len()
            );
        }
        Ok(Self { content, tokens, kinds })
    }

    /// Every token of one kind with its id.
    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (u32, &'a str)> + '_ {
        self.with_ids().filter(move |(id, _)| self.kind(*id) == Some(kind))
    }

    /// Every token with its id.
    pub(super) fn with_ids(&self) -> impl Iterator<Item = (u32, &'a str)> + '_ {
        (0..).zip(self.tokens.iter().copied())
    }

    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(usize::try_from(id).ok()?).copied()
    }

    /// The id under a key such as `tokenizer.ggml.eos_token_id`, where the file has it and the vocabulary that many tokens.
    pub(super) fn id(&self, key: &str) -> Option<u32> {
        let id = unsigned(self.content.metadata.get(key)?)?;
        self.kind(id).map(|_| id)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.content.metadata.get(key)?.to_bool().ok()
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.content.metadata.get(key)?.to_string().ok().map(String::as_str)
    }

    /// Pairs of tokens in the order they are merged.
    pub(super) fn merges(&self) -> Result<Vec<(String, String)>> {
        let merges = strings(self.content, "tokenizer.ggml.merges")?;
        let split = |merge: &str| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
        merges
            .into_iter()
            .map(|merge| {
                split(merge)
                    .ok_or_else(|| anyhow!("`{merge}` in tokenizer.ggml.merges of the GGUF file is not a pair; download the file again"))
            })
            .collect()
    }

    /// One number a token: SentencePiece joins first what scores highest.
    pub(super) fn scores(&self) -> Result<Vec<f32>> {
        const KEY: &str = "tokenizer.ggml.scores";
        let values = array(self.content.metadata.get(KEY).with_context(|| missing(KEY))?, KEY)?;
        let scores: Vec<f32> = values.iter().filter_map(|value| value.to_f32().ok()).collect();
        if scores.len() != self.tokens.len() {
            bail!(
                "the GGUF file has {} tokens but {} scores: it is damaged; download it again",
                self.tokens.len(),
                scores.len()
            );
        }
        Ok(scores)
    }
}

fn missing(key: &str) -> String {
    format!("the GGUF file has no `{key}`, so no tokenizer can be made from it; use a file that was converted with its tokenizer")
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    match value {
        Value::Array(values) => Ok(values),
        _ => bail!("`{key}` in the GGUF file is not a list: the file is damaged; download it again"),
    }
}

fn strings<'a>(content: &'a Content, key: &str) -> Result<Vec<&'a str>> {
    let values = array(content.metadata.get(key).with_context(|| missing(key))?, key)?;
    let text = |value: &'a Value| match value {
        Value::String(text) => Ok(text.as_str()),
        _ => bail!("`{key}` in the GGUF file holds something that is not text: the file is damaged; download it again"),
    };
    values.iter().map(text).collect()
}

/// A whole number of any width; nothing for a negative one.
fn unsigned(value: &Value) -> Option<u32> {
    match *value {
        Value::U8(number) => Some(number.into()),
        Value::U16(number) => Some(number.into()),
        Value::U32(number) => Some(number),
        Value::U64(number) => number.try_into().ok(),
        Value::I8(number) => number.try_into().ok(),
        Value::I16(number) => number.try_into().ok(),
        Value::I32(number) => number.try_into().ok(),
        Value::I64(number) => number.try_into().ok(),
        _ => None,
    }
}

fn kind(value: &Value) -> Result<Kind> {
    Ok(match unsigned(value) {
        Some(0 | 1) => Kind::Normal,
        Some(2) => Kind::Unknown,
        Some(3) => Kind::Control,
        Some(4) => Kind::UserDefined,
        Some(5) => Kind::Unused,
        Some(6) => Kind::Byte,
        _ => bail!("{value:?} in the GGUF file is no token type: the file is damaged; download it again"),
    })
}
