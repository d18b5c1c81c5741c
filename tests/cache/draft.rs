//! A safetensors file in the making, every part of which can be made wrong.

use half::{bf16, f16};

/// A tensor as the header will tell it, and its bytes, which need not agree.
#[derive(Clone)]
pub(crate) struct DraftTensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// A file in the making.
#[derive(Clone, Default)]
pub(crate) struct Draft {
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) tensors: Vec<DraftTensor>,
}

/// What the capture's tensors hold at an element: exact in every dtype, different in every tensor and place.
pub(crate) fn element(tensor: usize, index: usize) -> f32 {
    ((index % 64 + tensor) as f32 - 32.0) * 0.125
}

pub(crate) fn encode(dtype: &str, values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&value| match dtype {
            "F32" => value.to_le_bytes().to_vec(),
            "F16" => f16::from_f32(value).to_le_bytes().to_vec(),
            "BF16" => bf16::from_f32(value).to_le_bytes().to_vec(),
            other => panic!("no floats of {other}"),
        })
        .collect()
}

/// The capture's shape: 2 KV heads, 4 query heads, 5 tokens, 8 channels of keys and 4 of values.
pub(crate) const KIND_SHAPES: [(&str, [u64; 3]); 5] = [
    ("key", [2, 5, 8]),
    ("value", [2, 5, 4]),
    ("query", [4, 5, 8]),
    ("reference_query", [4, 3, 8]),
    ("probe_query", [4, 2, 8]),
];

impl Draft {
    /// A valid capture of layers 1 (f32) and 3 (f16 keys, bf16 queries).
    pub(crate) fn capture() -> Self {
        let mut draft = Self::default();
        for (key, value) in [
            ("format", "kv-capture"),
            ("version", "1"),
            ("model", "none"),
            ("tokens", "5"),
            ("next_position", "7"),
            ("rope_theta", "10000.0"),
            ("rope_pairing", "half"),
            ("rope_dim", "8"),
            ("softmax_scale", "0.25"),
        ] {
            draft.set(key, value);
        }
        for layer in [1, 3] {
            for (number, (kind, shape)) in KIND_SHAPES.into_iter().enumerate() {
                let dtype = match (layer, kind) {
                    (1, _) => "F32",
                    (_, "key" | "value") => "F16",
                    _ => "BF16",
                };
                let values: Vec<f32> = (0..shape.iter().product::<u64>() as usize)
                    .map(|index| element(number, index))
                    .collect();
                draft.tensors.push(DraftTensor {
                    name: format!("layers.{layer}.{kind}"),
                    dtype,
                    shape: shape.to_vec(),
                    bytes: encode(dtype, &values),
                });
            }
        }
        draft
    }

    /// A valid compressed cache of one layer: heads of 2 and 3 pairs, biased.
    pub(crate) fn compressed() -> Self {
        let mut draft = Self::default();
        draft.set("format", "kv-compressed");
        draft.set("version", "1");
        let lengths = [2_i32, 3].iter().flat_map(|length| length.to_le_bytes()).collect();
        for (kind, dtype, shape, bytes) in [
            ("lengths", "I32", vec![2], lengths),
            ("bias", "F32", vec![5], encode("F32", &[0.5; 5])),
            ("key", "F16", vec![5, 8], encode("F16", &[1.0; 40])),
            ("value", "F16", vec![5, 4], encode("F16", &[2.0; 20])),
        ] {
            draft.tensors.push(DraftTensor {
                name: format!("layers.2.{kind}"),
                dtype,
                shape,
                bytes,
            });
        }
        draft
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.unset(key);
        self.metadata.push((key.to_owned(), value.to_owned()));
    }

    pub(crate) fn unset(&mut self, key: &str) {
        self.metadata.retain(|(found, _)| found != key);
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut DraftTensor {
        self.tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .expect("a tensor of the draft")
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| tensor.name != name);
        assert_eq!(before, self.tensors.len() + 1, "{name} was in the draft");
    }

    /// Gives a tensor a new shape and bytes to fit it.
    pub(crate) fn reshape(&mut self, name: &str, shape: &[u64]) {
        let tensor = self.tensor(name);
        let width = if tensor.dtype == "F32" { 4 } else { 2 };
        tensor.shape = shape.to_vec();
        tensor.bytes = vec![0; shape.iter().product::<u64>() as usize * width];
    }

    /// Puts a number into a tensor of f32.
    pub(crate) fn poke(&mut self, name: &str, index: usize, value: f32) {
        let tensor = self.tensor(name);
        assert_eq!(tensor.dtype, "F32");
        tensor.bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn header(&self) -> String {
        let mut entries = vec![format!(
            "\"__metadata__\":{}",
            serde_json::to_string(&self.metadata.iter().cloned().collect::<std::collections::BTreeMap<_, _>>()).expect("JSON")
        )];
        let mut at = 0;
        for tensor in &self.tensors {
            let end = at + tensor.bytes.len();
            entries.push(format!(
                "\"{}\":{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{at},{end}]}}",
                tensor.name, tensor.dtype, tensor.shape
            ));
            at = end;
        }
        format!("{{{}}}", entries.join(","))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.with_header(self.header().as_bytes())
    }

    /// The draft's data after a header that may say anything.
    pub(crate) fn with_header(&self, header: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        for tensor in &self.tensors {
            bytes.extend(&tensor.bytes);
        }
        bytes
    }
}
