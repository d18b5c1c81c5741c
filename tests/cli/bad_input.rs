//! Bad input gets one sentence with the file and the tensor, an exit code of its class, and no output file.

use std::fs;

use crate::draft::Draft;
use crate::workplace::{Workplace, capture, refused, run, succeeded, text};

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
    let output = run(&workplace.arguments(&workplace.path(""), &[]));
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
    // Where the tail grows with what is kept, the smallest keep is one that works: 6 pairs, of which 1 is tail.
    let output = workplace.compress(&["--keep", "0.01"]);
    refused(&output, 2, &["--keep", "is 0.0625"]);
    succeeded(&workplace.compress(&["--keep", "0.0625"]));
    fs::remove_file(workplace.output()).expect("removed");
    for (more, words) in [
        (["--sinks", "18446744073709551615"], ["--keep", "no zone"]),
        (["--tail", "18446744073709551615"], ["--keep", "no zone"]),
        (["--tail", "92"], ["--keep", "no zone"]),
        (["--keep", "1.5"], ["--keep", "between 0 and 1"]),
        (["--keep", "NaN"], ["--keep", "between 0 and 1"]),
        (["--ridge", "0"], ["--ridge", "positive"]),
        (["--iterations", "0"], ["--iterations", "at least 1"]),
        (["--horizon", "0"], ["--horizon", "from 1 to"]),
    ] {
        refused(&workplace.compress(&more), 2, &words);
    }
    let most = u32::MAX.to_string();
    succeeded(&workplace.compress(&[
        "--steps",
        "3",
        "--iterations",
        &most,
        "--refit-every",
        &most,
        "--context-rows",
        &most,
        "--horizon",
        "rows",
    ]));
    fs::remove_file(workplace.output()).expect("removed");
    refused(
        &workplace.compress(&["--layers", "2,7"]),
        2,
        &["--layers", "capture.safetensors", "layer 7", "2, 5"],
    );
    for more in [
        ["--layers", "9-7"],
        ["--ridge", "lots"],
        ["--horizon", "far"],
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
