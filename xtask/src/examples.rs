//! Which public items show no example in their documentation.
//!
//! A type, a trait and a function shows one of its own. A method does too, or is called in that of its type or trait.

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// What may stand behind the fence of a block that rustdoc takes for Rust.
const RUST: [&str; 5] = ["", "rust", "no_run", "should_panic", "compile_fail"];

/// The names of items without an example, in the order of the alphabet, and how many items were looked at.
pub(crate) fn missing(json: &Path) -> Result<(Vec<String>, usize)> {
    let text = fs::read(json).with_context(|| format!("{} cannot be read", json.display()))?;
    let library: Value = serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", json.display()))?;
    of_library(&library).with_context(|| format!("{} is not as expected: does xtask suit this compiler?", json.display()))
}

fn of_library(library: &Value) -> Option<(Vec<String>, usize)> {
    let mut walk = Walk {
        items: library["index"].as_object()?,
        seen: HashSet::new(),
        missing: Vec::new(),
        looked_at: 0,
    };
    walk.visit(&library["root"], "");
    let Walk {
        mut missing, looked_at, ..
    } = walk;
    missing.sort();
    (looked_at > 0).then_some((missing, looked_at))
}

/// A way through all that can be reached from the crate's root.
struct Walk<'a> {
    items: &'a Map<String, Value>,
    /// Items are reached by several ways where they are exported again.
    seen: HashSet<String>,
    missing: Vec<String>,
    looked_at: usize,
}

impl<'a> Walk<'a> {
    /// The item of this number; none where it is another crate's.
    fn item(&self, id: &Value) -> Option<&'a Value> {
        self.items.get(&id.to_string())
    }

    fn visit(&mut self, id: &Value, path: &str) {
        let Some(item) = self.item(id) else { return };
        let kind = |kind: &str| item["inner"].get(kind);
        if let Some(export) = kind("use") {
            return self.visit(&export["id"], path);
        }
        if item["visibility"] != "public" || !self.seen.insert(id.to_string()) {
            return;
        }
        let name = item["name"].as_str().unwrap_or_default();
        let path = if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}::{name}")
        };
        if let Some(module) = kind("module") {
            for member in array(&module["items"]) {
                self.visit(member, &path);
            }
            return;
        }
        let of_type = kind("struct").or(kind("enum")).or(kind("union"));
        if of_type.is_some() || kind("trait").is_some() || kind("function").is_some() {
            let examples = examples(item);
            self.note(&path, !examples.is_empty());
            for methods in of_type.iter().flat_map(|of_type| array(&of_type["impls"])) {
                let inherent = self.item(methods).map(|item| &item["inner"]["impl"]);
                if let Some(inherent) = inherent.filter(|found| found["trait"].is_null()) {
                    self.methods(&inherent["items"], &path, &examples, true);
                }
            }
            if let Some(of_trait) = kind("trait") {
                self.methods(&of_trait["items"], &path, &examples, false);
            }
        }
    }

    fn methods(&mut self, ids: &Value, path: &str, around: &str, say_they_are_public: bool) {
        for id in array(ids) {
            let Some(item) = self.item(id) else { continue };
            let is_public = !say_they_are_public || item["visibility"] == "public";
            if is_public && item["inner"].get("function").is_some() {
                let name = item["name"].as_str().unwrap_or_default();
                self.note(&format!("{path}::{name}"), !examples(item).is_empty() || calls(around, name));
            }
        }
    }

    fn note(&mut self, path: &str, is_shown: bool) {
        self.looked_at += 1;
        if !is_shown {
            self.missing.push(path.to_owned());
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The Rust code in an item's documentation.
fn examples(item: &Value) -> String {
    let mut code = String::new();
    let mut within = None;
    for line in item["docs"].as_str().unwrap_or_default().lines() {
        match (within, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                let is_rust = language
                    .split([',', ' '])
                    .all(|word| RUST.contains(&word) || word.starts_with("edition"));
                within = Some(is_rust);
            }
            (Some(_), Some(_)) => within = None,
            (Some(true), None) => {
                code.push_str(line);
                code.push('\n');
            }
            _ => {}
        }
    }
    code
}

/// Whether code calls a function of this name.
fn calls(code: &str, name: &str) -> bool {
    let call = format!("{name}(");
    code.match_indices(&call).any(|(at, _)| code[..at].ends_with(['.', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn function(id: u32, name: &str, docs: &str) -> (String, Value) {
        let item = json!({"id": id, "name": name, "visibility": "public", "docs": docs, "inner": {"function": {}}});
        (id.to_string(), item)
    }

    #[test]
    fn items_without_an_example_are_named() {
        let shown = "Docs.\n\n```\nlet dims = Dims::new();\nassert!(dims.is_even());\n```\n";
        let index: Map<String, Value> = [
            (
                "0".into(),
                json!({"name": "a", "visibility": "public", "inner": {"module": {"items": [1, 2, 5, 9]}}}),
            ),
            ("1".into(), json!({"visibility": "public", "inner": {"use": {"id": 3}}})),
            // Private, but for what is exported from it.
            (
                "2".into(),
                json!({"name": "hidden", "visibility": "crate", "inner": {"module": {"items": [4]}}}),
            ),
            (
                "3".into(),
                json!({"name": "Dims", "visibility": "public", "docs": shown, "inner": {"struct": {"impls": [6, 7]}}}),
            ),
            ("6".into(), json!({"inner": {"impl": {"trait": null, "items": [10, 11, 12]}}})),
            ("7".into(), json!({"inner": {"impl": {"trait": {"path": "Debug"}, "items": [13]}}})),
            function(4, "unreachable", ""),
            function(5, "text_alone", "```text\nlet x = text_alone();\n```"),
            function(9, "not_run", "```no_run\nnot_run();\n```"),
            function(10, "new", ""),
            function(11, "is_even", ""),
            function(12, "even", "Called by nobody."),
            function(13, "fmt", ""),
        ]
        .into_iter()
        .collect();
        let found = of_library(&json!({"root": 0, "index": index}));
        assert_eq!(found, Some((vec!["a::Dims::even".into(), "a::text_alone".into()], 6)));
        assert_eq!(of_library(&json!({"root": 0, "index": {}})), None);
    }
}
