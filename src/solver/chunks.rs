//! Long caches in chunks: which tokens each holds, and what the rest of the head's attention is to it.
//!
//! # Why chunks, and what a chunk is fitted to
//!
//! Attention over a cache is the mass-weighted mean of attention over its parts: with `o_c, l_c` a part's output and mass,
//!
//! ```text
//! l = log Σ_c e^{l_c},    y = Σ_c w_c o_c,    w_c = e^{l_c − l}.
//! ```
//!
//! So each chunk may be replaced on its own, and the replacements merge without any error of their own. What a student `ô_c, l̂_c`
//! does to the head is, to first order,
//!
//! ```text
//! ŷ − y = Σ_c e_c,    e_c = w_c (ô_c − o_c) + w_c δ_c (o_c − y),    δ_c = l̂_c − l_c,    l̂ − l = Σ_c w_c δ_c:
//! ```
//!
//! a sum over chunks, in which a chunk counts by its weight w_c, row by row. A chunk fitted to `o_c, l_c` alone would spend its
//! pairs on rows that never look at it. Here the state of all *other* chunks as they are is merged into both teacher and student:
//! the error seen is then e_c itself, the change of the head's merged output that this chunk alone makes, and no further weights
//! are needed to compare chunks or heads. Chunks are fitted apart from each other, so their e_c have no sign in common and
//! `E‖Σ e_c‖² ≈ Σ E‖e_c‖²`: a head's error at some division of its pairs is the sum of its chunks' errors, by which
//! [`joined`](crate::budget::joined) makes the head's curve and [`allocate`](crate::budget::allocate) divides its length.
//!
//! The state of the others is one pass over the cache and a merge of two running states, so all of it is linear in the tokens.

use std::ops::Range;
use std::sync::Arc;

use super::problem::Problem;
use super::rows::Rows;
use super::rowset::{Kind, joined};
use crate::engine::{Dims, Engine, Head};
use crate::error::{Error, Result};
use crate::options::Split;

/// The chunks of a head whose pairs are so divided, in their order: the tokens of each. The first has the sinks, the last the
/// tail. Zones up to one and a half times `chunk`, and all zones where it is 0, stay whole.
pub(super) fn cut(split: Split, chunk: usize) -> Vec<Split> {
    let zone = split.zone();
    // Chunks of two thirds to four thirds of the size asked for, as even as can be.
    let count = if chunk == 0 || zone <= chunk.saturating_add(chunk / 2) {
        1
    } else {
        ((zone + chunk / 2) / chunk).max(2)
    };
    let last = count - 1;
    let piece = |(number, zone): (usize, usize)| {
        let sinks = if number == 0 { split.sinks } else { 0 };
        let tail = if number == last { split.tail } else { 0 };
        Split {
            tokens: sinks + zone + tail,
            sinks,
            free: zone,
            tail,
        }
    };
    even(zone, count).into_iter().enumerate().map(piece).collect()
}

/// `total` in `count` parts that differ by one at most, the larger ones first: free pairs in proportion to the zones of [`cut`].
pub(super) fn even(total: usize, count: usize) -> Vec<usize> {
    (0..count).map(|part| total / count + usize::from(part < total % count)).collect()
}

/// What a chunk knows of the head it was cut from.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// The state of the head's rows over the pairs of all other chunks, `[rows, value_dim + 4]`: training, validation, probe rows.
    others: Vec<f32>,
    /// The same over all pairs of the head.
    pub(super) teacher: Arc<[f32]>,
}

impl Part {
    /// The state of one kind of rows over the other chunks.
    pub(super) fn others(&self, rows: &Rows, kind: Kind, dims: Dims) -> &[f32] {
        &self.others[floats(rows, kind, dims)]
    }

    /// The teacher's state of one kind of rows over the whole head.
    pub(super) fn teacher(&self, rows: &Rows, kind: Kind, dims: Dims) -> &[f32] {
        &self.teacher[floats(rows, kind, dims)]
    }
}

/// Where a kind of rows stands in the states of all rows.
pub(super) fn floats(rows: &Rows, kind: Kind, dims: Dims) -> Range<usize> {
    let count = |kind: Kind| kind.rows(rows).len() / dims.dim as usize;
    let first: usize = Kind::ALL
        .iter()
        .take_while(|&&before| before != kind)
        .map(|&before| count(before))
        .sum();
    let width = dims.state_row() as usize;
    first * width..(first + count(kind)) * width
}

/// Rows of a head on the engine, all kinds one after the other, and attention of them over some pairs.
pub(super) struct Viewer<E: Engine> {
    dims: Dims,
    scale: f32,
    rows: u32,
    queries: E::Array,
}

impl<E: Engine> Viewer<E> {
    pub(super) fn new(engine: &mut E, rows: &Rows, dims: Dims, scale: f32) -> Result<Self> {
        let queries = joined(Kind::ALL.iter().map(|kind| kind.rows(rows)));
        let rows = queries.len() / dims.dim as usize;
        Ok(Self {
            dims,
            scale,
            rows: u32::try_from(rows).map_err(|_| Error::shape("capture", format!("{rows} rows are more than 32 bits count")))?,
            queries: engine.upload("queries", &queries)?,
        })
    }

    /// The state of all rows over these pairs, keys as the engine sees them, merged with `base`.
    pub(super) fn state(&self, engine: &mut E, keys: &[f32], values: &[f32], base: Option<&E::Array>) -> Result<E::Array> {
        let pairs = values.len() / self.dims.value_dim as usize;
        let head = Head {
            rows: self.rows,
            pairs: u32::try_from(pairs).map_err(|_| Error::shape("capture", format!("{pairs} pairs are more than 32 bits count")))?,
            ..Head::default()
        };
        let table = engine.table(self.dims, &[head])?;
        let keys = engine.upload("keys", keys)?;
        let values = engine.upload("values", values)?;
        let mut state = engine.zeros("state", (self.rows * self.dims.state_row()) as usize)?;
        engine.attention(&table, &self.queries, &keys, &values, base, self.scale, &mut state)?;
        Ok(state)
    }
}

/// Tells the chunks of one head of the rest of it: one look at every chunk, then running merges from both ends.
pub(super) fn introduce<E: Engine>(engine: &mut E, chunks: &mut [Problem], scale: f32) -> Result<()> {
    let [first, _, ..] = &*chunks else { return Ok(()) };
    let dims = first.dims;
    let viewer = Viewer::new(engine, &first.rows, dims, scale)?;
    let mut states = Vec::with_capacity(chunks.len());
    for chunk in &*chunks {
        let mut keys = Vec::with_capacity(chunk.split.tokens * dims.dim as usize);
        chunk.push_keys(&chunk.keys, &mut keys);
        let state = viewer.state(engine, &keys, &chunk.values, None)?;
        states.push(engine.read(&state)?);
    }
    let value_dim = dims.value_dim as usize;
    // after[c]: all chunks from c on.
    let mut after = states.clone();
    for chunk in (0..after.len() - 1).rev() {
        let (before, from) = after.split_at_mut(chunk + 1);
        merge(&mut before[chunk], &from[0], value_dim);
    }
    let teacher: Arc<[f32]> = after[0].as_slice().into();
    let mut before: Option<Vec<f32>> = None;
    for (chunk, state) in chunks.iter_mut().zip(states) {
        let rest = after.get_mut(chunk.chunk + 1).map(std::mem::take);
        let others = match (&before, rest) {
            (Some(before), Some(mut rest)) => {
                merge(&mut rest, before, value_dim);
                rest
            }
            (Some(before), None) => before.clone(),
            (None, rest) => rest.unwrap_or_default(),
        };
        match &mut before {
            Some(before) => merge(before, &state, value_dim),
            None => before = Some(state),
        }
        let teacher = Arc::clone(&teacher);
        chunk.part = Some(Part { others, teacher });
    }
    Ok(())
}

/// Merges a state into another, row by row: `l = log(e^{l₁} + e^{l₂})`, `o = e^{l₁ − l} o₁ + e^{l₂ − l} o₂`.
fn merge(state: &mut [f32], other: &[f32], value_dim: usize) {
    for (row, other) in state.chunks_exact_mut(value_dim + 4).zip(other.chunks_exact(value_dim + 4)) {
        let (one, two) = (f64::from(row[value_dim]), f64::from(other[value_dim]));
        let largest = one.max(two);
        let mass = largest + ((one - largest).exp() + (two - largest).exp()).ln();
        let weights = ((one - mass).exp(), (two - mass).exp());
        for (mine, theirs) in row.iter_mut().zip(other).take(value_dim) {
            #[allow(clippy::cast_possible_truncation, reason = "rounding to the engine's precision")]
            let merged = (weights.0 * f64::from(*mine) + weights.1 * f64::from(*theirs)) as f32;
            *mine = merged;
        }
        #[allow(clippy::cast_possible_truncation, reason = "rounding to the engine's precision")]
        let mass = mass as f32;
        row[value_dim] = mass;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn chunks_are_even_and_hold_every_token_once() {
        for (tokens, sinks, tail) in [
            (2048, 4, 153),
            (8192, 4, 256),
            (32768, 0, 256),
            (40000, 4, 0),
            (6404, 4, 256),
            (6405, 4, 256),
        ] {
            let split = Split {
                tokens,
                sinks,
                free: 1,
                tail,
            };
            let chunks = cut(split, 4096);
            let zone = split.zone();
            assert_eq!(chunks.len() == 1, zone <= 6144, "{zone}");
            assert_eq!(chunks.iter().map(|chunk| chunk.tokens).sum::<usize>(), tokens);
            assert_eq!((chunks[0].sinks, chunks[chunks.len() - 1].tail), (sinks, tail));
            assert_eq!(chunks.iter().map(|chunk| chunk.sinks + chunk.tail).sum::<usize>(), sinks + tail);
            if chunks.len() > 1 {
                assert!(chunks.iter().all(|chunk| (3000..=5461).contains(&chunk.zone())), "{chunks:?}");
            }
            assert_eq!(cut(split, 0).len(), 1);
            // Free pairs so divided never exceed a zone.
            for free in [chunks.len(), zone / 3, zone - 1, zone] {
                let shares = even(free, chunks.len());
                assert_eq!(shares.iter().sum::<usize>(), free);
                assert!(
                    shares
                        .iter()
                        .zip(&chunks)
                        .all(|(&share, chunk)| share >= 1 && share <= chunk.zone())
                );
            }
        }
    }

    #[test]
    fn merged_states_are_attention_over_both_parts() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut draw = |count: usize| -> Vec<f64> { (0..count).map(|_| 4.0 * random.f64() - 2.0).collect() };
        let (queries, keys, values) = (draw(5 * 8), draw(9 * 8), draw(9 * 4));
        let state = |pairs: Range<usize>| {
            let (keys, values) = (&keys[pairs.start * 8..pairs.end * 8], &values[pairs.start * 4..pairs.end * 4]);
            reference::attention(&queries, keys, values, 8, 4, None, 0.7).to_array(4)
        };
        let mut merged = state(0..6);
        merge(&mut merged, &state(6..9), 4);
        for (found, wanted) in merged.iter().zip(state(0..9)) {
            assert!((found - wanted).abs() <= 1e-6, "{found} {wanted}");
        }
        // No pairs at all change nothing.
        let before = merged.clone();
        merge(&mut merged, &state(0..0), 4);
        for (found, wanted) in merged.iter().zip(before) {
            assert!((found - wanted).abs() <= 1e-6, "{found} {wanted}");
        }
    }
}
