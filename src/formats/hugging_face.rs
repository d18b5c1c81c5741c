//! Safetensors of `[1, kv_heads, tokens, dim]` tensors, as users of Hugging Face's `DynamicCache` write them.
//!
//! There is no official format, so names are understood by their parts: one layer number, one word for key or value, and words
//! that say nothing (`layers.3.keys`, `key_cache.3`, `past_key_values.3.value`, `layer_3_k`, `3.0` and `3.1`). Written are
//! `layers.{i}.key` and `layers.{i}.value`, with the facts of our own files as metadata.

use std::collections::BTreeMap;
use std::path::Path;

use super::Format;
use super::cache::{Cache, LayerFacts, LayerPairs, Layers};
use super::known::Known;
use super::own;
use super::target::Plan;
use crate::cache::{Container, Dtype, Entry, Output, header, shown};
use crate::error::{Error, Result};

/// Words of a name that say neither layer nor kind.
const PLAIN: [&str; 11] = [
    "layers", "layer", "l", "h", "present", "cache", "kv", "model", "self", "attn", "states",
];
const SEPARATORS: [char; 3] = ['.', '_', '/'];
/// Names of the whole, in which the words for keys and values say nothing.
const PREFIXES: [&str; 2] = ["past_key_values", "past_key_value"];
const KEY: [&str; 3] = ["k", "key", "keys"];
const VALUE: [&str; 3] = ["v", "value", "values"];

/// Keys and values in a container by name, of one batch.
#[derive(Debug)]
pub(super) struct Tensors {
    pub(super) container: Container,
    /// Names of the key and the value of each layer.
    pub(super) names: Vec<[String; 2]>,
    /// Rows a head that there is room for, of which the first are taken.
    pub(super) capacity: Vec<usize>,
}

impl Layers for Tensors {
    fn digest(&self) -> Result<Option<String>> {
        self.container.digest().map(Some)
    }

    fn read(&self, number: usize, facts: &LayerFacts) -> Result<LayerPairs> {
        let (Some([key, value]), Some(&capacity)) = (self.names.get(number), self.capacity.get(number)) else {
            return Err(Error::shape("cache", format!("has no layer number {number} from 0")));
        };
        let read = |name: &str, channels: usize| {
            let place = |element: usize| {
                let row = element / channels;
                format!("head {}, pair {}, channel {}", row / capacity, row % capacity, element % channels)
            };
            let mut data = self.container.floats(name, place)?;
            let length = facts.longest();
            if length < capacity {
                for head in 1..facts.lengths.len() {
                    let start = head * capacity * channels;
                    data.copy_within(start..start + length * channels, head * length * channels);
                }
                data.truncate(facts.lengths.len() * length * channels);
            }
            Ok(data)
        };
        Ok(LayerPairs {
            key: read(key, facts.dim)?,
            value: read(value, facts.value_dim)?,
            bias: None,
        })
    }
}

pub(super) fn open(container: Container, known: &Known) -> Result<Cache> {
    let mut found: BTreeMap<usize, [Option<String>; 2]> = BTreeMap::new();
    for name in container.tensors.keys() {
        let (layer, kind) = parse(name).ok_or_else(|| {
            container.tensor_error(
                name,
                "is no key or value of a layer by its name; call them layers.0.key and layers.0.value, key_cache.0 and value_cache.0, or 0.0 and 0.1",
            )
        })?;
        let place = &mut found.entry(layer).or_default()[kind];
        if let Some(other) = place {
            return Err(container.tensor_error(name, format!("means the same as `{}`; leave one of them out", shown(other))));
        }
        *place = Some(name.clone());
    }
    if found.is_empty() {
        return Err(container.error("holds no tensors; a cache has a key and a value of every layer"));
    }
    let (mut layers, mut names, mut capacity) = (Vec::new(), Vec::new(), Vec::new());
    for (index, pair) in found {
        let [Some(key), Some(value)] = pair else {
            let there = pair.into_iter().flatten().next().unwrap_or_default();
            return Err(container.tensor_error(&there, format!("is alone: layer {index} needs both a key and a value")));
        };
        let mut facts = facts(&container, index, &key, &value)?;
        facts.next_position = next_position(&container, known)?.unwrap_or(facts.next_position);
        capacity.push(facts.longest());
        layers.push(facts);
        names.push([key, value]);
    }
    let (path, metadata) = (container.path().to_owned(), container.metadata.clone());
    let tensors = Tensors {
        container,
        names,
        capacity,
    };
    own::from_texts(path, Format::HuggingFace, layers, metadata, Box::new(tensors))
}

/// The next position, where the file or the caller says it.
fn next_position(container: &Container, known: &Known) -> Result<Option<usize>> {
    let Some(text) = container.metadata.get("next_position") else {
        return Ok(known.next_position);
    };
    let position = text.parse::<u32>().ok().and_then(|position| usize::try_from(position).ok());
    let refuse = || {
        container.error(format!(
            "has metadata `next_position` \"{}\"; write a whole number from 0 to {}",
            shown(text),
            u32::MAX
        ))
    };
    position.map(Some).ok_or_else(refuse)
}

/// Layer, and 0 for a key or 1 for a value.
fn parse(name: &str) -> Option<(usize, usize)> {
    let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    let (mut numbers, mut kinds) = (Vec::new(), Vec::new());
    for word in rest.trim_start_matches(SEPARATORS).split(SEPARATORS) {
        match word.parse::<usize>() {
            // One spelling of a number counts, and no model has more layers.
            Ok(number) if number.to_string() == word && number < 1 << 16 => numbers.push(number),
            _ if KEY.contains(&word) => kinds.push(0),
            _ if VALUE.contains(&word) => kinds.push(1),
            _ if PLAIN.contains(&word) => {}
            _ => return None,
        }
    }
    match (numbers.as_slice(), kinds.as_slice()) {
        (&[layer], &[kind]) | (&[layer, kind @ (0 | 1)], &[]) => Some((layer, kind)),
        _ => None,
    }
}

/// A layer's facts from the shapes of its tensors; the next position as if nothing had been taken out.
pub(super) fn facts(container: &Container, index: usize, key: &str, value: &str) -> Result<LayerFacts> {
    let [heads, length, dim] = shape(container, key)?;
    let [value_heads, value_length, value_dim] = shape(container, value)?;
    if (heads, length) != (value_heads, value_length) {
        return Err(container.tensor_error(
            value,
            format!(
                "has {value_heads} heads of {value_length} tokens, and `{}` {heads} of {length}; both must have the same",
                shown(key)
            ),
        ));
    }
    Ok(LayerFacts {
        index,
        lengths: vec![length; heads],
        dim,
        value_dim,
        key_dtype: container.dtype(key)?,
        value_dtype: container.dtype(value)?,
        bias: false,
        next_position: length,
    })
}

/// Heads, tokens and channels of a tensor, of one batch.
fn shape(container: &Container, name: &str) -> Result<[usize; 3]> {
    if container.tensor(name)?.shape.len() == 3 {
        return container.shape(name, ["kv_heads", "tokens", "dim"]);
    }
    let [batch, rest @ ..] = container.shape(name, ["batch", "kv_heads", "tokens", "dim"])?;
    if batch != 1 {
        return Err(container.tensor_error(
            name,
            format!("has a batch of {batch} sequences, and one is what a cache holds here; save each sequence to a file of its own"),
        ));
    }
    Ok(rest)
}

pub(super) fn write(plan: &Plan<'_>, path: &Path) -> Result<u64> {
    let mut output = Output::create(path)?;
    let (texts, entries) = contents(plan);
    output.header(&texts, &entries)?;
    for (number, facts) in plan.layers.iter().enumerate() {
        let pairs = plan.read(number)?;
        output.floats(&name(facts, "key"), &pairs.key, facts.key_dtype, |at| facts.place(at, facts.dim))?;
        output.floats(&name(facts, "value"), &pairs.value, facts.value_dtype, |at| {
            facts.place(at, facts.value_dim)
        })?;
    }
    output.finish()
}

/// Bytes of the file beside its pairs.
pub(super) fn beside(plan: &Plan<'_>) -> Result<u64> {
    let (texts, entries) = contents(plan);
    Ok(header(&plan.cache.path, &texts, &entries)?.len() as u64)
}

/// The header's texts and tensors.
fn contents(plan: &Plan<'_>) -> (BTreeMap<String, String>, Vec<Entry>) {
    let mut texts = own::texts(plan);
    // What Hugging Face's own loaders look for.
    texts.insert("format".to_owned(), "pt".to_owned());
    let mut entries = Vec::new();
    for facts in &plan.layers {
        entries.push(entry(name(facts, "key"), facts, facts.dim, facts.key_dtype));
        entries.push(entry(name(facts, "value"), facts, facts.value_dim, facts.value_dtype));
    }
    (texts, entries)
}

/// The name of a layer's keys or values.
fn name(facts: &LayerFacts, kind: &str) -> String {
    format!("layers.{}.{kind}", facts.index)
}

/// The header's entry of a `[1, kv_heads, tokens, channels]` tensor.
pub(super) fn entry(name: String, facts: &LayerFacts, channels: usize, dtype: Dtype) -> Entry {
    let shape = vec![1, facts.lengths.len(), facts.longest(), channels];
    let bytes = facts.pairs() * channels * dtype.bytes();
    (name, dtype.name(), shape, bytes)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_of_many_makers() {
        for (key, value) in [
            ("layers.12.key", "layers.12.value"),
            ("layers.12.keys", "layers.12.values"),
            ("key_cache.12", "value_cache.12"),
            ("key_cache_12", "value_cache_12"),
            ("past_key_values.12.key", "past_key_values.12.value"),
            ("past_key_values.12.0", "past_key_values.12.1"),
            ("present.12.key", "present.12.value"),
            ("layer_12_key", "layer_12_value"),
            ("model.layers.12.self_attn.k", "model.layers.12.self_attn.v"),
            ("layers.12.k_cache", "layers.12.v_cache"),
            ("layers.12.key_states", "layers.12.value_states"),
            ("k_12", "v_12"),
            ("12.0", "12.1"),
        ] {
            assert_eq!(parse(key), Some((12, 0)), "{key}");
            assert_eq!(parse(value), Some((12, 1)), "{value}");
        }
        for strange in [
            "layers.12.query",
            "12",
            "12.2",
            "layers.1.2.key",
            "key",
            "layers.12.key_value",
            "layers.012.key",
            "",
            "12.0.key",
            "lm_head",
            "layers.99999999999999999999.key",
            "layers.-1.key",
            "key.12.value",
        ] {
            assert_eq!(parse(strange), None, "{strange}");
        }
    }
}
