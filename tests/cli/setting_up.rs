//! What a user sets up once: options in a file, completions, manual pages.

use std::fs;

use serde_json::Value;

use crate::workplace::{Workplace, capture, refused, run, succeeded};

#[test]
fn options_come_from_a_file_and_flags_win() {
    let workplace = Workplace::new(&capture().bytes());
    let config = workplace.path("options.toml");
    let file = config.to_str().expect("a path of letters");
    fs::write(
        &config,
        "preset = \"published\"\nkeep = 0.5\nsinks = 2\ntail = { pairs = 7 }\nmethod = \"select-fit\"\n",
    )
    .expect("written");
    let options = |more: &[&str]| -> Value {
        let output = workplace.compress(&[&["--config", file, "--json"], more].concat());
        serde_json::from_str::<Value>(succeeded(&output)).expect("JSON")["options"].clone()
    };
    let found = options(&[]);
    assert_eq!(
        (&found["keep"], &found["sinks"], &found["method"]),
        (&0.5.into(), &2.into(), &"select-fit".into())
    );
    // What the file leaves out is its preset's.
    assert_eq!((&found["tail"]["pairs"], &found["history"]), (&7.into(), &100.into()));
    let found = options(&["--keep", "0.4", "--preset", "default", "--tail", "9"]);
    assert_eq!(
        (&found["keep"], &found["sinks"], &found["tail"]["pairs"]),
        (&0.4.into(), &2.into(), &9.into())
    );
    assert_eq!(found["history"], 10);
    // A size that is given wins over one of the file.
    fs::write(&config, "target = { tokens = 50 }\n").expect("written");
    assert_eq!(options(&[])["target"]["tokens"], 50);
    assert!(options(&["--keep", "0.4"])["target"].is_null());
    assert_eq!(options(&["--tokens", "60"])["target"]["tokens"], 60);
}

#[test]
fn a_file_of_options_that_has_others_is_refused_by_name() {
    let workplace = Workplace::new(&capture().bytes());
    let config = workplace.path("options.toml");
    let file = config.to_str().expect("a path of letters");
    for (text, words) in [
        ("kep = 0.5\n", ["`kep`", "keep"]),
        ("keep = \"half\"\n", ["keep", "half"]),
        ("keep = 0.5\nkeep = [\n", ["TOML", "line 2"]),
    ] {
        fs::write(&config, text).expect("written");
        refused(
            &workplace.compress(&["--config", file]),
            3,
            &[&words[..], &["options.toml"]].concat(),
        );
    }
    fs::write(&config, "keep = 7.0\n").expect("written");
    refused(&workplace.compress(&["--config", file]), 2, &["--keep", "between 0 and 1"]);
    refused(&workplace.compress(&["--config", "nowhere.toml"]), 3, &["nowhere.toml"]);
    assert_eq!(workplace.files(), ["capture.safetensors", "options.toml"]);
}

#[test]
fn shells_and_man_know_every_subcommand() {
    let subcommands = ["compare", "completions", "compress", "demo", "devices", "inspect", "man", "report"];
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(&["completions", shell]);
        let script = succeeded(&output);
        for word in subcommands.into_iter().chain(["keep", "config"]) {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    let output = run(&["man"]);
    let page = succeeded(&output);
    assert!(
        page.contains(".TH kvsculpt 1") && page.contains("Exit codes") && page.contains("compress"),
        "{page}"
    );
    let workplace = Workplace::new(b"");
    let folder = workplace.path("");
    succeeded(&run(&["man", "--folder", folder.to_str().expect("a path of letters")]));
    for subcommand in subcommands {
        let page = fs::read_to_string(workplace.path(&format!("kvsculpt-{subcommand}.1"))).expect("a page");
        assert!(page.contains(&format!("kvsculpt\\-{subcommand}")), "{page}");
    }
}
