//! Damaged files of every format: a few thousand changes each, of which none may make a reader panic, hang or read more than is
//! there.

use std::time::Instant;

use fastrand::Rng;
use kvsculpt::formats::{Format, Known, Target};

use crate::draft::Draft;
use crate::llama::State;
use crate::{hugging_face, mlx, open, rope, written};

/// Numbers that lengths and offsets are most likely to go wrong at.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// Changes one to three places.
fn mutate(bytes: &mut Vec<u8>, random: &mut Rng) {
    for _ in 0..random.usize(1..4) {
        if bytes.is_empty() {
            return;
        }
        // Headers are where damage does most, and they are at the beginning.
        let end = if random.bool() { bytes.len() } else { bytes.len().min(160) };
        let at = random.usize(0..end);
        match random.u8(0..6) {
            0 => bytes[at] ^= 1 << random.u8(0..8),
            1 => bytes[at] = random.u8(..),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.u8(..)),
            4 => {
                bytes.remove(at);
            }
            _ => {
                let width = [1, 4, 8][random.usize(0..3)].min(bytes.len() - at);
                let edge = EDGES[random.usize(0..EDGES.len())].to_le_bytes();
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
        }
    }
}

/// Reads all of a file; how many numbers were in it.
fn numbers(bytes: &[u8], known: &Known) -> usize {
    let Ok(cache) = open(bytes, known) else { return 0 };
    let count = |number| cache.read(number).map_or(0, |pairs| pairs.key.len() + pairs.value.len());
    let numbers = (0..cache.layers.len()).map(count).sum();
    // Nothing can come from a file that is not in it.
    assert!(2 * numbers <= bytes.len(), "{numbers} numbers from {} bytes", bytes.len());
    numbers
}

#[test]
fn damage_is_refused_or_read_and_never_a_panic() {
    let known = Known {
        kv_heads: Some(2),
        rope: rope(),
        ..Known::default()
    };
    let transposed = State {
        transposed: 1,
        version: 2,
        ..State::new()
    };
    let mut compressed = Draft::compressed();
    compressed.set("next_position", "9");
    let files = [
        mlx::texts().bytes(),
        mlx::scalars().bytes(),
        State::new().bytes(),
        transposed.bytes(),
        hugging_face::named("key_cache.{}", "value_cache.{}", &[1]).bytes(),
        Draft::capture().bytes(),
        compressed.bytes(),
    ];
    let started = Instant::now();
    for (kind, file) in files.iter().enumerate() {
        assert!(numbers(file, &known) > 0, "file {kind} is whole");
        let mut random = Rng::with_seed(kind as u64);
        let mut read = 0;
        for _ in 0..3000 {
            let mut bytes = file.clone();
            mutate(&mut bytes, &mut random);
            read += usize::from(numbers(&bytes, &known) > 0);
        }
        // Some damage is to numbers alone, so that readers were reached in earnest.
        assert!((30..2900).contains(&read), "{read} of file {kind} were read");
    }
    assert!(started.elapsed().as_secs() < 120, "a reader is far too slow");
}

#[test]
fn what_is_read_from_damage_can_be_written_or_is_refused() {
    let known = Known {
        rope: rope(),
        ..Known::default()
    };
    let mut random = Rng::with_seed(9);
    let file = mlx::scalars().bytes();
    for _ in 0..150 {
        let mut bytes = file.clone();
        mutate(&mut bytes, &mut random);
        let Ok(cache) = open(&bytes, &known) else { continue };
        for format in [
            Format::Compressed,
            Format::HuggingFace,
            Format::Llama(Default::default()),
            cache.format,
        ] {
            if let Ok(bytes) = written(&cache, &Target::new(format)) {
                let told = Known {
                    kv_heads: Some(cache.layers[0].lengths.len()),
                    ..Known::default()
                };
                open(&bytes, &told).expect("what was written is read");
            }
        }
    }
}
