//! The program as a user meets it: what it writes where, its exit codes, and how it refuses bad input.
//!
//! Programs are started through the one that `KVSCULPT_TEST_RUNNER` names, where it is set: `cargo xtask test` uses it to bring a
//! driver.

#![cfg(feature = "cli")]

#[path = "cache/draft.rs"]
#[allow(dead_code, reason = "shared with the cache's tests, which use all of it")]
mod draft;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use draft::{Draft, DraftTensor, encode};
use kvsculpt::cache::Compressed;
use serde_json::Value;
use tempfile::TempDir;

const TOKENS: u64 = 96;
const DIM: u64 = 16;

/// Two layers of two KV heads and four query heads, uneven numbers from a small generator.
fn capture() -> Draft {
    let mut draft = Draft::default();
    for (key, value) in [
        ("format", "kv-capture"),
        ("version", "1"),
        ("tokens", "96"),
        ("next_position", "96"),
        ("rope_theta", "10000"),
        ("rope_pairing", "half"),
        ("rope_dim", "16"),
        ("softmax_scale", "0.25"),
    ] {
        draft.set(key, value);
    }
    let mut state = 1_u64;
    let mut number = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    for layer in [2, 5] {
        for (kind, heads, rows) in [
            ("key", 2, TOKENS),
            ("value", 2, TOKENS),
            ("query", 4, TOKENS),
            ("probe_query", 4, 8),
        ] {
            let values: Vec<f32> = (0..heads * rows * DIM).map(|_| 2.0 * number()).collect();
            draft.tensors.push(DraftTensor {
                name: format!("layers.{layer}.{kind}"),
                dtype: "F32",
                shape: vec![heads, rows, DIM],
                bytes: encode("F32", &values),
            });
        }
    }
    draft
}

/// A folder with a capture in it.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    fn new(capture: &[u8]) -> Self {
        let workplace = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        fs::write(workplace.capture(), capture).expect("written");
        workplace
    }

    fn capture(&self) -> PathBuf {
        self.path("capture.safetensors")
    }

    fn output(&self) -> PathBuf {
        self.path("short.safetensors")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Compresses the capture; on the CPU engine and in few steps where `more` does not say otherwise.
    fn compress(&self, more: &[&str]) -> Output {
        run(&self.arguments(&self.output(), more))
    }

    fn arguments(&self, output: &Path, more: &[&str]) -> Vec<String> {
        let text = |path: &Path| path.to_str().expect("a path of letters").to_owned();
        let mut arguments = vec!["compress".to_owned(), text(&self.capture()), "-o".into(), text(output)];
        for (option, value) in [("--steps", "2"), ("--iterations", "3"), ("--engine", "cpu")] {
            // Whoever names an adapter leaves the engine open.
            let given = |wanted| more.contains(&wanted);
            if !given(option) && !(option == "--engine" && given("--adapter")) {
                arguments.extend([option, value].map(String::from));
            }
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        arguments
    }

    /// The files of the folder.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("the folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn program() -> Command {
    let program = env!("CARGO_BIN_EXE_kvsculpt");
    let mut command = match std::env::var_os("KVSCULPT_TEST_RUNNER").filter(|runner| !runner.is_empty()) {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    for variable in ["RUST_LOG", "WGPU_ADAPTER_NAME", "WGPU_BACKEND"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    program().args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// The program did what was asked and said nothing on standard error.
fn succeeded(output: &Output) -> &str {
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), ""),
        "standard output: {}",
        text(&output.stdout)
    );
    text(&output.stdout)
}

/// The program refused with this code, in one sentence that has these words, and printed no data.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(text(&output.stdout), "");
    assert!(message.starts_with("error: ") && message.ends_with('\n'), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "{message} lacks {word:?}");
    }
}

/// A capture with one thing changed is refused, and nothing is left behind.
fn refused_file(bytes: &[u8], words: &[&str]) {
    let workplace = Workplace::new(bytes);
    let output = workplace.compress(&[]);
    refused(&output, 3, &[words, &["capture.safetensors"]].concat());
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

fn changed(change: impl FnOnce(&mut Draft)) -> Vec<u8> {
    let mut draft = capture();
    change(&mut draft);
    draft.bytes()
}

#[test]
fn compress_writes_a_cache_that_can_be_read_and_tells_of_every_head() {
    let workplace = Workplace::new(&capture().bytes());
    let output = workplace.compress(&["--keep", "0.4"]);
    let table = succeeded(&output);
    for word in ["layer", "kvsculpt", "mean", "96 → 38", "2.53× smaller", "CPU", "short.safetensors"] {
        assert!(table.contains(word), "{table} lacks {word}");
    }
    let compressed = Compressed::read(&workplace.output()).expect("a compressed cache");
    let lengths: Vec<_> = compressed.layers.iter().map(|layer| (layer.index, layer.lengths.clone())).collect();
    assert_eq!(lengths, [(2, vec![38, 38]), (5, vec![38, 38])]);
    assert_eq!(compressed.metadata["method"], "kvsculpt");
    assert_eq!(workplace.files(), ["capture.safetensors", "short.safetensors"]);
}

#[test]
fn two_runs_give_identical_bytes() {
    let workplace = Workplace::new(&capture().bytes());
    let bytes = || {
        succeeded(&workplace.compress(&["--keep", "0.5"]));
        fs::read(workplace.output()).expect("the output")
    };
    let first = bytes();
    assert!(first == bytes(), "two runs differ");
    // The same check would notice a different result.
    succeeded(&workplace.compress(&["--keep", "0.5", "--steps", "1"]));
    assert!(first != fs::read(workplace.output()).expect("the output"));
}

#[test]
fn json_is_one_object_with_every_head_means_bytes_and_seconds() {
    let workplace = Workplace::new(&capture().bytes());
    let output = workplace.compress(&[
        "--json", "--layers", "5", "--dtype", "f16", "--ridge", "0.5x", "--tail", "8", "--seed", "7",
    ]);
    let printed = succeeded(&output);
    assert_eq!(printed.lines().count(), 1);
    let report: Value = serde_json::from_str(printed).expect("JSON");
    assert_eq!(report["engine"]["kind"], "cpu");
    assert_eq!(report["options"]["ridge"]["relative"], 0.5);
    assert_eq!(report["options"]["seed"], 7);
    assert_eq!(
        report["split"],
        serde_json::json!({"tokens": 96, "sinks": 4, "free": 16, "tail": 8})
    );
    let heads = report["heads"].as_array().expect("heads");
    assert_eq!(heads.len(), 2);
    let merged = |judged: &Value| judged["probe"]["merged"].as_f64().expect("a number");
    let mean = heads.iter().map(|head| merged(&head["result"])).sum::<f64>() / 2.0;
    assert!((merged(&report["means"]["result"]) - mean).abs() < 1e-12);
    assert!(merged(&report["means"]["select_fit"]) > 0.0);
    // Two heads of 96 and of 28 pairs, 32 channels of 2 bytes.
    assert_eq!(report["bytes"]["before"], 2 * 96 * 32 * 2);
    assert_eq!(report["bytes"]["after"], 2 * 28 * 32 * 2);
    assert_eq!(report["bytes"]["file"], fs::metadata(workplace.output()).expect("the output").len());
    assert!(report["seconds"]["total"].as_f64() >= report["seconds"]["keys"].as_f64());
    assert_eq!(report["output"], workplace.output().to_str().expect("a path of letters"));
}

#[test]
fn presets_are_the_base_and_flags_go_over_them() {
    let workplace = Workplace::new(&capture().bytes());
    let more = ["--json", "--preset", "published", "--tail", "10", "--method", "select-fit"];
    let report: Value = serde_json::from_str(succeeded(&workplace.compress(&more))).expect("JSON");
    let options = &report["options"];
    assert_eq!((&options["sinks"], &options["history"]), (&0.into(), &100.into()));
    assert_eq!(options["tail"]["pairs"], 10);
    assert_eq!((&options["steps"], &options["method"]), (&2.into(), &"select-fit".into()));
    assert_eq!(report["heads"][0]["iterations"], 0);
}

#[test]
fn without_a_terminal_standard_error_is_quiet_and_only_verbose_breaks_that() {
    let workplace = Workplace::new(&capture().bytes());
    succeeded(&workplace.compress(&[]));
    let verbose = workplace.compress(&["-v", "--json"]);
    assert!(text(&verbose.stderr).contains("batch"), "{}", text(&verbose.stderr));
    assert!(!text(&verbose.stderr).contains('\x1b'));
    serde_json::from_str::<Value>(text(&verbose.stdout)).expect("JSON");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let workplace = Workplace::new(&capture().bytes());
    let mut child = program()
        .args(workplace.arguments(&workplace.output(), &[]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    succeeded(&child.wait_with_output().expect("the program ends"));
    assert!(workplace.output().exists());
}

#[test]
fn files_that_are_wrong_are_refused_by_name() {
    refused_file(&changed(|draft| draft.remove("layers.5.value")), &["layers.5.value", "missing"]);
    refused_file(
        &changed(|draft| draft.tensor("layers.2.key").name = "layers.2.keys".into()),
        &["layers.2.keys", "layers.2.key`"],
    );
    refused_file(
        &changed(|draft| draft.reshape("layers.2.value", &[2, 95, 16])),
        &["layers.2.value", "95", "96"],
    );
    refused_file(
        &changed(|draft| draft.poke("layers.5.key", 1700, f32::NAN)),
        &["layers.5.key", "head 1", "NaN"],
    );
    refused_file(
        &changed(|draft| draft.poke("layers.2.query", 3, f32::INFINITY)),
        &["layers.2.query", "head 0"],
    );
    refused_file(&changed(|draft| draft.set("version", "9")), &["version", "9"]);
}

#[test]
fn damaged_and_hostile_files_are_refused() {
    let whole = capture().bytes();
    refused_file(&whole[..whole.len() - 1], &["layers.5.probe_query", "cut short"]);
    refused_file(&whole[..100], &["cut short"]);
    refused_file(b"", &["empty"]);
    refused_file(&[0xff; 64], &["header"]);
    let draft = capture();
    refused_file(&draft.with_header(b"{\"a\":"), &["header"]);
    let beyond = draft
        .header()
        .replace("\"shape\":[2, 96, 16]", "\"shape\":[4294967295, 4294967295, 4294967295]");
    refused_file(&draft.with_header(beyond.as_bytes()), &["layers.2.key", "shape"]);
    let nested = format!("{{\"a\":{}", "[".repeat(100_000));
    refused_file(&draft.with_header(nested.as_bytes()), &["header"]);
}

#[test]
fn paths_that_cannot_serve_are_refused_before_the_work() {
    let workplace = Workplace::new(&capture().bytes());
    let output = run(&["compress", "nowhere.safetensors", "-o", "short.safetensors"]);
    refused(&output, 3, &["nowhere.safetensors", "no such file"]);
    let missing = workplace.path("missing/short.safetensors");
    let output = run(&workplace.arguments(&missing, &[]));
    refused(&output, 3, &["missing", "no folder"]);
    let output = run(&workplace.arguments(workplace.folder.path(), &[]));
    refused(&output, 3, &["is a folder"]);
    let before = fs::read(workplace.capture()).expect("the capture");
    let output = run(&workplace.arguments(&workplace.path("./capture.safetensors"), &[]));
    refused(&output, 3, &["capture.safetensors", "the capture itself"]);
    assert!(before == fs::read(workplace.capture()).expect("the capture"));
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

#[test]
fn options_without_meaning_are_refused_and_keep_says_the_smallest() {
    let workplace = Workplace::new(&capture().bytes());
    // Sinks 4 and a tail of 20 need a 25th pair of 96.
    let output = workplace.compress(&["--keep", "0.2", "--tail", "20"]);
    refused(&output, 2, &["--keep", "0.2605", "smallest"]);
    succeeded(&workplace.compress(&["--keep", "0.2605", "--tail", "20"]));
    fs::remove_file(workplace.output()).expect("removed");
    for (more, words) in [
        (["--keep", "1.5"], ["--keep", "between 0 and 1"]),
        (["--keep", "NaN"], ["--keep", "between 0 and 1"]),
        (["--ridge", "0"], ["--ridge", "positive"]),
        (["--iterations", "0"], ["--iterations", "at least 1"]),
    ] {
        refused(&workplace.compress(&more), 2, &words);
    }
    refused(&workplace.compress(&["--layers", "2,7"]), 3, &["layer 7", "2, 5"]);
    for more in [
        ["--layers", "9-7"],
        ["--ridge", "lots"],
        ["--memory", "much"],
        ["--engine", "abacus"],
    ] {
        let output = workplace.compress(&more);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(more[1]), "{}", text(&output.stderr));
    }
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

#[test]
fn a_cache_too_large_for_the_memory_given_is_refused_with_its_size() {
    let workplace = Workplace::new(&capture().bytes());
    refused(
        &workplace.compress(&["--memory", "1KiB"]),
        5,
        &["out of memory", "1024", "--memory"],
    );
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

#[test]
fn an_adapter_that_does_not_exist_is_refused() {
    let workplace = Workplace::new(&capture().bytes());
    refused(&workplace.compress(&["--adapter", "no such thing"]), 4, &["no GPU adapter"]);
    refused(
        &workplace.compress(&["--adapter", "0", "--engine", "cpu"]),
        2,
        &["--adapter", "--engine cpu"],
    );
    let devices: Value = serde_json::from_slice(&run(&["devices", "--json"]).stdout).expect("JSON");
    let output = run(&["devices", "--adapter", "no such thing"]);
    // Those that exist are listed.
    for adapter in devices["adapters"].as_array().expect("adapters") {
        let name = adapter["name"].as_str().expect("a name");
        refused(&output, 4, &["`no such thing`", name]);
    }
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

/// The program where the Vulkan loader finds no driver.
#[cfg(target_os = "linux")]
fn without_driver(arguments: &[impl AsRef<OsStr>]) -> Output {
    // Not through the runner, which would bring a driver.
    Command::new(env!("CARGO_BIN_EXE_kvsculpt"))
        .args(arguments)
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .env_remove("WGPU_ADAPTER_NAME")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

#[test]
#[cfg(target_os = "linux")]
fn without_any_adapter_gpu_is_refused_and_auto_takes_the_cpu_engine_with_a_notice() {
    let workplace = Workplace::new(&capture().bytes());
    let output = without_driver(&workplace.arguments(&workplace.output(), &["--engine", "gpu"]));
    refused(&output, 4, &["no GPU adapter", "mesa-vulkan-drivers"]);
    assert_eq!(workplace.files(), ["capture.safetensors"]);
    let output = without_driver(&workplace.arguments(&workplace.output(), &["--engine", "auto"]));
    assert_eq!(output.status.code(), Some(0));
    let notice = text(&output.stderr);
    assert!(notice.starts_with("note: no GPU") && notice.lines().count() == 1, "{notice}");
    assert!(text(&output.stdout).contains("CPU"));
    let output = without_driver(&workplace.arguments(&workplace.output(), &["--engine", "auto", "--quiet"]));
    succeeded(&output);
}

#[test]
fn devices_lists_the_cpu_engine_and_marks_what_would_be_used() {
    let list = run(&["devices", "--engine", "cpu"]);
    let marked = succeeded(&list).lines().find(|line| line.trim_start().starts_with('*'));
    assert!(marked.is_some_and(|line| line.contains("CPU")), "{}", text(&list.stdout));
    let output = run(&["devices", "--json", "--engine", "cpu"]);
    let devices: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
    assert_eq!(devices["chosen"]["engine"], "cpu");
    assert!(devices["cpu"]["name"].as_str().is_some_and(|name| name.contains("thread")));
    for (index, adapter) in devices["adapters"].as_array().expect("adapters").iter().enumerate() {
        assert_eq!(adapter["index"], index);
    }
}

#[test]
fn both_engines_give_the_same_probe_errors_head_by_head() {
    let workplace = Workplace::new(&capture().bytes());
    let errors = |engine: &str| -> Vec<[f64; 3]> {
        let output = workplace.compress(&["--engine", engine, "--json", "--keep", "0.4"]);
        let report: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
        assert_eq!(report["engine"]["kind"], engine);
        let heads = report["heads"].as_array().expect("heads").iter();
        heads
            .map(|head| ["output", "mass", "merged"].map(|error| head["result"]["probe"][error].as_f64().expect("a number")))
            .collect()
    };
    let (gpu, cpu) = (errors("gpu"), errors("cpu"));
    assert_eq!((gpu.len(), cpu.len()), (4, 4));
    for (gpu, cpu) in gpu.iter().flatten().zip(cpu.iter().flatten()) {
        assert!(*cpu > 0.0 && (gpu / cpu - 1.0).abs() < 0.01, "{gpu} and {cpu}");
    }
}

#[test]
fn demo_explains_itself() {
    let output = run(&["demo", "--keep", "0.1", "--engine", "cpu"]);
    let printed = succeeded(&output);
    for word in [
        "SmolLM2",
        "select-fit",
        "kvsculpt",
        "mean",
        "smaller is better",
        "× smaller",
        "kvsculpt compress --help",
    ] {
        assert!(printed.contains(word), "{printed} lacks {word}");
    }
    let output = run(&["demo", "--keep", "0.1", "--engine", "cpu", "--json"]);
    let report: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
    let merged = |method: &str| report["means"][method]["probe"]["merged"].as_f64().expect("a number");
    assert!(merged("result") < merged("select"), "{} and {}", merged("result"), merged("select"));
    refused(&run(&["demo", "--keep", "0.001", "--engine", "cpu"]), 2, &["--keep", "smallest"]);
}
