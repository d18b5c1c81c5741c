//! What the program writes where.

use std::fs;
use std::process::Stdio;

use kvsculpt::cache::Compressed;
use serde_json::Value;

use crate::workplace::{Workplace, capture, program, refused, run, succeeded, text};

#[test]
fn compress_writes_a_cache_that_can_be_read_and_tells_of_every_head() {
    let workplace = Workplace::new(&capture().bytes());
    let output = workplace.compress(&["--keep", "0.4"]);
    let table = succeeded(&output);
    for word in ["layer", "kvsculpt", "mean", "96 → 38", "2.53× smaller", "CPU", "short.safetensors"] {
        assert!(table.contains(word), "{table} lacks {word}");
    }
    let compressed = Compressed::read(&workplace.output()).expect("a compressed cache");
    let heads: Vec<_> = compressed.layers.iter().map(|layer| (layer.index, layer.lengths.len())).collect();
    assert_eq!(heads, [(2, 2), (5, 2)]);
    // Heads differ in length; together they keep what was asked for.
    let total: usize = compressed.layers.iter().flat_map(|layer| &layer.lengths).sum();
    assert_eq!(total, 38 * 4);
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
    // Two heads of 96 pairs, 32 channels of 4 bytes; of 28 pairs and 2 bytes.
    assert_eq!(report["bytes"]["before"], 2 * 96 * 32 * 4);
    assert_eq!(report["bytes"]["after"], 2 * 28 * 32 * 2);
    assert_eq!(report["bytes"]["file"], fs::metadata(workplace.output()).expect("the output").len());
    let seconds = |stage: &str| report["seconds"][stage].as_f64().expect("a number");
    assert!(seconds("total") >= seconds("keys") && seconds("keys") > 0.0);
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

#[test]
fn help_tells_the_exit_codes() {
    let output = run(&["--help"]);
    let help = succeeded(&output);
    for line in ["Exit codes:", "2  options", "3  a file", "4  no adapter", "5  trouble"] {
        assert!(help.contains(line), "{help} lacks {line}");
    }
}
