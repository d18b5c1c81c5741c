//! How text is cut into words before tokens are merged within them: named by `tokenizer.ggml.pre`, and different in every family of models.
//!
//! A wrong cut is no error anywhere: the model only understands less. So a name that is not known here is refused.

use super::vocabulary::{Kind, Vocabulary};
use anyhow::{Result, anyhow, bail};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// How a family cuts text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// GPT-2's words.
    Gpt2,
    /// Digits one by one, then GPT-2's words.
    DigitsThenGpt2,
    /// Words of letters, numbers of up to three digits; whole words in the vocabulary are taken as they are.
    Llama3,
    /// Words of letters, digits one by one, after Unicode composition.
    Qwen2,
    /// Words that end before a capital letter, digits one by one; whole words as they are.
    Tekken,
}

const LLAMA3_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Cut {
    fn named(pre: &str) -> Option<Self> {
        Some(match pre {
            "gpt-2" | "gpt2" | "phi-2" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" => Self::DigitsThenGpt2,
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "falcon3" | "lfm2" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            "tekken" => Self::Tekken,
            _ => return None,
        })
    }

    fn takes_whole_words(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    fn words(self) -> Result<PreTokenizerWrapper> {
        // No space is put before the text: a document would begin with one that it does not have.
        let bytes = |words: bool| PreTokenizerWrapper::from(ByteLevel::new(false, true, words));
        let after = |first: PreTokenizerWrapper, words: bool| Sequence::new(vec![first, bytes(words)]).into();
        let split = |pattern: &str| {
            Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::from)
                .map_err(|error| anyhow!("the pattern `{pattern}` for words is not understood by the tokenizer crate: {error}"))
        };
        Ok(match self {
            Self::Gpt2 => bytes(true),
            Self::DigitsThenGpt2 => after(Digits::new(true).into(), true),
            Self::Llama3 => after(split(LLAMA3_WORDS)?, false),
            Self::Qwen2 => after(split(QWEN2_WORDS)?, false),
            Self::Tekken => after(split(TEKKEN_WORDS)?, false),
        })
    }
}

/// The crate's tokenizer for a vocabulary of bytes and merges (`tokenizer.ggml.model` = `gpt2`).
///
/// Control tokens are known to it but not looked for in text; user-defined ones are.
pub(super) fn byte_level(vocabulary: &Vocabulary<'_>) -> Result<tokenizers::Tokenizer> {
    let pre = vocabulary.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let Some(cut) = Cut::named(pre) else {
        bail!(
            "the GGUF file's tokenizer cuts text in a way called `{pre}` (tokenizer.ggml.pre), which is not known here; \
             use a model of the Llama 3, Qwen 2, SmolLM or Mistral Nemo family, or add the name to text/pipeline.rs"
        );
    };
    let model = BPE::builder()
        .vocab_and_merges(ids(vocabulary), vocabulary.merges()?)
        .ignore_merges(cut.takes_whole_words())
        .build()
        .map_err(|error| anyhow!("the GGUF file's merges do not fit its vocabulary ({error}); download the file again"))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if cut == Cut::Qwen2 {
        tokenizer.with_normalizer(Some(NFC)).map_err(|error| anyhow!("{error}"))?;
    }
    tokenizer.with_pre_tokenizer(Some(cut.words()?));
    tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
    add_tokens(&mut tokenizer, vocabulary, false)?;
    Ok(tokenizer)
}

pub(super) fn ids(vocabulary: &Vocabulary<'_>) -> Vocab {
    vocabulary.with_ids().map(|(id, token)| (token.to_owned(), id)).collect()
}

/// Makes control tokens (and the unknown one) known as special, and user-defined ones as text that is never cut;
/// `normalized` when those are written as text looks after normalisation.
pub(super) fn add_tokens(tokenizer: &mut tokenizers::Tokenizer, vocabulary: &Vocabulary<'_>, normalized: bool) -> Result<()> {
    let special = |(_, token): (u32, &str)| AddedToken::from(token, true);
    let text = |(_, token): (u32, &str)| AddedToken::from(token, false).normalized(normalized);
    let added: Vec<_> = vocabulary
        .of_kind(Kind::Control)
        .map(special)
        .chain(vocabulary.of_kind(Kind::Unknown).map(special))
        .collect();
    let failed = |error| anyhow!("the GGUF file's special tokens cannot be told from its text ({error}); download the file again");
    tokenizer.add_special_tokens(added).map_err(failed)?;
    tokenizer
        .add_tokens(vocabulary.of_kind(Kind::UserDefined).map(text))
        .map_err(failed)?;
    tokenizer.set_encode_special_tokens(true);
    Ok(())
}
