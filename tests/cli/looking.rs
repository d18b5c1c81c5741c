//! Looking at files: inspect, compare, and the HTML page.

use std::fs;

use kvsculpt::cache::Compressed;
use serde_json::Value;

use crate::workplace::{Workplace, capture, refused, run, succeeded, text};

fn path(workplace: &Workplace, name: &str) -> String {
    workplace.path(name).to_str().expect("a path of letters").to_owned()
}

/// The capture and two short caches of it: `short.safetensors` and `other.safetensors`.
fn compressed() -> Workplace {
    let workplace = Workplace::new(&capture().bytes());
    succeeded(&workplace.compress(&["--keep", "0.3", "--method", "select", "--budget", "uniform"]));
    fs::rename(workplace.output(), workplace.path("other.safetensors")).expect("renamed");
    succeeded(&workplace.compress(&["--keep", "0.5", "--bias", "on"]));
    workplace
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(succeeded(&run(arguments))).expect("JSON")
}

#[test]
fn inspect_tells_what_a_capture_holds() {
    let mut draft = capture();
    // A channel of the second head of layer 5 that is a hundred times as large.
    for token in 0..96 {
        draft.poke("layers.5.key", (96 + token) * 16 + 7, if token % 2 == 0 { 100.0 } else { -100.0 });
    }
    let workplace = Workplace::new(&draft.bytes());
    let file = path(&workplace, "capture.safetensors");
    let found = json(&["inspect", &file, "--json"]);
    assert_eq!((&found["format"], &found["tokens"]), (&"kv-capture".into(), &96.into()));
    assert_eq!(found["bytes"], fs::metadata(workplace.capture()).expect("the capture").len());
    let layer = &found["layers"][1];
    assert_eq!(
        (&layer["layer"], &layer["kv_heads"], &layer["query_heads"]),
        (&5.into(), &2.into(), &4.into())
    );
    assert_eq!((&layer["dim"], &layer["bytes"]), (&16.into(), &(2_u64 * 96 * 32 * 4).into()));
    assert_eq!(
        (&layer["queries"]["query"], &layer["queries"]["probe_query"]),
        (&96.into(), &8.into())
    );
    let key = &layer["heads"][1]["key"];
    assert_eq!(
        (&key["least"], &key["most"], &key["outliers"][0]["channel"]),
        (&(-100.0).into(), &100.0.into(), &7.into())
    );
    assert_eq!(layer["heads"][0]["key"]["outliers"].as_array().map(Vec::len), Some(0));
    for head in layer["heads"].as_array().expect("heads") {
        let part = |name: &str| head["attention"][name].as_f64().expect("a number");
        assert!(part("first") > 0.0 && part("first") + part("newest") <= 1.0 && part("spread") >= 1.0);
    }
    let printed = run(&["inspect", &file]);
    for word in ["kv-capture", "2 of 4", "f32", "channel 7", "to first 4"] {
        assert!(succeeded(&printed).contains(word), "{} lacks {word}", text(&printed.stdout));
    }
}

#[test]
fn inspect_tells_how_a_short_cache_was_made() {
    let workplace = compressed();
    let file = path(&workplace, "short.safetensors");
    let found = json(&["inspect", &file, "--json"]);
    let cache = Compressed::read(&workplace.output()).expect("a compressed cache");
    for (layer, read) in found["layers"].as_array().expect("layers").iter().zip(&cache.layers) {
        let heads = layer["heads"].as_array().expect("heads");
        let lengths: Vec<u64> = heads.iter().map(|head| head["pairs"].as_u64().expect("a length")).collect();
        assert_eq!(lengths, read.lengths.iter().map(|&length| length as u64).collect::<Vec<_>>());
        assert!(heads.iter().all(|head| head["bias"].is_array()));
    }
    assert_eq!(found["made"]["method"], "kvsculpt");
    assert_eq!(found["made"]["options"]["bias"], true);
    let printed = run(&["inspect", &file]);
    for word in ["kv-compressed", "lengths of heads", "sha256:", "probe rows", "select-fit"] {
        assert!(succeeded(&printed).contains(word), "{} lacks {word}", text(&printed.stdout));
    }
    refused(&run(&["inspect", &path(&workplace, "nothing")]), 3, &["nothing", "no such file"]);
    fs::write(
        workplace.path("other"),
        capture().bytes().iter().map(|byte| byte ^ 1).collect::<Vec<_>>(),
    )
    .expect("written");
    refused(&run(&["inspect", &path(&workplace, "other")]), 3, &["other"]);
}

/// What `compare` judges now is what `compress` reported then, biases counted in.
#[test]
fn compare_judges_what_compress_reported() {
    let workplace = compressed();
    let [a, b, whole] = ["other.safetensors", "short.safetensors", "capture.safetensors"].map(|name| path(&workplace, name));
    let reported = json(&["compare", &a, &b, "--json"]);
    assert_eq!(reported["rows"], "reported");
    let judged = json(&["compare", &a, &b, "--capture", &whole, "--engine", "cpu", "--json"]);
    assert_eq!(judged["rows"], "probe");
    let heads = |found: &Value| found["heads"].as_array().expect("heads").clone();
    assert_eq!(heads(&judged).len(), 4);
    for (now, then) in heads(&judged).iter().zip(heads(&reported)) {
        assert_eq!(now["kept"], then["kept"]);
        for side in 0..2 {
            for error in ["output", "mass", "merged"] {
                let of = |pair: &Value| pair["errors"][side][error].as_f64().expect("a number");
                assert!((of(now) / of(&then) - 1.0).abs() < 1e-3, "{error}: {} and {}", of(now), of(&then));
            }
        }
    }
    let merged = |side: usize| judged["means"]["errors"][side]["merged"].as_f64().expect("a number");
    assert!((judged["means"]["ratio"].as_f64().expect("a ratio") - merged(1) / merged(0)).abs() < 1e-12);
    // The whole cache loses nothing.
    let beside = json(&["compare", &whole, &b, "--engine", "cpu", "--json"]);
    assert_eq!(
        (&beside["means"]["kept"][0], &beside["means"]["errors"][0]["merged"]),
        (&96.0.into(), &0.0.into())
    );
    assert_eq!(beside["means"]["worse"], 4);
    let printed = run(&["compare", &a, &b, "--capture", &whole, "--engine", "cpu"]);
    for word in ["A  ", "B / A", "× the pairs of A", "probe rows", "of 4"] {
        assert!(succeeded(&printed).contains(word), "{} lacks {word}", text(&printed.stdout));
    }
    refused(&run(&["compare", &whole, &whole]), 3, &["capture", "compressed cache"]);
}

#[test]
fn compare_refuses_turned_caches_and_tells_of_another_capture() {
    let workplace = compressed();
    let [a, turned, whole, other] = [
        "short.safetensors",
        "turned.safetensors",
        "capture.safetensors",
        "later.safetensors",
    ]
    .map(|name| path(&workplace, name));
    succeeded(&run(&["convert", &a, &turned, "--frame", "60", "-q"]));
    refused(
        &run(&["compare", &turned, &a, "--capture", &whole, "--engine", "cpu"]),
        3,
        &["position 60", "position 96", "turned"],
    );
    // The same numbers, and one thing more said of them.
    let mut draft = capture();
    draft.set("text", "another");
    fs::write(&other, draft.bytes()).expect("written");
    let output = run(&["compare", &a, &a, "--capture", &other, "--engine", "cpu"]);
    assert!(
        output.status.success() && text(&output.stderr).contains("was made of another file than"),
        "{}",
        text(&output.stderr)
    );
}

/// A head whose values say nothing has errors of no number, and the report is read for all that.
#[test]
fn a_silent_head_does_not_hide_the_report() {
    let mut draft = capture();
    let value = draft
        .tensors
        .iter_mut()
        .find(|tensor| tensor.name == "layers.2.value")
        .expect("values");
    let half = value.bytes.len() / 2;
    value.bytes[..half].fill(0);
    let workplace = Workplace::new(&draft.bytes());
    succeeded(&workplace.compress(&["--keep", "0.4"]));
    let short = path(&workplace, "short.safetensors");
    let printed = run(&["inspect", &short]);
    assert!(!succeeded(&printed).contains("none that can be read"), "{}", text(&printed.stdout));
    let compared = json(&["compare", &short, &short, "--json"]);
    assert!(
        compared["heads"][1]["errors"][0]["merged"]
            .as_f64()
            .is_some_and(|error| error > 0.0)
    );
    succeeded(&run(&["report", &short, "-o", &path(&workplace, "page.html"), "-q"]));
}

/// The page needs nothing from elsewhere and tells of every head.
#[test]
fn a_page_is_whole_and_tells_of_every_head() {
    let workplace = Workplace::new(&capture().bytes());
    let page = path(&workplace, "page<&>.html");
    let printed = workplace.compress(&["--keep", "0.4", "--report", &page]);
    assert!(succeeded(&printed).contains("page<&>.html"));
    let html = fs::read_to_string(&page).expect("the page");
    for word in [
        "<!doctype html>",
        "Share of its pairs",
        "Error of each head",
        "Error curves",
        "Methods at the same lengths",
        "CPU, ",
        "sha256:",
        "validation_rows",
        "prefers-color-scheme: dark",
        "@media print",
    ] {
        assert!(html.contains(word), "the page lacks {word}");
    }
    for elsewhere in ["http:", "https:", "<script", "@import", "url(", "src="] {
        assert!(!html.contains(elsewhere), "the page has {elsewhere}");
    }
    // Two pictures of four heads each, and a curve for each.
    assert_eq!(html.matches("class=\"heat\" x=").count() - 2 * 12, 2 * 4);
    assert_eq!(html.matches("<tr><td>").count(), 4);
    assert_balanced(&html);
    // The same of the file alone, but for what it does not hold.
    let again = path(&workplace, "again.html");
    let short = path(&workplace, "short.safetensors");
    succeeded(&run(&["report", &short, "-o", &again]));
    let html = fs::read_to_string(&again).expect("the page");
    assert!(html.contains("Error of each head") && !html.contains("Error curves"));
    assert_balanced(&html);
    refused(&run(&["report", &short, "-o", &short]), 3, &["the cache itself"]);
    refused(
        &workplace.compress(&["--report", &path(&workplace, "capture.safetensors")]),
        3,
        &["--report"],
    );
    assert!(Compressed::read(&workplace.output()).is_ok());
}

/// Every element that is opened is closed, in order.
fn assert_balanced(html: &str) {
    let mut open: Vec<String> = Vec::new();
    for part in html.split('<').skip(1) {
        let tag = part.split('>').next().expect("a tag");
        let name: String = tag
            .trim_start_matches('/')
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "<{tag}>");
        } else if !tag.ends_with('/') && !["meta", "br", ""].contains(&name.as_str()) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
}
