//! `generate`, `bench` and `--timings`.

use std::fs;

use kvsculpt::cache::{Capture, Dtype};
use serde_json::Value;

use crate::workplace::{Workplace, capture, refused, run, succeeded};

#[test]
fn generate_writes_the_same_capture_for_the_same_flags() {
    let folder = tempfile::tempdir().expect("a folder");
    let generate = |name: &str, more: &[&str]| {
        let path = folder.path().join(name);
        let mut arguments = vec!["generate", "-o", path.to_str().expect("a path of letters"), "--tokens", "64"];
        arguments.extend(["--layers", "2", "--kv-heads", "1", "--group", "3", "--dim", "8", "--probes", "4"]);
        arguments.extend(more);
        let printed = run(&arguments);
        assert!(succeeded(&printed).contains("2 layers of 1 KV heads and 3 query heads, 64 tokens"));
        path
    };
    let (one, same, other) = (generate("one", &[]), generate("same", &[]), generate("other", &["--seed", "1"]));
    assert!(fs::read(&one).expect("a file") == fs::read(same).expect("a file"));
    assert!(fs::read(&one).expect("a file") != fs::read(other).expect("a file"));
    let found = Capture::open(&generate("bf16", &["--dtype", "bf16"])).expect("a capture");
    assert_eq!((found.layers.clone(), found.tokens), (vec![0, 1], 64));
    assert_eq!(found.shape(0).expect("a layer").dtype, Dtype::Bf16);
    refused(&run(&["generate", "-o", "nowhere", "--dim", "6"]), 2, &["--dim", "multiple of 4"]);
}

const SMALL: [&str; 12] = [
    "bench",
    "--engine",
    "cpu",
    "--dim",
    "8",
    "--group",
    "2",
    "--steps",
    "1",
    "--repetitions",
    "2",
    "--probes=0",
];

#[test]
fn bench_measures_every_combination_and_names_the_machine_in_each_row() {
    let lists = ["--tokens", "64,96", "--method", "select,kvsculpt", "--keep", "0.5"];
    let with = |more: &[&str]| run(&[SMALL.as_slice(), &lists, more].concat());
    let output = with(&["--json"]);
    let rows: Vec<Value> = succeeded(&output)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let places: Vec<_> = rows.iter().map(|row| (row["tokens"].as_u64(), row["method"].as_str())).collect();
    let expected = [(64, "select"), (64, "kvsculpt"), (96, "select"), (96, "kvsculpt")];
    assert_eq!(places, expected.map(|(tokens, method)| (Some(tokens), Some(method))));
    for row in &rows {
        assert!(row["machine"].as_str().is_some_and(|name| name.starts_with("CPU, ")), "{row}");
        let number = |name: &str| row[name].as_f64().expect("a number");
        let median = row["seconds"]["median"].as_f64().expect("a number");
        assert!((number("heads_a_second") * median - 2.0).abs() < 1e-9, "{row}");
        assert!((number("tokens_a_second") * median - number("tokens")).abs() < 1e-6, "{row}");
        // A cache of two heads and its rows, in single precision; the CPU engine has no memory of its own.
        assert!(number("host_bytes") > 2.0 * 4.0 * 2.0 * 8.0 * number("tokens"), "{row}");
        assert!(row["device_bytes"].is_null() && row["memory"].is_null(), "{row}");
        let stages: f64 = row["stages"].as_object().expect("stages").values().filter_map(Value::as_f64).sum();
        assert!(stages > 0.0 && stages <= 2.0 * median, "{row}");
    }
    // The second pair would fail, so the first is not measured.
    let output = run(&[SMALL.as_slice(), &["--json", "--keep", "0.5", "--tokens", "64,2"]].concat());
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let output = with(&["--csv"]);
    let lines: Vec<&str> = succeeded(&output).lines().collect();
    assert_eq!(lines.len(), 5);
    assert!(
        lines[0].starts_with("engine,machine,method,keep,") && lines[4].starts_with("cpu,\"CPU, "),
        "{lines:?}"
    );
    let output = with(&[]);
    let table = succeeded(&output);
    assert!(
        table.lines().count() >= 5 && table.contains("heads/s") && table.contains("CPU, "),
        "{table}"
    );
    assert!(
        table.contains("device") && table.contains("host") && table.contains("KiB"),
        "{table}"
    );
}

/// What the device and the host take at most, in every row; with less memory in several waves, and both within it.
#[test]
fn bench_tells_what_memory_was_taken_and_keeps_within_it() {
    let of = |memory: &[&str]| -> Value {
        let engine = [
            "bench",
            "--engine",
            "gpu",
            "--dim",
            "8",
            "--group",
            "2",
            "--steps",
            "1",
            "--repetitions",
            "1",
        ];
        let shape = [
            "--warm-up",
            "0",
            "--kv-heads",
            "8",
            "--tokens",
            "256",
            "--probes",
            "0",
            "--method",
            "select-fit",
            "--json",
        ];
        serde_json::from_str(succeeded(&run(&[&engine, shape.as_slice(), memory].concat()))).expect("JSON")
    };
    let number = |row: &Value, name: &str| row[name].as_u64().expect("a number");
    let (free, bound) = (of(&[]), of(&["--memory", "2MiB"]));
    // The cache of all heads and the rows of both query heads, on the device.
    assert!(number(&free, "device_bytes") > 8 * 4 * 8 * 4 * 256, "{free}");
    assert!(number(&bound, "device_bytes") < number(&free, "device_bytes"), "{free} {bound}");
    assert_eq!(number(&bound, "memory"), 2 << 20);
    assert!(number(&bound, "device_bytes") <= 2 << 20, "{bound}");
}

#[test]
fn bench_refuses_nonsense_before_it_measures() {
    for (more, word) in [(["--keep", "0.5,1.5"], "--keep"), (["--tokens", "64,0"], "--tokens")] {
        refused(&run(&[SMALL.as_slice(), &more].concat()), 2, &[word]);
    }
}

#[test]
fn timings_tell_what_each_operation_cost() {
    let workplace = Workplace::new(&capture().bytes());
    let output = workplace.compress(&["--timings"]);
    let printed = succeeded(&output);
    for word in ["operation", "evaluate", "gram", "share", "evaluations", "reads"] {
        assert!(printed.contains(word), "{printed} lacks {word}");
    }
    let output = workplace.compress(&["--timings", "--json"]);
    let report: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
    let measured = &report["measured"];
    let costs = measured["costs"].as_array().expect("costs");
    let evaluate = costs.iter().find(|cost| cost["name"] == "evaluate").expect("evaluations");
    assert_eq!(evaluate["calls"], measured["traffic"]["evaluations"]);
    let all: f64 = costs.iter().filter_map(|cost| cost["seconds"].as_f64()).sum();
    assert!(all > 0.0 && all <= report["seconds"]["total"].as_f64().expect("a number"));
    assert!(measured["traffic"]["bytes_read"].as_u64() > Some(0));
    let output = workplace.compress(&["--json"]);
    let report: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
    assert_eq!(report["measured"], Value::Null);
}

/// Kernels are timed by the device's clock; no batch is read without a submission.
#[test]
fn timings_on_a_gpu_are_of_kernels() {
    let workplace = Workplace::new(&capture().bytes());
    let output = workplace.compress(&["--timings", "--json", "--engine", "gpu"]);
    let report: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
    let measured = &report["measured"];
    assert!(measured["traffic"]["submissions"].as_u64() >= measured["traffic"]["reads"].as_u64());
    let kernels: Vec<_> = measured["costs"]
        .as_array()
        .expect("costs")
        .iter()
        .map(|cost| cost["name"].as_str())
        .collect();
    assert_eq!(
        measured["kernels"].as_bool(),
        Some(kernels.contains(&Some("key_gradient"))),
        "{kernels:?}"
    );
}
