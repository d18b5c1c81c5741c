//! Another engine's cache: no queries, so no attention, but all that keys and values tell.

use std::path::Path;

use kvsculpt::Result;
use kvsculpt::cache::Dtype;
use kvsculpt::formats::{Cache, LayerFacts as Stored, LayerPairs};

use super::statistics::{first_norm, numbers};
use super::{HeadFacts, Inspection, LayerFacts, RopeFacts, file_bytes, others};

pub(super) fn of_cache(path: &Path, cache: &Cache) -> Result<Inspection> {
    let layers = cache
        .layers
        .iter()
        .enumerate()
        .map(|(number, facts)| Ok(layer(facts, &cache.read(number)?)));
    let rope = cache.rope.as_ref().zip(cache.pairing).map(|(rope, pairing)| RopeFacts {
        dim: rope.dim,
        pairing,
        unsupported: rope.rope(pairing).ok().and_then(|rope| rope.unsupported),
    });
    Ok(Inspection {
        file: path.to_owned(),
        bytes: file_bytes(path)?,
        format: cache.format.to_string(),
        shard: None,
        tokens: Some(cache.tokens),
        next_position: cache.layers.first().map(|layer| layer.next_position),
        scale: None,
        rope,
        layers: layers.collect::<Result<_>>()?,
        made: None,
        metadata: others(&cache.metadata),
        budgets: None,
    })
}

fn layer(facts: &Stored, pairs: &LayerPairs) -> LayerFacts {
    let mut first = 0;
    let heads = facts.lengths.iter().enumerate().map(|(head, &length)| {
        let rows = first..first + length;
        first = rows.end;
        let value = &pairs.value[rows.start * facts.value_dim..rows.end * facts.value_dim];
        HeadFacts {
            head,
            pairs: length,
            key: numbers(&pairs.key[rows.start * facts.dim..rows.end * facts.dim], facts.dim),
            value: numbers(value, facts.value_dim),
            attention: None,
            first_values: Some(first_norm(value, facts.value_dim)),
            bias: None,
        }
    });
    let heads = heads.collect();
    let bytes = |channels: usize, dtype: Dtype| facts.pairs() * channels * dtype.bytes();
    LayerFacts {
        layer: facts.index,
        kv_heads: facts.lengths.len(),
        query_heads: None,
        dim: facts.dim,
        value_dim: facts.value_dim,
        dtype: if facts.key_dtype == facts.value_dtype {
            facts.key_dtype
        } else {
            Dtype::F32
        },
        bytes: (bytes(facts.dim, facts.key_dtype) + bytes(facts.value_dim, facts.value_dtype)) as u64,
        queries: Default::default(),
        heads,
    }
}
