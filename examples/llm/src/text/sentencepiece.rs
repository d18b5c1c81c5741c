//! SentencePiece vocabularies (`tokenizer.ggml.model` = `llama`: Llama 2, Mistral, TinyLlama, Gemma): a score a piece instead of a list of merges,
//! spaces as letters, bytes for what no piece covers.
//!
//! SentencePiece joins, of all neighbours that make a piece, those whose piece scores highest, leftmost first. Merges in the order of their
//! piece's score do the same.

use super::pipeline::{add_tokens, ids};
use super::vocabulary::{Kind, Vocabulary};
use anyhow::{Context, Result, anyhow, bail};
use std::cmp::Reverse;
use std::collections::HashSet;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::normalizers::{NormalizerWrapper, Prepend};

/// How SentencePiece writes a space.
const SPACE: &str = "▁";

/// The crate's tokenizer for such a vocabulary; fails where the file asks for a normalisation that is not done here.
pub(super) fn by_scores(vocabulary: &Vocabulary<'_>) -> Result<tokenizers::Tokenizer> {
    if vocabulary.flag("tokenizer.ggml.remove_extra_whitespaces") == Some(true) || vocabulary.has("tokenizer.ggml.precompiled_charsmap") {
        bail!(
            "the GGUF file's tokenizer rewrites text before cutting it, which is not done here; use a model of the Llama, Mistral, Qwen 2, SmolLM or Gemma family"
        );
    }
    let mut model = BPE::builder()
        .vocab_and_merges(ids(vocabulary), merges(vocabulary)?)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some((_, unknown)) = vocabulary.of_kind(Kind::Unknown).next() {
        model = model.unk_token(unknown.to_owned());
    }
    let model = model
        .build()
        .map_err(|error| anyhow!("the GGUF file's vocabulary has no order of merging ({error}); download the file again"))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let replace = |from: &str, to: &str| {
        Replace::new(from, to)
            .map_err(|error| anyhow!("{error}"))
            .context("spaces cannot be replaced")
    };
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders = vec![replace(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if puts_space_first(vocabulary) {
        normalizers.push(Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(replace(" ", SPACE)?.into());
    tokenizer
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(|error| anyhow!("{error}"))?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    add_tokens(&mut tokenizer, vocabulary, true)?;
    Ok(tokenizer)
}

/// Whether text that begins anew gets a space before it, as these vocabularies want unless their file says otherwise.
pub(super) fn puts_space_first(vocabulary: &Vocabulary<'_>) -> bool {
    vocabulary.text("tokenizer.ggml.model") == Some("llama") && vocabulary.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true)
}

/// Every pair of pieces that makes a piece, the piece of the highest score first.
fn merges(vocabulary: &Vocabulary<'_>) -> Result<Vec<(String, String)>> {
    let scores = vocabulary.scores()?;
    let pieces: HashSet<&str> = vocabulary.of_kind(Kind::Normal).map(|(_, piece)| piece).collect();
    let mut merges = Vec::new();
    for ((id, piece), score) in vocabulary.with_ids().zip(scores) {
        if vocabulary.kind(id) != Some(Kind::Normal) {
            continue;
        }
        let halves = piece.char_indices().skip(1).map(|(middle, _)| piece.split_at(middle));
        merges.extend(
            halves
                .filter(|(left, right)| pieces.contains(left) && pieces.contains(right))
                .map(|pair| (score, pair)),
        );
    }
    // Of two ways to make the same piece, the one with the longer left half.
    merges.sort_by(|(score, (left, _)), (other_score, (other_left, _))| {
        other_score
            .total_cmp(score)
            .then_with(|| Reverse(left.len()).cmp(&Reverse(other_left.len())))
    });
    Ok(merges
        .into_iter()
        .map(|(_, (left, right))| (left.to_owned(), right.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests {
    use crate::text::{Piece, Tokenizer};
    use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};

    /// The unknown piece, a beginning, `ab` above `bc` above `▁a`, a user-defined piece, single letters, and the bytes of `é` and of a line break.
    const PIECES: [(&str, f32, u8); 15] = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<0xC3>", 0.0, 6),
        ("<0xA9>", 0.0, 6),
        ("ab", -1.0, 1),
        ("bc", -2.0, 1),
        ("▁a", -3.0, 1),
        ("▁ab", -4.0, 1),
        ("▁▁", -5.0, 4),
        ("▁", -6.0, 1),
        ("a", -7.0, 1),
        ("b", -8.0, 1),
        ("c", -9.0, 1),
        ("<0x0A>", 0.0, 6),
    ];

    fn content(more: &[(&str, Value)]) -> Content {
        let list = |value: &dyn Fn(&(&str, f32, u8)) -> Value| Value::Array(PIECES.iter().map(value).collect());
        let own = [
            ("tokenizer.ggml.model", Value::String("llama".to_owned())),
            ("tokenizer.ggml.tokens", list(&|piece| Value::String(piece.0.to_owned()))),
            ("tokenizer.ggml.scores", list(&|piece| Value::F32(piece.1))),
            ("tokenizer.ggml.token_type", list(&|piece| Value::U8(piece.2))),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ];
        let all = own.into_iter().chain(more.iter().cloned());
        Content {
            magic: VersionedMagic::GgufV3,
            metadata: all.map(|(key, value)| (key.to_owned(), value)).collect(),
            tensor_infos: std::collections::HashMap::new(),
            tensor_data_offset: 0,
        }
    }

    fn tokenizer(more: &[(&str, Value)]) -> Tokenizer {
        Tokenizer::from_gguf(&content(more)).unwrap()
    }

    fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<&'static str> {
        let ids = tokenizer.encode(text).unwrap();
        ids.iter().map(|id| PIECES[*id as usize].0).collect()
    }

    #[test]
    fn the_piece_of_the_highest_score_is_joined_first() {
        let tokenizer = tokenizer(&[]);
        // `ab` before `bc` and before `▁a`, then `▁ab` although nothing joins with `c`.
        assert_eq!(pieces(&tokenizer, "abc"), ["▁ab", "c"]);
        assert_eq!(pieces(&tokenizer, "cbc a"), ["▁", "c", "bc", "▁a"]);
        assert_eq!(tokenizer.beginning(), Some(1));
        assert!(tokenizer.is_end(2));
    }

    #[test]
    fn the_space_before_the_text_comes_and_goes() {
        let without = tokenizer(&[("tokenizer.ggml.add_space_prefix", Value::Bool(false))]);
        assert_eq!(pieces(&without, "abc"), ["ab", "c"]);
        for tokenizer in [tokenizer(&[]), without] {
            for text in ["abc", " abc", "a b", "é"] {
                assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
            }
        }
    }

    #[test]
    fn text_that_goes_on_gets_no_space() {
        let tokenizer = tokenizer(&[]);
        let continued = |pieces: &[Piece]| tokenizer.encode_continued(pieces).unwrap();
        assert_eq!(continued(&[Piece::Words("abc".to_owned())]), [5, 13]);
        assert_eq!(continued(&[Piece::Words("\na".to_owned())]), [14, 11]);
        assert_eq!(continued(&[Piece::Markup("</s>a".to_owned())]), [2, 7]);
    }

    #[test]
    fn bytes_and_user_defined_pieces_are_found() {
        let tokenizer = tokenizer(&[("tokenizer.ggml.add_space_prefix", Value::Bool(false))]);
        assert_eq!(pieces(&tokenizer, "é  a"), ["<0xC3>", "<0xA9>", "▁▁", "a"]);
        assert_eq!(tokenizer.encode_with_special("a</s>").unwrap(), [11, 2]);
    }

    #[test]
    fn a_vocabulary_that_rewrites_text_or_lacks_scores_is_refused() {
        let refused = |key, value| Tokenizer::from_gguf(&content(&[(key, value)])).unwrap_err().to_string();
        assert!(refused("tokenizer.ggml.remove_extra_whitespaces", Value::Bool(true)).contains("rewrites text"));
        assert!(refused("tokenizer.ggml.precompiled_charsmap", Value::Array(Vec::new())).contains("rewrites text"));
        assert!(refused("tokenizer.ggml.scores", Value::Array(Vec::new())).contains("15 tokens but 0 scores"));
    }
}
