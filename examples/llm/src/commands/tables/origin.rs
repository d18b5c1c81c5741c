//! Where the figures come from.

use super::measured::{Measured, Measurements, Passage, as_first_seen, ascending};
use crate::commands::variant::MethodKind;
use crate::commands::words::spelled;

/// A line with the number of rows and the commands that made them, as far as the rows tell.
pub(super) fn line(found: &Measurements) -> String {
    let mut parts = of_subcommand("eval", &found.compared);
    parts.extend(of_subcommand("retrieval", &found.recalled));
    format!("Made of {}.\n", parts.join("; "))
}

/// What decides a command beside the lists it runs through.
#[derive(Clone, Copy, PartialEq)]
struct Command<'a> {
    version: &'a str,
    tokens: usize,
    next: Option<usize>,
    passage: Option<(usize, u64, &'a [f64])>,
}

impl<'a> Command<'a> {
    fn of<Found>(row: &'a Measured<Found>) -> Self {
        let questions = row.passage.questions.as_ref();
        Self {
            version: &row.version,
            tokens: row.setting.tokens,
            next: row.setting.next,
            passage: questions.map(|asked| (asked.needles, asked.seed, asked.depths.as_slice())),
        }
    }
}

/// A part for each command that must have run. What its lists combine need not all have been measured.
fn of_subcommand<Found>(subcommand: &str, rows: &[Measured<Found>]) -> Vec<String> {
    let part = |command: Command<'_>| {
        let rows: Vec<&Measured<Found>> = rows.iter().filter(|row| Command::of(row) == command).collect();
        let short: Vec<&&Measured<Found>> = rows.iter().filter(|row| row.way.method != MethodKind::Full).collect();
        let models = listed(rows.iter().map(|row| row.setting.model.clone()), ", ");
        let engines = listed(short.iter().map(|row| row.engine.clone()), "; ");
        let otherwise = if short.iter().all(|row| row.way.is_preset()) {
            ""
        } else {
            ", options changed as the methods' names say"
        };
        let arguments = [
            passages(rows.iter().map(|row| &row.passage)),
            format!(" --tokens {}", command.tokens),
            command.next.map_or_else(String::new, |next| format!(" --next {next}")),
            command.passage.map_or_else(String::new, |(needles, seed, depths)| {
                let depths = listed(depths.iter().map(f64::to_string), ",");
                format!(" --depths {depths} --needles {needles} --seed {seed}")
            }),
            argument("keep", ascending(short.iter().map(|row| row.keep)).iter().map(f64::to_string)),
            argument("method", rows.iter().map(|row| spelled(row.way.method))),
            argument("preset", short.iter().map(|row| spelled(row.way.preset))),
        ];
        format!(
            "{} {} of `kvsculpt-llm {subcommand} MODEL{}` (version {}; models {models}; engine {}{otherwise})",
            rows.len(),
            if rows.len() == 1 { "row" } else { "rows" },
            arguments.concat(),
            command.version,
            if engines.is_empty() { "none" } else { &engines },
        )
    };
    as_first_seen(rows.iter().map(Command::of)).into_iter().map(part).collect()
}

fn passages<'a>(passages: impl Iterator<Item = &'a Passage> + Clone) -> String {
    let texts = listed(passages.clone().map(|passage| passage.text.clone()), " ");
    let mut offsets: Vec<usize> = passages.map(|passage| passage.offset).collect();
    offsets.sort_unstable();
    format!(" {texts}{}", argument("offset", offsets.iter().map(usize::to_string)))
}

/// ` --name value,…`; nothing where there are no values.
fn argument(name: &str, values: impl Iterator<Item = String>) -> String {
    let values = listed(values, ",");
    if values.is_empty() { values } else { format!(" --{name} {values}") }
}

/// Every value once, as first seen.
fn listed(values: impl Iterator<Item = String>, between: &str) -> String {
    as_first_seen(values).join(between)
}
