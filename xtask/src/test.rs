//! `cargo xtask test`: every test of the workspace, on a driver that is there.

use crate::driver::Driver;
use crate::model;
use crate::workspace::{Workspace, expect_success};
use anyhow::{Context, Result};
use std::env;

pub(crate) fn run(workspace: &Workspace, passed_on: &[String]) -> Result<()> {
    let driver = Driver::choose(workspace)?;
    eprintln!("xtask: driver: {driver}");
    if let Err(reason) = model::bring(workspace, &model::SMOLLM2) {
        eprintln!("xtask: the tests that run a model will fail: {reason:#}");
    }
    let mut cargo = workspace.cargo(&["test", "--workspace"]);
    cargo.args(passed_on);
    driver.apply(&mut cargo);
    keep_compiled_shaders(workspace, &mut cargo)?;
    expect_success(&mut cargo)
}

/// Mesa compiles a kernel in about a second and reads a compiled one in milliseconds: a second test run is quick.
fn keep_compiled_shaders(workspace: &Workspace, cargo: &mut std::process::Command) -> Result<()> {
    const VARIABLE: &str = "MESA_SHADER_CACHE_DIR";
    if env::var_os(VARIABLE).is_none() {
        let folder = workspace.target.join("shader-cache");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        cargo.env(VARIABLE, folder);
    }
    Ok(())
}
