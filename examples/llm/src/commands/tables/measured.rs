//! Rows of `eval` and `retrieval`, as far as tables need them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::way::Way;
use crate::commands::haystack::Depth;
use crate::commands::variant::MethodKind;
use crate::measure::Divergence;

/// Everything that some files hold, each measurement once.
#[derive(Debug, Default)]
pub(super) struct Measurements {
    /// Of `eval`.
    pub(super) compared: Vec<Measured<Compared>>,
    /// Of `retrieval`.
    pub(super) recalled: Vec<Measured<Recalled>>,
    /// Lines that are something else.
    pub(super) unreadable: usize,
}

/// A measurement and what it is of.
#[derive(Debug)]
pub(super) struct Measured<Found> {
    pub(super) version: String,
    pub(super) setting: Setting,
    pub(super) passage: Passage,
    pub(super) way: Way,
    pub(super) keep: f64,
    pub(super) engine: String,
    /// Digest of the capture.
    source: String,
    options: Map<String, Value>,
    pub(super) found: Found,
}

/// What must be equal for figures to stand in one table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    pub(super) model: String,
    /// Tokens compressed.
    pub(super) tokens: usize,
    /// Tokens measured over; none for retrieval.
    pub(super) next: Option<usize>,
}

/// What was read and asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Passage {
    pub(super) text: String,
    pub(super) offset: usize,
    pub(super) questions: Option<Questions>,
}

/// What was planted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Questions {
    /// Needles at each depth.
    pub(super) needles: usize,
    pub(super) seed: u64,
    pub(super) depths: Vec<f64>,
}

/// What `eval` found.
#[derive(Debug)]
pub(super) struct Compared {
    /// Seconds of compressing.
    pub(super) seconds: f64,
    pub(super) kl: Divergence,
}

/// What `retrieval` found, by depth.
#[derive(Debug)]
pub(super) struct Recalled {
    pub(super) depths: Vec<Depth>,
}

impl Measurements {
    /// Reads all files, one after the other.
    ///
    /// # Errors
    /// A file that cannot be read, or in which no line is a measurement.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for path in paths {
            all.add_file(path).with_context(|| path.display().to_string())?;
        }
        Ok(all)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read(path)?;
        let mut rows = 0;
        for line in text.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            match self.add_line(line) {
                Ok(()) => rows += 1,
                Err(_) => self.unreadable += 1,
            }
        }
        ensure!(rows > 0, "no line of it is a measurement of `eval` or `retrieval`");
        Ok(())
    }

    fn add_line(&mut self, line: &[u8]) -> Result<()> {
        let mut line = Line(serde_json::from_slice(line)?);
        if line.0.contains_key("kl") {
            let next = Some(line.take("next")?);
            let [_, seconds]: [f64; 2] = line.take("seconds")?;
            let kl = line.take("kl")?;
            keep_last(&mut self.compared, line.measured(next, None, Compared { seconds, kl })?);
        } else {
            let depths: Vec<Depth> = line.take("depths")?;
            let questions = Questions {
                needles: line.take("needles")?,
                seed: line.take("seed")?,
                depths: depths.iter().map(|depth| depth.depth).collect(),
            };
            keep_last(&mut self.recalled, line.measured(None, Some(questions), Recalled { depths })?);
        }
        Ok(())
    }
}

/// One row; fields are taken out of it as they are understood.
struct Line(Map<String, Value>);

impl Line {
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        let value = self.0.remove(name).with_context(|| format!("no `{name}`"))?;
        Ok(serde_json::from_value(value)?)
    }

    fn measured<Found>(mut self, next: Option<usize>, questions: Option<Questions>, found: Found) -> Result<Measured<Found>> {
        let setting = Setting {
            model: self.take("model")?,
            tokens: self.take("tokens")?,
            next,
        };
        let passage = Passage {
            text: self.take("text")?,
            offset: self.take("offset")?,
            questions,
        };
        let (version, engine, source) = (self.take("version")?, self.take("engine")?, self.take("source")?);
        let (method, preset, keep) = (self.take("method")?, self.take("preset")?, self.take("keep")?);
        let mut options: Map<String, Value> = self.take::<Option<_>>("options")?.unwrap_or_default();
        // What else a row says in words was chosen too, such as a file of weights; figures were measured.
        let chosen = self.0.into_iter().filter(|(_, value)| value.is_string() || value.is_boolean());
        options.extend(chosen);
        Ok(Measured {
            version,
            setting,
            passage,
            way: Way::new(method, preset, &options)?,
            keep,
            engine,
            source,
            options,
            found,
        })
    }
}

impl<Found> Measured<Found> {
    /// Whether another row is of the same measurement. The preset's name does not count, its options do.
    fn is_again(&self, other: &Self) -> bool {
        self.version == other.version
            && self.source == other.source
            && self.engine == other.engine
            && self.options == other.options
            && self.way.method == other.way.method
            && self.setting == other.setting
            && self.passage == other.passage
    }

    /// What compressed; nothing did where nothing is dropped.
    pub(super) fn compressor(&self) -> Option<&str> {
        (self.way.method != MethodKind::Full).then_some(self.engine.as_str())
    }
}

/// Puts a row in the place of the same measurement's earlier one, or else at the end.
fn keep_last<Found>(rows: &mut Vec<Measured<Found>>, row: Measured<Found>) {
    match rows.iter_mut().find(|earlier| earlier.is_again(&row)) {
        Some(earlier) => *earlier = row,
        None => rows.push(row),
    }
}

/// Every value once, in the order in which they come.
pub(super) fn as_first_seen<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// Every number once, ascending.
pub(super) fn ascending(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}
