//! The program as a user meets it: what it writes where, its exit codes, and how it refuses bad input.
//!
//! Programs are started through the one that `KVSCULPT_TEST_RUNNER` names, where it is set: `cargo xtask test` uses it to bring a
//! driver.

#![cfg(feature = "cli")]
#![allow(
    clippy::expect_used,
    reason = "all of this is tests, and clippy knows only functions marked as such"
)]

mod any_format;
mod bad_input;
mod bench;
mod compress;
mod convert;
#[path = "../cache/draft.rs"]
#[allow(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "shared with the cache's tests, which use all of it; small numbers"
)]
mod draft;
mod lengths;
mod looking;
mod looking_ahead;
mod machines;
mod setting_up;
mod shards;
mod unfinished;
mod workplace;
