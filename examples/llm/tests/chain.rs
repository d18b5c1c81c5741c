//! The whole chain on a real model, SmolLM2-135M, over a short text: read, capture, compress, go on; in the library and through the
//! program. `cargo xtask model smollm2` fetches the model.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on has failed; its numbers are small"
)]

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::quantized::gguf_file::{Content, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use kvsculpt::cache::{Capture, Compressed, Dtype};
use kvsculpt::gpu::Selection;
use kvsculpt::machine::{Preference, choose};
use kvsculpt::options::Method;
use kvsculpt::solver::Request;
use kvsculpt_llm::commands::variant::{MethodKind, PresetKind, Variant};
use kvsculpt_llm::measure::{Distributions, Divergence};
use kvsculpt_llm::model::{Model, Products};
use kvsculpt_llm::reading::{Reading, follow};
use kvsculpt_llm::record::Recorder;
use kvsculpt_llm::source::small_test_model;
use kvsculpt_llm::text::Tokenizer;

/// Tokens that are read, and those over which is measured.
const TOKENS: usize = 320;
const NEXT: usize = 24;

fn model_file() -> PathBuf {
    small_test_model().unwrap_or_else(|error| panic!("{error}"))
}

fn text() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("texts/katrine.txt")
}

fn open(products: Products) -> (Model, Vec<u32>) {
    let (content, model) = Model::open(&model_file(), &Device::Cpu, Some(products)).unwrap();
    let tokenizer = Tokenizer::from_gguf(&content).unwrap();
    let mut tokens = tokenizer.encode(&std::fs::read_to_string(text()).unwrap()).unwrap();
    tokens.truncate(TOKENS + NEXT + 1);
    (model, tokens)
}

/// The model's file with every weight widened to single precision: candle's own model multiplies such weights without rounding
/// the states to 8 bits, and two computations that round differently stay together.
fn widened() -> (Content, Cursor<Vec<u8>>) {
    let mut file = File::open(model_file()).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut widen = |name: &str| {
        let weight = content
            .tensor(&mut file, name, &Device::Cpu)
            .unwrap()
            .dequantize(&Device::Cpu)
            .unwrap();
        QTensor::quantize(&weight, GgmlDType::F32).unwrap()
    };
    let weights: Vec<(&str, QTensor)> = content.tensor_infos.keys().map(|name| (name.as_str(), widen(name))).collect();
    let metadata: Vec<_> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let weights: Vec<_> = weights.iter().map(|(name, weight)| (*name, weight)).collect();
    let mut wide = Cursor::new(Vec::new());
    write(&mut wide, &metadata, &weights).unwrap();
    wide.set_position(0);
    (Content::read(&mut wide).unwrap(), wide)
}

#[test]
fn the_real_models_logits_are_those_of_candles_own() {
    let (model, tokens) = open(Products::Widened);
    let hidden = model.forward(&tokens[..64], &mut model.cache(), &mut ()).unwrap();
    let ours = Distributions::new(&model.logits(&hidden.narrow(0, 63, 1).unwrap()).unwrap()).unwrap();
    let (content, mut file) = widened();
    let mut candles = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let theirs = candles
        .forward(&Tensor::new(&tokens[..64], &Device::Cpu).unwrap().unsqueeze(0).unwrap(), 0)
        .unwrap();
    let theirs = Distributions::new(&theirs).unwrap();
    let found = Divergence::new(&theirs, &ours, &tokens[64..65]).unwrap();
    eprintln!("KL to candle's own model: {:.1e}", found.mean);
    assert!(found.mean < 1e-7, "{}", found.mean);
}

/// KL of what follows over the cache that `shorten` makes of the capture.
struct Chain {
    model: Model,
    tokens: Vec<u32>,
    reading: Reading,
    capture: Capture,
    full: Distributions,
}

impl Chain {
    fn new() -> Self {
        let (model, tokens) = open(Products::Widened);
        let reading = Reading::new(&model, &tokens[..TOKENS], &mut |_| ()).unwrap();
        let mut probe = Recorder::after_rope(&model);
        let full = follow(&model, &reading.cache, &tokens[TOKENS..TOKENS + NEXT], &mut probe).unwrap();
        let capture = reading.capture("katrine", &model, Some(&probe)).unwrap();
        Self {
            model,
            tokens,
            reading,
            capture,
            full,
        }
    }

    fn divergence(&self, short: &Compressed) -> f64 {
        let cache = self.reading.cache.compressed(short, &Device::Cpu).unwrap();
        let found = follow(&self.model, &cache, &self.tokens[TOKENS..TOKENS + NEXT], &mut ()).unwrap();
        Divergence::new(&self.full, &found, &self.tokens[TOKENS + 1..]).unwrap().mean
    }

    fn shortened(&self, method: MethodKind) -> f64 {
        let mut machine = choose(Preference::Cpu, &Selection::default()).unwrap().open().unwrap();
        let variant = Variant::new(method, PresetKind::Default, 0.4, Some(r#"{"tail": {"pairs": 32}}"#)).unwrap();
        self.divergence(&variant.shorten(&self.capture, &mut machine, &mut ()).unwrap().compressed)
    }
}

#[test]
fn the_path_loses_nothing_and_better_methods_lose_less() {
    let chain = Chain::new();
    let full = chain.shortened(MethodKind::Full);
    assert!(full.abs() < 1e-6, "nothing dropped, and yet a KL of {full}");
    let [random, select, kvsculpt] = [MethodKind::Random, MethodKind::Select, MethodKind::Kvsculpt].map(|method| chain.shortened(method));
    assert!(select > 1e-4, "{select}: with pairs dropped something must be lost");
    assert!(select < 0.5 * random, "select {select}, random {random}");
    assert!(kvsculpt < select, "kvsculpt {kvsculpt}, select {select}");
}

#[test]
fn files_carry_the_cache_from_the_model_and_back_on_both_engines() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let (captured, short) = (folder.path().join("capture.safetensors"), folder.path().join("short.safetensors"));
    chain.capture.write(&captured, Dtype::F16).unwrap();
    let mut request = Request::default();
    request.options.method = Method::SelectFit;
    request.options.keep = 0.4;
    request.options.tail = kvsculpt::options::Tail::Pairs(32);
    // Two layers: the kernels are tested elsewhere, and a software driver is slow.
    request.layers = Some(vec![12, 20]);
    let found = [Preference::Cpu, Preference::Gpu].map(|preference| {
        let mut machine = choose(preference, &Selection::default()).unwrap().open().unwrap();
        let compression = machine.compress(&Capture::open(&captured).unwrap(), &request, &mut ()).unwrap();
        compression.compressed.write(&short).unwrap();
        chain.divergence(&Compressed::read(&short).unwrap())
    });
    assert!(found[0] > 1e-6 && found[0] < 0.1, "{}", found[0]);
    assert!(
        (found[0] - found[1]).abs() < 0.05 * found[0],
        "the engines' KL: {} and {}",
        found[0],
        found[1]
    );
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvsculpt-llm")).args(arguments).output().unwrap()
}

/// Standard output of a run that must succeed.
fn told(arguments: &[&str]) -> String {
    let output = program(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn eval_measures_once_and_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let (model, text) = (model_file(), text());
    let run = |more: &[&str]| {
        let mut arguments = vec!["eval", model.to_str().unwrap(), text.to_str().unwrap(), "--engine", "cpu"];
        arguments.extend([
            "--tokens",
            "160",
            "--next",
            "16",
            "--keep",
            "0.5",
            "--set",
            r#"{"tail": {"pairs": 16}}"#,
        ]);
        arguments.extend(["-o", results.to_str().unwrap()]);
        arguments.extend(more);
        told(&arguments)
    };
    let first = run(&["--method", "full,select", "--json"]);
    let rows: Vec<serde_json::Value> = first.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert!(rows[0]["kl"]["mean"].as_f64().unwrap().abs() < 1e-6, "{}", rows[0]["kl"]);
    assert!(rows[1]["kl"]["mean"].as_f64().unwrap() > 1e-6);
    assert_eq!(rows[1]["kl"]["tokens"].as_array().unwrap().len(), 16);
    // Its seconds would differ if it were measured again.
    let again = run(&["--method", "full,select,select-fit", "--json"]);
    assert_eq!(again.lines().take(2).collect::<Vec<_>>(), first.lines().collect::<Vec<_>>());
    assert_eq!(again.lines().count(), 3);
    let table = run(&["--method", "select"]);
    assert!(
        table.contains(r#"| select, tail: {"pairs":16} |"#) && table.contains("katrine @0"),
        "{table}"
    );
}

#[test]
fn heads_are_fitted_to_the_queries_that_are_asked_for() {
    let (model, text) = (model_file(), text());
    let mut arguments = vec!["eval", model.to_str().unwrap(), text.to_str().unwrap(), "--engine", "cpu", "--json"];
    arguments.extend(["--tokens", "64", "--next", "8", "--keep", "0.5", "--method", "select-fit"]);
    arguments.extend([
        "--set",
        r#"{"tail": {"pairs": 16}}"#,
        "--queries",
        "context,again,cascade,generated",
    ]);
    let rows: Vec<serde_json::Value> = told(&arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named: Vec<&str> = rows.iter().map(|row| row["queries"].as_str().unwrap_or("context")).collect();
    assert_eq!(named, ["context", "again", "cascade", "generated"]);
    for (number, row) in rows.iter().enumerate() {
        let (kl, error) = (row["kl"]["mean"].as_f64().unwrap(), row["probe_error"].as_f64().unwrap());
        assert!((1e-9..1.0).contains(&kl) && (1e-9..1.0).contains(&error), "{row}");
        // The same capture, and other rows each time: no two caches are the same.
        assert_eq!(row["source"], rows[0]["source"]);
        assert!(rows[..number].iter().all(|other| other["kl"] != row["kl"]), "{row}");
    }
}

#[test]
fn capture_writes_what_kvsculpt_reads() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("capture.safetensors");
    let arguments = ["--tokens", "64", "--probe", "16", "-o"];
    let (model, text) = (model_file(), text());
    let mut all = vec!["capture", model.to_str().unwrap(), text.to_str().unwrap()];
    all.extend(arguments);
    all.push(file.to_str().unwrap());
    told(&all);
    let capture = Capture::open(&file).unwrap();
    assert_eq!((capture.tokens, capture.layers.len()), (64, 30));
    let layer = capture.layer(29).unwrap();
    assert_eq!((layer.kv_heads, layer.query_heads, layer.dim, layer.dtype), (3, 9, 64, Dtype::F16));
    assert_eq!(layer.probe_query.unwrap().rows, 16);
}

#[test]
fn chat_over_a_cache_that_keeps_everything_says_what_the_full_one_says() {
    let (model, text) = (model_file(), text());
    let run = |method: &str| {
        let mut arguments = vec![
            "chat",
            model.to_str().unwrap(),
            "--document",
            text.to_str().unwrap(),
            "--tokens",
            "200",
            "--compare",
        ];
        arguments.extend([
            "--ask",
            "Who is in the garden?",
            "--ask",
            "And what happens then?",
            "--answer",
            "12",
            "--method",
            method,
        ]);
        arguments.extend(["--engine", "cpu"]);
        told(&arguments)
    };
    let said = run("full");
    let of = |voice: &str| -> Vec<String> {
        let prefix = format!("[{voice} cache] ");
        said.lines()
            .filter_map(|line| Some(line.strip_prefix(&prefix)?.to_owned()))
            .collect()
    };
    assert_eq!(of("short").len(), 2, "{said}");
    assert!(of("short").iter().all(|answer| !answer.trim().is_empty()), "{said}");
    assert_eq!(of("short"), of("full"));
}

#[test]
fn a_talk_goes_on_over_a_short_cache_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("short.safetensors");
    let (model, text, file) = (model_file(), text(), file.to_str().unwrap());
    let ask = ["--ask", "Who is in the garden?", "--answer", "8"];
    let mut saving = vec![
        "chat",
        model.to_str().unwrap(),
        "--document",
        text.to_str().unwrap(),
        "--tokens",
        "150",
        "--keep",
        "0.5",
    ];
    saving.extend(["--method", "select", "--engine", "cpu", "--save", file]);
    let said = told(&[&saving[..], &ask].concat());
    assert!(said.contains("MB →"), "{said}");
    let again = told(&[&["chat", model.to_str().unwrap(), "--load", file], &ask[..]].concat());
    let (_, answer) = said.split_once('>').unwrap();
    assert_eq!(again.trim(), format!(">{answer}").trim());
}

#[test]
fn sensitivity_and_retrieval_of_the_real_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sensitivity.json");
    let (model, text) = (model_file(), text());
    let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
    told(&[
        "sensitivity",
        model,
        text,
        "-o",
        file.to_str().unwrap(),
        "--tokens",
        "160",
        "--next",
        "8",
        "--keep",
        "0.4",
        "--layers-only",
        "--engine",
        "cpu",
    ]);
    let found: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(found["format"], "kv-sensitivity");
    assert_eq!(found["layers"].as_array().unwrap().len(), 30);
    let arguments = [
        "--tokens",
        "256",
        "--depths",
        "0.5",
        "--needles",
        "1",
        "--keep",
        "0.5",
        "--method",
        "select",
        "--engine",
        "cpu",
        "--json",
    ];
    let rows = told(&[&["retrieval", model, text], &arguments[..]].concat());
    let rows: Vec<serde_json::Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2, "the full cache, and the short one");
    assert_eq!(rows[0]["method"], "full");
    // A passage that begins again is copied: the model would not know it otherwise.
    assert!(rows[0]["depths"][0]["copy_top1"].as_f64().unwrap() > 0.7, "{}", rows[0]);
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let text = text();
    let text = text.to_str().unwrap();
    let said = |arguments: &[&str]| {
        let output = program(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = said(&["eval", "./no-such-model.gguf", text]);
    assert!(missing.contains("no-such-model.gguf"), "{missing}");
    let not_gguf = said(&["eval", text, text]);
    assert!(not_gguf.contains("GGUF"), "{not_gguf}");
    let model = model_file();
    let long = said(&["eval", model.to_str().unwrap(), text, "--tokens", "7000"]);
    assert!(long.contains("--tokens") && long.contains("katrine.txt"), "{long}");
    let keep = said(&["eval", model.to_str().unwrap(), text, "--keep", "1.5"]);
    assert!(keep.contains("--keep"), "{keep}");
    let tail = said(&["eval", model.to_str().unwrap(), text, "--tokens", "300", "--preset", "published"]);
    assert!(tail.contains("--set"), "{tail}");
    let beyond = said(&["eval", model.to_str().unwrap(), text, "--tokens", "8192"]);
    assert!(beyond.contains("8192"), "{beyond}");
}
