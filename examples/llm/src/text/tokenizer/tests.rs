use super::{Piece, Tokenizer};
use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const START: &str = "<|im_start|>";
const TOOL: &str = "<tool>";

fn texts(texts: &[&str]) -> Value {
    Value::Array(texts.iter().map(|text| Value::String((*text).to_owned())).collect())
}

/// A vocabulary of the 256 bytes, the given merges, one control token and one user-defined one.
fn content(pre: &str, merges: &[&str]) -> Content {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let mut tokens: Vec<String> = bytes.into_iter().map(String::from).collect();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut kinds = vec![Value::I32(1); tokens.len()];
    tokens.extend([START.to_owned(), TOOL.to_owned()]);
    kinds.extend([Value::I32(3), Value::I32(4)]);
    let names: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let start = u32::try_from(tokens.len() - 2).unwrap();
    let metadata = [
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String(pre.to_owned())),
        ("tokenizer.ggml.tokens", texts(&names)),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.ggml.merges", texts(merges)),
        ("tokenizer.ggml.bos_token_id", Value::U32(start)),
        ("tokenizer.ggml.eos_token_id", Value::U32(start)),
    ];
    Content {
        magic: VersionedMagic::GgufV3,
        metadata: HashMap::from(metadata.map(|(key, value)| (key.to_owned(), value))),
        tensor_infos: HashMap::new(),
        tensor_data_offset: 0,
    }
}

fn tokenizer(pre: &str, merges: &[&str]) -> Tokenizer {
    Tokenizer::from_gguf(&content(pre, merges)).unwrap()
}

/// The tokens as text, each by itself.
fn cut(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer
        .encode(text)
        .unwrap()
        .iter()
        .map(|id| tokenizer.inner.id_to_token(*id).unwrap())
        .collect()
}

#[test]
fn every_family_cuts_digits_its_own_way() {
    // All that could be merged is merged: what is still apart was cut apart.
    let merges = ["1 2", "12 3", "123 4", "1 a", "Ġ 1", "a B", "Ġ a", "Ġ aB", "Ġ 12"];
    let cases = [
        ("gpt-2", vec!["1234", "Ġ12"]),
        ("smollm", vec!["1", "2", "3", "4", "Ġ", "1", "2"]),
        ("qwen2", vec!["1", "2", "3", "4", "Ġ", "1", "2"]),
        ("llama-bpe", vec!["123", "4", "Ġ", "12"]),
        ("tekken", vec!["1", "2", "3", "4", "Ġ", "1", "2"]),
    ];
    for (pre, expected) in cases {
        assert_eq!(cut(&tokenizer(pre, &merges), "1234 12"), expected, "{pre}");
    }
    let capital = |pre| cut(&tokenizer(pre, &merges), "x aB");
    assert_eq!(capital("qwen2"), ["x", "ĠaB"]);
    assert_eq!(capital("tekken"), ["x", "Ġa", "B"]);
}

#[test]
fn whole_words_are_taken_as_they_are_where_the_family_does() {
    // By merges alone `abc` cannot be reached from `a`, `bc`.
    let mut unreachable = content("llama-bpe", &["b c", "a b", "ab c"]);
    assert_eq!(cut(&Tokenizer::from_gguf(&unreachable).unwrap(), "abc"), ["abc"]);
    unreachable
        .metadata
        .insert("tokenizer.ggml.pre".to_owned(), Value::String("qwen2".to_owned()));
    assert_eq!(cut(&Tokenizer::from_gguf(&unreachable).unwrap(), "abc"), ["a", "bc"]);
}

#[test]
fn nothing_is_put_before_the_text() {
    for pre in ["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"] {
        assert_eq!(cut(&tokenizer(pre, &[]), "a"), ["a"], "{pre}");
    }
}

#[test]
fn control_tokens_are_text_in_words_and_tokens_in_markup() {
    let tokenizer = tokenizer("smollm", &[]);
    let start = u32::try_from(tokenizer.vocabulary_size() - 2).unwrap();
    let plain = tokenizer.encode(&format!("a{START}b")).unwrap();
    assert!(!plain.contains(&start));
    assert_eq!(tokenizer.decode(&plain).unwrap(), format!("a{START}b"));
    let special = tokenizer.encode_with_special(&format!("a{START}b")).unwrap();
    assert_eq!(special.len(), 3);
    assert_eq!(special[1], start);
    assert_eq!(tokenizer.decode(&special).unwrap(), "ab");
}

#[test]
fn only_control_tokens_part_the_text_of_pieces() {
    let tokenizer = tokenizer("smollm", &["a b"]);
    let pieces = [Piece::Markup(format!("{START}a")), Piece::Words(format!("b{START}"))];
    let ids = tokenizer.encode_pieces(&pieces).unwrap();
    let names: Vec<_> = ids.iter().take(3).map(|id| tokenizer.inner.id_to_token(*id).unwrap()).collect();
    assert_eq!(names, [START, "ab", "<"]);
}

#[test]
fn user_defined_tokens_are_never_cut() {
    let tokenizer = tokenizer("smollm", &[]);
    assert_eq!(cut(&tokenizer, "a<tool>b"), ["a", TOOL, "b"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("a<tool>b").unwrap()).unwrap(), "a<tool>b");
}

#[test]
fn a_character_is_held_back_until_it_is_whole() {
    let tokenizer = tokenizer("smollm", &[]);
    let ids = tokenizer.encode("aé🎻.").unwrap();
    assert_eq!(ids.len(), 8);
    let mut stream = tokenizer.stream();
    let shown: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(shown, ["a", "", "é", "", "", "", "🎻", "."]);
    assert_eq!(stream.finish().unwrap(), "");
    let mut broken = tokenizer.stream();
    assert_eq!(broken.push(ids[0]).unwrap() + &broken.push(ids[1]).unwrap(), "a");
    assert_eq!(broken.finish().unwrap(), "\u{fffd}");
}

#[test]
fn the_beginning_is_used_where_the_file_or_its_family_says_so() {
    let start = Some(u32::try_from(tokenizer("smollm", &[]).vocabulary_size() - 2).unwrap());
    assert_eq!(tokenizer("smollm", &[]).beginning(), None);
    assert_eq!(tokenizer("llama-bpe", &[]).beginning(), start);
    let mut said = content("llama-bpe", &[]);
    said.metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false));
    assert_eq!(Tokenizer::from_gguf(&said).unwrap().beginning(), None);
}

#[test]
fn ends_are_known_by_key_and_by_name() {
    let mut named = content("smollm", &[]);
    named.metadata.remove("tokenizer.ggml.eos_token_id");
    let start = u32::try_from(tokenizer("smollm", &[]).vocabulary_size() - 2).unwrap();
    assert!(tokenizer("smollm", &[]).is_end(start));
    assert!(!Tokenizer::from_gguf(&named).unwrap().is_end(start));
    if let Some(Value::Array(tokens)) = named.metadata.get_mut("tokenizer.ggml.tokens") {
        tokens[start as usize] = Value::String("<|eot_id|>".to_owned());
    }
    assert!(Tokenizer::from_gguf(&named).unwrap().is_end(start));
    assert!(!Tokenizer::from_gguf(&named).unwrap().is_end(0));
}

#[test]
fn what_would_be_cut_wrongly_is_refused() {
    let refused = |key: &str, value: Option<Value>| {
        let mut content = content("smollm", &[]);
        content.metadata.remove(key);
        content.metadata.extend(value.map(|value| (key.to_owned(), value)));
        Tokenizer::from_gguf(&content).unwrap_err().to_string()
    };
    let text = |text: &str| Some(Value::String(text.to_owned()));
    assert!(refused("tokenizer.ggml.pre", text("viking")).contains("`viking`"));
    assert!(refused("tokenizer.ggml.model", text("bert")).contains("`bert`"));
    assert!(refused("tokenizer.ggml.model", None).contains("tokenizer.ggml.model"));
    assert!(refused("tokenizer.ggml.merges", None).contains("tokenizer.ggml.merges"));
    assert!(refused("tokenizer.ggml.merges", Some(texts(&["ab"]))).contains("`ab`"));
    assert!(refused("tokenizer.ggml.merges", Some(texts(&["a b"]))).contains("do not fit"));
    assert!(refused("tokenizer.ggml.tokens", Some(texts(&["a"]))).contains("1 tokens but 258"));
    assert!(refused("tokenizer.ggml.token_type", Some(Value::U8(1))).contains("not a list"));
}

#[test]
fn a_real_model_reads_a_real_text() {
    let mut file = BufReader::new(File::open(crate::source::small_test_model().unwrap()).unwrap());
    let tokenizer = Tokenizer::from_gguf(&Content::read(&mut file).unwrap()).unwrap();
    // Ids found with an independent tokenizer library, from the pipeline the model was published with.
    assert_eq!(
        tokenizer.encode("It was 1879 when Hero's dog\n\n  ran away.").unwrap(),
        [1589, 436, 216, 33, 40, 39, 41, 645, 28069, 506, 2767, 8866, 7674, 2025, 30]
    );
    let text = include_str!("../../../texts/katrine.txt");
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    let mut stream = tokenizer.stream();
    let mut shown: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    shown += &stream.finish().unwrap();
    assert_eq!(shown, text);
    assert_eq!(tokenizer.vocabulary_size(), 49_152);
    assert_eq!(tokenizer.beginning(), None);
    assert!(tokenizer.is_end(2) && tokenizer.is_end(0) && !tokenizer.is_end(1));
    assert_eq!(tokenizer.encode_with_special("<|im_start|>user\n").unwrap()[0], 1);
}
