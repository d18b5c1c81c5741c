//! What the caller knows of a cache and its file does not say.

use super::Format;
use super::cache::{Cache, RopeFacts};
use crate::cache::{Pairing, QueryStatistics};
use crate::error::{Error, Result};

/// What the caller knows of a cache. Where the file says it too, the caller's word counts, but for positions, which must not
/// contradict it.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// # let (statistics, configuration) = (folder.path().join("statistics.safetensors"), folder.path().join("config.json"));
/// # kvsculpt::cache::gather(&[capture], &statistics, &mut |_| {})?;
/// # kvsculpt::cache::write_whole(&configuration, br#"{"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3}"#)?;
/// use kvsculpt::{cache::QueryStatistics, formats::Known};
///
/// // The model's config.json, or statistics of its queries, say what a llama.cpp state does not.
/// let mut known = Known::default();
/// known.add_configuration(&configuration)?;
/// assert_eq!((known.kv_heads, known.architecture.as_deref()), (Some(3), Some("llama")));
/// known.add_statistics(&QueryStatistics::open(&statistics)?);
/// assert!(known.rope.is_some());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// KV heads of every layer; llama.cpp's files need it.
    pub kv_heads: Option<usize>,
    /// The position of the next token; for safetensors that do not say it. Their stored length is what it is otherwise.
    pub next_position: Option<usize>,
    /// How keys are turned to positions.
    pub rope: Option<RopeFacts>,
    /// Which channels of a key rotate together in this file.
    pub pairing: Option<Pairing>,
    /// The model's architecture, as its configuration (`model_type`) or its GGUF file (`general.architecture`) calls it: from it
    /// follows how each engine pairs channels.
    pub architecture: Option<String>,
    /// The model, as the engine that reads the result is given it.
    pub model: Option<String>,
    /// The text's tokens, which llama.cpp's files hold.
    pub token_ids: Option<Vec<i32>>,
}

impl Known {
    /// Takes from query statistics what they say of their model: its architecture, KV heads and rotation; what is known already stays.
    pub fn add_statistics(&mut self, statistics: &QueryStatistics) {
        let text = |key: &str| statistics.metadata.get(key).cloned();
        self.kv_heads = self.kv_heads.or(Some(statistics.kv_heads));
        self.architecture = self.architecture.take().or_else(|| text("architecture"));
        if self.rope.is_none() {
            let theta = text("rope_theta").and_then(|text| text.parse().ok());
            let dim = text("rope_dim").and_then(|text| text.parse().ok());
            let scaling = text("rope_scaling");
            self.rope = theta.zip(dim).map(|(theta, dim)| RopeFacts { theta, dim, scaling });
        }
    }
}

impl Cache {
    /// The cache with what the caller knows put over what its file says.
    pub(super) fn told(mut self, known: &Known) -> Result<Self> {
        if let Some(position) = known.next_position
            && let Some(layer) = self.layers.iter().find(|layer| layer.next_position != position)
        {
            return Err(Error::option(
                "--next-position",
                format!(
                    "is {position}, and {} says that layer {} stands before position {}; leave it out, or turn the keys with --frame",
                    self.path.display(),
                    layer.index,
                    layer.next_position
                ),
            ));
        }
        if let (Some(wanted), Some(layer)) = (known.kv_heads, self.layers.first())
            && wanted != layer.lengths.len()
        {
            return Err(Error::option(
                "--kv-heads",
                format!(
                    "is {wanted}, and {} has {} KV heads in layer {}; leave it out",
                    self.path.display(),
                    layer.lengths.len(),
                    layer.index
                ),
            ));
        }
        for (key, text) in [("model", &known.model), ("architecture", &known.architecture)] {
            if let Some(text) = text {
                self.metadata.insert(key.to_owned(), text.clone());
            }
        }
        if known.token_ids.iter().flatten().any(|&id| id < 0) {
            return Err(Error::option(
                "--token-ids",
                "has a negative number; give the numbers of the text's tokens",
            ));
        }
        self.rope = known.rope.clone().or(self.rope);
        self.token_ids = known.token_ids.clone().or(self.token_ids);
        self.pairing = known.pairing.or(self.pairing).or_else(|| {
            let architecture = self.metadata.get("architecture").map(String::as_str);
            match self.format {
                Format::Mlx(_) | Format::HuggingFace => Some(hugging_face_pairing(architecture)),
                Format::Llama(_) => llama_pairing(architecture?),
                Format::Capture | Format::Compressed => None,
            }
        });
        self.check_rope()?;
        Ok(self)
    }

    /// Checks that no more channels rotate than a key has.
    fn check_rope(&self) -> Result<()> {
        let Some(rope) = &self.rope else { return Ok(()) };
        if let Some(layer) = self.layers.iter().find(|layer| layer.dim < rope.dim) {
            return Err(Error::option(
                "--rope-dim",
                format!(
                    "{} channels of a key are said to rotate, and layer {} of {} has {}; give how many do",
                    rope.dim,
                    layer.index,
                    self.path.display(),
                    layer.dim
                ),
            ));
        }
        // What makes the frequencies, refused here rather than at the first key.
        rope.rope(Pairing::Half).map(drop)
    }
}

/// How Hugging Face's model code, and mlx-lm after it, pairs the channels of a key.
pub(super) fn hugging_face_pairing(architecture: Option<&str>) -> Pairing {
    match architecture {
        Some("cohere" | "cohere2" | "command-r" | "gptj" | "glm" | "glm4" | "chatglm" | "ernie4_5" | "llama4") => Pairing::Interleaved,
        _ => Pairing::Half,
    }
}

/// How llama.cpp pairs them: its converter permutes the weights of those that it interleaves.
pub(super) fn llama_pairing(architecture: &str) -> Option<Pairing> {
    match architecture {
        "llama" | "mistral" | "granite" | "internlm2" | "minicpm" | "smollm3" | "arcee" | "command-r" | "cohere" | "cohere2" => {
            Some(Pairing::Interleaved)
        }
        "qwen2" | "qwen2moe" | "qwen2_moe" | "qwen3" | "qwen3moe" | "qwen3_moe" | "gemma" | "gemma2" | "gemma3" | "gemma3_text"
        | "phi2" | "phi" | "phi3" | "stablelm" | "olmo2" | "falcon" | "gptneox" | "gpt_neox" | "starcoder2" => Some(Pairing::Half),
        _ => None,
    }
}
