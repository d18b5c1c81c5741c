//! A part of a hand-written file that a program writes.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

const BEGIN: &str = "<!-- tables: begin -->";
const END: &str = "<!-- tables: end -->";

/// Puts a text between the marks of a file, which is replaced whole or left as it is.
///
/// # Errors
/// A file that cannot be read or replaced, or [without its marks](between).
pub(super) fn fill(path: &Path, text: &str) -> Result<()> {
    let filled = || -> Result<()> {
        // Of a link the file it leads to is replaced, and not the link.
        let path = path.canonicalize()?;
        let about = path.metadata()?;
        ensure!(about.is_file(), "is not a file");
        ensure!(!about.permissions().readonly(), "is read-only");
        let whole = between(&std::fs::read_to_string(&path)?, text)?;
        let folder = path.parent().context("is in no folder")?;
        let mut file = tempfile::Builder::new().prefix(".tables-").suffix(".partial").tempfile_in(folder)?;
        file.write_all(whole.as_bytes())?;
        file.as_file().set_permissions(about.permissions())?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        Ok(())
    };
    filled().with_context(|| format!("{} cannot be filled", path.display()))
}

/// `whole` with `text` between its marks.
///
/// # Errors
/// Marks that are missing, there more than once, or in the wrong order.
pub(super) fn between(whole: &str, text: &str) -> Result<String> {
    for mark in [BEGIN, END] {
        match whole.matches(mark).count() {
            1 => {}
            0 => bail!("it has no line `{mark}`"),
            more => bail!("it has {more} lines `{mark}`"),
        }
    }
    let (before, rest) = whole.split_once(BEGIN).context("no begin")?;
    let (_, after) = rest.split_once(END).with_context(|| format!("`{END}` comes before `{BEGIN}`"))?;
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim_end()))
}
