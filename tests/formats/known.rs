//! What the caller knows: models' configurations.

use kvsculpt::formats::{Known, RopeFacts};

use crate::refused;

fn from(text: &str) -> kvsculpt::Result<Known> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, text).expect("written");
    let mut known = Known::default();
    known.add_configuration(&path)?;
    Ok(known)
}

fn facts(theta: f64, dim: usize, scaling: Option<&str>) -> Option<RopeFacts> {
    let scaling = scaling.map(str::to_owned);
    Some(RopeFacts { theta, dim, scaling })
}

#[test]
fn configurations_of_several_generations() {
    let qwen = from(
        r#"{"model_type":"qwen2","hidden_size":896,"num_attention_heads":14,"num_key_value_heads":2,"rope_theta":1000000.0,"rope_scaling":null}"#,
    );
    let qwen = qwen.expect("a configuration");
    assert_eq!(
        (qwen.architecture.as_deref(), qwen.kv_heads, qwen.rope),
        (Some("qwen2"), Some(2), facts(1e6, 64, None))
    );
    let llama = r#"{"model_type":"llama","head_dim":128,"num_attention_heads":32,"num_key_value_heads":8,"rope_theta":500000.0,
        "rope_scaling":{"rope_type":"linear","factor":8.0}}"#;
    let scaling = Some(r#"{"rope_type":"linear","factor":8.0}"#);
    let found = from(llama).expect("a configuration").rope.expect("a rotation");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    assert_eq!((found.theta, found.dim), (5e5, 128));
    assert_eq!(found.scaling.as_deref().map(json), scaling.map(json));
    // Newer ones keep all of it in one object, models that see one level down, and some rotate a part of a head.
    let newer = r#"{"text_config":{"model_type":"qwen3","head_dim":80,"num_attention_heads":4,"partial_rotary_factor":0.5,
        "rope_parameters":{"rope_type":"default","rope_theta":10000.0}}}"#;
    let newer = from(newer).expect("a configuration");
    assert_eq!(
        (newer.kv_heads, newer.rope.as_ref().map(|rope| (rope.theta, rope.dim))),
        (Some(4), Some((1e4, 40)))
    );
}

#[test]
fn layers_that_rotate_differently_leave_the_rotation_open() {
    for text in [
        r#"{"head_dim":64,"rope_theta":1e6,"rope_local_base_freq":10000.0}"#,
        r#"{"head_dim":64,"rope_parameters":{"full_attention":{"rope_theta":1e6},"sliding_attention":{"rope_theta":1e4}}}"#,
        r#"{"head_dim":64,"rope_theta":1e6,"no_rope_layers":[1,0]}"#,
        r#"{"head_dim":64}"#,
    ] {
        assert_eq!(from(text).expect("a configuration").rope, None, "{text}");
    }
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    refused(from("no"), &["config.json", "no JSON"]);
    refused(from("[]"), &["no JSON object"]);
    refused(from(r#"{"num_key_value_heads":-2}"#), &["num_key_value_heads", "-2"]);
}
