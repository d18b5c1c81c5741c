//! llama.cpp's sequence states.

use half::{bf16, f16};
use kvsculpt::cache::Dtype;
use kvsculpt::formats::{Format, Frame, Known, LlamaVersion, Target};

use crate::{all, detected, number, numbers, open, refused, short, written};

/// A state in the making, every word of which can be made wrong.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) version: u32,
    pub(crate) tokens: Vec<i32>,
    pub(crate) streams: u32,
    /// Position and sequence count of each cell.
    pub(crate) cells: Vec<(i32, u32)>,
    pub(crate) transposed: u32,
    pub(crate) kind: i32,
    pub(crate) layers: usize,
    pub(crate) after: Vec<u8>,
}

impl State {
    /// Two layers of 2 KV heads, 3 cells, 8 channels of keys and 4 of values.
    pub(crate) fn new() -> Self {
        Self {
            version: 3,
            tokens: vec![5, 6, 7],
            streams: 1,
            cells: vec![(0, 1), (1, 1), (2, 1)],
            transposed: 0,
            kind: 1,
            layers: 2,
            after: vec![],
        }
    }

    fn element(&self, value: f32) -> Vec<u8> {
        match self.kind {
            0 => value.to_le_bytes().to_vec(),
            30 => bf16::from_f32(value).to_le_bytes().to_vec(),
            _ => f16::from_f32(value).to_le_bytes().to_vec(),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = 0x6767_7371_u32.to_le_bytes().to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tokens.len() as u32).to_le_bytes());
        bytes.extend(self.tokens.iter().flat_map(|token| token.to_le_bytes()));
        bytes.extend(self.streams.to_le_bytes());
        bytes.extend((self.cells.len() as u32).to_le_bytes());
        for (position, sequences) in &self.cells {
            bytes.extend(position.to_le_bytes());
            bytes.extend(sequences.to_le_bytes());
            bytes.extend(0_i32.to_le_bytes());
        }
        bytes.extend(self.transposed.to_le_bytes());
        bytes.extend((self.layers as u32).to_le_bytes());
        let size = if self.kind == 0 { 4 } else { 2 };
        for layer in 0..self.layers {
            bytes.extend(self.kind.to_le_bytes());
            bytes.extend((16 * size as u64).to_le_bytes());
            for cell in 0..self.cells.len() {
                for head in 0..2 {
                    for channel in 0..8 {
                        bytes.extend(self.element(number(head, cell, channel) + layer as f32 * 16.0));
                    }
                }
            }
        }
        for layer in 0..self.layers {
            let value = |head, cell, channel| self.element(number(head, cell, channel) + layer as f32 * 16.0 + 8.0);
            bytes.extend(self.kind.to_le_bytes());
            if self.transposed == 1 {
                bytes.extend((size as u32).to_le_bytes());
                bytes.extend(8_u32.to_le_bytes());
                for (head, channel) in [0, 1].into_iter().flat_map(|head| (0..4).map(move |channel| (head, channel))) {
                    bytes.extend((0..self.cells.len()).flat_map(|cell| value(head, cell, channel)));
                }
            } else {
                bytes.extend((8 * size as u64).to_le_bytes());
                for (cell, head) in (0..self.cells.len()).flat_map(|cell| [(cell, 0), (cell, 1)]) {
                    bytes.extend((0..4).flat_map(|channel| value(head, cell, channel)));
                }
            }
        }
        bytes.extend(&self.after);
        bytes
    }
}

pub(crate) fn heads() -> Known {
    Known {
        kv_heads: Some(2),
        ..Known::default()
    }
}

#[test]
fn states_of_both_versions_come_out_byte_for_byte() {
    for (version, kind, transposed) in [(2, 1, 0), (3, 1, 0), (2, 0, 1), (3, 30, 1), (3, 0, 0)] {
        let state = State {
            version,
            kind,
            transposed,
            ..State::new()
        };
        let bytes = state.bytes();
        let cache = open(&bytes, &heads()).expect("a cache");
        let expected = if version == 2 { LlamaVersion::V2 } else { LlamaVersion::V3 };
        assert_eq!(cache.format, Format::Llama(expected));
        assert_eq!(detected(&bytes).expect("known"), cache.format);
        assert_eq!(
            (cache.tokens, cache.token_ids.as_deref(), &cache.positions),
            (3, Some(&[5, 6, 7][..]), &None)
        );
        for (layer, (facts, pairs)) in all(&cache).iter().enumerate() {
            assert_eq!(
                (facts.index, facts.lengths.as_slice(), facts.next_position),
                (layer, &[3, 3][..], 3)
            );
            let held = |values: Vec<f32>| match kind {
                30 => values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect(),
                _ => values,
            };
            assert_eq!(pairs.key, held(numbers(&[3, 3], 8, layer as f32 * 16.0)));
            assert_eq!(pairs.value, held(numbers(&[3, 3], 4, layer as f32 * 16.0 + 8.0)));
        }
        assert!(
            written(&cache, &Target::new(cache.format)).expect("written") == bytes,
            "version {version}, type {kind}"
        );
    }
}

/// Tokens, odd positions and transposition survive a stay in every other format that takes the cache.
#[test]
fn nothing_is_lost_in_another_format() {
    let state = State {
        cells: vec![(4, 1), (0, 1), (9, 1)],
        tokens: (0..10).collect(),
        transposed: 1,
        ..State::new()
    };
    let bytes = state.bytes();
    let known = Known {
        architecture: Some("qwen2".to_owned()),
        ..heads()
    };
    let cache = open(&bytes, &known).expect("a cache");
    assert_eq!(
        (cache.layers[0].next_position, cache.positions.as_deref()),
        (10, Some(&[4, 0, 9][..]))
    );
    for format in [Format::Compressed, Format::HuggingFace] {
        let target = Target {
            frame: Some(Frame::Absolute),
            ..Target::new(format)
        };
        let there = written(&cache, &target).expect("written");
        let there = open(&there, &Known::default()).expect("a cache");
        assert_eq!((&there.token_ids, &there.positions), (&cache.token_ids, &cache.positions));
        let back = written(&there, &Target::new(cache.format)).expect("written");
        assert!(back == bytes, "{format}");
    }
}

#[test]
fn compressed_pairs_are_spread_over_the_text_up_to_its_last_token() {
    let cache = short(&[&[4, 4], &[4, 4]]);
    let bytes = written(&cache, &Target::new(Format::Llama(LlamaVersion::V2))).expect("written");
    let words: Vec<u32> = bytes[..80].as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
    // Magic, version, no tokens, one stream, 4 cells of position, 1 sequence, sequence 0.
    assert_eq!(words[..5], [0x6767_7371, 2, 0, 1, 4]);
    assert_eq!(words[5..17], [0, 1, 0, 6, 1, 0, 12, 1, 0, 19, 1, 0]);
    // Not transposed, two layers, keys of F16 (type 1).
    assert_eq!(words[17..20], [0, 2, 1]);
    let again = open(&bytes, &heads()).expect("a cache");
    assert_eq!(again.layers[0].next_position, 20);
    assert_eq!(all(&again)[1].1, all(&cache)[1].1);
}

#[test]
fn what_llama_cpp_cannot_hold_is_refused() {
    let llama = Target::new(Format::Llama(LlamaVersion::V3));
    refused(
        written(&short(&[&[4, 4], &[3, 3]]), &llama),
        &["3 to 4 pairs by layer", "all layers", "--budget uniform"],
    );
    refused(written(&short(&[&[4, 3]]), &llama), &["3 to 4 pairs a head", "--budget uniform"]);
    let near = Target {
        frame: Some(Frame::At(3)),
        ..llama
    };
    refused(written(&short(&[&[4, 4]]), &near), &["--frame", "4 pairs", "position 3"]);
    let mut tokens = short(&[&[4, 4]]);
    tokens.token_ids = Some(vec![1; 19]);
    refused(written(&tokens, &llama), &["19 tokens", "position 20", "--frame 19"]);
    let mut large = crate::compressed(&[&[4, 4]]);
    large.layers[0].value[5] = 1e6;
    let large = kvsculpt::formats::Cache::from_compressed("short", large, &Known::default()).expect("a cache");
    refused(
        written(&large, &llama),
        &["values of layer 0", "head 0, pair 1, channel 1", "--dtype bf16"],
    );
}

#[test]
fn states_that_cannot_be_read_are_refused_by_name() {
    let state = |change: fn(&mut State)| {
        let mut state = State::new();
        change(&mut state);
        open(&state.bytes(), &heads())
    };
    refused(state(|state| state.version = 1), &["version 1", "2 and 3"]);
    refused(state(|state| state.version = 4), &["version 4", "2 and 3"]);
    refused(state(|state| state.kind = 8), &["keys of layer 0", "Q8_0", "--cache-type-k f16"]);
    refused(state(|state| state.streams = 2), &["2 streams", "--kv-unified"]);
    refused(state(|state| state.cells[1].1 = 2), &["cell 1", "2 sequences"]);
    refused(state(|state| state.cells[1].0 = -1), &["cell 1", "position -1"]);
    refused(state(|state| state.cells.clear()), &["no cells"]);
    refused(state(|state| state.layers = 0), &["no layers"]);
    refused(state(|state| state.transposed = 2), &["neither 0 nor 1"]);
    refused(state(|state| state.after = vec![1; 40]), &["40 bytes follow", "sliding windows"]);
    refused(state(|state| state.tokens[2] = -3), &["token 2 is -3", "images"]);
    refused(open(&State::new().bytes(), &Known::default()), &["--kv-heads", "how many KV heads"]);
    let three = Known {
        kv_heads: Some(3),
        ..Known::default()
    };
    refused(open(&State::new().bytes(), &three), &["--kv-heads", "16 channels", "layer 0"]);
    let bytes = State::new().bytes();
    for length in 8..bytes.len() {
        assert!(
            open(&bytes[..length], &heads()).is_err(),
            "{length} bytes were taken for a whole file"
        );
    }
    let mut infinite = bytes.clone();
    let end = infinite.len();
    infinite[end - 2..].copy_from_slice(&f16::INFINITY.to_le_bytes());
    let cache = open(&infinite, &heads()).expect("a cache");
    refused(cache.read(1), &["values of layer 1", "inf", "head 1, cell 2, channel 3"]);
    refused(
        open(&[b"nsgg".as_slice(), &[0; 40]].concat(), &heads()),
        &["whole context", "one sequence"],
    );
    refused(open(&[b"GGUF".as_slice(), &[0; 40]].concat(), &heads()), &["is a model"]);
}

/// The permutation of the weights that llama.cpp's converter makes, on the keys.
#[test]
fn keys_are_woven_as_llama_cpps_converter_weaves_weights() {
    let mut cache = short(&[&[20, 20]]);
    cache.metadata.insert("architecture".into(), "llama".into());
    let target = Target {
        dtype: Some(Dtype::F32),
        ..Target::new(Format::Llama(LlamaVersion::V3))
    };
    let bytes = written(&cache, &target).expect("written");
    let known = Known {
        architecture: Some("llama".to_owned()),
        ..heads()
    };
    let woven = open(&bytes, &known).expect("a cache");
    let (there, here) = (&all(&woven)[0].1.key, &all(&cache)[0].1.key);
    for row in 0..40 {
        for (j, i) in (0..4).flat_map(|j| [(j, 0), (j, 1)]) {
            assert_eq!(there[row * 8 + 2 * j + i], here[row * 8 + i * 4 + j]);
        }
    }
    // And back: Hugging Face's order again. The file itself does not say how many channels rotate.
    refused(written(&woven, &Target::new(Format::HuggingFace)), &["--rope-dim", "another order"]);
    let told = open(
        &bytes,
        &Known {
            rope: crate::rope(),
            ..known
        },
    )
    .expect("a cache");
    let back = written(&told, &Target::new(Format::HuggingFace)).expect("written");
    let back = open(&back, &Known::default()).expect("a cache");
    assert_eq!(all(&back)[0].1, all(&cache)[0].1);
    // An architecture nobody named leaves the order open.
    cache.metadata.remove("architecture");
    refused(written(&cache, &target), &["--pairing", "none named", "--architecture"]);
    let unknown = open(&bytes, &heads()).expect("a cache");
    refused(
        written(&unknown, &Target::new(Format::HuggingFace)),
        &["--rope-pairing", "--architecture"],
    );
}
