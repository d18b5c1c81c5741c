//! Damaged files of every kind: no reader may panic, hang, or take more memory than the file justifies, as the allocator itself counts it.
//!
//! The same readers are the targets of `fuzz/`, which go further. `KVSCULPT_FUZZ_EXECUTIONS` sets how many files each reader is given here,
//! `KVSCULPT_FUZZ_READER` names one reader alone, and `KVSCULPT_FUZZ_CORPUS` a folder that the seeds are written to.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod readers;
mod seeds;

use std::time::{Duration, Instant};

use fastrand::Rng;
use peak_alloc::PeakAlloc;

use readers::READERS;
use seeds::seeds;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Files a reader is given where the environment does not say it.
const EXECUTIONS: usize = 3000;
/// Bytes that a reader may use beside the file, for each byte of it: lists of short lists, grown by doubling, take the most.
const FOR_A_BYTE: usize = 48;
/// And in any case: what errors say.
const ALWAYS: usize = 1 << 16;
/// The longest that a reader may take for a small file.
const LONGEST: Duration = Duration::from_secs(5);

/// Numbers that lengths, shapes and offsets are most likely to go wrong at.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];
/// What JSON is made of, and numbers are written as.
const WORDS: [&str; 16] = [
    "{",
    "}",
    "[",
    "]",
    "[[",
    "\"",
    ",",
    ":",
    "null",
    "true",
    "-1",
    "1e999",
    "1e-320",
    "0.5",
    "[],[],[],",
    "{\"a\":",
];

/// Changes one to four places.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Rng) {
    for _ in 0..random.usize(1..5) {
        if bytes.is_empty() {
            bytes.push(random.u8(..));
        }
        // Headers are where damage does most, and they are at the beginning.
        let end = if random.bool() { bytes.len() } else { bytes.len().min(400) };
        let at = random.usize(0..end);
        match random.u8(0..10) {
            0 => bytes[at] ^= 1 << random.u8(0..8),
            1 => bytes[at] = random.u8(..),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.u8(..)),
            4 => drop(bytes.remove(at)),
            5 => {
                let width = [1, 2, 4, 8][random.usize(0..4)].min(bytes.len() - at);
                let edge = EDGES[random.usize(0..EDGES.len())].to_le_bytes();
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            6 => {
                let word = WORDS[random.usize(0..WORDS.len())].as_bytes();
                let over = if random.bool() { 0 } else { word.len().min(bytes.len() - at) };
                bytes.splice(at..at + over, word.iter().copied());
            }
            7 => replace_number(bytes, at, random),
            8 => {
                // A stretch of the file once more, or of another.
                let source = if random.bool() { other.to_vec() } else { bytes.clone() };
                let from = random.usize(0..source.len());
                let length = random.usize(0..=(source.len() - from).min(64));
                bytes.splice(at..at, source[from..from + length].iter().copied());
            }
            _ => {
                let length = random.usize(0..=(bytes.len() - at).min(64));
                bytes.drain(at..at + length);
            }
        }
    }
}

/// Puts an edge in the place of the first digits after a place.
fn replace_number(bytes: &mut Vec<u8>, at: usize, random: &mut Rng) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(first) = bytes[at..].iter().position(is_digit).map(|place| at + place) else {
        return;
    };
    let length = bytes[first..]
        .iter()
        .position(|byte| !is_digit(byte))
        .unwrap_or(bytes.len() - first);
    let edge = EDGES[random.usize(0..EDGES.len())].to_string();
    bytes.splice(first..first + length, edge.into_bytes());
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

// The only test in this file: the allocator counts what all threads use.
#[test]
fn no_reader_panics_hangs_or_takes_more_memory_than_a_file_justifies() {
    let executions = setting("KVSCULPT_FUZZ_EXECUTIONS").map_or(EXECUTIONS, |text| text.parse().unwrap());
    let only = setting("KVSCULPT_FUZZ_READER");
    let seeds = seeds();
    if let Some(corpus) = setting("KVSCULPT_FUZZ_CORPUS") {
        write_corpus(corpus.as_ref(), &seeds);
    }
    for (number, (name, read)) in READERS.into_iter().enumerate() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let files = &seeds.iter().find(|(reader, _)| *reader == name).unwrap().1;
        let mut random = Rng::with_seed(number as u64);
        let (mut whole, mut most, mut slowest) = (0, (0.0, 0), Duration::ZERO);
        let started = Instant::now();
        for execution in 0..executions {
            let mut bytes = files[execution % files.len()].clone();
            if execution >= files.len() {
                mutate(&mut bytes, &files[random.usize(0..files.len())], &mut random);
            }
            let before = ALLOCATOR.current_usage();
            ALLOCATOR.reset_peak_usage();
            let began = Instant::now();
            let is_whole = read(&bytes);
            let (took, peak) = (began.elapsed(), ALLOCATOR.peak_usage().saturating_sub(before));
            assert!(is_whole || execution >= files.len(), "{name}: seed {execution} is whole");
            whole += usize::from(is_whole);
            slowest = slowest.max(took);
            let share = peak as f64 / bytes.len().max(1) as f64;
            if peak > most.1 {
                most = (share, peak);
            }
            if peak > FOR_A_BYTE * bytes.len() + ALWAYS || took > LONGEST {
                let path = std::env::temp_dir().join(format!("kvsculpt-fuzz-{name}-{execution}"));
                std::fs::write(&path, &bytes).unwrap();
                panic!(
                    "{name}: {} bytes took {peak} bytes of memory and {took:?}; see {}",
                    bytes.len(),
                    path.display()
                );
            }
        }
        println!(
            "{name}: {executions} files, {whole} of them whole, in {:.1} s; at most {} bytes of memory ({:.1} for a byte of the file), {slowest:?}",
            started.elapsed().as_secs_f64(),
            most.1,
            most.0
        );
        assert!(
            whole > files.len() && whole < executions,
            "{name}: {whole} of {executions} files were read"
        );
    }
}

fn write_corpus(folder: &std::path::Path, seeds: &seeds::Seeds) {
    for (name, files) in seeds {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (number, file) in files.iter().enumerate() {
            std::fs::write(folder.join(format!("seed{number}")), file).unwrap();
        }
    }
}
