//! Measurements side by side: what a table is written from.

use super::measured::{Measured, Passage, Setting, as_first_seen, ascending};
use super::way::Way;

/// All measurements of a model at a keep.
#[derive(Debug)]
pub(super) struct Board<'a, Found> {
    /// The model, and the lengths where they are not the same everywhere.
    pub(super) title: String,
    pub(super) keep: f64,
    /// Those measured at any keep, texts as first seen.
    pub(super) passages: Vec<&'a Passage>,
    /// Methods in their order; those not measured at this keep have none.
    pub(super) lines: Vec<Line<'a, Found>>,
}

/// All measurements of a method on a board.
#[derive(Debug)]
pub(super) struct Line<'a, Found> {
    pub(super) way: &'a Way,
    /// The way, and what measured it where several programs or engines did.
    pub(super) name: String,
    /// Of each passage, what was found.
    pub(super) cells: Vec<Option<&'a Found>>,
}

impl<Found> Line<'_, Found> {
    /// The mean over passages, none unless all were measured.
    pub(super) fn mean(&self, of: impl Fn(&Found) -> f64) -> Option<f64> {
        let all: Vec<f64> = self.cells.iter().map(|cell| cell.map(&of)).collect::<Option<_>>()?;
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }
}

/// A method, and what measured it.
#[derive(PartialEq)]
struct Kind<'a> {
    way: &'a Way,
    version: &'a str,
    engine: Option<&'a str>,
}

impl<'a> Kind<'a> {
    fn of<Found>(row: &'a Measured<Found>) -> Self {
        Self {
            way: &row.way,
            version: &row.version,
            engine: row.compressor(),
        }
    }

    /// The way, and of its version and engine what tells it from another kind that is the same way.
    fn name(&self, kinds: &[Kind<'_>]) -> String {
        let alike = || kinds.iter().filter(|kind| kind.way == self.way);
        let mut told = Vec::new();
        if alike().any(|kind| kind.version != self.version) {
            told.push(self.version);
        }
        if alike().any(|kind| kind.engine != self.engine) {
            told.extend(self.engine);
        }
        if told.is_empty() {
            self.way.to_string()
        } else {
            format!("{} ({})", self.way, told.join(", "))
        }
    }
}

/// A board for each setting, models as first seen, and each of its keeps, ascending.
pub(super) fn boards<Found>(rows: &[Measured<Found>]) -> Vec<Board<'_, Found>> {
    let mut kinds = as_first_seen(rows.iter().map(Kind::of));
    kinds.sort_by_key(|kind| kind.way.rank());
    let names: Vec<String> = kinds.iter().map(|kind| kind.name(&kinds)).collect();
    let settings = settings(rows);
    let mut boards = Vec::new();
    for &setting in &settings {
        let of_setting: Vec<&Measured<Found>> = rows.iter().filter(|row| row.setting == *setting).collect();
        let passages = passages(&of_setting);
        for keep in ascending(of_setting.iter().map(|row| row.keep)) {
            let mut lines = Vec::new();
            for (kind, name) in kinds.iter().zip(&names) {
                let mut cells = vec![None; passages.len()];
                for row in of_setting.iter().filter(|row| row.keep == keep && Kind::of(row) == *kind) {
                    let place = passages.iter().position(|passage| **passage == row.passage);
                    if let Some(cell) = place.and_then(|place| cells.get_mut(place)) {
                        *cell = Some(&row.found);
                    }
                }
                if cells.iter().any(Option::is_some) {
                    let (way, name) = (kind.way, name.clone());
                    lines.push(Line { way, name, cells });
                }
            }
            boards.push(Board {
                title: title(setting, &settings),
                keep,
                passages: passages.clone(),
                lines,
            });
        }
    }
    boards
}

/// Every setting once, those of a model together.
fn settings<Found>(rows: &[Measured<Found>]) -> Vec<&Setting> {
    let models = as_first_seen(rows.iter().map(|row| row.setting.model.as_str()));
    let mut settings = as_first_seen(rows.iter().map(|row| &row.setting));
    settings.sort_by_key(|setting| models.iter().position(|model| *model == setting.model));
    settings
}

/// Every passage once: texts as first seen, and their offsets ascending.
fn passages<'a, Found>(rows: &[&'a Measured<Found>]) -> Vec<&'a Passage> {
    let texts = as_first_seen(rows.iter().map(|row| row.passage.text.as_str()));
    let mut passages = as_first_seen(rows.iter().map(|row| &row.passage));
    passages.sort_by_key(|passage| (texts.iter().position(|text| *text == passage.text), passage.offset));
    passages
}

/// The model, and the lengths where they are not the same in all settings.
fn title(setting: &Setting, settings: &[&Setting]) -> String {
    let lengths = |setting: &Setting| (setting.tokens, setting.next);
    if settings.iter().all(|other| lengths(other) == lengths(setting)) {
        return setting.model.clone();
    }
    match setting.next {
        Some(next) => format!("{}, {} tokens and the {next} that follow", setting.model, setting.tokens),
        None => format!("{}, {} tokens", setting.model, setting.tokens),
    }
}
