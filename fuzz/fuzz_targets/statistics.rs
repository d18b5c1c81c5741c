//! The reader `statistics`.

#![no_main]

#[path = "../../tests/fuzz/readers.rs"]
#[allow(dead_code, reason = "every target calls one reader of all")]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    readers::statistics(bytes);
});
