//! `G ← AᵀA`, block by block.

use kvsculpt::engine::{Dims, Engine, Head, WEIGHT_ROWS};
use kvsculpt::reference;

use crate::batch::{Batch, batches, square, weights};
use crate::compare::{EPSILON, SLACK, bits, close, largest, poison, untouched, wide};

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for mut batch in batches() {
        // A Gram knows no channels: the same kernel for all, compiled once.
        batch.dims = Dims { dim: 64, value_dim: 64 };
        check(engine, batch);
    }
}

/// Heads of one block, of two and of three, the last of one row.
pub fn several_blocks<E: Engine>(engine: &mut E) {
    check(
        engine,
        Batch::new((64, 64), &[(1500, 33), (200, 65), (2049, 7), (1024, 31)], &[0, 1, 2]),
    );
}

/// Weights as attention has them: none negative, few large in a row, and pairs that get a thousand times less than others, whose sums
/// must not be lost beside theirs.
pub fn weights_of_attention<E: Engine>(engine: &mut E) {
    let mut batch = Batch::all((64, 64), &[(700, 130), (130, 65)]);
    let table = batch.table(engine);
    let mut numbers = batch.random(batch.weights(), 0.2);
    let heads = batch.heads.clone();
    for head in &heads {
        let end = head.weights + head.rows * head.pairs;
        for (place, weight) in numbers[head.weights as usize..end as usize].iter_mut().enumerate() {
            let pair = place % head.pairs as usize;
            *weight = weight.abs().powi(3) * if pair % 3 == 2 { 1e-3 } else { 1.0 };
        }
    }
    let array = engine.upload("weights", &numbers).unwrap();
    let mut gram = engine.upload("gram", &poison(batch.squares())).unwrap();
    engine.gram(&table, &array, 0..WEIGHT_ROWS, &mut gram).unwrap();
    let actual = engine.read(&gram).unwrap();
    for head in &heads {
        let pairs = head.pairs as usize;
        let expected = reference::gram(&wide(weights(head, &numbers)), pairs);
        for row in 0..pairs {
            for column in 0..=row {
                // |G_ij| ≤ √(G_ii G_jj): each pair has its own scale.
                let scale = (expected[row * pairs + row] * expected[column * pairs + column]).sqrt();
                let bound = EPSILON * (f64::from(head.rows).sqrt() + 1.0) * scale;
                let place = row * pairs + column..=row * pairs + column;
                close("gram", head, &square(head, &actual)[place.clone()], &expected[place], SLACK * bound);
            }
        }
    }
}

/// Two blocks, by each head alone and by all at once.
pub fn same_bits_alone<E: Engine>(engine: &mut E) {
    let mut batch = Batch::all((64, 64), &[(1100, 33), (200, 65), (1025, 17)]);
    let blocks = Blocks::new(&mut batch);
    let mut run = |heads: &[Head]| {
        let table = engine.table(batch.dims, heads).unwrap();
        let mut gram = engine.upload("gram", &poison(batch.squares())).unwrap();
        for (block, contents) in blocks.contents.iter().enumerate() {
            let array = engine.upload("weights", contents).unwrap();
            engine.gram(&table, &array, blocks.rows(block), &mut gram).unwrap();
        }
        engine.read(&gram).unwrap()
    };
    let whole = run(&batch.heads);
    assert_eq!(bits(&run(&batch.heads)), bits(&whole));
    for head in &batch.heads {
        let (alone, pairs) = (run(std::slice::from_ref(head)), head.pairs as usize);
        for row in 0..pairs {
            let lower = row * pairs..row * pairs + row + 1;
            assert_eq!(
                bits(&square(head, &alone)[lower.clone()]),
                bits(&square(head, &whole)[lower]),
                "{head:?}"
            );
        }
    }
}

fn check<E: Engine>(engine: &mut E, mut batch: Batch) {
    let table = batch.table(engine);
    let blocks = Blocks::new(&mut batch);
    let mut gram = engine.upload("gram", &poison(batch.squares())).unwrap();
    for (block, contents) in blocks.contents.iter().enumerate() {
        let array = engine.upload("weights", contents).unwrap();
        engine.gram(&table, &array, blocks.rows(block), &mut gram).unwrap();
    }
    let actual = engine.read(&gram).unwrap();
    for (head, active) in batch.each() {
        let actual = square(head, &actual);
        if !active {
            untouched("gram", head, actual);
            continue;
        }
        let expected = reference::gram(&blocks.of(head), head.pairs as usize);
        // |G_ij| ≤ the largest diagonal element.
        let bound = EPSILON * (f64::from(head.rows).sqrt() + 1.0) * largest(&expected);
        let pairs = head.pairs as usize;
        for row in 0..pairs {
            let lower = row * pairs..row * pairs + row + 1;
            close("gram", head, &actual[lower.clone()], &expected[lower], SLACK * bound);
        }
    }
}

/// The contents of `weights` for one block after the other; beyond a head's own rows there is NaN.
pub struct Blocks {
    pub contents: Vec<Vec<f32>>,
}

impl Blocks {
    pub fn new(batch: &mut Batch) -> Self {
        let longest = batch.heads.iter().map(|head| head.rows).max().unwrap();
        let contents = (0..longest.div_ceil(WEIGHT_ROWS))
            .map(|block| {
                let mut array = batch.random(batch.weights(), 0.7);
                for head in &batch.heads {
                    let end = (head.weights + head.rows.min(WEIGHT_ROWS) * head.pairs) as usize;
                    array[head.weights as usize + (rows_in(head, block) * head.pairs) as usize..end].fill(f32::NAN);
                }
                array
            })
            .collect();
        Self { contents }
    }

    #[allow(clippy::cast_possible_truncation, reason = "a handful of blocks")]
    pub fn rows(&self, block: usize) -> std::ops::Range<u32> {
        let first = block as u32 * WEIGHT_ROWS;
        first..first + WEIGHT_ROWS
    }

    /// All rows of a head's weights.
    #[allow(clippy::cast_possible_truncation, reason = "a handful of blocks")]
    pub fn of(&self, head: &Head) -> Vec<f64> {
        let blocks = self.contents.iter().enumerate();
        blocks
            .flat_map(|(block, array)| wide(&weights(head, array)[..(rows_in(head, block as u32) * head.pairs) as usize]))
            .collect()
    }
}

/// How many of a head's rows lie in a block.
fn rows_in(head: &Head, block: u32) -> u32 {
    head.rows.saturating_sub(block * WEIGHT_ROWS).min(WEIGHT_ROWS)
}
