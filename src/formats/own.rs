//! Our own files as caches without queries, and the texts in which they keep what other formats say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Format;
use super::cache::{Cache, LayerFacts, LayerPairs, Layers, RopeFacts};
use super::known::Known;
use super::target::Plan;
use crate::cache::{Capture, Compressed, CompressedLayer, Container, Dtype, Pairing};
use crate::engine::Dims;
use crate::error::{Error, Result};

/// Texts that every file states anew.
const STATED: [&str; 10] = [
    "format",
    "version",
    "tokens",
    "next_position",
    "rope_theta",
    "rope_dim",
    "rope_pairing",
    "rope_scaling",
    "token_ids",
    "positions",
];

impl Layers for Capture {
    fn read(&self, _number: usize, facts: &LayerFacts) -> Result<LayerPairs> {
        let (key, value) = self.key_and_value(facts.index)?;
        Ok(LayerPairs { key, value, bias: None })
    }

    fn capture(&self) -> Option<&Capture> {
        Some(self)
    }

    fn into_capture(self: Box<Self>) -> Option<Capture> {
        Some(*self)
    }
}

/// Layers in memory.
impl Layers for Vec<CompressedLayer> {
    fn read(&self, number: usize, _facts: &LayerFacts) -> Result<LayerPairs> {
        let layer = self
            .get(number)
            .ok_or_else(|| Error::shape("cache", format!("has no layer number {number} from 0")))?;
        Ok(LayerPairs {
            key: layer.key.clone(),
            value: layer.value.clone(),
            bias: layer.bias.clone(),
        })
    }
}

/// A capture's container with what the caller knows put over what it says. What contradicts its positions or shapes is found later.
pub(super) fn told(mut container: Container, known: &Known) -> Container {
    let mut set = |key: &str, text: Option<String>| {
        if let Some(text) = text {
            container.metadata.insert(key.to_owned(), text);
        }
    };
    set("model", known.model.clone());
    set("architecture", known.architecture.clone());
    set("token_ids", known.token_ids.as_deref().map(list));
    set("rope_pairing", known.pairing.map(|pairing| written(pairing).to_owned()));
    if let Some(rope) = &known.rope {
        set("rope_theta", Some(format!("{:?}", rope.theta)));
        set("rope_dim", Some(rope.dim.to_string()));
        container.metadata.remove("rope_scaling");
        if let Some(scaling) = &rope.scaling {
            container.metadata.insert("rope_scaling".to_owned(), scaling.clone());
        }
    }
    container
}

pub(super) fn written(pairing: Pairing) -> &'static str {
    match pairing {
        Pairing::Half => "half",
        Pairing::Interleaved => "interleaved",
    }
}

pub(super) fn capture(capture: Capture) -> Result<Cache> {
    let layers = facts(&capture, &capture.layers, capture.tokens)?;
    let metadata = capture.metadata.clone();
    from_texts(capture.path.clone(), Format::Capture, layers, metadata, Box::new(capture))
}

/// A capture's layers as if every head had so many pairs.
pub(super) fn facts(capture: &Capture, layers: &[usize], pairs: usize) -> Result<Vec<LayerFacts>> {
    let facts = layers.iter().map(|&index| {
        let shape = capture.shape(index)?;
        Ok(LayerFacts {
            index,
            lengths: vec![pairs; shape.kv_heads],
            dim: shape.dim,
            value_dim: shape.value_dim,
            key_dtype: shape.dtype,
            value_dtype: shape.dtype,
            bias: false,
            next_position: capture.next_position,
        })
    });
    facts.collect()
}

pub(super) fn compressed(path: PathBuf, compressed: Compressed) -> Result<Cache> {
    let next_position = compressed.next_position()?;
    compressed.check()?;
    let facts = |layer: &CompressedLayer| LayerFacts {
        index: layer.index,
        lengths: layer.lengths.clone(),
        dim: layer.dim,
        value_dim: layer.value_dim,
        key_dtype: layer.dtype,
        value_dtype: layer.dtype,
        bias: layer.bias.is_some(),
        next_position,
    };
    let layers = compressed.layers.iter().map(facts).collect();
    from_texts(path, Format::Compressed, layers, compressed.metadata, Box::new(compressed.layers))
}

/// A cache whose metadata are texts as our files have them; what cannot be understood among them is as if it were not there.
pub(super) fn from_texts(
    path: PathBuf,
    format: Format,
    layers: Vec<LayerFacts>,
    mut metadata: BTreeMap<String, String>,
    source: Box<dyn Layers>,
) -> Result<Cache> {
    let number = |key: &str| metadata.get(key).and_then(|text| text.parse::<u32>().ok());
    let whole = |key: &str| number(key).and_then(|number| usize::try_from(number).ok());
    let list = |key: &str| metadata.get(key).and_then(|text| serde_json::from_str::<Vec<i32>>(text).ok());
    let theta = metadata.get("rope_theta").and_then(|text| text.parse().ok());
    // Before the frequencies are allocated: no head has more channels than this.
    let rotates = whole("rope_dim").filter(|&dim| layers.iter().all(|layer| dim <= layer.dim));
    let rope = theta.zip(rotates).map(|(theta, dim)| RopeFacts {
        theta,
        dim,
        scaling: metadata.get("rope_scaling").cloned(),
    });
    let rope = rope.filter(|facts| facts.rope(Pairing::Half).is_ok());
    let pairing = match metadata.get("rope_pairing").map(String::as_str) {
        Some("half") => Some(Pairing::Half),
        Some("interleaved") => Some(Pairing::Interleaved),
        _ => None,
    };
    let stored = layers.iter().map(LayerFacts::longest).max().unwrap_or(0);
    let positions = list("positions").filter(|positions| layers.iter().all(|layer| layer.length() == Some(positions.len())));
    let (tokens, token_ids) = (whole("tokens").unwrap_or(stored), list("token_ids"));
    for key in STATED {
        metadata.remove(key);
    }
    Ok(Cache {
        path,
        format,
        layers,
        tokens,
        token_ids,
        positions,
        rope,
        pairing,
        metadata,
        source,
    })
}

/// The texts of a file that stands in the plan's frame.
pub(super) fn texts(plan: &Plan<'_>) -> BTreeMap<String, String> {
    let cache = plan.cache;
    let mut texts = cache.metadata.clone();
    let mut set = |key: &str, text: Option<String>| {
        if let Some(text) = text {
            texts.insert(key.to_owned(), text);
        }
    };
    set("tokens", Some(cache.tokens.to_string()));
    set("next_position", plan.next_position().map(|position| position.to_string()));
    if let Some(rope) = &cache.rope {
        // As debugging prints it: the shortest text that reads back the same, without hundreds of digits.
        set("rope_theta", Some(format!("{:?}", rope.theta)));
        set("rope_dim", Some(rope.dim.to_string()));
        set("rope_scaling", rope.scaling.clone());
    }
    set("rope_pairing", plan.pairing.map(|pairing| written(pairing).to_owned()));
    set("token_ids", cache.token_ids.as_ref().map(|ids| list(ids)));
    set("positions", plan.positions.as_ref().map(|positions| list(positions)));
    if plan.turned()
        && let Some(layer) = cache.layers.first()
        && !cache.metadata.contains_key("source_next_position")
    {
        set("source_next_position", Some(layer.next_position.to_string()));
    }
    texts
}

pub(super) fn list(numbers: &[i32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
    format!("[{}]", numbers.join(","))
}

/// Writes a compressed cache, whatever it was before; returns its bytes.
pub(super) fn write_compressed(plan: &Plan<'_>, path: &Path) -> Result<u64> {
    if plan.next_position().is_none() {
        return Err(plan.cache.error(format!(
            "has layers that stand before different positions, and a compressed cache has one next position; turn them to one with --frame{}",
            plan.original().map(|position| format!(" {position}, where the original cache stood")).unwrap_or_default()
        )));
    }
    let mut layers = Vec::new();
    for (number, facts) in plan.layers.iter().enumerate() {
        check_channels(plan, facts)?;
        let pairs = plan.read(number)?;
        layers.push(CompressedLayer {
            index: facts.index,
            dim: facts.dim,
            value_dim: facts.value_dim,
            lengths: facts.lengths.clone(),
            key: pairs.key,
            value: pairs.value,
            bias: pairs.bias,
            // The plan has one for both.
            dtype: facts.key_dtype,
        });
    }
    let metadata = texts(plan);
    Compressed { layers, metadata }.write(path)
}

fn check_channels(plan: &Plan<'_>, facts: &LayerFacts) -> Result<()> {
    match [facts.dim, facts.value_dim].into_iter().find(|&dim| !Dims::is_served(dim)) {
        None => Ok(()),
        Some(dim) => Err(plan.cache.error(format!(
            "has {dim} channels a head in layer {}, and a compressed cache holds multiples of 4 from 4 to {}; choose another format",
            facts.index,
            Dims::MOST
        ))),
    }
}

/// Writes a capture again, all of it in the dtype of the plan's layers; nothing else can become one.
pub(super) fn write_capture(plan: &Plan<'_>, path: &Path) -> Result<u64> {
    let Some(capture) = plan.cache.source.capture() else {
        return Err(plan.cache.error(format!(
            "is a {} and holds no queries, which a capture needs; `--to compressed` keeps all that is there",
            plan.cache.format
        )));
    };
    if plan.turned() || plan.pairing != plan.cache.pairing {
        return Err(plan
            .cache
            .error("is a capture, whose queries stand in the frame and pairing that its metadata say; leave out --frame and --pairing"));
    }
    capture.write(path, plan.layers.first().map_or(Dtype::F32, |layer| layer.key_dtype))
}
