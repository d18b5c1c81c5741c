//! Where heads lie in the arrays, and how an array is cut into the parts that tasks write.

use std::ops::Range;

use super::{Array, Table};
use crate::engine::{Head, SCALARS};
use crate::error::{Error, Result};

/// Most strands of rows a head is cut into; each holds a partial gradient of its own.
const STRANDS: usize = 8;
/// Fewest rows worth a strand.
const STRAND_ROWS: usize = 128;

/// The head's rows in an array of `width` floats a row.
pub(super) fn rows(head: &Head, width: usize) -> Range<usize> {
    span(head.row, head.rows as usize, width)
}

/// The head's pairs in an array of `width` floats a pair.
pub(super) fn pairs(head: &Head, width: usize) -> Range<usize> {
    span(head.pair, head.pairs as usize, width)
}

/// The head's square in gram or factor.
pub(super) fn square(head: &Head) -> Range<usize> {
    let start = head.square as usize;
    start..start + head.pairs as usize * head.pairs as usize
}

/// The head's row in an array with `width` floats a head.
pub(super) fn own(head: &Head, width: usize) -> Range<usize> {
    span(head.index, 1, width)
}

/// The head's row of scalars.
pub(super) fn scalars(head: &Head) -> Range<usize> {
    own(head, SCALARS)
}

/// The head's block of a history of `capacity` slots.
pub(super) fn history(head: &Head, capacity: usize, dim: usize) -> Range<usize> {
    let start = capacity * head.pair as usize * dim;
    start..start + capacity * head.pairs as usize * dim
}

/// The head's block of weights, `block` rows of it.
pub(super) fn weights(head: &Head, block: usize) -> Range<usize> {
    let start = head.weights as usize;
    start..start + block * head.pairs as usize
}

/// How many of the rows `rows` the head has.
pub(super) fn cut(head: &Head, rows: &Range<u32>) -> usize {
    rows.end.min(head.rows).saturating_sub(rows.start) as usize
}

fn span(first: u32, count: usize, width: usize) -> Range<usize> {
    let start = first as usize * width;
    start..start + count * width
}

/// A run of one head's rows that one task works through in order.
#[derive(Clone, Debug)]
pub(super) struct Strand {
    /// The head's place in the table.
    pub(super) place: usize,
    /// The head.
    pub(super) head: Head,
    /// Rows, counted from the head's first.
    pub(super) rows: Range<usize>,
}

impl Strand {
    /// The strand's rows in an array of `width` floats a row.
    pub(super) fn span(&self, width: usize) -> Range<usize> {
        let first = self.head.row as usize;
        (first + self.rows.start) * width..(first + self.rows.end) * width
    }
}

/// Cuts every head's rows into strands; where a head is cut depends on its own rows alone.
pub(super) fn strands(table: &Table) -> Vec<Strand> {
    let mut strands = Vec::new();
    for (place, head) in table.heads.iter().enumerate() {
        let rows = head.rows as usize;
        let count = rows.div_ceil(STRAND_ROWS).clamp(1, STRANDS);
        let length = rows.div_ceil(count).next_multiple_of(16);
        let mut start = 0;
        while start < rows {
            let end = (start + length).min(rows);
            strands.push(Strand {
                place,
                head: *head,
                rows: start..end,
            });
            start = end;
        }
    }
    strands
}

/// Splits `0..length` into runs of `size`, the last one shorter.
pub(super) fn runs(length: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(size.max(1)).map(move |start| start..(start + size).min(length))
}

/// Pairs of a task that sums over a head's rows.
const PAIR_TILE: usize = 256;

/// The tasks that sum over rows for these heads: each the head and some of its pairs, by their places in the batch's arrays.
pub(super) fn pair_tiles(heads: &[Head]) -> Vec<(Head, Range<usize>)> {
    let tiles = |head: &Head| {
        let (head, first) = (*head, head.pair as usize);
        runs(head.pairs as usize, PAIR_TILE).map(move |run| (head, first + run.start..first + run.end))
    };
    heads.iter().flat_map(tiles).collect()
}

/// Rows worked on at once, so that a few matrices of that many rows and `columns` columns stay in a core's cache.
pub(super) fn block_rows(columns: usize) -> usize {
    (131_072 / columns.max(1)).clamp(64, 256) / 16 * 16
}

impl Array {
    /// The array's elements at `range`.
    pub(super) fn part(&self, range: Range<usize>) -> Result<&[f32]> {
        self.data
            .get(range.clone())
            .ok_or_else(|| outside(self.label, &range, self.data.len()))
    }

    /// The array's parts at `ranges`, in the order asked for.
    pub(super) fn parts(&mut self, ranges: impl Iterator<Item = Range<usize>>) -> Result<Vec<&mut [f32]>> {
        let length = self.data.len();
        let mut order: Vec<(usize, Range<usize>)> = ranges.enumerate().collect();
        order.sort_by_key(|(_, range)| (range.start, range.end));
        let mut parts = Vec::with_capacity(order.len());
        let (mut rest, mut at) = (self.data.as_mut_slice(), 0);
        for (place, range) in order {
            if range.is_empty() {
                parts.push((place, <&mut [f32]>::default()));
                continue;
            }
            if range.start < at || range.end > length {
                return Err(outside(self.label, &range, length));
            }
            let (part, after) = rest.split_at_mut(range.start - at).1.split_at_mut(range.end - range.start);
            parts.push((place, part));
            (rest, at) = (after, range.end);
        }
        parts.sort_by_key(|(place, _)| *place);
        Ok(parts.into_iter().map(|(_, part)| part).collect())
    }
}

fn outside(label: &str, range: &Range<usize>, length: usize) -> Error {
    Error::shape(
        format!("array `{label}`"),
        format!(
            "elements {}..{} are outside its {length}, or belong to two heads of one table",
            range.start, range.end
        ),
    )
}
