//! What a GGUF file says of a model's shape.

use anyhow::{Context as _, Result, bail};
use candle_core::quantized::gguf_file::{Content, Value};
use kvsculpt::cache::{Pairing, Rope};

/// A model's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `llama` or `qwen2`.
    pub architecture: String,
    /// The name in the file, or its architecture.
    pub name: String,
    /// Transformer layers.
    pub layers: usize,
    /// Channels between layers.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads; query head i reads KV head `i / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Channels of a query, key and value.
    pub dim: usize,
    /// ε of the root-mean-square norms.
    pub epsilon: f64,
    /// Positions the model was trained for.
    pub context_length: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The scaling of the rotary frequencies as `kvsculpt` takes it (JSON), where there is one.
    pub rope_scaling: Option<String>,
    /// The rotary embedding that follows from these.
    pub rope: Rope,
}

impl Config {
    /// Reads a GGUF file's metadata; `factors` are its tensor `rope_freqs.weight`, where it has one.
    ///
    /// # Errors
    /// An architecture or a rotary scaling this example has no forward pass for, in words; or a key that is missing.
    pub fn new(content: &Content, factors: Option<&[f32]>) -> Result<Self> {
        let architecture = text(content, "general.architecture")?;
        let pairing = match architecture.as_str() {
            // The converter from which these files come reorders Llama's channels; see llama.cpp's `llama_model_rope_type`.
            "llama" => Pairing::Interleaved,
            "qwen2" => Pairing::Half,
            other => bail!("the model's architecture is `{other}`; this example runs `llama` and `qwen2`"),
        };
        let key = |name: &str| format!("{architecture}.{name}");
        if optional(content, &key("expert_count"), number)?.is_some_and(|experts| experts > 0) {
            bail!("the model is a mixture of experts; this example runs dense models only");
        }
        let (heads, hidden) = (
            number(content, &key("attention.head_count"))?,
            number(content, &key("embedding_length"))?,
        );
        let kv_heads = optional(content, &key("attention.head_count_kv"), number)?.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) || !hidden.is_multiple_of(heads) {
            bail!("the file says {heads} query heads, {kv_heads} KV heads and {hidden} channels, which do not go together");
        }
        let dim = optional(content, &key("attention.key_length"), number)?.unwrap_or(hidden / heads);
        let rotating = optional(content, &key("rope.dimension_count"), number)?.unwrap_or(dim);
        if rotating != dim {
            bail!("{rotating} of a head's {dim} channels rotate; this example runs models that rotate all");
        }
        let rope_theta = optional(content, &key("rope.freq_base"), float)?.unwrap_or(10_000.0);
        let rope_scaling = scaling(content, &key("rope.scaling"), factors)?;
        Ok(Self {
            name: optional(content, "general.name", text)?.unwrap_or_else(|| architecture.clone()),
            layers: number(content, &key("block_count"))?,
            hidden,
            heads,
            kv_heads,
            dim,
            epsilon: float(content, &key("attention.layer_norm_rms_epsilon"))?,
            context_length: number(content, &key("context_length"))?,
            rope_theta,
            rope: Rope::new(rope_theta, dim, pairing, rope_scaling.as_deref())?,
            rope_scaling,
            architecture,
        })
    }

    /// The softmax scale `1 / √dim`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        1.0 / (self.dim as f64).sqrt()
    }
}

/// The rotary scaling of the file, in the words of `kvsculpt`'s captures.
fn scaling(content: &Content, key: &str, factors: Option<&[f32]>) -> Result<Option<String>> {
    let kind = optional(content, &format!("{key}.type"), text)?;
    Ok(match (kind.as_deref(), factors) {
        (None | Some("none"), None) => None,
        (None | Some("none"), Some(factors)) => Some(serde_json::json!({"rope_type": "factors", "factors": factors}).to_string()),
        (Some("linear"), None) => {
            let factor = float(content, &format!("{key}.factor"))?;
            Some(serde_json::json!({"rope_type": "linear", "factor": factor}).to_string())
        }
        (Some(other), _) => bail!("the model scales its rotary frequencies by `{other}`; this example knows `linear`, or factors, alone"),
    })
}

/// What `read` makes of a key; none only where the key is absent.
fn optional<T>(content: &Content, key: &str, read: fn(&Content, &str) -> Result<T>) -> Result<Option<T>> {
    content.metadata.contains_key(key).then(|| read(content, key)).transpose()
}

fn value<'a>(content: &'a Content, key: &str) -> Result<&'a Value> {
    content
        .metadata
        .get(key)
        .with_context(|| format!("the file's metadata lack `{key}`"))
}

fn text(content: &Content, key: &str) -> Result<String> {
    Ok(value(content, key)?.to_string()?.clone())
}

/// A count, whatever width it is stored in.
fn number(content: &Content, key: &str) -> Result<usize> {
    let value = value(content, key)?;
    let wide = value
        .to_u64()
        .with_context(|| format!("`{key}` is {value:?}, and a single count is needed"))?;
    Ok(usize::try_from(wide)?)
}

fn float(content: &Content, key: &str) -> Result<f64> {
    let value = value(content, key)?;
    match value {
        Value::F64(wide) => Ok(*wide),
        _ => Ok(f64::from(
            value
                .to_f32()
                .with_context(|| format!("`{key}` is {value:?}, and a number is needed"))?,
        )),
    }
}
