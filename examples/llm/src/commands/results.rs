//! Finished measurements in a file of JSON lines: nothing that was finished is lost or done again.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kvsculpt::cache::Compressed;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Rows of earlier runs and of this one.
#[derive(Debug)]
pub struct Results<Row> {
    rows: Vec<Row>,
    unreadable: usize,
    place: Option<Place>,
}

/// Where rows are kept.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Open once a row has been added.
    file: Option<File>,
    /// Whether the file ends within a line.
    cut_short: bool,
}

impl<Row: Serialize + DeserializeOwned> Results<Row> {
    /// Reads what is in the file, which need not exist yet and is not touched before the first [`add`](Self::add); without a file
    /// rows are only kept for this run. Lines that are no rows, such as one that was cut short, are left alone.
    ///
    /// # Errors
    /// A file that cannot be read or could not be written, or that holds something and no JSON object among its lines: it is
    /// somebody's text, and nothing is to be added to it.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let mut results = Self {
            rows: Vec::new(),
            unreadable: 0,
            place: None,
        };
        let Some(path) = path else { return Ok(results) };
        let text = existing(path).with_context(|| format!("{} cannot be used for results", path.display()))?;
        let mut objects = 0;
        for line in text.split(|&byte| byte == b'\n') {
            let Ok(object) = serde_json::from_slice::<Map<String, Value>>(line) else {
                continue;
            };
            objects += 1;
            match serde_json::from_value(Value::Object(object)) {
                Ok(row) => results.rows.push(row),
                Err(_) => results.unreadable += 1,
            }
        }
        ensure!(
            objects > 0 || text.trim_ascii().is_empty() || is_row_cut_short(&text),
            "{} holds something else than results, no line of it being a JSON object; give another file",
            path.display()
        );
        results.place = Some(Place {
            path: path.to_owned(),
            file: None,
            cut_short: text.last().is_some_and(|&byte| byte != b'\n'),
        });
        Ok(results)
    }

    /// The row of an earlier run that matches.
    pub fn find(&self, matches: impl Fn(&Row) -> bool) -> Option<&Row> {
        self.rows.iter().find(|row| matches(row))
    }

    /// All rows, those of earlier runs first.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Lines of the file that are JSON objects and no rows of this form: another program's, or an older version's.
    #[must_use]
    pub const fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Says on standard error how many [lines](Self::unreadable) were left alone, if any were.
    pub fn note_unreadable(&self) {
        if self.unreadable > 0 {
            eprintln!(
                "note: {} lines of the results file are of another form and were left alone",
                self.unreadable
            );
        }
    }

    /// The row of an earlier run that matches, or else the one that `make` gives, which is kept.
    ///
    /// # Errors
    /// What `make` reports, and as [`add`](Self::add).
    pub fn once(&mut self, matches: impl Fn(&Row) -> bool, make: impl FnOnce() -> Result<Row>) -> Result<Row>
    where
        Row: Clone,
    {
        match self.find(matches) {
            Some(row) => Ok(row.clone()),
            None => Ok(self.add(make()?)?.clone()),
        }
    }

    /// Keeps a row, and in the file at once.
    ///
    /// # Errors
    /// A disk that is full, and the like.
    pub fn add(&mut self, row: Row) -> Result<&Row> {
        if let Some(place) = &mut self.place {
            let line = serde_json::to_string(&row)?;
            place
                .write(&line)
                .with_context(|| format!("{} cannot be written; what was written before is whole", place.path.display()))?;
        }
        self.rows.push(row);
        Ok(&self.rows[self.rows.len() - 1])
    }
}

impl Place {
    fn write(&mut self, line: &str) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().append(true).create(true).open(&self.path)?),
        };
        // A run that was cut off in the middle of a line: this one begins on a line of its own.
        if std::mem::take(&mut self.cut_short) {
            file.write_all(b"\n")?;
        }
        writeln!(file, "{line}")
    }
}

/// What a file holds, nothing where there is none; that it can be added to is found out now, and not after the first measurement.
fn existing(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(text) => {
            OpenOptions::new().append(true).open(path)?;
            Ok(text)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Compressed::check_writable(path)?;
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether a text is nothing but the beginning of one JSON object: a run that ended while it wrote its first row.
fn is_row_cut_short(text: &[u8]) -> bool {
    let parsed = serde_json::from_slice::<Map<String, Value>>(text);
    text.starts_with(b"{") && !text.contains(&b'\n') && parsed.is_err_and(|error| error.is_eof())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::fs::{read, read_to_string, write};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Row {
        name: String,
        figure: f64,
    }

    fn row(name: &str, figure: f64) -> Row {
        Row { name: name.into(), figure }
    }

    fn open(path: &Path) -> Result<Results<Row>> {
        Results::open(Some(path))
    }

    #[test]
    fn rows_outlive_the_run_and_a_line_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let mut results = open(&path).unwrap();
        results.add(row("a", 0.1)).unwrap();
        drop(results);
        write(&path, [read(&path).unwrap(), br#"{"name": "b", "fig"#.to_vec()].concat()).unwrap();
        let mut results = open(&path).unwrap();
        assert_eq!(results.find(|row| row.name == "a"), Some(&row("a", 0.1)));
        assert_eq!(results.find(|row| row.name == "b"), None);
        results.add(row("c", 0.3)).unwrap();
        let again = open(&path).unwrap();
        assert_eq!(again.rows(), [row("a", 0.1), row("c", 0.3)]);
        assert_eq!(again.unreadable(), 0);
    }

    #[test]
    fn a_file_appears_with_its_first_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let mut results = open(&path).unwrap();
        assert!(!path.exists());
        results.add(row("a", 0.1)).unwrap();
        results.add(row("b", 0.2)).unwrap();
        assert_eq!(read_to_string(&path).unwrap().lines().count(), 2);
        let untouched = r#"{"name": "cut sh"#;
        write(&path, untouched).unwrap();
        open(&path).unwrap();
        assert_eq!(read_to_string(&path).unwrap(), untouched);
        assert!(open(&folder.path().join("missing/rows.jsonl")).is_err());
        assert!(open(folder.path()).is_err());
    }

    #[test]
    fn another_text_is_not_added_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.txt");
        for other in ["Call me Ishmael.\n", "Call me", "[1, 2]\n3\n", "{\n  \"name\": 3\n}\n", "{not JSON"] {
            write(&path, other).unwrap();
            let refused = format!("{:#}", open(&path).unwrap_err());
            assert!(refused.contains("some.txt") && refused.contains("no line"), "{refused}");
            assert_eq!(read_to_string(&path).unwrap(), other);
        }
        for blank in ["", "\n"] {
            write(&path, blank).unwrap();
            assert!(open(&path).unwrap().rows().is_empty());
        }
    }

    #[test]
    fn objects_of_another_form_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        write(&path, "{\"name\": \"a\", \"figure\": 1.0}\n{\"name\": \"old\"}\n{}\nno JSON\n").unwrap();
        let results = open(&path).unwrap();
        assert_eq!((results.rows(), results.unreadable()), ([row("a", 1.0)].as_slice(), 2));
    }
}
