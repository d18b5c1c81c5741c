//! One kind of rows (training, validation or probe) of all heads of a batch, with what their teacher says and what the
//! pairs that never change contribute.

use super::inputs::{AtOnce, FullCache, Given, Parts};
use super::problem::Problem;
use super::rows::Rows;
use super::{Errors, merged_sums};
use crate::batch::{Shape, layout};
use crate::engine::{Dims, Engine, Head};
use crate::error::Result;
use crate::reference::merged::Sums;

/// Which rows of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Training,
    Validation,
    Probe,
}

impl Kind {
    /// All of them, in the order in which they stand where they are together.
    pub(crate) const ALL: [Self; 3] = [Self::Training, Self::Validation, Self::Probe];

    pub(crate) fn rows(self, rows: &Rows) -> &[f32] {
        match self {
            Self::Training => &rows.training,
            Self::Validation => &rows.validation,
            Self::Probe => &rows.probe,
        }
    }

    pub(crate) fn count(self, shape: &Shape) -> u32 {
        match self {
            Self::Training => shape.training,
            Self::Validation => shape.validation,
            Self::Probe => shape.probe,
        }
    }
}

/// Rows, their teacher and their constant part.
#[derive(Debug)]
pub(crate) struct RowSet<E: Engine> {
    pub(crate) queries: E::Array,
    /// The teacher's state: attention over all pairs.
    pub(crate) teacher: E::Array,
    /// The state over sinks and tail, which every student of the head shares.
    pub(crate) base: E::Array,
    /// The student's state as of the last evaluation.
    pub(crate) state: E::Array,
    /// All heads that have such rows, rows × free pairs.
    pub(crate) table: E::Table,
    pub(crate) heads: Vec<Head>,
    /// The teacher's state as read back for the first judgement.
    teacher_read: Option<Vec<f32>>,
    dims: Dims,
}

impl<E: Engine> RowSet<E> {
    /// Uploads the rows, unless they are `given`, and computes teacher and constant part; `None` if no head has such rows.
    pub(crate) fn new(
        engine: &mut E,
        problems: &[&Problem],
        shapes: &[Shape],
        (kind, given): (Kind, Option<Given<E::Array>>),
        cache: &FullCache<E::Array>,
        scale: f32,
    ) -> Result<Option<Self>> {
        let Some(dims) = shapes.first().map(|shape| shape.dims) else {
            return Ok(None);
        };
        let with_rows = |pairs: fn(&Shape) -> u32| {
            let mut heads = layout(shapes, |shape| (kind.count(shape), pairs(shape)));
            heads.retain(|head| head.rows > 0);
            heads
        };
        let heads = with_rows(|shape| shape.free);
        if heads.is_empty() {
            return Ok(None);
        }
        let given = match given {
            Some(given) => given,
            None => Given::upload(&mut AtOnce(engine), problems, dims, kind)?,
        };
        let Given { queries, floats, parts } = given;
        let floats = floats / dims.dim as usize * dims.state_row() as usize;
        let parts = match parts {
            Some(parts) => Some(parts),
            // Those of a slice's first batch know of each other only since it began.
            None => Parts::upload(&mut AtOnce(engine), problems, dims, kind)?,
        };
        let (teacher, others) = match parts {
            Some(Parts { teacher, others }) => (teacher, Some(others)),
            None => {
                let mut teacher = engine.zeros("teacher", floats)?;
                let table = engine.table(dims, &with_rows(|shape| shape.tokens))?;
                engine.attention(&table, &queries, &cache.keys, &cache.values, None, scale, &mut teacher)?;
                (teacher, None)
            }
        };
        let mut base = engine.zeros("base", floats)?;
        let table = engine.table(dims, &with_rows(|shape| shape.fixed))?;
        engine.attention(
            &table,
            &queries,
            &cache.fixed_keys,
            &cache.fixed_values,
            others.as_ref(),
            scale,
            &mut base,
        )?;
        drop(others);
        let state = engine.zeros("state", floats)?;
        let table = engine.table(dims, &heads)?;
        Ok(Some(Self {
            queries,
            teacher,
            base,
            state,
            table,
            heads,
            teacher_read: None,
            dims,
        }))
    }

    /// Channels of a value.
    pub(crate) fn value_dim(&self) -> u32 {
        self.dims.value_dim
    }

    /// From here on students have `pairs` pairs, the first of their own in the arrays.
    pub(crate) fn shorten(&mut self, engine: &mut E, pairs: u32) -> Result<()> {
        for head in &mut self.heads {
            head.pairs = pairs;
        }
        engine.set_table(&mut self.table, &self.heads)
    }

    /// Error sums of these students on the rows, for every head of the batch (`None` where a head has no such rows).
    pub(crate) fn judge(
        &mut self,
        engine: &mut E,
        keys: &E::Array,
        values: &E::Array,
        scale: f32,
        all_heads: usize,
    ) -> Result<Vec<Option<Sums>>> {
        engine.attention(&self.table, &self.queries, keys, values, Some(&self.base), scale, &mut self.state)?;
        let student = engine.read(&self.state)?;
        let teacher = match self.teacher_read.take() {
            Some(teacher) => teacher,
            None => engine.read(&self.teacher)?,
        };
        let row = self.dims.state_row() as usize;
        let mut sums = vec![None; all_heads];
        for head in &self.heads {
            let range = head.row as usize * row..(head.row + head.rows) as usize * row;
            sums[head.index as usize] = Some(merged_sums(&student[range.clone()], &teacher[range], self.dims.value_dim as usize));
        }
        self.teacher_read = Some(teacher);
        Ok(sums)
    }
}

/// All parts one after the other, in no more memory than they take.
pub(super) fn joined<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone) -> Vec<f32> {
    let mut all = Vec::with_capacity(parts.clone().map(<[f32]>::len).sum());
    parts.for_each(|part| all.extend_from_slice(part));
    all
}

/// Errors of these students on one kind of rows, for every head; `None` where there are no such rows.
pub(crate) fn errors_on<E: Engine>(
    rows: &mut Option<RowSet<E>>,
    engine: &mut E,
    keys: &E::Array,
    values: &E::Array,
    scale: f32,
    heads: usize,
) -> Result<Vec<Option<Errors>>> {
    match rows {
        Some(rows) => {
            let sums = rows.judge(engine, keys, values, scale, heads)?;
            Ok(sums.iter().map(|sums| sums.map(|sums| sums.errors())).collect())
        }
        None => Ok(vec![None; heads]),
    }
}
