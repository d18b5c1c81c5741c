//! Work on several machines: curves, lengths and parts made shard by shard give the bytes of one run, and what does not belong together is
//! refused.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::workplace::{Workplace, capture, refused, run, succeeded, text};

/// The bundled layer, of three heads.
const LAYER: &[u8] = include_bytes!("../data/smollm2-layer20.safetensors");
/// What makes a run of it short.
const SHORT: [&str; 8] = [
    "--context-rows",
    "64",
    "--recent-rows",
    "16",
    "--validation-rows",
    "16",
    "--curve-rows",
    "128",
];

/// Starts a subcommand on files of the folder; names that end in `.safetensors` or `.json` are such.
fn start(workplace: &Workplace, arguments: &[&str]) -> Output {
    let arguments = arguments.iter().map(|&argument| match Path::new(argument).extension() {
        Some(_) if argument.ends_with(".safetensors") || argument.ends_with(".json") => {
            workplace.path(argument).to_str().expect("a path of letters").to_owned()
        }
        _ => argument.to_owned(),
    });
    run(&arguments.collect::<Vec<_>>())
}

fn did(workplace: &Workplace, arguments: &[&str]) -> String {
    succeeded(&start(workplace, arguments)).to_owned()
}

/// Names of `count` files.
fn names(stem: &str, count: usize) -> Vec<String> {
    let end = if stem == "curves" { "json" } else { "safetensors" };
    (0..count).map(|index| format!("{stem}{index}of{count}.{end}")).collect()
}

fn with<'a>(first: &[&'a str], files: &'a [String], last: &[&'a str]) -> Vec<&'a str> {
    first
        .iter()
        .copied()
        .chain(files.iter().map(String::as_str))
        .chain(last.iter().copied())
        .collect()
}

/// Curves of so many shards with these options, and the budgets that follow.
fn allocated(workplace: &Workplace, count: usize, options: &[&str], more: &[&str]) {
    let curves = names("curves", count);
    for (index, file) in curves.iter().enumerate() {
        let shard = format!("{index}/{count}");
        let last = ["--engine", "cpu", "--shard", &shard, "-o", file];
        did(workplace, &[&["curves", "capture.safetensors"], options, &last].concat());
    }
    did(workplace, &with(&["allocate"], &curves, &[&["-o", "budgets.json"], more].concat()));
}

/// Parts of so many shards with the budgets, merged; the bytes.
fn merged(workplace: &Workplace, count: usize, more: &[&str]) -> Vec<u8> {
    let parts = names("part", count);
    for (index, file) in parts.iter().enumerate() {
        let shard = format!("{index}/{count}");
        let first = ["compress", "capture.safetensors", "--engine", "cpu", "--shard", &shard, "-o", file];
        let told = did(workplace, &[&first, more].concat());
        assert!(told.contains(&format!("part {shard}, ")), "{told}");
    }
    // In any order.
    let parts: Vec<String> = parts.into_iter().rev().collect();
    did(workplace, &with(&["merge"], &parts, &["-o", "merged.safetensors"]));
    fs::read(workplace.path("merged.safetensors")).expect("merged")
}

/// The bytes of one run with these options.
fn whole(workplace: &Workplace, options: &[&str]) -> Vec<u8> {
    let first = ["compress", "capture.safetensors", "--engine", "cpu", "-o", "whole.safetensors"];
    did(workplace, &[&first, options].concat());
    fs::read(workplace.path("whole.safetensors")).expect("whole")
}

const BUDGETS: [&str; 2] = ["--budgets", "budgets.json"];

#[test]
fn shards_of_the_bundled_layer_give_the_bytes_of_one_run() {
    let workplace = Workplace::new(LAYER);
    let options = [&SHORT[..], &["--keep", "0.2", "--steps", "2", "--iterations", "2"]].concat();
    let whole = whole(&workplace, &options);
    for count in [1, 2, 3, 7] {
        allocated(&workplace, count, &options, &[]);
        assert!(merged(&workplace, count, &BUDGETS) == whole, "{count} shards");
    }
    // The file of budgets gives one run the same bytes too.
    let first = ["compress", "capture.safetensors", "--engine", "cpu", "-o", "whole.safetensors"];
    did(&workplace, &[&first[..], &BUDGETS].concat());
    assert!(fs::read(workplace.path("whole.safetensors")).expect("whole") == whole);
}

#[test]
fn shards_of_several_layers_do_so_with_chunks_biases_and_every_target() {
    let workplace = Workplace::new(&capture().bytes());
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--keep", "0.4", "--chunk", "24", "--bias", "on"], &[]),
        (&["--tokens", "40", "--budget", "layer", "--dtype", "f16"], &["--dtype", "f16"]),
        (&["--bytes", "26kB", "--page", "4"], &[]),
        (&["--keep", "0.5", "--layers", "5", "--tail", "9"], &["--layers", "5"]),
        (
            &["--keep", "0.5", "--seed", "3", "--method", "random", "--dtype", "bf16"],
            &["--dtype", "bf16"],
        ),
    ];
    for (options, again) in cases {
        let whole = whole(&workplace, options);
        for count in [2, 3, 7] {
            allocated(&workplace, count, options, &[]);
            assert!(
                merged(&workplace, count, &[&BUDGETS[..], again].concat()) == whole,
                "{count} shards, {options:?}"
            );
        }
    }
}

#[test]
fn what_has_one_length_or_another_target_is_made_in_shards_too() {
    let workplace = Workplace::new(&capture().bytes());
    let uniform = ["--budget", "uniform", "--keep", "0.4", "--chunk", "24"];
    let one = whole(&workplace, &uniform);
    assert!(merged(&workplace, 3, &uniform) == one, "lengths that need no curves");

    allocated(&workplace, 2, &["--keep", "0.4"], &[]);
    let curves = names("curves", 2);
    for target in [["--keep", "0.6"], ["--tokens", "50"], ["--bytes", "30kB"]] {
        did(
            &workplace,
            &with(&["allocate"], &curves, &[&["-o", "budgets.json"], &target[..]].concat()),
        );
        let one = whole(&workplace, &BUDGETS);
        assert!(merged(&workplace, 2, &BUDGETS) == one, "{target:?}");
        if target[0] == "--bytes" {
            assert!(one.len() <= 30_000, "{} bytes", one.len());
        }
    }
    let output = start(
        &workplace,
        &with(&["allocate"], &curves, &["--max-error", "0.05", "-o", "budgets.json"]),
    );
    assert!(output.status.success());
    assert!(text(&output.stderr).starts_with("note: ") && text(&output.stderr).contains("curves alone"));
    let one = whole(&workplace, &BUDGETS);
    assert!(merged(&workplace, 2, &BUDGETS) == one);
}

#[test]
fn a_piece_that_is_there_is_left_alone_until_something_else_is_wanted() {
    let workplace = Workplace::new(&capture().bytes());
    let curves = ["curves", "capture.safetensors", "--engine", "cpu", "--shard", "0/2", "-o", "c.json"];
    let part = [
        "compress",
        "capture.safetensors",
        "--engine",
        "cpu",
        "--budget",
        "uniform",
        "--shard",
        "0/2",
        "-o",
        "p.safetensors",
    ];
    for (command, file, other) in [
        (&curves[..], "c.json", ["--steps", "1"]),
        (&part[..], "p.safetensors", ["--keep", "0.5"]),
    ] {
        did(&workplace, command);
        let bytes = fs::read(workplace.path(file)).expect("a piece");
        let there = |more: &[&str]| did(&workplace, &[command, more].concat()).contains("there already");
        assert!(there(&[]), "{file}");
        assert!(!there(&["--force"]), "{file}");
        assert!(fs::read(workplace.path(file)).expect("a piece") == bytes, "{file}: the same again");
        assert!(!there(&other), "{file}");
        assert!(there(&other), "{file}");
        // Half a file, as a copy that broke off leaves it, is no piece.
        fs::write(workplace.path(file), &bytes[..bytes.len() / 2]).expect("cut");
        assert!(!there(&[]), "{file}");
        assert!(fs::read(workplace.path(file)).expect("a piece") == bytes);
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let workplace = Workplace::new(&capture().bytes());
    let part = |shard: &str, file: &str, more: &[&str]| {
        let first = [
            "compress",
            "capture.safetensors",
            "--engine",
            "cpu",
            "--steps",
            "1",
            "--shard",
            shard,
            "-o",
            file,
        ];
        did(&workplace, &[&first, more].concat());
    };
    let uniform = ["--budget", "uniform"];
    part("0/2", "a.safetensors", &uniform);
    part("1/2", "b.safetensors", &uniform);
    part("1/3", "third.safetensors", &uniform);
    part("1/2", "kept.safetensors", &["--budget", "uniform", "--keep", "0.5"]);
    part("1/2", "layer.safetensors", &["--budget", "uniform", "--layers", "5"]);
    part("1/2", "half.safetensors", &["--budget", "uniform", "--dtype", "f16"]);
    for (file, shard, lengths) in [("b1.safetensors", "1/2", "[30, 30]"), ("a2.safetensors", "0/2", "[31, 29]")] {
        let text =
            format!("{{\"format\": \"kv-budgets\", \"version\": 1, \"tokens\": 96, \"layers\": {{\"2\": [30, 30], \"5\": {lengths}}}}}");
        fs::write(workplace.path("budgets.json"), text).expect("written");
        part(shard, file, &BUDGETS);
    }
    whole(&workplace, &["--budget", "uniform", "--steps", "1"]);
    let merge = |files: &[&str], words: &[&str]| {
        let output = start(&workplace, &[&["merge"], files, &["-o", "merged.safetensors"]].concat());
        refused(&output, 3, words);
        assert!(!workplace.path("merged.safetensors").exists());
    };
    merge(&["a.safetensors"], &["layer 2 head 1", "no part has it", "1/2"]);
    merge(
        &["a.safetensors", "b.safetensors", "a.safetensors"],
        &["layer 2 head 0", "too", "leave one"],
    );
    merge(&["a.safetensors", "third.safetensors"], &["third.safetensors", "one of 3 parts"]);
    merge(&["a.safetensors", "kept.safetensors"], &["kept.safetensors", "other options than"]);
    merge(&["a.safetensors", "layer.safetensors"], &["layer.safetensors", "other layers"]);
    merge(&["a.safetensors", "half.safetensors"], &["half.safetensors", "another dtype"]);
    merge(&["b1.safetensors", "a2.safetensors"], &["a2.safetensors", "other budgets than"]);
    merge(
        &["a.safetensors", "whole.safetensors"],
        &["whole.safetensors", "whole compressed cache"],
    );
    merge(&["a.safetensors", "capture.safetensors"], &["capture.safetensors", "kv-part"]);
    let mut other = capture();
    other.set("next_position", "97");
    fs::write(workplace.capture(), other.bytes()).expect("written");
    part("1/2", "other.safetensors", &uniform);
    merge(
        &["a.safetensors", "other.safetensors"],
        &["other.safetensors", "another capture than", "a.safetensors"],
    );
    let bytes = fs::read(workplace.path("b.safetensors")).expect("a part");
    let version = concat!("kvsculpt ", env!("CARGO_PKG_VERSION")).as_bytes();
    let at = bytes
        .windows(version.len())
        .position(|window| window == version)
        .expect("the version");
    let mut older = bytes;
    older[at + version.len() - 1] ^= 1;
    fs::write(workplace.path("older.safetensors"), older).expect("written");
    merge(&["a.safetensors", "older.safetensors"], &["older.safetensors", "another version"]);
}

#[test]
fn what_cannot_be_sharded_or_allocated_is_refused() {
    let workplace = Workplace::new(&capture().bytes());
    let curves = |more: &[&str]| {
        let first = ["curves", "capture.safetensors", "--engine", "cpu", "-o", "c.json"];
        start(&workplace, &[&first, more].concat())
    };
    let output = curves(&["--shard", "2/2"]);
    assert!(
        output.status.code() == Some(2) && text(&output.stderr).contains("0/2 to 1/2"),
        "{}",
        text(&output.stderr)
    );
    refused(&curves(&["--allocator", "published"]), 2, &["--allocator", "pilot", "--budgets"]);
    refused(&curves(&["--budget", "uniform"]), 2, &["--budget", "without error curves"]);
    refused(&curves(&["--budgets", "b.json"]), 2, &["--budgets"]);
    let compress = |more: &[&str]| {
        start(
            &workplace,
            &[&["compress", "capture.safetensors", "-o", "p.safetensors"], more].concat(),
        )
    };
    refused(
        &compress(&["--shard", "0/2"]),
        2,
        &["--shard", "kvsculpt allocate", "--budget uniform"],
    );
    refused(
        &compress(&["--shard", "0/2", "--max-error", "0.1"]),
        2,
        &["--shard", "kvsculpt allocate"],
    );

    assert!(curves(&["--shard", "0/2"]).status.success());
    let allocate = |files: &[&str], more: &[&str]| start(&workplace, &[&["allocate", "-o", "b.json"], files, more].concat());
    refused(&allocate(&["c.json"], &[]), 3, &["layer 2 head 1", "all shards"]);
    refused(&allocate(&["c.json", "c.json"], &[]), 3, &["layer 2 head 0", "leave one"]);
    assert!(
        start(
            &workplace,
            &[
                "curves",
                "capture.safetensors",
                "--engine",
                "cpu",
                "--shard",
                "1/2",
                "--steps",
                "1",
                "-o",
                "d.json"
            ]
        )
        .status
        .success()
    );
    refused(
        &allocate(&["c.json", "d.json"], &[]),
        3,
        &["d.json", "other options than", "c.json"],
    );
    assert!(curves(&["--force"]).status.success());
    refused(&allocate(&["c.json"], &["--budget", "uniform"]), 2, &["--budget uniform --shard"]);
    assert!(
        allocate(&["c.json"], &["--budget", "uniform", "--max-error", "0.05"])
            .status
            .success()
    );
    assert!(allocate(&["c.json"], &[]).status.success());
    let keys = ["--queries", "keys", "--shard", "0/2", "--budgets", "b.json"];
    refused(&compress(&keys), 2, &["--budgets", "other queries of it"]);
    refused(&allocate(&["c.json"], &["--keep", "0.05"]), 2, &["--keep"]);
    refused(&allocate(&["c.json"], &["--bytes", "100"]), 2, &["--bytes"]);
    fs::write(workplace.path("c.json"), "{\"format\":\"kv-curves\",\"version\":2}").expect("written");
    refused(&allocate(&["c.json"], &[]), 3, &["c.json", "version"]);
}

/// Another engine's cache, whose queries are guessed on each machine anew.
#[test]
fn an_mlx_cache_with_guessed_queries_is_made_in_shards_too() {
    let workplace = Workplace::new(LAYER);
    let made = [
        "--layers",
        "2",
        "--kv-heads",
        "2",
        "--dim",
        "16",
        "--tokens",
        "160",
        "--dtype",
        "f32",
    ];
    did(&workplace, &[&["generate", "-o", "made.safetensors"], &made[..]].concat());
    let convert = [
        "convert",
        "made.safetensors",
        "capture.safetensors",
        "--to",
        "mlx",
        "--architecture",
        "llama",
    ];
    did(&workplace, &convert);
    assert!(did(&workplace, &["inspect", "capture.safetensors"]).contains("mlx-lm prompt cache"));
    let guessed = ["--queries", "keys"];
    let options = [&guessed[..], &["--method", "select-fit", "--keep", "0.3", "--chunk", "48"]].concat();
    let one = whole(&workplace, &options);
    for count in [2, 3] {
        allocated(&workplace, count, &options, &[]);
        assert!(
            merged(&workplace, count, &[&BUDGETS[..], &guessed].concat()) == one,
            "{count} shards"
        );
    }
}

#[test]
fn lengths_are_told_as_json_too() {
    let workplace = Workplace::new(&capture().bytes());
    allocated(&workplace, 2, &["--keep", "0.4"], &[]);
    let curves = names("curves", 2);
    let told = did(&workplace, &with(&["allocate"], &curves, &["-o", "again.json", "--json"]));
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((&told["tokens"], &told["heads"]), (&96.into(), &4.into()));
    let written = kvsculpt::budget::Budgets::read(&workplace.path("again.json")).expect("budgets");
    assert_eq!(told["pairs"], written.total());
    assert_eq!(told["layers"]["5"][1], written.length(5, 1).expect("a length"));
    assert_eq!(told["options"]["keep"], 0.4);
    assert!((told["kept"].as_f64().expect("a share") - 0.4).abs() < 0.01);
    // `inspect` tells the same of the file.
    let file = did(&workplace, &["inspect", "again.json", "--json"]);
    let file: serde_json::Value = serde_json::from_str(&file).expect("JSON");
    assert_eq!((&file["format"], &file["layers"]), (&"kv-budgets".into(), &told["layers"]));
}

#[test]
fn inspect_tells_of_curves_parts_budgets_and_sensitivities() {
    let workplace = Workplace::new(&capture().bytes());
    allocated(&workplace, 2, &["--keep", "0.4", "--chunk", "24"], &[]);
    merged(&workplace, 2, &BUDGETS);
    let json = |file: &str| -> serde_json::Value { serde_json::from_str(&did(&workplace, &["inspect", file, "--json"])).expect("JSON") };
    let of = |kind: &str| names(kind, 2).remove(1);

    let set = kvsculpt::solver::CurveSet::read(&workplace.path(&of("curves"))).expect("curves");
    let found = json(&of("curves"));
    assert_eq!((&found["format"], &found["shard"]), (&"kv-curves".into(), &"1/2".into()));
    let heads = found["heads"].as_array().expect("heads");
    assert_eq!(heads.len(), set.heads().len());
    for (head, curve) in heads.iter().zip(set.curves().expect("curves")) {
        assert_eq!((&head["layer"], &head["head"]), (&curve.layer.into(), &curve.head.into()));
        assert_eq!(
            (&head["lengths"][0], &head["lengths"][1]),
            (&curve.points[0].length.into(), &96.into())
        );
        let most = curve.points.iter().map(|point| point.error).fold(0.0, f64::max);
        assert_eq!(head["errors"][1], most);
        assert!(head["errors"][0].as_f64().is_some_and(|least| least > 0.0 && least < most));
    }
    let told = did(&workplace, &["inspect", &of("curves")]);
    for word in ["kv-curves", "1/2", "kvsculpt", "0.4", "errors"] {
        assert!(told.contains(word), "{told} lacks {word}");
    }

    let part = kvsculpt::cache::Part::read(&workplace.path(&of("part"))).expect("a part");
    let found = json(&of("part"));
    assert_eq!((&found["format"], &found["shard"]), (&"kv-part".into(), &"1/2".into()));
    let layers = found["layers"].as_array().expect("layers").iter();
    let heads = layers.flat_map(|layer| {
        let heads = layer["heads"].as_array().expect("heads");
        heads.iter().map(|head| (layer["layer"].as_u64(), head["head"].as_u64()))
    });
    let wanted = part.heads().map(|(layer, head)| (Some(layer as u64), Some(head as u64)));
    assert_eq!(heads.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    assert_eq!(found["made"]["heads"].as_array().map(Vec::len), Some(part.heads().count()));
    let told = did(&workplace, &["inspect", &of("part")]);
    for word in ["kv-part", "1/2", "select-fit", "probe rows"] {
        assert!(told.contains(word), "{told} lacks {word}");
    }

    let told = did(&workplace, &["inspect", "budgets.json"]);
    for word in ["kv-budgets", "sinks", "sha256:", "96 a head"] {
        assert!(told.contains(word), "{told} lacks {word}");
    }

    // A head may have any number; one beyond reason is not drawn.
    for (head, is_drawn) in [(1, true), (u32::MAX, false)] {
        let layers = format!(
            "[{{\"layer\": 0, \"heads\": [{{\"head\": 0, \"sensitivity\": 1}}, {{\"head\": {head}, \"sensitivity\": 5}}]}},
              {{\"layer\": 7, \"heads\": [{{\"head\": 0, \"sensitivity\": 3}}]}}]"
        );
        let file = format!("{{\"format\": \"kv-sensitivity\", \"version\": 1, \"layers\": {layers}}}");
        fs::write(workplace.path("weights.json"), file).expect("written");
        let found = json("weights.json");
        assert_eq!((&found["format"], &found["mean"]), (&"kv-sensitivity".into(), &3.0.into()));
        assert_eq!(found["weights"][1], serde_json::json!({"layer": 0, "head": head, "weight": 5.0}));
        let told = did(&workplace, &["inspect", "weights.json"]);
        for word in ["kv-sensitivity", "3 in 2 layers", "1.6667", &head.to_string()] {
            assert!(told.contains(word), "{told} lacks {word}");
        }
        assert_eq!(told.contains('█'), is_drawn, "{told}");
    }

    fs::write(workplace.path("other.json"), "{\"format\": \"kv-budgets\", \"version\": 9}").expect("written");
    refused(&start(&workplace, &["inspect", "other.json"]), 3, &["other.json", "version"]);
    fs::write(workplace.path("other.json"), "{\"format\": \"something\"}").expect("written");
    refused(&start(&workplace, &["inspect", "other.json"]), 3, &["other.json", "no cache"]);
}
