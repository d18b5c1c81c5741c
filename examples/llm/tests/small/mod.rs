//! Models of a few thousand random weights, as GGUF files in memory.

#![allow(dead_code, reason = "each of the tests uses a part of it")]

use std::io::Cursor;

use candle_core::quantized::gguf_file::{Content, Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use kvsculpt_llm::model::{Model, Products};

/// A small model.
#[derive(Clone, Debug)]
pub(crate) struct Small {
    pub(crate) architecture: &'static str,
    pub(crate) vocabulary: usize,
    hidden: usize,
    feed_forward: usize,
    dtype: GgmlDType,
}

const LAYERS: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

impl Small {
    pub(crate) fn llama() -> Self {
        Self {
            architecture: "llama",
            vocabulary: 50,
            hidden: 64,
            feed_forward: 96,
            dtype: GgmlDType::F32,
        }
    }

    pub(crate) fn qwen2() -> Self {
        Self {
            architecture: "qwen2",
            ..Self::llama()
        }
    }

    /// The same with weights of 8 bits.
    pub(crate) fn quantised(self) -> Self {
        Self {
            dtype: GgmlDType::Q8_0,
            ..self
        }
    }

    pub(crate) fn open(&self) -> (Content, Cursor<Vec<u8>>) {
        let mut file = Cursor::new(self.bytes());
        (Content::read(&mut file).unwrap(), file)
    }

    pub(crate) fn model(&self, products: Products) -> Model {
        let (content, mut file) = self.open();
        Model::new(&content, &mut file, &Device::Cpu, products).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(11);
        let mut weights: Vec<(String, QTensor)> = Vec::new();
        let mut add = |name: String, shape: &[usize], middle: f32, spread: f32, dtype: GgmlDType| {
            let numbers: Vec<f32> = (0..shape.iter().product())
                .map(|_| middle + spread * (random.f32() * 2.0 - 1.0))
                .collect();
            let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
            weights.push((name, QTensor::quantize(&tensor, dtype).unwrap()));
        };
        let (hidden, kv) = (self.hidden, self.hidden / HEADS * KV_HEADS);
        add("token_embd.weight".into(), &[self.vocabulary, hidden], 0.0, 1.0, self.dtype);
        add("output_norm.weight".into(), &[hidden], 1.0, 0.3, GgmlDType::F32);
        if self.architecture == "llama" {
            add("output.weight".into(), &[self.vocabulary, hidden], 0.0, 0.5, self.dtype);
        }
        for layer in 0..LAYERS {
            let mut block =
                |part: &str, shape: &[usize], middle, spread, dtype| add(format!("blk.{layer}.{part}"), shape, middle, spread, dtype);
            block("attn_norm.weight", &[hidden], 1.0, 0.3, GgmlDType::F32);
            block("ffn_norm.weight", &[hidden], 1.0, 0.3, GgmlDType::F32);
            block("attn_q.weight", &[hidden, hidden], 0.0, 0.5, self.dtype);
            block("attn_k.weight", &[kv, hidden], 0.0, 0.5, self.dtype);
            block("attn_v.weight", &[kv, hidden], 0.0, 0.3, self.dtype);
            block("attn_output.weight", &[hidden, hidden], 0.0, 0.3, self.dtype);
            block("ffn_gate.weight", &[self.feed_forward, hidden], 0.0, 0.3, self.dtype);
            block("ffn_up.weight", &[self.feed_forward, hidden], 0.0, 0.3, self.dtype);
            block("ffn_down.weight", &[hidden, self.feed_forward], 0.0, 0.3, self.dtype);
            if self.architecture == "qwen2" {
                block("attn_q.bias", &[hidden], 0.0, 1.0, GgmlDType::F32);
                block("attn_k.bias", &[kv], 0.0, 1.0, GgmlDType::F32);
                block("attn_v.bias", &[kv], 0.0, 1.0, GgmlDType::F32);
            }
        }
        let count = |value: usize| Value::U32(u32::try_from(value).unwrap());
        let name = |key: &str| format!("{}.{key}", self.architecture);
        let metadata = [
            ("general.architecture".to_owned(), Value::String(self.architecture.into())),
            (name("block_count"), count(LAYERS)),
            (name("context_length"), count(1024)),
            (name("embedding_length"), count(hidden)),
            (name("feed_forward_length"), count(self.feed_forward)),
            (name("attention.head_count"), count(HEADS)),
            (name("attention.head_count_kv"), count(KV_HEADS)),
            (name("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
            (name("rope.freq_base"), Value::F32(10_000.0)),
            (name("rope.dimension_count"), count(hidden / HEADS)),
        ];
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let weights: Vec<(&str, &QTensor)> = weights.iter().map(|(name, weight)| (name.as_str(), weight)).collect();
        let mut file = Cursor::new(Vec::new());
        write(&mut file, &metadata, &weights).unwrap();
        file.into_inner()
    }
}

/// A text without meaning.
pub(crate) fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| random.u32(0..50)).collect()
}

/// `‖found − wanted‖ ≤ tolerance · ‖wanted‖`.
pub(crate) fn assert_close(found: &[f32], wanted: &[f32], tolerance: f64, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let of = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let distance = of(&mut found.iter().zip(wanted).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = of(&mut wanted.iter().map(|a| f64::from(*a)));
    assert!(
        distance <= tolerance * size,
        "{what}: off by {:.2e} of its size, {tolerance:.0e} is allowed",
        distance / size
    );
}
