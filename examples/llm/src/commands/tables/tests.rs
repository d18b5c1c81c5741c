//! Tables from rows as `eval` and `retrieval` write them.

use std::fs::{read_dir, read_to_string, write};
use std::path::Path;

use clap::Parser;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::markdown::figure;
use super::marks::{between, fill};
use super::ratios::Ratio;
use super::way::Way;
use super::*;
use crate::commands::variant::{MethodKind, PresetKind, Variant};
use crate::commands::{eval, haystack};

use MethodKind::{Full, Kvsculpt, Select, SelectFit};
use PresetKind::{Default as Usual, Published};

/// What both kinds of rows say of themselves.
fn about(method: MethodKind, preset: PresetKind, keep: f64, text: &str, offset: usize) -> Value {
    let variant = Variant::new(method, preset, keep, None).unwrap();
    json!({
        "version": "1", "model": "small", "text": text, "offset": offset, "tokens": 100, "method": method, "preset": preset,
        "keep": variant.keep, "options": variant.options, "source": format!("{text}{offset}"), "engine": "CPU",
    })
}

fn with(row: &Value, fields: &Value) -> Value {
    let (mut row, fields) = (row.clone(), fields.as_object().unwrap().clone());
    row.as_object_mut().unwrap().extend(fields);
    row
}

/// A row of `eval` with this mean KL.
fn compared(method: MethodKind, preset: PresetKind, text: &str, kl: f64) -> Value {
    let found = json!({
        "next": 10, "bytes": [1000, 300], "seconds": [9.0, 2.0], "probe_error": 0.1,
        "kl": {"mean": kl, "median": kl / 2.0, "worst_share": 0.5, "top1": 0.875, "perplexity_full": 40.0,
            "perplexity_short": 41.25, "tokens": [kl]},
    });
    let row = with(&about(method, preset, 0.3, text, 0), &found);
    // As the program itself would write it.
    serde_json::to_value(serde_json::from_value::<eval::Row>(row).unwrap()).unwrap()
}

/// A row of `retrieval` with these needles found at two depths.
fn recalled(method: MethodKind, text: &str, exact: [[bool; 2]; 2]) -> Value {
    let depth = |depth: f64, exact: [bool; 2]| {
        json!({"depth": depth, "places": [5, 6], "exact": exact, "needle_log_probability": [-1.0, -2.0], "copied_from": 7,
            "copy_top1": if exact[0] { 1.0 } else { 0.5 }, "copy_log_probability": -0.5})
    };
    let found = json!({"needles": 2, "seed": 3, "bytes": 300, "seconds": 2.0,
        "depths": [depth(0.25, exact[0]), depth(0.5, exact[1])]});
    let row = with(&about(method, Usual, 0.3, text, 0), &found);
    let row = if method == Full {
        with(&row, &json!({"options": null}))
    } else {
        row
    };
    serde_json::to_value(serde_json::from_value::<haystack::Row>(row).unwrap()).unwrap()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn read(rows: &[Value]) -> Measurements {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    write(&path, lines(rows)).unwrap();
    let found = Measurements::read(&[path]).unwrap();
    assert_eq!(found.unreadable, 0);
    found
}

fn written(rows: &[Value], against: &[&str], only: Option<Part>) -> Result<String> {
    let against: Vec<String> = against.iter().map(|&label| label.to_owned()).collect();
    document(&read(rows), &against, only)
}

fn assert_holds(text: &str, part: &[&str]) {
    assert!(text.contains(&part.join("\n")), "{text}");
}

#[test]
fn figures_have_three_digits() {
    let values = [
        0.0362, 0.09996, 0.99951, 2.304, 12.34, 519.6, 1524.4, 0.0, -0.0214, 1e-4, 4.26e-5, 1e-11,
    ];
    let found: Vec<String> = values.into_iter().map(figure).collect();
    let expected = [
        ".0362", ".100", "1.00", "2.30", "12.3", "520", "1524", "0", "-.0214", ".000100", "4.26e-5", "1.00e-11",
    ];
    assert_eq!(found, expected);
}

#[test]
fn ways_are_named_by_what_differs_from_their_preset() {
    let name = |method, preset, changes: Value| {
        let options = with(&about(method, preset, 0.2, "a", 0)["options"], &changes);
        Way::new(method, preset, options.as_object().unwrap()).unwrap().to_string()
    };
    assert_eq!(name(Kvsculpt, Published, json!({})), "kvsculpt, published");
    assert_eq!(name(SelectFit, Usual, json!({"keep": 0.7})), "select-fit");
    assert_eq!(name(Full, Published, json!({"steps": 3})), "full");
    assert_eq!(name(Full, Published, json!({"steps": 3, "dtype": "bf16"})), "full, dtype: bf16");
    assert_eq!(name(Kvsculpt, Usual, json!({"dtype": "f16"})), "kvsculpt, dtype: f16");
    let changes = json!({"recent_rows": null, "tail": {"pairs": 64}, "of tomorrow": true, "budget of tomorrow": "layer"});
    let changed = name(Kvsculpt, Usual, changes);
    for part in [
        "recent rows: none",
        "tail: pairs 64",
        "of tomorrow: on",
        "budget of tomorrow: layer",
    ] {
        assert!(changed.starts_with("kvsculpt, ") && changed.contains(part), "{changed}");
    }
    assert_eq!(changed.matches(": ").count(), 4, "{changed}");
}

#[test]
fn options_of_a_later_day_are_not_recorded_in_default_rows_and_the_papers_in_published_ones() {
    let name = |preset| {
        let mut options = about(Select, preset, 0.3, "a", 0)["options"].as_object().unwrap().clone();
        options.remove("mass_weight").unwrap();
        Way::new(Select, preset, &options).unwrap().to_string()
    };
    assert_eq!(name(Usual), "select, mass weight: not recorded");
    assert_eq!(name(Published), "select, published");
}

#[test]
fn methods_stand_in_their_order_and_means_over_complete_rows_only() {
    let rows = [
        compared(Kvsculpt, Usual, "b", 0.01),
        compared(SelectFit, Usual, "b", 0.02),
        compared(SelectFit, Published, "b", 0.04),
        compared(SelectFit, Published, "a", 0.08),
        compared(Kvsculpt, Usual, "a", 0.02),
    ];
    assert_holds(
        &written(&rows, &[], None).unwrap(),
        &[
            "**small**, keep 0.3",
            "",
            "| method | b @0 | a @0 | mean KL | median token | top-1 | perplexity (full) | seconds |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            "| select-fit, published | .0400 | .0800 | .0600 | .0300 | 87.5 % | 41.2 (40.0) | 2.00 |",
            "| select-fit | .0200 | – | – | – | – | – | – |",
            "| kvsculpt | .0100 | .0200 | .0150 | .00750 | 87.5 % | 41.2 (40.0) | 2.00 |",
            "",
        ],
    );
}

#[test]
fn models_and_texts_come_as_first_seen_and_keeps_and_offsets_ascending() {
    let row = |model: &str, text: &str, offset: usize, keep: f64| {
        let fields = json!({"model": model, "offset": offset, "keep": keep, "source": format!("{model}{text}{offset}{keep}")});
        with(&compared(Select, Usual, text, 0.01), &fields)
    };
    let rows = [
        row("z", "b", 7, 0.5),
        row("y", "a", 0, 0.2),
        row("z", "a", 0, 0.2),
        row("z", "b", 3, 0.5),
    ];
    let text = written(&rows, &[], None).unwrap();
    let bold: Vec<&str> = text.lines().filter(|line| line.starts_with("**")).collect();
    assert_eq!(bold, ["**z**, keep 0.2", "**z**, keep 0.5", "**y**, keep 0.2"]);
    assert_holds(
        &text,
        &["| method | b @3 | b @7 | a @0 | mean KL | median token | top-1 | perplexity (full) | seconds |"],
    );
}

#[test]
fn of_the_same_measurement_the_last_counts_and_another_engines_is_another() {
    let first = compared(Select, Usual, "a", 0.03);
    let again = compared(Select, Usual, "a", 0.02);
    let text = written(&[first.clone(), again.clone()], &[], None).unwrap();
    assert_holds(&text, &["| select | .0200 | .0200 |"]);
    assert!(text.starts_with("Made of 1 row of") && !text.contains(".0300 |"), "{text}");
    let elsewhere = with(&first, &json!({"engine": "GPU"}));
    let text = written(&[again, elsewhere], &[], None).unwrap();
    for line in ["| select (CPU) | .0200 |", "| select (GPU) | .0300 |"] {
        assert_holds(&text, &[line]);
    }
}

#[test]
fn what_a_row_says_beside_its_options_is_another_method() {
    let plain = compared(Kvsculpt, Usual, "a", 0.02);
    let weighed = with(
        &compared(Kvsculpt, Usual, "a", 0.01),
        &json!({"weights_of_tomorrow": "layers.json"}),
    );
    let text = written(&[plain, weighed], &[], None).unwrap();
    assert_holds(&text, &["| kvsculpt | .0200 |"]);
    assert_holds(&text, &["| kvsculpt, weights of tomorrow: layers.json | .0100 |"]);
}

#[test]
fn other_lengths_are_another_table() {
    let longer = with(&compared(Select, Usual, "a", 0.02), &json!({"tokens": 200}));
    let text = written(&[compared(Select, Usual, "a", 0.01), longer], &[], None).unwrap();
    for tokens in [100, 200] {
        assert_holds(&text, &[&format!("**small, {tokens} tokens and the 10 that follow**, keep 0.3")]);
    }
}

#[test]
fn ratios_are_over_the_passages_both_have() {
    let rows = [
        compared(SelectFit, Published, "a", 0.4),
        compared(SelectFit, Published, "b", 0.1),
        compared(Kvsculpt, Usual, "a", 0.1),
        compared(Kvsculpt, Usual, "b", 0.1),
        compared(Kvsculpt, Usual, "c", 9.0),
    ];
    let found = read(&rows);
    let boards = boards(&found.compared);
    let ratio = Ratio::between(&boards[0].lines[1], &boards[0].lines[0]).unwrap();
    // 0.5 / 0.2, and the root of 4 · 1.
    assert!(
        (ratio.means - 2.5).abs() < 1e-12 && (ratio.geometric - 2.0).abs() < 1e-12,
        "{ratio:?}"
    );
    assert_eq!(ratio.passages, 2);
    assert_holds(
        &written(&rows, &[], None).unwrap(),
        &[
            "| keep | method | means, select-fit, published | geometric, select-fit, published |",
            "|---|---|---:|---:|",
            "| 0.3 | select-fit, published | 1.00 (2) | 1.00 (2) |",
            "| 0.3 | kvsculpt | 2.50 (2) | 2.00 (2) |",
        ],
    );
}

#[test]
fn a_kl_of_zero_has_no_ratio() {
    let rows = [compared(Select, Usual, "a", 0.0), compared(Kvsculpt, Usual, "a", 0.1)];
    let found = read(&rows);
    let boards = boards(&found.compared);
    let [zero, some] = boards[0].lines.as_slice() else {
        panic!("{boards:?}")
    };
    assert_eq!(Ratio::between(some, zero), None);
    assert_eq!(Ratio::between(zero, some), None);
}

#[test]
fn what_is_compared_with_can_be_chosen() {
    let rows = [compared(Select, Usual, "a", 0.3), compared(Kvsculpt, Usual, "a", 0.1)];
    assert!(!written(&rows, &[], None).unwrap().contains("geometric"));
    assert_holds(
        &written(&rows, &["select", "kvsculpt"], None).unwrap(),
        &["| 0.3 | kvsculpt | 3.00 | 3.00 | 1.00 | 1.00 |"],
    );
    let refused = format!("{:#}", written(&rows, &["selct"], None).unwrap_err());
    assert!(refused.contains("`selct`") && refused.contains("select; kvsculpt"), "{refused}");
}

#[test]
fn retrieval_stands_beside_the_full_caches() {
    let rows = [
        recalled(Select, "a", [[false, false], [true, false]]),
        recalled(Full, "a", [[true, true], [true, true]]),
        recalled(Full, "b", [[true, true], [true, false]]),
        recalled(Select, "b", [[false, true], [false, false]]),
        recalled(Kvsculpt, "b", [[true, true], [false, false]]),
    ];
    assert_holds(
        &written(&rows, &[], None).unwrap(),
        &[
            "**small**, retrieval at keep 0.3",
            "",
            "| method | at .25 | at .5 | needles found | in all | copied tokens right |",
            "|---|---:|---:|---:|---:|---:|",
            "| full | 4/4 | 3/4 | 7/8 | 87.5 % | 100 % |",
            "| select | 1/4 | 1/4 | 2/8 | 25.0 % | 62.5 % |",
            "| kvsculpt | 2/2 | 0/2 | 2/4 | – | – |",
            "",
        ],
    );
}

#[test]
fn the_short_table_has_a_column_a_method() {
    let other_keep = json!({"keep": 0.2, "source": "other"});
    let rows = [
        compared(Kvsculpt, Usual, "a", 0.02),
        compared(SelectFit, Published, "a", 0.04),
        compared(Full, Usual, "a", 0.0),
        with(&compared(Kvsculpt, Usual, "a", 0.08), &other_keep),
    ];
    let expected = [
        "| model | keep | select-fit, published | kvsculpt |",
        "|---|---|---:|---:|",
        "| small | 0.2 | – | **.0800** |",
        "|  | 0.3 | .0400 | **.0200** |",
        "",
    ];
    assert_eq!(written(&rows, &[], Some(Part::Mean)).unwrap(), expected.join("\n"));
    assert!(written(&rows[2..3], &[], Some(Part::Mean)).is_err());
}

#[test]
fn the_first_line_tells_the_commands() {
    let rows = [
        compared(Kvsculpt, Usual, "a", 0.02),
        compared(Select, Published, "b", 0.02),
        recalled(Full, "a", [[true; 2]; 2]),
    ];
    let text = written(&rows, &[], None).unwrap();
    let expected = "Made of 2 rows of `kvsculpt-llm eval MODEL a b --offset 0 --tokens 100 --next 10 --keep 0.3 --method kvsculpt,select \
                    --preset default,published` (version 1; models small; engine CPU); 1 row of `kvsculpt-llm retrieval MODEL a --offset 0 \
                    --tokens 100 --depths 0.25,0.5 --needles 2 --seed 3 --method full` (version 1; models small; engine none).";
    assert_eq!(text.lines().next().unwrap(), expected);
}

#[test]
fn lines_that_are_no_measurements_are_counted_and_files_without_any_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row = compared(Select, Usual, "a", 0.01);
    let mut without = row.clone();
    without.as_object_mut().unwrap().remove("source").unwrap();
    write(&path, format!("{row}\n\n{without}\n{{\"kl\": 3}}\n{}", &row.to_string()[..40])).unwrap();
    let found = Measurements::read(std::slice::from_ref(&path)).unwrap();
    assert_eq!((found.compared.len(), found.unreadable), (1, 3));
    write(&path, "Call me Ishmael.\n").unwrap();
    for path in [path, folder.path().join("missing.jsonl")] {
        let refused = format!("{:#}", Measurements::read(std::slice::from_ref(&path)).unwrap_err());
        assert!(refused.contains(path.to_str().unwrap()), "{refused}");
    }
}

/// Of what the repository keeps: the tables are what the rows give, and the commands know the rows again.
#[test]
fn kept_tables_are_those_of_the_kept_rows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    for name in ["offset-12000", "retrieval", "retrieval-12000", "retrieval-keeps"] {
        let found = Measurements::read(&[folder.join(name).with_extension("jsonl")]).unwrap();
        assert_eq!(found.unreadable, 0);
        let kept = read_to_string(folder.join(name).with_extension("md")).unwrap();
        assert_eq!(between(&kept, &document(&found, &[], None).unwrap()).unwrap(), kept);
    }
    known_again::<eval::Row>(&folder.join("offset-0.jsonl"));
    known_again::<eval::Row>(&folder.join("offset-12000.jsonl"));
    for name in ["retrieval", "retrieval-12000", "retrieval-keeps"] {
        known_again::<haystack::Row>(&folder.join(name).with_extension("jsonl"));
    }
}

/// Reads rows and writes them as the command itself would.
fn known_again<R: DeserializeOwned + Serialize>(rows: &Path) {
    for line in read_to_string(rows).unwrap().lines() {
        let row: R = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(line).unwrap(), serde_json::to_value(&row).unwrap());
    }
}

#[test]
fn only_what_is_between_the_marks_is_replaced() {
    let whole = "before\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nafter";
    let filled = between(whole, "new\n").unwrap();
    assert_eq!(filled, "before\n<!-- tables: begin -->\n\nnew\n\n<!-- tables: end -->\nafter");
    assert_eq!(between(&filled, "new\n").unwrap(), filled);
    let (begin, end) = ("<!-- tables: begin -->", "<!-- tables: end -->");
    for wrong in [
        String::new(),
        begin.to_owned(),
        end.to_owned(),
        format!("{end}\n{begin}"),
        format!("{begin}{end}{begin}"),
        format!("{begin}{end}{end}"),
    ] {
        assert!(between(&wrong, "new").is_err(), "{wrong}");
    }
}

#[test]
fn a_file_is_filled_whole_or_left_alone() {
    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }
    let folder = tempfile::tempdir().unwrap();
    let (rows, page) = (folder.path().join("rows.jsonl"), folder.path().join("page.md"));
    write(&rows, lines(&[compared(Select, Usual, "a", 0.01)])).unwrap();
    let line = ["x", rows.to_str().unwrap(), "--into", page.to_str().unwrap(), "--only", "mean"];
    let arguments = Program::try_parse_from(line).unwrap().arguments;
    assert!(run(&arguments).is_err());
    write(&page, "no marks").unwrap();
    assert!(format!("{:#}", run(&arguments).unwrap_err()).contains("page.md"));
    assert_eq!(read_to_string(&page).unwrap(), "no marks");
    write(&page, "a\n<!-- tables: begin -->\n<!-- tables: end -->\nz\n").unwrap();
    run(&arguments).unwrap();
    let filled = read_to_string(&page).unwrap();
    assert!(
        filled.starts_with("a\n<!--") && filled.ends_with("-->\nz\n") && filled.contains("**.0100**"),
        "{filled}"
    );
    assert!(fill(folder.path(), "text").is_err());
    assert_eq!(read_dir(folder.path()).unwrap().count(), 2);
}
