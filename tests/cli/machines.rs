//! Which machine computes, and that it does not matter to the result.

use serde_json::Value;

use crate::workplace::{Workplace, capture, program, refused, run, succeeded, text};

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
    refused(&output, 4, &["no GPU adapter"]);
    // Those that exist are listed.
    for adapter in devices["adapters"].as_array().expect("adapters") {
        let name = adapter["name"].as_str().expect("a name");
        refused(&output, 4, &["`no such thing`", name]);
    }
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

/// An interface that is named is meant: the CPU engine does not take over in its stead.
#[test]
fn an_interface_that_does_not_exist_is_refused() {
    let workplace = Workplace::new(&capture().bytes());
    let absent = if cfg!(target_os = "macos") { "dx12" } else { "metal" };
    refused(&workplace.compress(&["--backend", absent]), 4, &["no GPU adapter"]);
    refused(
        &workplace.compress(&["--backend", absent, "--engine", "cpu"]),
        2,
        &["--backend", "--engine cpu"],
    );
    for named in [absent, "no such thing"] {
        let output = program()
            .args(["devices"])
            .env("WGPU_BACKEND", named)
            .output()
            .expect("the program starts");
        refused(&output, 4, &["no GPU adapter"]);
    }
    // The variable is for programs that use a GPU; this one was told not to.
    let output = program().args(["devices", "--engine", "cpu"]).env("WGPU_BACKEND", absent).output();
    succeeded(&output.expect("the program starts"));
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

/// The program where the Vulkan loader finds no driver.
#[cfg(target_os = "linux")]
fn without_driver(arguments: &[impl AsRef<std::ffi::OsStr>]) -> std::process::Output {
    // Not through the runner, which would bring a driver.
    std::process::Command::new(env!("CARGO_BIN_EXE_kvsculpt"))
        .args(arguments)
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .env_remove("WGPU_ADAPTER_NAME")
        .env_remove("WGPU_BACKEND")
        .stdin(std::process::Stdio::null())
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
        let heads = report["heads"].as_array().expect("heads");
        // Optimised keys are compared, not only the seed that both engines start from.
        assert!(heads.iter().any(|head| head["result"]["mass"] != head["select"]["mass"]));
        heads
            .iter()
            .map(|head| ["output", "mass", "merged"].map(|error| head["result"]["probe"][error].as_f64().expect("a number")))
            .collect()
    };
    let (gpu, cpu) = (errors("gpu"), errors("cpu"));
    assert_eq!((gpu.len(), cpu.len()), (4, 4));
    for (gpu, cpu) in gpu.iter().flatten().zip(cpu.iter().flatten()) {
        assert!(*cpu > 0.0 && (gpu / cpu - 1.0).abs() < 0.01, "{gpu} and {cpu}");
    }
}

/// The file that comes out, and what was printed.
fn made(workplace: &Workplace, more: &[&str]) -> (Vec<u8>, String) {
    let output = workplace.compress(more);
    let printed = succeeded(&output).to_owned();
    (std::fs::read(workplace.output()).expect("the output"), printed)
}

#[test]
fn equal_machines_that_share_the_heads_write_the_file_of_one() {
    let workplace = Workplace::new(&capture().bytes());
    let (cpu, _) = made(&workplace, &["--adapter", "cpu"]);
    assert!(made(&workplace, &[]).0 == cpu, "`cpu` is the CPU engine");
    let (two, printed) = made(&workplace, &["--adapter", "cpu,cpu", "--memory", "64MiB"]);
    assert!(
        two == cpu && printed.contains(" + CPU") && printed.contains("of all machines"),
        "{printed}"
    );
    let (three, printed) = made(
        &workplace,
        &["--adapter", "cpu, CPU ,cpu", "--shares", "2,1,1", "--timings", "--json"],
    );
    assert!(three == cpu);
    let report: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(report["engine"]["kind"], "cpu");
    assert!(report["measured"]["traffic"]["evaluations"].as_u64().is_some_and(|count| count > 0));
    let (gpu, _) = made(&workplace, &["--adapter", "0"]);
    assert!(made(&workplace, &["--adapter", "0,0"]).0 == gpu, "two devices on one adapter");
    let (mixed, printed) = made(&workplace, &["--adapter", "0,cpu", "--json"]);
    let report: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(report["engine"]["kind"], "mixed");
    assert!(
        made(&workplace, &["--adapter", "0,cpu"]).0 == mixed,
        "the same list gives the same bytes"
    );
    assert_eq!(workplace.files(), ["capture.safetensors", "short.safetensors"]);
}

#[test]
fn how_heads_are_divided_is_told_beforehand() {
    let workplace = Workplace::new(&capture().bytes());
    let output = workplace.compress(&["--dry-run", "--adapter", "cpu,cpu", "--shares", "3,1", "--json"]);
    let found: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
    let heads: Vec<u64> = found["machines"]
        .as_array()
        .expect("machines")
        .iter()
        .map(|share| share["heads"].as_u64().expect("a count"))
        .collect();
    assert_eq!(heads, [3, 1]);
    let output = workplace.compress(&["--dry-run", "--adapter", "cpu,cpu"]);
    assert!(succeeded(&output).contains("2 heads on CPU"), "{}", text(&output.stdout));
    let list = run(&["devices", "--adapter", "cpu,cpu", "--json"]);
    let devices: Value = serde_json::from_str(succeeded(&list)).expect("JSON");
    assert_eq!(devices["chosen"], serde_json::json!({ "engine": "cpu", "adapters": [null, null] }));
}

#[test]
fn a_list_of_machines_that_makes_no_sense_is_refused() {
    let workplace = Workplace::new(&capture().bytes());
    refused(&workplace.compress(&["--adapter", "cpu,"]), 2, &["--adapter", "comma"]);
    refused(&workplace.compress(&["--adapter", "cpu,no such thing"]), 4, &["`no such thing`"]);
    refused(
        &workplace.compress(&["--adapter", "cpu,cpu", "--engine", "gpu"]),
        2,
        &["--adapter", "--engine gpu"],
    );
    refused(
        &workplace.compress(&["--adapter", "cpu,cpu", "--engine", "cpu"]),
        2,
        &["--adapter", "--engine cpu"],
    );
    refused(
        &workplace.compress(&["--adapter", "cpu,cpu", "--shares", "1,2,3"]),
        2,
        &["--shares", "3 numbers", "names 2"],
    );
    assert_eq!(workplace.files(), ["capture.safetensors"]);
    let _ = made(&workplace, &["--adapter", "cpu"]);
    let path = |path: std::path::PathBuf| path.to_str().expect("a path of letters").to_owned();
    let (capture, short) = (path(workplace.capture()), path(workplace.output()));
    let compared = run(&["compare", &short, &short, "--capture", &capture, "--adapter", "cpu,cpu"]);
    refused(&compared, 2, &["--adapter", "not shared"]);
}

/// Where an adapter has them a compression is told to have gone by them, and is as good; where none has, it is refused.
#[test]
fn cooperative_matrices_are_used_where_they_are_asked_for() {
    let workplace = Workplace::new(&capture().bytes());
    let wish = "--cooperative-matrices";
    for cpu in [["--engine", "cpu"], ["--adapter", "cpu"]] {
        refused(&workplace.compress(&[&cpu[..], &[wish]].concat()), 2, &[wish]);
    }
    let list = run(&["devices", "--json"]);
    let devices: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let adapters = devices["adapters"].as_array().expect("adapters");
    let can = adapters.iter().find(|adapter| !adapter["matrices"].is_null());
    let doctor = run(&["doctor", "--engine", "cpu", "--dims", "8"]);
    let output = workplace.compress(&["--engine", "gpu", "--json", "--keep", "0.4", wish]);
    let Some(can) = can else {
        refused(&output, 4, &["cooperative matrices", wish]);
        return;
    };
    assert!(can["matrix_shapes"].as_array().is_some_and(|shapes| !shapes.is_empty()), "{can}");
    assert!(text(&doctor.stdout).contains(wish), "{}", text(&doctor.stdout));
    let errors = |printed: &str| -> Vec<f64> {
        let report: Value = serde_json::from_str(printed).expect("JSON");
        assert_eq!(
            report["engine"]["name"].as_str().map(|name| name.contains("matrices")),
            Some(printed == text(&output.stdout))
        );
        let heads = report["heads"].as_array().expect("heads");
        heads
            .iter()
            .map(|head| head["result"]["probe"]["merged"].as_f64().expect("a number"))
            .collect()
    };
    let without = workplace.compress(&["--engine", "gpu", "--json", "--keep", "0.4"]);
    let (with, without) = (errors(succeeded(&output)), errors(succeeded(&without)));
    for (with, without) in with.iter().zip(&without) {
        assert!(*with > 0.0 && (with / without - 1.0).abs() < 0.01, "{with} and {without}");
    }
}
