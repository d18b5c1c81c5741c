//! A table of heads that operations work on part by part.

use std::cell::RefCell;
use std::mem;
use std::ops::Range;

use crate::engine::{Dims, Engine, Head};
use crate::error::Result;

/// A table, and the tables of its parts for every way in which operations have cut it.
#[derive(Debug)]
pub(super) struct Table<T> {
    pub(super) dims: Dims,
    pub(super) heads: Vec<Head>,
    /// What it was made with: every part is made for as many.
    capacity: Vec<Head>,
    /// Made while an operation borrows the table.
    pub(super) parts: RefCell<Parts<T>>,
}

/// The parts of a table.
#[derive(Debug)]
pub(super) struct Parts<T> {
    cuts: Vec<(Vec<Range<usize>>, Vec<T>)>,
    /// Those of heads that are no longer in the table.
    spare: Vec<T>,
}

impl<T> Table<T> {
    pub(super) fn new<E: Engine<Table = T>>(engine: &mut E, dims: Dims, heads: &[Head]) -> Result<Self> {
        // One that the engine refuses is to be refused here.
        let spare = vec![engine.table(dims, heads)?];
        Ok(Self {
            dims,
            heads: heads.to_vec(),
            capacity: heads.to_vec(),
            parts: RefCell::new(Parts { cuts: Vec::new(), spare }),
        })
    }

    /// Replaces the heads, at most as many as it was made with; an engine that is given more refuses the parts.
    pub(super) fn set(&mut self, heads: &[Head]) {
        if heads == self.heads {
            return;
        }
        let parts = self.parts.get_mut();
        let unused = mem::take(&mut parts.cuts).into_iter().flat_map(|(_, tables)| tables);
        parts.spare.extend(unused);
        heads.clone_into(&mut self.heads);
    }
}

impl<T> Parts<T> {
    /// The tables of a cut, made or filled anew where it is a new one.
    pub(super) fn of_cut<E: Engine<Table = T>>(&mut self, engine: &mut E, table: &Table<T>, ranges: &[Range<usize>]) -> Result<&[T]> {
        if let Some(found) = self.cuts.iter().position(|(known, _)| known == ranges) {
            return Ok(&self.cuts[found].1);
        }
        let mut made = Vec::with_capacity(ranges.len());
        for range in ranges {
            let mut part = match self.spare.pop() {
                Some(spare) => spare,
                None => engine.table(table.dims, &table.capacity)?,
            };
            engine.set_table(&mut part, &table.heads[range.clone()])?;
            made.push(part);
        }
        self.cuts.push((ranges.to_vec(), made));
        Ok(self.cuts.last().map_or(&[], |(_, made)| made))
    }
}
