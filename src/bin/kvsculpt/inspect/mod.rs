//! `kvsculpt inspect`: what a file holds.

mod foreign;
mod pieces;
mod statistics;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kvsculpt::budget::Budgets;
use kvsculpt::cache::{Capture, Compressed, CompressedLayer, Dtype, Layer, Pairing, Part};
use kvsculpt::formats::{Cache, Format, detect};
use kvsculpt::{Error, Result};
use serde::Serialize;

use crate::formats::KnownArguments;
use crate::made::Made;
use crate::{Talk, print, print_json};
pub(crate) use pieces::LengthFacts;
use statistics::{Attention, Numbers, attention, numbers};

/// Tell what a capture, a compressed cache or another engine's cache holds; or error curves, a part, budgets, sensitivities or query statistics.
///
/// Shapes, dtypes and bytes; by layer the ranges and norms of keys and values, the attention on the first and the newest pairs, and
/// channels that stand out; of a cache without queries the size of the first values instead, which is small where attention rests on
/// them; of a compressed cache or a part of one each head's length, by what method it was made, and what came of it. Of curves the range of
/// lengths and errors, of budgets the lengths, of sensitivities what an error weighs in each layer and head.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file to look at
    file: PathBuf,
    /// Print one JSON object, with every head, instead of the tables
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    known: KnownArguments,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Inspection {
    file: PathBuf,
    /// Bytes of the whole file.
    bytes: u64,
    format: String,
    /// Which part of the heads it has, where it is a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_position: Option<usize>,
    /// Softmax scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope: Option<RopeFacts>,
    layers: Vec<LayerFacts>,
    /// How a compressed cache was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    made: Option<Made>,
    /// What else the metadata say, as they stand.
    metadata: BTreeMap<String, String>,
    #[serde(skip)]
    budgets: Option<Budgets>,
}

#[derive(Debug, Serialize)]
struct RopeFacts {
    dim: usize,
    pairing: Pairing,
    #[serde(skip_serializing_if = "Option::is_none")]
    unsupported: Option<String>,
}

#[derive(Debug, Serialize)]
struct LayerFacts {
    layer: usize,
    kv_heads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_heads: Option<usize>,
    dim: usize,
    value_dim: usize,
    dtype: Dtype,
    /// Bytes of keys, values and biases as they are stored.
    bytes: u64,
    /// Rows a query head, by kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    queries: BTreeMap<&'static str, usize>,
    heads: Vec<HeadFacts>,
}

#[derive(Debug, Serialize)]
struct HeadFacts {
    head: usize,
    /// Pairs stored.
    pairs: usize,
    key: Numbers,
    value: Numbers,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<Attention>,
    /// The mean norm of the first 4 values over that of all, where it is not known where attention goes: small at sinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_values: Option<f64>,
    /// Least and largest bias, where pairs have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    bias: Option<(f32, f32)>,
}

pub(crate) fn run(arguments: &Arguments, _talk: Talk) -> Result<()> {
    let path = &arguments.file;
    let format = pieces::format(path);
    if let Some(piece) = pieces::of(path, format.as_deref())? {
        return if arguments.json { print_json(&piece) } else { print(&piece.text()) };
    }
    if format.as_deref() == Some(pieces::PART) {
        return tell(&of_part(path, &Part::read(path)?)?, arguments.json);
    }
    let found = match detect(path)? {
        Format::Capture => of_capture(path, &Capture::open(path)?)?,
        Format::Compressed => of_compressed(path, &Compressed::read(path)?)?,
        _ => foreign::of_cache(path, &Cache::open(path, &arguments.known.known()?)?)?,
    };
    tell(&found, arguments.json)
}

fn tell(found: &Inspection, json: bool) -> Result<()> {
    if json {
        return print_json(found);
    }
    print(&text::text(found))
}

/// Bytes of the file itself.
fn file_bytes(path: &Path) -> Result<u64> {
    let about = std::fs::metadata(path).map_err(|error| Error::File {
        path: path.to_owned(),
        reason: format!("cannot be looked at: {error}"),
    })?;
    Ok(about.len())
}

fn of_capture(path: &Path, capture: &Capture) -> Result<Inspection> {
    let layers = capture.layers.iter().map(|&index| Ok(captured(capture, &capture.layer(index)?)));
    Ok(Inspection {
        file: path.to_owned(),
        bytes: file_bytes(path)?,
        format: "kv-capture".to_owned(),
        shard: None,
        tokens: Some(capture.tokens),
        next_position: Some(capture.next_position),
        scale: Some(capture.scale),
        rope: Some(RopeFacts {
            dim: capture.rope.dim(),
            pairing: capture.rope.pairing,
            unsupported: capture.rope.unsupported.clone(),
        }),
        layers: layers.collect::<Result<_>>()?,
        made: None,
        metadata: others(&capture.metadata),
        budgets: None,
    })
}

fn captured(capture: &Capture, layer: &Layer) -> LayerFacts {
    let attention = attention(capture, layer);
    let heads = (0..layer.kv_heads).map(|head| {
        let part = |channels: usize| head * layer.tokens * channels..(head + 1) * layer.tokens * channels;
        HeadFacts {
            head,
            pairs: layer.tokens,
            key: numbers(&layer.key[part(layer.dim)], layer.dim),
            value: numbers(&layer.value[part(layer.value_dim)], layer.value_dim),
            attention: attention.as_ref().map(|heads| heads[head]),
            first_values: None,
            bias: None,
        }
    });
    let kinds = [
        ("query", &layer.query),
        ("reference_query", &layer.reference_query),
        ("probe_query", &layer.probe_query),
    ];
    let queries = kinds.into_iter().filter_map(|(kind, rows)| Some((kind, rows.as_ref()?.rows)));
    LayerFacts {
        layer: layer.index,
        kv_heads: layer.kv_heads,
        query_heads: Some(layer.query_heads),
        dim: layer.dim,
        value_dim: layer.value_dim,
        dtype: layer.dtype,
        bytes: (layer.kv_heads * layer.tokens * (layer.dim + layer.value_dim) * layer.dtype.bytes()) as u64,
        queries: queries.collect(),
        heads: heads.collect(),
    }
}

fn of_compressed(path: &Path, compressed: &Compressed) -> Result<Inspection> {
    let number = |key: &str| compressed.metadata.get(key)?.parse().ok();
    let tokens: Option<usize> = compressed.metadata.get("tokens").and_then(|text| text.parse().ok());
    let lengths = compressed.layers.iter().map(|layer| (layer.index, layer.lengths.clone()));
    Ok(Inspection {
        file: path.to_owned(),
        bytes: file_bytes(path)?,
        format: "kv-compressed".to_owned(),
        shard: None,
        tokens,
        next_position: compressed.next_position().ok(),
        scale: number("softmax_scale"),
        rope: None,
        layers: compressed.layers.iter().map(stored).collect(),
        made: Some(Made::of(compressed)),
        metadata: others(&compressed.metadata),
        // Of a file whose lengths and tokens disagree there is no picture.
        budgets: tokens.and_then(|tokens| Budgets::new(tokens, lengths.collect()).ok()),
    })
}

/// A part is looked at as what it has of the whole.
fn of_part(path: &Path, part: &Part) -> Result<Inspection> {
    let mut found = of_compressed(path, &part.alone())?;
    (found.format, found.shard) = (pieces::PART.to_owned(), Some(part.shard()?.to_string()));
    // Lengths by layer would take its heads for the first ones.
    found.budgets = None;
    let heads = found.layers.iter_mut().flat_map(|layer| &mut layer.heads);
    for (facts, (_, head)) in heads.zip(part.heads()) {
        facts.head = head;
    }
    Ok(found)
}

fn stored(layer: &CompressedLayer) -> LayerFacts {
    let heads = layer.heads().enumerate().map(|(head, stored)| HeadFacts {
        head,
        pairs: stored.length,
        key: numbers(stored.key, layer.dim),
        value: numbers(stored.value, layer.value_dim),
        attention: None,
        first_values: None,
        bias: stored.bias.map(|bias| {
            let fold = |choose: fn(f32, f32) -> f32| bias.iter().copied().reduce(choose).unwrap_or(0.0);
            (fold(f32::min), fold(f32::max))
        }),
    });
    let pairs: usize = layer.lengths.iter().sum();
    let biases = layer.bias.as_ref().map_or(0, |bias| 4 * bias.len());
    LayerFacts {
        layer: layer.index,
        kv_heads: layer.lengths.len(),
        query_heads: None,
        dim: layer.dim,
        value_dim: layer.value_dim,
        dtype: layer.dtype,
        bytes: (pairs * (layer.dim + layer.value_dim) * layer.dtype.bytes() + biases) as u64,
        queries: BTreeMap::new(),
        heads: heads.collect(),
    }
}

/// Metadata but those that stand in fields of their own.
fn others(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const TOLD: [&str; 8] = [
        "format",
        "version",
        "tokens",
        "next_position",
        "softmax_scale",
        "report",
        "options",
        "rope_dim",
    ];
    let others = metadata.iter().filter(|(key, _)| !TOLD.contains(&key.as_str()));
    others.map(|(key, text)| (key.clone(), text.clone())).collect()
}
