//! Which rows serve again, and what is refused before anything is read.

use super::*;
use crate::commands::variant::{ScopeKind, Switch};
use clap::Parser;
use kvsculpt::options::Split;
use serde_json::{Value, from_value, to_value};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    task: Task,
}

fn task(arguments: &[&str]) -> Result<Task> {
    let line = Line::try_parse_from([&["x"], arguments].concat())?;
    line.task.validate()?;
    Ok(line.task)
}

fn variant(method: MethodKind, keep: f64) -> Variant {
    Variant::new(method, PresetKind::Default, keep, None).unwrap()
}

fn row(variant: &Variant) -> Row {
    let depth = |(depth, copied_from): (f64, usize)| Depth {
        depth,
        places: vec![50, 60],
        exact: vec![true, false],
        needle_log_probability: vec![-1.0, -3.0],
        copied_from,
        copy_top1: 0.5,
        copy_log_probability: -0.5,
    };
    Row {
        version: VERSION.into(),
        model: "small".into(),
        text: "a".into(),
        offset: 0,
        tokens: 100,
        needles: 2,
        seed: 3,
        method: variant.method,
        preset: variant.preset,
        keep: variant.keep,
        options: (variant.method != MethodKind::Full).then(|| Recorded::of(&variant.options).unwrap()),
        sensitivities: variant.sensitivities(),
        source: "0123".into(),
        engine: "CPU".into(),
        bytes: 1,
        seconds: 0.0,
        depths: [(0.25, 30), (0.5, 70)].map(depth).to_vec(),
    }
}

fn decisive(variant: &Variant) -> Decisive<'_> {
    Decisive {
        model: "small",
        source: "0123",
        tokens: 100,
        needles: 2,
        seed: 3,
        asked: vec![(0.25, 30), (0.5, 70)],
        engine: "CPU",
        variant,
    }
}

/// Makes a row one of another measurement.
type Change = fn(&mut Row);

#[test]
fn a_row_serves_again_only_for_the_very_same_measurement() {
    let short = variant(MethodKind::Select, 0.3);
    let found = row(&short);
    assert!(decisive(&short).is_of(&found));
    assert!(!decisive(&variant(MethodKind::Select, 0.4)).is_of(&found));
    assert!(!decisive(&variant(MethodKind::SelectFit, 0.3)).is_of(&found));
    assert!(!decisive(&variant(MethodKind::Full, 1.0)).is_of(&found));
    assert!(!decisive(&short.clone().with(Some(ScopeKind::Layer), None)).is_of(&found));
    assert!(!decisive(&short.clone().with(None, Some(Switch::On))).is_of(&found));
    let changes: [(&str, Change); 11] = [
        ("sensitivities", |row| row.sensitivities = Some("small".into())),
        ("version", |row| row.version.push('0')),
        ("model", |row| row.model.push('0')),
        ("source", |row| row.source.push('0')),
        ("tokens", |row| row.tokens += 1),
        ("needles", |row| row.needles += 1),
        ("seed", |row| row.seed += 1),
        ("engine", |row| row.engine.push('0')),
        ("a depth", |row| row.depths[1].depth = 0.6),
        ("a depth less", |row| row.depths.truncate(1)),
        ("where is copied from", |row| row.depths[0].copied_from += 1),
    ];
    for (what, change) in changes {
        let mut other = found.clone();
        change(&mut other);
        assert!(!decisive(&short).is_of(&other), "{what}");
    }
    let full = variant(MethodKind::Full, 1.0);
    let mut found = row(&full);
    found.engine = "another".into();
    assert!(decisive(&full).is_of(&found), "no engine made the full cache");
    assert!(!decisive(&short).is_of(&found));
}

#[test]
fn a_row_that_does_not_say_all_options_is_not_filled_in() {
    let short = variant(MethodKind::Select, 0.3);
    let mut line = to_value(row(&short)).unwrap();
    assert!(!line.as_object().unwrap().contains_key("sensitivities"));
    assert!(decisive(&short).is_of(&from_value(line.clone()).unwrap()));
    let options = line["options"].as_object_mut().unwrap();
    assert_eq!(options.remove("budget"), Some(Value::from("head")));
    let older: Row = from_value(line.clone()).unwrap();
    assert!(!decisive(&short).is_of(&older));
    assert_eq!(to_value(older).unwrap(), line);
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_read() {
    let usual = task(&[]).unwrap();
    for keep in [0.1, 0.9] {
        usual.check(&variant(MethodKind::Kvsculpt, keep)).unwrap();
    }
    let published = Variant::new(MethodKind::Kvsculpt, PresetKind::Published, 0.1, None).unwrap();
    let refused = format!("{:#}", usual.check(&published).unwrap_err());
    assert!(refused.contains("published") && refused.contains("smallest keep"), "{refused}");
    task(&["--tokens", "1"]).unwrap().check(&variant(MethodKind::Full, 1.0)).unwrap();
    for wrong in [
        ["--needles", "0"],
        ["--needles", "65536"],
        ["--depths", "0.5,1.5"],
        ["--depths", "NaN"],
        ["--tokens", "0"],
    ] {
        assert!(task(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn no_usual_depth_lies_in_the_tail_that_is_published() {
    let usual = task(&[]).unwrap();
    let split = Split::uniform(usual.tokens, &kvsculpt::Options::published()).unwrap();
    let tail = (usual.tokens - split.tail) as f64 / usual.tokens as f64;
    assert!(usual.depths.iter().all(|&depth| depth < tail - 0.1), "{tail}");
}
