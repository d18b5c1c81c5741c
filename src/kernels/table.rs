//! The table of heads on the device, and what grids are made from.

use crate::engine::{Dims, Head};
use crate::error::{Error, Result};
use crate::gpu::{Array, Gpu};

use super::spec::RowBlocks;

/// Heads that an operation works on.
///
/// ```no_run
/// use kvsculpt::{engine::{Dims, Engine, Head}, gpu::{Gpu, Selection}, kernels::{GpuEngine, Table}};
///
/// let mut engine = GpuEngine::new(Gpu::open(&Selection::default())?)?;
/// let head = Head { rows: 2, pairs: 3, ..Head::default() };
/// let mut table: Table = engine.table(Dims { dim: 64, value_dim: 64 }, &[head])?;
/// engine.set_table(&mut table, &[])?;
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Table {
    pub(super) dims: Dims,
    pub(super) heads: Vec<Head>,
    pub(super) rows: Array,
}

/// Neighbours in a table whose row blocks' sums are held together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The first head in the table.
    pub(super) first: u32,
    /// How many heads.
    pub(super) heads: u32,
    /// Their pairs.
    pub(super) pairs: u32,
    /// Pairs of the largest.
    pub(super) most_pairs: u32,
    /// Row blocks of the longest.
    pub(super) blocks: u32,
}

impl Group {
    /// Floats of the sums, at `width` a pair.
    pub(super) fn floats(&self, width: u32) -> u64 {
        u64::from(self.blocks) * u64::from(self.pairs) * u64::from(width)
    }
}

impl Table {
    pub(super) fn new(gpu: &mut Gpu, dims: Dims, heads: &[Head]) -> Result<Self> {
        let rows = gpu.upload_rows("heads", &placed(heads))?;
        Ok(Self {
            dims,
            heads: heads.to_vec(),
            rows,
        })
    }

    pub(super) fn set(&mut self, gpu: &mut Gpu, heads: &[Head]) -> Result<()> {
        if heads.len() > self.rows.len() {
            let (have, room) = (heads.len(), self.rows.len());
            return Err(Error::Gpu(format!("{have} heads given to a table made for {room}")));
        }
        if !heads.is_empty() && heads != self.heads {
            gpu.write_rows(&self.rows, &placed(heads))?;
        }
        heads.clone_into(&mut self.heads);
        Ok(())
    }

    /// Workgroups in z.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.heads.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn most_rows(&self) -> u32 {
        self.heads.iter().map(|head| head.rows).max().unwrap_or(0)
    }

    pub(super) fn most_pairs(&self) -> u32 {
        self.heads.iter().map(|head| head.pairs).max().unwrap_or(0)
    }

    /// What an operation does for all heads, where `work` is what it does for one.
    pub(super) fn work(&self, work: impl Fn(&Head) -> f64) -> f64 {
        self.heads.iter().map(work).sum()
    }

    /// Multiplications and additions of an operation that does so many for each row and pair.
    pub(super) fn products(&self, each: u32) -> f64 {
        self.work(|head| f64::from(head.rows) * f64::from(head.pairs) * f64::from(each))
    }

    /// Elements of the largest head at `width` floats a pair.
    pub(super) fn most_elements(&self, width: u32) -> u64 {
        u64::from(self.most_pairs()) * u64::from(width)
    }

    pub(super) fn groups(&self, blocks: RowBlocks, width: u32, most_bytes: u64) -> Vec<Group> {
        groups(&self.heads, blocks, width, most_bytes)
    }
}

/// The rows as the shaders read them: in the place of the padding how many pairs the heads before have.
fn placed(heads: &[Head]) -> Vec<Head> {
    let places = heads.iter().scan(0_u32, |before, head| {
        let place = *before;
        *before += head.pairs;
        Some(place)
    });
    heads
        .iter()
        .zip(places)
        .map(|(head, place)| Head { padding: place, ..*head })
        .collect()
}

/// Cuts a table into groups whose sums take at most so many bytes, or that are one head.
pub(super) fn groups(heads: &[Head], blocks: RowBlocks, width: u32, most_bytes: u64) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (place, head) in (0..).zip(heads) {
        let alone = Group {
            first: place,
            heads: 1,
            pairs: head.pairs,
            most_pairs: head.pairs,
            blocks: blocks.of(head.rows),
        };
        let joined = groups.last().map(|group| Group {
            first: group.first,
            heads: group.heads + 1,
            pairs: group.pairs + head.pairs,
            most_pairs: group.most_pairs.max(head.pairs),
            blocks: group.blocks.max(alone.blocks),
        });
        match (joined, groups.last_mut()) {
            (Some(joined), Some(last)) if joined.floats(width) * 4 <= most_bytes => *last = joined,
            _ => groups.push(alone),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(rows: u32, pairs: u32) -> Head {
        Head {
            rows,
            pairs,
            ..Head::default()
        }
    }

    #[test]
    fn groups_hold_every_head_once_and_fit() {
        let heads: Vec<Head> = (0..100).map(|i| head(100 + 97 * i, 1 + 31 * i)).collect();
        let most_bytes = 64 << 20;
        let blocks = RowBlocks { least_rows: 512, most: 8 };
        let groups = groups(&heads, blocks, 128, most_bytes);
        assert!(groups.len() > 1);
        let mut next = 0;
        for group in &groups {
            assert_eq!(group.first, next);
            next += group.heads;
            assert!(group.floats(128) * 4 <= most_bytes);
        }
        assert_eq!(next, 100);
        assert_eq!(super::groups(&heads, blocks, 128, 0).len(), 100);
        assert_eq!(
            groups.iter().map(|group| group.pairs).sum::<u32>(),
            heads.iter().map(|head| head.pairs).sum::<u32>()
        );
    }

    #[test]
    fn places_count_the_pairs_before() {
        let placed = placed(&[head(1, 5), head(1, 7), head(1, 1)]);
        assert_eq!(placed.iter().map(|head| head.padding).collect::<Vec<_>>(), [0, 5, 12]);
    }
}
