//! What attention would lose with each pair.

use rayon::prelude::*;

use super::exponential::add_effects;
use super::layout::{self, block_rows};
use super::product::{Rows, by_transpose, target};
use super::{Array, Table, scratch};
use crate::error::Result;

/// See [`Engine::effects`](crate::engine::Engine::effects).
pub(super) fn effects(
    table: &Table,
    queries: &Array,
    keys: &Array,
    values: &Array,
    state: &Array,
    scale: f32,
    effects: &mut Array,
) -> Result<()> {
    let (dim, value_dim) = table.widths();
    let width = value_dim + 4;
    let tiles = layout::pair_tiles(&table.heads);
    let targets = effects.parts(tiles.iter().map(|(_, pairs)| pairs.clone()))?;
    let mut tasks = Vec::with_capacity(tiles.len());
    for ((head, pairs), target) in tiles.iter().zip(targets) {
        let queries = queries.part(layout::rows(head, dim))?;
        let state = state.part(layout::rows(head, width))?;
        let keys = keys.part(pairs.start * dim..pairs.end * dim)?;
        let values = values.part(pairs.start * value_dim..pairs.end * value_dim)?;
        tasks.push((queries, state, keys, values, target));
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(queries, state, keys, values, effects)| {
            let columns = effects.len();
            let block = block_rows(columns);
            effects.fill(0.0);
            let norms: Vec<f32> = values
                .chunks_exact(value_dim)
                .map(|value| value.iter().map(|x| x * x).sum())
                .collect();
            scratch::with_two(block * columns, block * columns, |scores, products| {
                for (queries, state) in queries.chunks(block * dim).zip(state.chunks(block * width)) {
                    let size = queries.len() / dim * columns;
                    let (scores, products) = (&mut scores[..size], &mut products[..size]);
                    let outputs = Rows::strided(state, value_dim, width);
                    by_transpose(
                        target(scores, columns, columns),
                        scale,
                        Rows::new(queries, dim),
                        Rows::new(keys, dim),
                    );
                    by_transpose(target(products, columns, columns), -1.0, outputs, Rows::new(values, value_dim));
                    add_effects(scores, products, columns, state, value_dim, &norms, effects);
                }
            });
        });
    Ok(())
}
