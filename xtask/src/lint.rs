//! `cargo xtask lint`: what has to be clean before a change is taken.

use crate::workspace::{Workspace, expect_success};
use anyhow::Result;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    expect_success(&mut workspace.cargo(&["fmt", "--all", "--check"]))?;
    expect_success(&mut workspace.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // What an embedding application compiles: the library alone.
    let library = [
        "clippy",
        "--package",
        "kvsculpt",
        "--lib",
        "--no-default-features",
        "--",
        "-D",
        "warnings",
    ];
    expect_success(&mut workspace.cargo(&library))?;
    expect_success(
        workspace
            .cargo(&["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
