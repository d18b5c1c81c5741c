//! `--config`: the options of the library in a TOML file, under their own names.

use std::path::Path;

use kvsculpt::{Error, Options, Result};
use serde_json::{Map, Value};

/// The key that names the preset under the others.
const PRESET: &str = "preset";
/// An option that is absent where it is not set.
const TARGET: &str = "target";

/// What a file says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    preset: Option<String>,
    options: Map<String, Value>,
}

impl Config {
    /// Reads a file and checks its names.
    ///
    /// # Errors
    /// [`Error::File`]: unreadable, no TOML, or a key that is no option.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let refuse = |reason: String| Error::File {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}; check the path of --config")))?;
        Self::parse(&text).map_err(refuse)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            format!("is no TOML at line {line}: {}; write lines such as keep = 0.3", error.message())
        })?;
        let Ok(Value::Object(mut options)) = serde_json::to_value(table) else {
            return Err("holds what has no place among options; write lines such as keep = 0.3".to_owned());
        };
        let preset = match options.remove(PRESET) {
            None => None,
            Some(Value::String(name)) if ["default", "published"].contains(&name.as_str()) => Some(name),
            Some(other) => return Err(format!("has preset = {other}; write \"default\" or \"published\"")),
        };
        let known = known();
        for name in options.keys() {
            if !known.contains(name) {
                return Err(format!(
                    "has an option `{name}`, which is not known; there are {}, {PRESET}",
                    known.join(", ")
                ));
            }
        }
        let config = Self { preset, options };
        config.over(Options::default())?;
        Ok(config)
    }

    /// The preset named, if any.
    pub(crate) fn preset(&self) -> Option<&str> {
        self.preset.as_deref()
    }

    /// Whether the file says this option.
    pub(crate) fn says(&self, option: &str) -> bool {
        self.options.contains_key(option)
    }

    /// These options put over others; fails at the first whose value has no meaning, by name.
    pub(crate) fn over(&self, base: Options) -> Result<Options, String> {
        let mut options = base;
        for (name, value) in &self.options {
            let Ok(Value::Object(mut all)) = serde_json::to_value(&options) else {
                return Err("cannot be put over the options".to_owned());
            };
            all.insert(name.clone(), value.clone());
            options = serde_json::from_value(Value::Object(all)).map_err(|error| format!("has {name} = {value}: {error}"))?;
        }
        Ok(options)
    }
}

/// The names of all options.
fn known() -> Vec<String> {
    let Ok(Value::Object(options)) = serde_json::to_value(Options::default()) else {
        return Vec::new();
    };
    options.keys().cloned().chain([TARGET.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use kvsculpt::options::{Strength, Tail, Target};

    use super::*;

    #[test]
    fn options_have_the_names_of_the_library() {
        let config = Config::parse("preset = 'published'\nkeep = 0.2\nbias = true\nmethod = 'select-fit'\ntail = { pairs = 32 }\nridge = { relative = 0.5 }\ntarget = { tokens = 500 }\n").unwrap();
        assert_eq!(config.preset(), Some("published"));
        let options = config.over(Options::published()).unwrap();
        assert_eq!((options.keep, options.bias, options.tail), (0.2, true, Tail::Pairs(32)));
        assert_eq!(
            (options.ridge, options.target),
            (Strength::Relative(0.5), Some(Target::Tokens(500)))
        );
        // What is not said is the base's.
        assert_eq!(options.steps, Options::published().steps);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, words) in [
            ("kep = 0.2", ["`kep`", "keep"]),
            ("keep = 'much'", ["keep", "much"]),
            ("\nkeep = ", ["no TOML", "line 2"]),
            ("preset = 3", ["preset", "published"]),
            ("[keep]\nall = 1", ["keep", "all"]),
            ("steps = -1", ["steps", "-1"]),
        ] {
            let refused = Config::parse(text).unwrap_err();
            assert!(words.iter().all(|word| refused.contains(word)), "{text}: {refused}");
        }
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        assert_eq!(
            Config::parse("# nothing\n").unwrap().over(Options::default()).unwrap(),
            Options::default()
        );
    }
}
