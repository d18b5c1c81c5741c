//! Where a model's file is.

use anyhow::{Result, bail};
use std::env;
use std::path::{Path, PathBuf};

/// The file of the small model that the tests use, fetched by `cargo xtask model smollm2`; fails with that sentence where it is not there.
pub fn small_test_model() -> Result<PathBuf> {
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    };
    let file = target.join("models/smollm2-135m.gguf");
    if !file.is_file() {
        bail!("{} is not there; `cargo xtask model smollm2` fetches it (98 MB)", file.display());
    }
    Ok(file)
}
