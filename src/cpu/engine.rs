//! The trait's operations, each handed to its place.

use std::ops::Range;

use super::{Array, CpuEngine, Table, attention, effects, evaluate, layout, lbfgs, loss, values};
use crate::engine::{Dims, Engine, Evaluated, Evaluation, Head, History};
use crate::error::{Error, Result};

/// `length` zeros, or an error that names the array.
fn allocate(label: &'static str, length: usize) -> Result<Vec<f32>> {
    let mut data = Vec::new();
    data.try_reserve_exact(length).map_err(|_| Error::OutOfMemory {
        label: label.to_owned(),
        bytes: 4 * length as u64,
        available: 0,
    })?;
    Ok(data)
}

impl Engine for CpuEngine {
    type Array = Array;
    type Table = Table;

    fn name(&self) -> String {
        let threads = rayon::current_num_threads();
        format!("CPU, {threads} {}", if threads == 1 { "thread" } else { "threads" })
    }

    fn max_array_bytes(&self) -> u64 {
        isize::MAX.unsigned_abs() as u64
    }

    fn scratch_bytes(&self, dims: Dims, heads: &[Head]) -> u64 {
        let table = Table {
            dims,
            heads: heads.to_vec(),
            capacity: heads.len(),
        };
        let largest = heads.iter().map(|head| head.pairs as usize).max().unwrap_or(0);
        let square = largest * largest;
        let blocks = 2 * layout::block_rows(largest) * largest;
        let tile = (layout::block_rows(attention::TILE) + 1) * attention::TILE;
        let solved: usize = heads.iter().map(|head| layout::pairs(head, dims.value_dim as usize).len()).sum();
        let threads = rayon::current_num_threads();
        evaluate::partial_bytes(&table).max(4 * solved as u64) + 4 * (threads * square.max(blocks).max(tile)) as u64
    }

    fn table(&mut self, dims: Dims, heads: &[Head]) -> Result<Table> {
        Ok(Table {
            dims,
            heads: heads.to_vec(),
            capacity: heads.len(),
        })
    }

    fn set_table(&mut self, table: &mut Table, heads: &[Head]) -> Result<()> {
        if heads.len() > table.capacity {
            return Err(Error::shape(
                "table",
                format!("{} heads, it was made with {}", heads.len(), table.capacity),
            ));
        }
        table.heads.clear();
        table.heads.extend_from_slice(heads);
        Ok(())
    }

    fn zeros(&mut self, label: &'static str, len: usize) -> Result<Array> {
        let mut data = allocate(label, len)?;
        data.resize(len, 0.0);
        Ok(Array { label, data })
    }

    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<Array> {
        let mut copy = allocate(label, data.len())?;
        copy.extend_from_slice(data);
        Ok(Array { label, data: copy })
    }

    fn write(&mut self, array: &mut Array, data: &[f32]) -> Result<()> {
        if data.len() != array.data.len() {
            let reason = format!("{} elements written, it has {}", data.len(), array.data.len());
            return Err(Error::shape(format!("array `{}`", array.label), reason));
        }
        array.data.copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, array: &Array) -> Result<Vec<f32>> {
        Ok(array.data.clone())
    }

    fn copy_pairs(&mut self, table: &Table, width: u32, source: &Array, target: &mut Array) -> Result<()> {
        let ranges = || table.heads.iter().map(|head| layout::pairs(head, width as usize));
        for (range, target) in ranges().zip(target.parts(ranges())?) {
            target.copy_from_slice(source.part(range)?);
        }
        Ok(())
    }

    fn attention(
        &mut self,
        table: &Table,
        queries: &Array,
        keys: &Array,
        values: &Array,
        base: Option<&Array>,
        scale: f32,
        state: &mut Array,
    ) -> Result<()> {
        attention::attention(table, queries, keys, values, base, scale, state)
    }

    fn scores(&mut self, table: &Table, queries: &Array, keys: &Array, state: &Array, scale: f32, scores: &mut Array) -> Result<()> {
        attention::scores(table, queries, keys, state, scale, scores)
    }

    fn effects(
        &mut self,
        table: &Table,
        queries: &Array,
        keys: &Array,
        values: &Array,
        state: &Array,
        scale: f32,
        effects: &mut Array,
    ) -> Result<()> {
        effects::effects(table, queries, keys, values, state, scale, effects)
    }

    fn loss(
        &mut self,
        table: &Table,
        state: &Array,
        teacher: &Array,
        mass_weight: &Array,
        error: &mut Array,
        scalars: &mut Array,
    ) -> Result<()> {
        loss::loss(table, state, teacher, mass_weight, error, scalars)
    }

    fn key_gradient(
        &mut self,
        table: &Table,
        queries: &Array,
        keys: &Array,
        values: &Array,
        error: &Array,
        scale: f32,
        gradient: &mut Array,
    ) -> Result<()> {
        evaluate::key_gradient(&mut self.partials, table, queries, keys, values, error, scale, gradient)
    }

    fn evaluate(&mut self, table: &Table, inputs: &Evaluation<'_, Array>, outputs: Evaluated<'_, Array>) -> Result<()> {
        evaluate::evaluate(&mut self.partials, table, inputs, outputs)
    }

    fn weights(
        &mut self,
        table: &Table,
        queries: &Array,
        keys: &Array,
        state: &Array,
        scale: f32,
        rows: Range<u32>,
        weights: &mut Array,
    ) -> Result<()> {
        attention::weights(table, queries, keys, state, scale, rows, weights)
    }

    fn gram(&mut self, table: &Table, weights: &Array, rows: Range<u32>, gram: &mut Array) -> Result<()> {
        values::gram(table, weights, rows, gram)
    }

    fn rhs(&mut self, table: &Table, weights: &Array, error: &Array, rows: Range<u32>, rhs: &mut Array) -> Result<()> {
        values::rhs(table, weights, error, rows, rhs)
    }

    fn cholesky(&mut self, table: &Table, gram: &Array, ridge: &Array, factor: &mut Array, scalars: &mut Array) -> Result<()> {
        values::cholesky(table, gram, ridge, factor, scalars)
    }

    fn solve(&mut self, table: &Table, factor: &Array, rhs: &Array, anchor: &Array, values: &mut Array) -> Result<()> {
        values::solve(table, factor, rhs, anchor, values)
    }

    fn step(&mut self, table: &Table, origin: &Array, direction: &Array, lengths: &Array, trial: &mut Array) -> Result<()> {
        lbfgs::step(table, origin, direction, lengths, trial)
    }

    fn slope(&mut self, table: &Table, gradient: &Array, direction: &Array, scalars: &mut Array) -> Result<()> {
        lbfgs::slope(table, gradient, direction, scalars)
    }

    fn lbfgs_direction(
        &mut self,
        table: &Table,
        gradient: &Array,
        history: &History<Array>,
        direction: &mut Array,
        scalars: &mut Array,
    ) -> Result<()> {
        lbfgs::direction(table, gradient, history, direction, scalars)
    }

    fn lbfgs_push(
        &mut self,
        table: &Table,
        lengths: &Array,
        direction: &Array,
        new_gradient: &Array,
        gradient: &mut Array,
        origin: &mut Array,
        history: &mut History<Array>,
        scalars: &mut Array,
    ) -> Result<()> {
        lbfgs::push(table, lengths, direction, new_gradient, gradient, origin, history, scalars)
    }
}
