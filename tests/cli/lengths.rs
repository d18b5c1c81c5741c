//! Who gets how many pairs: targets, scopes, pages, files of budgets and of sensitivities, on a real layer of three heads.

use std::fs;

use kvsculpt::cache::Compressed;
use serde_json::{Value, json};

use crate::workplace::{Workplace, capture, refused, run, succeeded, text};

/// The bundled layer.
const LAYER: &[u8] = include_bytes!("../data/smollm2-layer20.safetensors");
const TOKENS: u64 = 2048;
const HEADS: u64 = 3;
/// What makes a run short.
const SHORT: [&str; 12] = [
    "--steps",
    "1",
    "--iterations",
    "2",
    "--context-rows",
    "96",
    "--recent-rows",
    "32",
    "--validation-rows",
    "32",
    "--method",
    "select-fit",
];

fn layer() -> Workplace {
    Workplace::new(LAYER)
}

/// Compresses the layer in a short time; the lines printed.
fn printed(workplace: &Workplace, more: &[&str]) -> String {
    succeeded(&workplace.compress(&[&SHORT, more].concat())).to_owned()
}

fn report(workplace: &Workplace, more: &[&str]) -> Value {
    serde_json::from_str(&printed(workplace, &[more, &["--json"]].concat())).expect("JSON")
}

/// Lengths of the three heads.
fn lengths(report: &Value) -> Vec<u64> {
    let lengths = report["budgets"]["20"].as_array().expect("layer 20");
    lengths.iter().map(|length| length.as_u64().expect("a length")).collect()
}

fn is_ragged(lengths: &[u64]) -> bool {
    lengths.windows(2).any(|pair| pair[0] != pair[1])
}

#[test]
fn every_head_has_its_own_length_and_the_total_is_exact() {
    let workplace = layer();
    let printed = printed(&workplace, &["--keep", "0.2"]);
    let compressed = Compressed::read(&workplace.output()).expect("a compressed cache");
    let lengths: Vec<usize> = compressed.layers[0].lengths.clone();
    assert_eq!(lengths.iter().sum::<usize>(), 409 * 3);
    let (least, most) = (lengths.iter().min().expect("heads"), lengths.iter().max().expect("heads"));
    assert!(least < most);
    for words in [
        format!("2048 → 409 a head on the mean (from {least} to {most}): 4 sinks, 102 newest"),
        "lengths of heads".to_owned(),
        format!("{} {} {}", lengths[0], lengths[1], lengths[2]),
        "1227 pairs in 3 heads".to_owned(),
        ", budgets ".to_owned(),
    ] {
        assert!(printed.contains(&words), "{printed} lacks {words}");
    }
    // One layer makes no picture.
    assert!(!printed.contains("Share of the pairs"));
}

#[test]
fn a_scope_of_one_length_is_one_length_and_needs_no_table_of_lengths() {
    let workplace = layer();
    for scope in ["uniform", "layer"] {
        let more = ["--keep", "0.2", "--budget", scope];
        let found = report(&workplace, &more);
        assert_eq!(lengths(&found), [409; 3], "{scope}");
        assert_eq!(found["options"]["budget"], scope);
        // A uniform length needs no curves to be decided, and all heads of the only layer do.
        let curves = found["curves"].as_array().map_or(0, Vec::len);
        assert_eq!(curves, if scope == "layer" { 3 } else { 0 });
        let printed = printed(&workplace, &more);
        assert!(
            printed.contains("2048 → 409 a head: 4 sinks, 303 selected and refitted, 102 newest"),
            "{printed}"
        );
        assert!(!printed.contains("lengths of heads"), "{printed}");
    }
}

#[test]
fn layers_of_several_lengths_are_drawn() {
    let workplace = Workplace::new(&capture().bytes());
    let output = workplace.compress(&["--keep", "0.4", "--budget", "layer"]);
    let table = succeeded(&output);
    let compressed = Compressed::read(&workplace.output()).expect("a compressed cache");
    for layer in &compressed.layers {
        assert_eq!(layer.lengths[0], layer.lengths[1], "a layer's heads share a length");
    }
    let total: usize = compressed.layers.iter().flat_map(|layer| &layer.lengths).sum();
    // Layers grow by a pair in each of their two heads, and 152 is an even number.
    assert_eq!(total, 38 * 4);
    assert_ne!(compressed.layers[0].lengths, compressed.layers[1].lengths);
    let (_, picture) = table.split_once("Share of the pairs that each head keeps").expect("a picture");
    // Two characters a layer; below 40 % of the 96 pairs it is the lighter shade, and both are between 20 and 60 %.
    let shades = compressed
        .layers
        .iter()
        .map(|layer| if layer.lengths[0] * 10 < 4 * 96 { "░░" } else { "▒▒" });
    let row: String = shades.collect();
    assert!(row.contains('░') && row.contains('▒'), "{row}");
    assert!(
        picture.contains(&format!("\nlayer   2 5\nhead 0 |{row}|\nhead 1 |{row}|\n")),
        "{picture}"
    );
}

#[test]
fn the_error_curves_and_lengths_are_in_the_report() {
    let found = report(&layer(), &["--keep", "0.2"]);
    let lengths = lengths(&found);
    assert!(is_ragged(&lengths), "{lengths:?}");
    for (head, length) in found["heads"].as_array().expect("heads").iter().zip(&lengths) {
        assert_eq!(head["kept"], *length);
    }
    let curves = found["curves"].as_array().expect("curves");
    assert_eq!(curves.len(), 3);
    let points = curves[1]["points"].as_array().expect("points");
    assert!(points.len() > 5);
    assert_eq!(points.last(), Some(&json!({"length": TOKENS, "error": 0.0})));
}

#[test]
fn targets_are_met_exactly() {
    let workplace = layer();
    let found = report(&workplace, &["--tokens", "300"]);
    assert_eq!(lengths(&found).iter().sum::<u64>(), 300 * HEADS);
    assert_eq!(found["options"]["target"]["tokens"], 300);

    let most: u64 = 200 << 10;
    report(&workplace, &["--bytes", "200KiB"]);
    let size = fs::metadata(workplace.output()).expect("the output").len();
    assert!(size <= most && size + (6 << 10) > most, "{size} bytes of {most}");

    let kept = |error: &str| lengths(&report(&workplace, &["--max-error", error])).iter().sum::<u64>();
    let (coarse, fine) = (kept("0.2"), kept("0.02"));
    assert!(coarse < fine && fine < TOKENS * HEADS, "{coarse} and {fine}");
}

#[test]
fn lengths_are_whole_pages() {
    let found = report(&layer(), &["--keep", "0.2", "--page", "32"]);
    let lengths = lengths(&found);
    assert!(is_ragged(&lengths) && lengths.iter().all(|length| length % 32 == 0), "{lengths:?}");
    let total: u64 = lengths.iter().sum();
    assert!(total <= 409 * HEADS && total + 32 > 409 * HEADS, "{total}");
}

#[test]
fn the_papers_rule_decides_by_a_pilot() {
    let more = ["--keep", "0.2", "--allocator", "published"];
    let found = report(&layer(), &more);
    let lengths = lengths(&found);
    assert_eq!(lengths.iter().sum::<u64>(), 409 * HEADS);
    assert!(is_ragged(&lengths), "{lengths:?}");
    assert_eq!(found.get("curves"), None);
}

#[test]
fn saved_budgets_make_the_same_file_again_and_edited_ones_are_respected() {
    let workplace = layer();
    let (saved, again) = (workplace.path("budgets.json"), workplace.path("again.json"));
    let (saved, again) = (saved.to_str().expect("letters"), again.to_str().expect("letters"));
    let first = printed(&workplace, &["--keep", "0.25", "--save-budgets", saved]);
    assert!(first.contains(&format!("budgets  {saved}")), "{first}");
    let bytes = fs::read(workplace.output()).expect("the output");
    let report = report(&workplace, &["--budgets", saved, "--save-budgets", again]);
    assert!(bytes == fs::read(workplace.output()).expect("the output"), "the files differ");
    let text = fs::read_to_string(saved).expect("budgets");
    assert_eq!(text, fs::read_to_string(again).expect("budgets"));
    // A quarter of 2048 is a number that is the same either way.
    assert_eq!(report["options"]["keep"], 0.25);
    assert_eq!(report.get("curves"), None);

    let mut edited: Value = serde_json::from_str(&text).expect("JSON");
    edited["layers"]["20"] = json!([300, 2048, 500]);
    fs::write(saved, edited.to_string()).expect("written");
    let found = printed(&workplace, &["--budgets", saved]);
    let compressed = Compressed::read(&workplace.output()).expect("a compressed cache");
    assert_eq!(compressed.layers[0].lengths, [300, 2048, 500]);
    assert!(found.contains("kept whole"), "{found}");
    assert!(found.contains("2048 → 949.3 a head on the mean (from 300 to 2048)"), "{found}");
}

#[test]
fn everything_may_be_kept() {
    let workplace = layer();
    let path = workplace.path("budgets.json");
    let whole = json!({"format": "kv-budgets", "version": 1, "tokens": TOKENS, "layers": {"20": [TOKENS, TOKENS, TOKENS]}});
    fs::write(&path, whole.to_string()).expect("written");
    let found = printed(&workplace, &["--budgets", path.to_str().expect("letters")]);
    let all = |found: &str| found.contains("2048 a head, all of them") && found.matches("kept whole").count() == 3;
    assert!(all(&found), "{found}");
    // Nor is anything measured where a target is everything.
    for more in [["--tokens", "2048"], ["--bytes", "100MiB"]] {
        let found = printed(&workplace, &more);
        assert!(all(&found), "{found}");
        assert_eq!(report(&workplace, &more).get("curves"), None);
    }
}

#[test]
fn the_error_is_told_beside_its_bound() {
    let workplace = layer();
    let more = ["--max-error", "0.05", "--tail", "16"];
    let error = report(&workplace, &more)["error"].as_f64().expect("a number");
    assert!(error <= 0.05 && error > 0.02, "{error}");
    let found = printed(&workplace, &more);
    let told = format!("error    {error:.4} on the rows held out, of 0.05 allowed\n");
    assert!(found.contains(&told), "{found} lacks {told}");
    // Sinks and tail are enough already, and there are 64 newest pairs where no tail is named.
    let found = printed(&workplace, &["--max-error", "0.5"]);
    assert!(found.contains("of 0.5 allowed; most pairs are sinks and tail"), "{found}");
    assert!(report(&workplace, &["--keep", "0.2"]).get("error").is_none());
}

#[test]
fn biases_are_written_where_they_are_wanted() {
    let workplace = layer();
    let tensors = |more: &[&str]| {
        let report = report(&workplace, &[&["--keep", "0.2"], more].concat());
        let bias = Compressed::read(&workplace.output()).expect("a compressed cache").layers[0]
            .bias
            .clone();
        assert_eq!(report["options"]["bias"], bias.is_some());
        bias
    };
    assert_eq!(tensors(&[]), None);
    assert_eq!(tensors(&["--bias", "off"]), None);
    let bias = tensors(&["--bias", "on"]).expect("a bias of every pair");
    assert_eq!(bias.len(), 409 * 3);
    assert!(bias.iter().any(|&bias| bias != 0.0));
    let gentle = tensors(&["--bias", "on", "--bias-ridge", "10"]).expect("a bias of every pair");
    assert!(gentle.iter().map(|bias| bias * bias).sum::<f32>() < bias.iter().map(|bias| bias * bias).sum::<f32>());
}

/// A file as `kvsculpt-llm sensitivity` writes it, of one layer.
fn sensitivities(layer: usize, heads: [f64; 3]) -> String {
    let heads = heads.iter().enumerate();
    let heads: Vec<Value> = heads
        .map(|(head, sensitivity)| json!({"head": head, "sensitivity": sensitivity}))
        .collect();
    json!({"format": "kv-sensitivity", "version": 1, "layers": [{"layer": layer, "sensitivity": 1.0, "heads": heads}]}).to_string()
}

#[test]
fn heads_that_weigh_more_get_more() {
    let workplace = layer();
    let path = workplace.path("sensitivities.json");
    let file = path.to_str().expect("letters");
    let alike = lengths(&report(&workplace, &["--keep", "0.2"]));
    fs::write(&path, sensitivities(20, [1.0, 1.0, 1e4])).expect("written");
    let of = |power: &str| {
        lengths(&report(
            &workplace,
            &["--keep", "0.2", "--sensitivities", file, "--sensitivity-power", power],
        ))
    };
    let weighed = of("1");
    assert!(
        weighed[2] > alike[2] && weighed.iter().sum::<u64>() == 409 * HEADS,
        "{weighed:?}, {alike:?}"
    );
    assert_eq!(of("0"), alike);
    // A hundred times the weight is what the root of ten thousand is.
    let usual = lengths(&report(&workplace, &["--keep", "0.2", "--sensitivities", file]));
    fs::write(&path, sensitivities(20, [1.0, 1.0, 1e2])).expect("written");
    assert_eq!(of("1"), usual);

    fs::write(&path, sensitivities(7, [1.0, 1.0, 1e4])).expect("written");
    let refusal = |more: &[&str]| workplace.compress(&[&SHORT[..], &["--sensitivities", file], more].concat());
    refused(&refusal(&[]), 2, &["--sensitivities", "layer 20", "another model"]);
    fs::write(&path, sensitivities(20, [1.0, 1.0, 1.0])).expect("written");
    refused(
        &refusal(&["--budget", "uniform"]),
        2,
        &["--sensitivities", "error curves", "--budget head"],
    );
    refused(&refusal(&["--preset", "published"]), 2, &["--sensitivities", "--allocator curves"]);
    refused(
        &refusal(&["--sensitivity-power", "NaN"]),
        2,
        &["--sensitivity-power", "zero or more"],
    );
    fs::write(&path, "{}").expect("written");
    refused(&refusal(&[]), 3, &["sensitivities.json", "kv-sensitivity"]);
}

#[test]
fn targets_out_of_reach_are_refused_with_what_would_do() {
    let workplace = Workplace::new(&capture().bytes());
    refused(&workplace.compress(&["--tokens", "5"]), 2, &["--tokens", "at least 6"]);
    succeeded(&workplace.compress(&["--tokens", "6"]));
    fs::remove_file(workplace.output()).expect("removed");
    refused(&workplace.compress(&["--tokens", "97"]), 2, &["--tokens", "more than the 96"]);
    let wanted = |message: &str| -> u64 {
        let (_, number) = message.split_once("give at least ").expect("a number of bytes");
        number.split(',').next().and_then(|number| number.parse().ok()).expect("digits")
    };
    for more in [&[][..], &["--tail", "32", "--bias", "on"], &["--budget", "layer", "--dtype", "f16"]] {
        let bytes = |bytes: u64| workplace.compress(&[more, &["--bytes", &bytes.to_string()]].concat());
        let least = |few: u64| {
            let output = bytes(few);
            refused(&output, 2, &["--bytes", "give at least"]);
            wanted(text(&output.stderr))
        };
        let (least, again) = (least(1), least(least(1) - 1));
        assert_eq!(least, again);
        succeeded(&bytes(least));
        fs::remove_file(workplace.output()).expect("removed");
    }
    for error in ["NaN", "-1"] {
        refused(&workplace.compress(&["--max-error", error]), 2, &["--max-error", "zero or more"]);
    }
    refused(
        &workplace.compress(&["--max-error", "0.1", "--preset", "published", "--tail", "8"]),
        2,
        &["--max-error", "--allocator curves"],
    );
    refused(&workplace.compress(&["--page", "0"]), 2, &["--page", "at least 1"]);
    refused(
        &workplace.compress(&["--keep", "0.5", "--page", "4096"]),
        2,
        &["--page", "48 pairs a head", "keep 96 a head or more"],
    );
    refused(
        &workplace.compress(&["--tokens", "20", "--page", "32"]),
        2,
        &["--page", "20 pairs a head", "keep 32 a head or more"],
    );
    succeeded(&workplace.compress(&["--tokens", "32", "--page", "32"]));
    fs::remove_file(workplace.output()).expect("removed");
    refused(&workplace.compress(&["--curve-rows", "0"]), 2, &["--curve-rows", "at least 1"]);
    refused(&workplace.compress(&["--bias-ridge", "0"]), 2, &["--bias-ridge", "positive"]);
    refused(
        &workplace.compress(&["--budget", "uniform", "--page", "64"]),
        2,
        &["--page", "whole pages"],
    );
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

#[test]
fn a_file_of_budgets_that_does_not_fit_is_refused() {
    let workplace = Workplace::new(&capture().bytes());
    let path = workplace.path("budgets.json");
    let file = path.to_str().expect("letters");
    let refusal = |tokens: usize, layers: Value, words: &[&str]| {
        let budgets = json!({"format": "kv-budgets", "version": 1, "tokens": tokens, "layers": layers});
        fs::write(&path, budgets.to_string()).expect("written");
        refused(&workplace.compress(&["--budgets", file]), 2, &[&["--budgets"], words].concat());
    };
    refusal(96, json!({"2": [20, 20]}), &["no length for layer 5 head 0", "--layers"]);
    refusal(96, json!({"2": [20, 20], "5": [20]}), &["no length for layer 5 head 1"]);
    refusal(96, json!({"2": [20, 20], "5": [20, 20, 20]}), &["3 heads for layer 5, which has 2"]);
    refusal(96, json!({"2": [20, 20], "5": [20, 3]}), &["layer 5 head 1", "give at least"]);
    refusal(100, json!({"2": [20, 20], "5": [20, 20]}), &["100 tokens", "96"]);
    fs::write(&path, "{\"format\": \"kv-capture\"}").expect("written");
    refused(&workplace.compress(&["--budgets", file]), 3, &["budgets.json", "kv-budgets"]);
    refused(&workplace.compress(&["--budgets", "nowhere.json"]), 3, &["nowhere.json"]);
    // What the file names of sinks and tail is not passed over in silence.
    let budgets =
        json!({"format": "kv-budgets", "version": 1, "tokens": 96, "sinks": 2, "tail": 6, "layers": {"2": [20, 20], "5": [20, 20]}});
    fs::write(&path, budgets.to_string()).expect("written");
    refused(
        &workplace.compress(&["--budgets", file, "--tail", "8"]),
        2,
        &["--budgets", "2 sinks and a tail of 6", "leave --sinks and --tail out"],
    );
    succeeded(&workplace.compress(&["--budgets", file, "--tail", "6", "--sinks", "2"]));
    fs::remove_file(workplace.output()).expect("removed");
    // What is not asked for need not be there.
    let budgets = json!({"format": "kv-budgets", "version": 1, "tokens": 96, "layers": {"2": [20, 30]}});
    fs::write(&path, budgets.to_string()).expect("written");
    let output = workplace.compress(&["--budgets", file, "--layers", "2", "--json"]);
    let report: Value = serde_json::from_str(succeeded(&output)).expect("JSON");
    assert_eq!(report["budgets"], json!({"2": [20, 30]}));
    assert_eq!(report["options"]["keep"], 50.0 / 192.0);
}

#[test]
fn a_file_to_save_budgets_in_is_checked_before_the_work() {
    let workplace = Workplace::new(&capture().bytes());
    let save = |name: &str| {
        let path = workplace.path(name);
        workplace.compress(&["--save-budgets", path.to_str().expect("letters")])
    };
    refused(&save("missing/budgets.json"), 3, &["missing", "no folder"]);
    refused(&save("./capture.safetensors"), 3, &["--save-budgets", "the capture"]);
    refused(&save("./short.safetensors"), 3, &["--save-budgets", "the output"]);
    assert_eq!(workplace.files(), ["capture.safetensors"]);
    succeeded(&save("budgets.json"));
    assert_eq!(workplace.files(), ["budgets.json", "capture.safetensors", "short.safetensors"]);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let workplace = Workplace::new(&capture().bytes());
    let targets = [["--keep", "0.5"], ["--tokens", "30"], ["--bytes", "1MiB"], ["--max-error", "0.1"]];
    let mut pairs: Vec<[[&str; 2]; 2]> = Vec::new();
    for (at, &one) in targets.iter().enumerate() {
        pairs.extend(targets[at + 1..].iter().map(|&other| [one, other]));
        pairs.push([["--budgets", "budgets.json"], one]);
    }
    for other in [
        ["--budget", "head"],
        ["--allocator", "curves"],
        ["--page", "2"],
        ["--sensitivities", "sensitivities.json"],
    ] {
        pairs.push([["--budgets", "budgets.json"], other]);
    }
    for pair in pairs {
        let output = workplace.compress(&pair.concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("cannot be used with"), "{pair:?}: {message}");
        assert!(message.contains(pair[0][0]) && message.contains(pair[1][0]), "{pair:?}: {message}");
    }
    let output = workplace.compress(&["--sensitivity-power", "1"]);
    assert!(text(&output.stderr).contains("--sensitivities"), "{}", text(&output.stderr));
    assert_eq!(workplace.files(), ["capture.safetensors"]);
}

#[test]
fn help_tells_the_values_of_both_presets() {
    let output = run(&["compress", "--help"]);
    let help: Vec<&str> = succeeded(&output).split_whitespace().collect();
    let help = help.join(" ");
    for words in [
        "Which heads share a length [default: head; published: uniform]",
        "[default: curves; published: published]",
        "Training rows of a head that its error curve is made from [default: 512]",
        "[default: off]",
    ] {
        assert!(help.contains(words), "{help} lacks {words}");
    }
}
