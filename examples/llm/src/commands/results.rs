//! Finished measurements in a file of JSON lines: nothing that was finished is lost or done again.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Rows of earlier runs and of this one.
#[derive(Debug)]
pub struct Results<Row> {
    rows: Vec<Row>,
    file: Option<File>,
}

impl<Row: Serialize + DeserializeOwned> Results<Row> {
    /// Reads what is in the file, which need not exist yet; without a file rows are only kept for this run. Lines of another
    /// form, such as one that was cut short, are left alone and not counted.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            return Ok(Self {
                rows: Vec::new(),
                file: None,
            });
        };
        let opened = || -> std::io::Result<(Vec<Row>, File)> {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            let rows = text
                .split(|&byte| byte == b'\n')
                .filter_map(|line| serde_json::from_slice(line).ok())
                .collect();
            // A run that was cut off in the middle of a line: the next one begins on a line of its own.
            if text.last().is_some_and(|&byte| byte != b'\n') {
                file.write_all(b"\n")?;
            }
            Ok((rows, file))
        };
        let (rows, file) = opened().with_context(|| format!("{} cannot be used for results", path.display()))?;
        Ok(Self { rows, file: Some(file) })
    }

    /// The row of an earlier run that matches.
    pub fn find(&self, matches: impl Fn(&Row) -> bool) -> Option<&Row> {
        self.rows.iter().find(|row| matches(row))
    }

    /// Keeps a row, and in the file at once.
    ///
    /// # Errors
    /// A disk that is full, and the like.
    pub fn add(&mut self, row: Row) -> Result<&Row> {
        if let Some(file) = &mut self.file {
            let line = serde_json::to_string(&row)?;
            writeln!(file, "{line}").context("the results cannot be written; what was written before is whole")?;
        }
        self.rows.push(row);
        Ok(&self.rows[self.rows.len() - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_outlive_the_run_and_a_line_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let mut results = Results::<(String, f64)>::open(Some(&path)).unwrap();
        results.add(("a".into(), 0.1)).unwrap();
        drop(results);
        std::fs::write(&path, [std::fs::read(&path).unwrap(), b"[\"b\", 0.".to_vec()].concat()).unwrap();
        let mut results = Results::<(String, f64)>::open(Some(&path)).unwrap();
        assert_eq!(results.find(|row| row.0 == "a"), Some(&("a".into(), 0.1)));
        assert_eq!(results.find(|row| row.0 == "b"), None);
        results.add(("c".into(), 0.3)).unwrap();
        let again = Results::<(String, f64)>::open(Some(&path)).unwrap();
        assert_eq!(again.rows.len(), 2);
    }
}
