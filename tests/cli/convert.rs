//! `convert` as a user meets it.

use std::fs;

use kvsculpt::formats::{Cache, Format, Known, MlxLayout};

use crate::draft::Draft;
use crate::workplace::{Workplace, refused, run, succeeded};

fn convert(workplace: &Workplace, input: &str, output: &str, more: &[&str]) -> std::process::Output {
    let path = |name: &str| workplace.path(name).to_str().expect("a path of letters").to_owned();
    let mut arguments = vec!["convert".to_owned(), path(input), path(output)];
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    run(&arguments)
}

/// A capture of layer 0 alone, so that formats that want all layers take it.
fn capture() -> Vec<u8> {
    let mut draft = Draft::capture();
    draft.tensors.retain(|tensor| tensor.name.starts_with("layers.1."));
    for tensor in &mut draft.tensors {
        tensor.name = tensor.name.replace("layers.1.", "layers.0.");
    }
    draft.bytes()
}

#[test]
fn a_capture_becomes_a_prompt_cache_and_says_so() {
    let workplace = Workplace::new(&capture());
    let output = convert(
        &workplace,
        "capture.safetensors",
        "prompt.safetensors",
        &["--to", "mlx", "--model", "org/name", "--dtype", "bf16"],
    );
    let said = succeeded(&output);
    for words in [
        "capture, 1 layers of 2 KV heads, 5 pairs a head, next position 7, F32",
        "mlx-lm prompt cache (0.32 and newer), 1 layers of 2 KV heads, 5 pairs a head, next position 5, BF16",
        "Keys were turned",
        "queries are left behind",
    ] {
        assert!(said.contains(words), "{said} lacks {words:?}");
    }
    let cache = Cache::open(&workplace.path("prompt.safetensors"), &Known::default()).expect("a cache");
    assert_eq!(cache.format, Format::Mlx(MlxLayout::Scalars));
    assert_eq!(cache.metadata["model"], "org/name");
    // Without --to it stays what it is.
    succeeded(&convert(&workplace, "prompt.safetensors", "again.safetensors", &[]));
    let same =
        fs::read(workplace.path("prompt.safetensors")).expect("read") == fs::read(workplace.path("again.safetensors")).expect("read");
    assert!(same, "a second conversion changed the file");
}

#[test]
fn a_sequence_state_takes_its_facts_from_the_models_configuration() {
    let workplace = Workplace::new(&capture());
    let config = workplace.path("config.json");
    fs::write(
        &config,
        r#"{"model_type":"llama","head_dim":8,"num_attention_heads":4,"num_key_value_heads":2,"rope_theta":10000.0}"#,
    )
    .expect("written");
    fs::write(workplace.path("ids"), "[1, 2, 3,\n 4 5 6 7]").expect("written");
    let config = config.to_str().expect("a path of letters");
    let ids = workplace.path("ids");
    let options = ["--model-config", config, "--token-ids", ids.to_str().expect("a path of letters")];
    let to_llama = [&["--to", "llama-v2"][..], &options].concat();
    succeeded(&convert(&workplace, "capture.safetensors", "state.bin", &to_llama));
    refused(
        &convert(&workplace, "state.bin", "back", &["--to", "compressed"]),
        2,
        &["--kv-heads", "state.bin", "--model-config"],
    );
    succeeded(&convert(
        &workplace,
        "state.bin",
        "back",
        &["--to", "hugging-face", "--frame", "absolute", "--model-config", config],
    ));
    let (there, here) = (
        Cache::open(&workplace.path("back"), &Known::default()).expect("a cache"),
        Cache::open(&workplace.capture(), &Known::default()).expect("a cache"),
    );
    assert_eq!(there.read(0).expect("a layer"), here.read(0).expect("a layer"));
    assert_eq!((there.token_ids, there.layers[0].next_position), (Some((1..8).collect()), 7));
}

#[test]
fn refusals_have_the_code_of_their_class_and_leave_nothing() {
    let workplace = Workplace::new(&capture());
    let from = "capture.safetensors";
    refused(&convert(&workplace, from, from, &["--to", "compressed"]), 3, &["would be lost"]);
    refused(
        &convert(&workplace, from, "out", &["--to", "mlx", "--transposed", "on"]),
        2,
        &["--transposed", "--to llama"],
    );
    refused(
        &convert(&workplace, from, "out", &["--to", "llama"]),
        2,
        &["--pairing", "--architecture"],
    );
    refused(&convert(&workplace, "missing", "out", &[]), 3, &["no such file"]);
    refused(
        &convert(
            &workplace,
            from,
            "out",
            &["--to", "hugging-face", "--token-ids", &workplace.path(from).to_string_lossy()],
        ),
        3,
        &[from],
    );
    let output = convert(&workplace, from, "out", &["--to", "hugging-face", "--frame", "near"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(workplace.files(), [from]);
}

#[test]
fn no_file_that_is_read_is_overwritten() {
    let workplace = Workplace::new(&capture());
    for flag in ["--model-config", "--token-ids"] {
        let path = workplace.path("facts");
        fs::write(&path, "{}").expect("written");
        let path = path.to_str().expect("a path of letters");
        let output = convert(&workplace, "capture.safetensors", "facts", &["--to", "hugging-face", flag, path]);
        refused(&output, 3, &["facts", "would be lost"]);
        assert_eq!(fs::read_to_string(path).expect("still there"), "{}");
    }
}
