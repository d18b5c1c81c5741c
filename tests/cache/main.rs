//! What comes in and goes out: captures, compressed caches, rotary embedding, and files that mean harm.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of small test files")]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod capture;
mod compressed;
mod draft;
mod hostile;
mod memory;
mod rope;
