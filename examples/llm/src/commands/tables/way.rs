//! How a cache was shortened, in words that tell every two ways apart.

use std::fmt;

use anyhow::Result;
use kvsculpt::Options;
use serde_json::{Map, Value};

use crate::commands::variant::{MethodKind, PresetKind};
use crate::commands::words;

/// A method, a preset, and what was chosen otherwise than the preset does. Shown as `kvsculpt, published, budget: layer`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Way {
    pub(super) method: MethodKind,
    pub(super) preset: PresetKind,
    /// The options that differ, by name and value in words.
    changes: Vec<(String, String)>,
}

impl Way {
    /// Of a row with these options, of which the method and the keep are told elsewhere. They are compared with the preset as JSON, so
    /// that options which this program does not know yet, or no more, are named too.
    pub(super) fn new(method: MethodKind, preset: PresetKind, options: &Map<String, Value>) -> Result<Self> {
        if method == MethodKind::Full {
            // Nothing is decided where nothing is dropped but how what is kept is stored.
            let dtype = options.get("dtype").map(|dtype| ("dtype".to_owned(), in_words(dtype)));
            return Ok(Self {
                method,
                preset: PresetKind::Default,
                changes: dtype.into_iter().collect(),
            });
        }
        let usual = match preset {
            PresetKind::Default => Options::default(),
            PresetKind::Published => Options::published(),
        };
        let usual = serde_json::to_value(usual)?;
        let told_elsewhere = |name: &str| matches!(name, "method" | "keep");
        let chosen = options.iter().filter(|(name, value)| usual.get(name.as_str()) != Some(*value));
        let mut changes: Vec<(String, String)> = chosen.map(|(name, value)| (name.replace('_', " "), in_words(value))).collect();
        if preset == PresetKind::Default {
            // The paper's recipe stays the same when options are added; what the default did before there was a choice is not known.
            let names = usual.as_object().into_iter().flatten().map(|(name, _)| name);
            let missing = names.filter(|name| !options.contains_key(*name));
            changes.extend(missing.map(|name| (name.replace('_', " "), "not recorded".to_owned())));
        }
        changes.retain(|(name, _)| !told_elsewhere(name));
        Ok(Self { method, preset, changes })
    }

    /// Whether nothing differs from the preset.
    pub(super) fn is_preset(&self) -> bool {
        self.changes.is_empty()
    }

    /// By which ways are sorted: method, then published before default.
    pub(super) fn rank(&self) -> (u8, bool) {
        (self.method as u8, self.preset == PresetKind::Default)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&words::way(self.method, self.preset, "full"))?;
        for (name, value) in &self.changes {
            write!(formatter, ", {name}: {value}")?;
        }
        Ok(())
    }
}

/// A value of an option: `on`, `none`, `pairs 256`.
fn in_words(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(in_words).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{name} {}", in_words(value));
            fields.iter().map(field).collect::<Vec<_>>().join(" ")
        }
    }
}
