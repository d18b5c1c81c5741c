//! What is told before any work: a dry run, and whether the machine computes rightly.

use std::fs;

use serde_json::Value;

use crate::workplace::{Workplace, capture, refused, run, succeeded, text};

#[test]
fn a_dry_run_tells_sizes_and_time_and_writes_nothing() {
    let workplace = Workplace::new(&capture().bytes());
    let file = workplace.capture();
    let file = file.to_str().expect("a path of letters");
    let of = |more: &[&str]| -> Value {
        let all = [&["compress", file, "--dry-run", "--json", "--engine", "cpu", "--steps", "4"], more].concat();
        serde_json::from_str(succeeded(&run(&all))).expect("JSON")
    };
    let found = of(&["--budget", "uniform", "--keep", "0.4"]);
    assert_eq!(
        (&found["dry_run"], &found["heads"], &found["batches"]),
        (&true.into(), &4.into(), &1.into())
    );
    // Two layers of two heads of 96 pairs, of which 38 stay.
    assert_eq!(found["pairs"], serde_json::json!([4 * 96, 4 * 38]));
    assert_eq!(
        (&found["lengths_known"], &found["probe"]["steps"]),
        (&true.into(), &serde_json::json!([2, 4]))
    );
    assert!(found["seconds"].as_f64().expect("a number") > 0.0);
    let bytes = |found: &Value, of: &str| found[of].as_u64().expect("bytes");
    assert!(bytes(&found, "host_bytes") > 4 * (96 + 38) * 32 * 4);
    assert!(bytes(&found, "device_bytes") > 4 * 96 * 32 * 4);
    assert_eq!(workplace.files(), ["capture.safetensors"]);
    // The file is no larger than was told, and not much smaller.
    succeeded(&workplace.compress(&["--budget", "uniform", "--keep", "0.4"]));
    let written = fs::metadata(workplace.output()).expect("the output").len();
    let told = bytes(&found, "file_bytes");
    assert!(written <= told && told < written + 8192, "{written} and {told}");
    // Half precision takes half, more pairs take more, lengths by head are told as not known.
    let tighter = of(&["--budget", "uniform", "--keep", "0.4", "--dtype", "f16"]);
    assert!(bytes(&tighter, "file_bytes") < told);
    let longer = of(&["--keep", "0.6", "--bias", "on"]);
    assert!(bytes(&longer, "device_bytes") > bytes(&found, "device_bytes"));
    assert_eq!(longer["lengths_known"], false);
    let printed = run(&[
        "compress",
        file,
        "--dry-run",
        "--engine",
        "cpu",
        "--bytes",
        "30kB",
        "-o",
        "nowhere/short.safetensors",
    ]);
    for word in ["estimate", "Nothing was written", "memory", "of 6 of layer"] {
        assert!(succeeded(&printed).contains(word), "{} lacks {word}", text(&printed.stdout));
    }
    // The layer that is tried may weigh nothing.
    let sensitivities = workplace.path("sensitivities.json");
    let layers = serde_json::json!([{"layer": 2, "sensitivity": 1.0, "heads": []}, {"layer": 5, "sensitivity": 0.0, "heads": []}]);
    let weights = serde_json::json!({"format": "kv-sensitivity", "version": 1, "layers": layers});
    fs::write(&sensitivities, weights.to_string()).expect("written");
    of(&["--keep", "0.6", "--sensitivities", sensitivities.to_str().expect("letters")]);
    let small = ["compress", file, "--dry-run", "--engine", "cpu", "--memory", "1KiB"];
    refused(&run(&small), 5, &["out of memory", "--memory"]);
    // Without a dry run a file must be named.
    let output = run(&["compress", file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--output"));
}

#[test]
fn doctor_tries_every_operation() {
    for engine in ["cpu", "gpu"] {
        let output = run(&["doctor", "--engine", engine, "--dims", "32", "--json"]);
        let found: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
        let tested = &found["tested"][0];
        assert_eq!(tested["passed"], true);
        let checks = tested["checks"].as_array().expect("checks");
        for operation in ["attention", "key_gradient", "gram", "cholesky", "lbfgs_push"] {
            let check = checks.iter().find(|check| check["operation"] == operation).expect("the operation");
            assert!(check["error"].as_f64().expect("a number") < 1e-5, "{check}");
        }
    }
    let printed = run(&["doctor", "--engine", "cpu", "--dims", "4,32"]);
    assert!(succeeded(&printed).contains("pass") && !text(&printed.stdout).contains("WRONG"));
    let output = run(&["doctor", "--dims", "30"]);
    assert_eq!(output.status.code(), Some(2));
    refused(&run(&["doctor", "--adapter", "no such thing"]), 4, &["no GPU adapter"]);
}
