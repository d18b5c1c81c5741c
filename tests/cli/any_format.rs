//! `compress`, `statistics` and `inspect` with files of other engines.

use std::fs;

use kvsculpt::formats::{Cache, Format, Known};

use crate::draft::Draft;
use crate::workplace::{Workplace, capture, refused, run, succeeded, text};

/// The workplace's capture with layers 0 and 1, so that formats that want all layers take it.
fn numbered() -> Draft {
    let mut draft = capture();
    for tensor in &mut draft.tensors {
        tensor.name = tensor.name.replace("layers.2.", "layers.0.").replace("layers.5.", "layers.1.");
    }
    draft.set("model", "a/model");
    draft.set("architecture", "qwen2");
    draft
}

fn go(workplace: &Workplace, words: &[&str]) -> std::process::Output {
    let words = words.iter().map(|word| {
        word.strip_prefix('@')
            .map_or_else(|| (*word).to_owned(), |name| workplace.path(name).to_string_lossy().into_owned())
    });
    run(&words.collect::<Vec<_>>())
}

const QUICK: [&str; 9] = ["--steps", "1", "--iterations", "2", "--engine", "cpu", "-q", "--keep", "0.5"];
const FACTS: [&str; 8] = [
    "--rope-theta",
    "10000",
    "--rope-dim",
    "16",
    "--rope-pairing",
    "half",
    "--kv-heads",
    "2",
];

fn compress(workplace: &Workplace, words: &[&str]) -> std::process::Output {
    go(workplace, &[&["compress"], words, &QUICK].concat())
}

fn with_statistics(draft: &Draft) -> (Workplace, String) {
    let workplace = Workplace::new(&draft.bytes());
    succeeded(&go(&workplace, &["statistics", "@capture.safetensors", "-o", "@statistics"]));
    let source = format!("statistics:{}", workplace.path("statistics").display());
    (workplace, source)
}

/// Every format in, every format out, each time with lengths that the target can hold.
#[test]
fn caches_of_every_format_are_compressed_to_every_format() {
    let (workplace, source) = with_statistics(&numbered());
    for format in ["mlx", "mlx-0.31", "llama", "llama-v2", "hugging-face"] {
        let input = format!("@{format}");
        let whole = ["--frame", "absolute"];
        let words = ["convert", "@capture.safetensors", &input, "--to", format, "--dtype", "f32"];
        succeeded(&go(
            &workplace,
            &if format.starts_with("mlx") {
                words.to_vec()
            } else {
                [&words[..], &whole].concat()
            },
        ));
        let output = format!("@{format}-short");
        let output = [&[input.as_str(), "-o", &output, "--to", format, "--queries", &source], &FACTS[..]].concat();
        let output = compress(&workplace, &output);
        let said = succeeded(&output);
        assert!(said.contains("queries  drawn from statistics"), "{said}");
        let known = Known {
            kv_heads: Some(2),
            ..Known::default()
        };
        let short = Cache::open(&workplace.path(&format!("{format}-short")), &known).expect("a cache");
        let whole = Cache::open(&workplace.path(format), &known).expect("a cache");
        assert_eq!(short.format, whole.format);
        assert!(short.layers.iter().all(|layer| layer.length().is_some()), "{format}");
        let pairs = |cache: &Cache| cache.layers.iter().map(|layer| layer.pairs()).sum::<usize>();
        assert_eq!(pairs(&short) * 2, pairs(&whole), "{format}");
    }
    succeeded(&compress(
        &workplace,
        &["@mlx", "-o", "@ours", "--queries", &source, FACTS[0], FACTS[1], FACTS[2], FACTS[3]],
    ));
    let ours = Cache::open(&workplace.path("ours"), &Known::default()).expect("a cache");
    assert_eq!((ours.format, ours.metadata["model"].as_str()), (Format::Compressed, "a/model"));
}

/// A size is that of the file which is written, and nothing that fits is left out.
#[test]
fn a_size_counts_the_bytes_of_the_format_that_is_written() {
    let workplace = Workplace::new(&numbered().bytes());
    // A pair of both heads of both layers, keys and values of 16 channels: in single precision but for llama.cpp's.
    let (pair, half) = (2 * 2 * 2 * 16 * 4, 2 * 2 * 2 * 16 * 2);
    // A header's texts are counted at their longest: the numbers of the report take some hundred bytes a head.
    for (format, slack) in [
        ("mlx", pair + 4096),
        ("mlx-0.31", pair + 4096),
        ("hugging-face", pair + 4096),
        ("llama", half + 12),
        ("llama-v2", half + 12),
    ] {
        let most: u64 = if slack < 4096 { 9000 } else { 26_000 };
        let bytes = most.to_string();
        let given = ["compress", "@capture.safetensors", "-o", "@out", "--to", format, "--bytes", &bytes];
        let dtype: &[&str] = if slack < 4096 { &[] } else { &["--dtype", "f32"] };
        let given = [&given[..], dtype, &QUICK[..7]].concat();
        let estimate = go(&workplace, &[&given[..], &["--dry-run", "--json"]].concat());
        let estimate: serde_json::Value = serde_json::from_str(succeeded(&estimate)).expect("JSON");
        succeeded(&go(&workplace, &given));
        let written = fs::metadata(workplace.path("out")).expect("the file").len();
        assert!(written <= most && written + slack > most, "{format}: {written} bytes of {most}");
        let estimated = estimate["file_bytes"].as_u64().expect("a number");
        assert!(
            (written..=most).contains(&estimated),
            "{format}: {written} bytes, {estimated} estimated"
        );
        fs::remove_file(workplace.path("out")).expect("removed");
    }
}

#[test]
fn what_a_target_cannot_hold_is_refused_before_the_work() {
    let workplace = Workplace::new(&numbered().bytes());
    let input = ["@capture.safetensors", "-o", "@out", "--to"];
    for (format, more, words) in [
        ("llama", &["--budget", "layer"][..], &["--budget", "uniform"][..]),
        ("mlx", &["--budget", "head"], &["--budget", "layer"]),
        ("mlx", &["--bias", "on"], &["--bias"]),
        ("mlx", &["--layers", "1"], &["no layer 0"]),
        ("mlx", &["--bytes", "1KiB"], &["--bytes", "give at least"]),
        ("capture", &[], &["--to"]),
    ] {
        let mut given = [&input[..], &[format], more].concat();
        given.extend(if more.contains(&"--bytes") { &QUICK[..7] } else { &QUICK[..] });
        let output = go(&workplace, &[&["compress"], &given[..]].concat());
        refused(&output, if more.contains(&"--layers") { 3 } else { 2 }, words);
    }
    // Nothing but another engine's file is laid out by these.
    for layout in [["--frame", "rebased"], ["--pairing", "interleaved"]] {
        let given = [&["@capture.safetensors", "-o", "@out"][..], &layout, &QUICK].concat();
        refused(&go(&workplace, &[&["compress"], &given[..]].concat()), 2, &[layout[0], "--to"]);
    }
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

#[test]
fn a_cache_without_queries_says_what_it_needs() {
    let (workplace, _) = with_statistics(&numbered());
    succeeded(&go(&workplace, &["convert", "@capture.safetensors", "@mlx", "--to", "mlx"]));
    refused(
        &compress(&workplace, &["@mlx", "-o", "@out", "--queries", "real"]),
        2,
        &["holds no queries", "statistics:FILE"],
    );
    let loud: Vec<&str> = QUICK.into_iter().filter(|&word| word != "-q").collect();
    let output = go(&workplace, &[&["compress", "@mlx", "-o", "@out"], &loud[..]].concat());
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(
        said.contains("guessed from keys") && said.contains("selected and refitted"),
        "{said}{told}"
    );
    assert!(
        told.lines().count() == 2 && told.contains("guessed") && told.contains("--method"),
        "{told}"
    );
    refused(
        &compress(&workplace, &["@out", "-o", "@again", "--queries", "keys"]),
        3,
        &["compressed already"],
    );
}

/// The same seed draws the same queries, and probe queries have no part in them.
#[test]
fn drawn_queries_depend_on_the_seed_and_not_on_probes() {
    let (workplace, source) = with_statistics(&numbered());
    let mut probed = numbered();
    for index in [0, 1] {
        probed.poke(&format!("layers.{index}.probe_query"), 3, 9.0);
    }
    fs::write(workplace.path("probed"), probed.bytes()).expect("written");
    for source in [source.as_str(), "keys"] {
        let pairs = |input: &str, seed: &str| {
            succeeded(&compress(&workplace, &[input, "-o", "@out", "--queries", source, "--seed", seed]));
            let cache = Cache::open(&workplace.path("out"), &Known::default()).expect("a cache");
            (0..2).map(|number| cache.read(number).expect("a layer")).collect::<Vec<_>>()
        };
        let first = pairs("@capture.safetensors", "1");
        assert_eq!(first, pairs("@capture.safetensors", "1"), "{source}");
        assert_eq!(first, pairs("@probed", "1"), "{source}");
        assert_ne!(first, pairs("@capture.safetensors", "2"), "{source}");
    }
}

#[test]
fn statistics_of_another_model_are_refused() {
    let (workplace, source) = with_statistics(&numbered());
    let mut other = numbered();
    other.tensors.retain(|tensor| !tensor.name.starts_with("layers.1."));
    for tensor in &mut other.tensors {
        tensor.name = tensor.name.replace("layers.0.", "layers.7.");
    }
    fs::write(workplace.path("other"), other.bytes()).expect("written");
    refused(
        &compress(&workplace, &["@other", "-o", "@out", "--queries", &source]),
        2,
        &["--queries", "layer 7"],
    );
    let mut turned = numbered();
    for (key, value) in &mut turned.metadata {
        if key == "rope_theta" {
            *value = "123456".into();
        }
    }
    fs::write(workplace.path("turned"), turned.bytes()).expect("written");
    refused(
        &compress(&workplace, &["@turned", "-o", "@out", "--queries", &source]),
        2,
        &["--queries", "rotate otherwise"],
    );
    refused(
        &go(&workplace, &["statistics", "@capture.safetensors", "@other", "-o", "@both"]),
        3,
        &["no layer in common"],
    );
}

#[test]
fn facts_given_are_put_into_a_capture_that_is_written_again() {
    let workplace = Workplace::new(&numbered().bytes());
    let words = [
        "convert",
        "@capture.safetensors",
        "@again",
        "--to",
        "capture",
        "--model",
        "another/model",
    ];
    succeeded(&go(&workplace, &words));
    let again = Cache::open(&workplace.path("again"), &Known::default()).expect("a cache");
    assert_eq!(again.metadata["model"], "another/model");
}

#[test]
fn other_engines_files_are_looked_at() {
    let workplace = Workplace::new(&numbered().bytes());
    succeeded(&go(&workplace, &["convert", "@capture.safetensors", "@state", "--to", "llama"]));
    refused(&go(&workplace, &["inspect", "@state"]), 2, &["--kv-heads"]);
    let output = go(&workplace, &["inspect", "@state", "--kv-heads", "2"]);
    let said = succeeded(&output);
    for words in ["llama.cpp sequence state, version 3", "96", "f16", "first 4", "12.0 KiB"] {
        assert!(said.contains(words), "{said} lacks {words}");
    }
}

#[test]
fn inspect_tells_of_which_model_queries_are_known() {
    let (workplace, _) = with_statistics(&numbered());
    let told = go(&workplace, &["inspect", "@statistics", "--json"]);
    let told: serde_json::Value = serde_json::from_str(succeeded(&told)).expect("JSON");
    assert_eq!((&told["format"], &told["kv_heads"]), (&"kv-query-statistics".into(), &2.into()));
    assert_eq!(told["layers"], serde_json::json!([0, 1]));
    let told = go(&workplace, &["inspect", "@statistics"]);
    for word in ["kv-query-statistics", "0, 1 of 2 KV heads", "qwen2", "half"] {
        assert!(succeeded(&told).contains(word), "{} lacks {word}", text(&told.stdout));
    }
}
