//! What a Hugging Face `config.json` says of a model's cache.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Map, Value};

use super::cache::RopeFacts;
use super::known::Known;
use crate::cache::{shown, unreadable};
use crate::error::{Error, Result};

/// The largest configuration read, in bytes; real ones have some thousand.
const LARGEST: u64 = 1 << 20;

/// Rotates layers of one model differently, so that one set of facts would be wrong for some.
const BY_LAYER: [&str; 4] = ["rope_local_base_freq", "no_rope_layers", "local_rope_theta", "global_rope_theta"];

impl Known {
    /// Takes from a model's `config.json` its architecture, KV heads, and how keys are turned to positions; what is known already
    /// stays. The rotation is left open where the file does not say it or the model's layers rotate differently.
    ///
    /// # Errors
    /// [`Error::File`]: not readable, or no such configuration.
    pub fn add_configuration(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        let mut text = String::new();
        // What is no regular file tells no length beforehand.
        let read = file.take(LARGEST + 1).read_to_string(&mut text);
        read.map_err(|error| unreadable(path, &error))?;
        if text.len() as u64 > LARGEST {
            return Err(Error::file(
                path,
                format!("has more than {LARGEST} bytes, too many for a model's config.json; check that it is the right file"),
            ));
        }
        let value: Value =
            serde_json::from_str(&text).map_err(|error| Error::file(path, format!("is no JSON ({error}); give a model's config.json")))?;
        let object = value
            .as_object()
            .ok_or_else(|| Error::file(path, "is no JSON object; give a model's config.json"))?;
        // Models that see or hear keep their language part's configuration one level down.
        let object = object.get("text_config").and_then(Value::as_object).unwrap_or(object);
        let heads = whole(object, "num_attention_heads", path)?;
        self.kv_heads = self.kv_heads.or(whole(object, "num_key_value_heads", path)?).or(heads);
        if self.architecture.is_none() {
            self.architecture = object.get("model_type").and_then(Value::as_str).map(str::to_owned);
        }
        if self.rope.is_none() {
            self.rope = rope(object, heads, path)?;
        }
        Ok(())
    }
}

fn rope(object: &Map<String, Value>, heads: Option<usize>, path: &Path) -> Result<Option<RopeFacts>> {
    // `null` says as little as an absence.
    let given = |key: &str| object.get(key).filter(|value| !value.is_null());
    let by_layer = |key: &&str| given(key).is_some();
    if BY_LAYER.iter().any(by_layer) {
        return Ok(None);
    }
    let parts = given("rope_parameters").or_else(|| given("rope_scaling"));
    let parts = parts.and_then(Value::as_object);
    // One object a kind of layer.
    if parts.is_some_and(|parts| parts.values().any(Value::is_object)) {
        return Ok(None);
    }
    let inner = |key: &str| given(key).or_else(|| parts?.get(key)).and_then(Value::as_f64);
    let width = match (whole(object, "head_dim", path)?, whole(object, "hidden_size", path)?, heads) {
        (Some(dim), _, _) => dim,
        (None, Some(hidden), Some(heads)) if heads > 0 => hidden / heads,
        _ => return Ok(None),
    };
    let Some(theta) = inner("rope_theta") else { return Ok(None) };
    let share = inner("partial_rotary_factor").unwrap_or(1.0);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between nothing and the head's width, as Hugging Face's model code computes it"
    )]
    let dim = (width as f64 * share.clamp(0.0, 1.0)) as usize;
    let scaling = parts
        .filter(|parts| parts.contains_key("rope_type") || parts.contains_key("type"))
        .map(|parts| Value::Object(parts.clone()).to_string());
    Ok(Some(RopeFacts { theta, dim, scaling }))
}

/// A whole number of the configuration, where it is there.
fn whole(object: &Map<String, Value>, key: &str, path: &Path) -> Result<Option<usize>> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .and_then(|number| usize::try_from(number).ok());
            number.map(Some).ok_or_else(|| {
                Error::file(
                    path,
                    format!(
                        "has {key} {}; a model's config.json has a whole number there",
                        shown(&value.to_string())
                    ),
                )
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_counts_as_absent() {
        let text = r#"{"head_dim": 8, "rope_theta": null, "partial_rotary_factor": null, "rope_parameters": null,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5}}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        let found = rope(value.as_object().unwrap(), None, Path::new("config.json")).unwrap().unwrap();
        assert_eq!((found.theta, found.dim), (500.0, 4));
        assert!(found.scaling.is_some_and(|scaling| scaling.contains("linear")));
    }
}
