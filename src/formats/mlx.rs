//! mlx-lm's prompt caches, as `save_prompt_cache` writes and `mlx_lm.generate --prompt-cache-file` reads them.
//!
//! Tensors `"{i}.0"` (keys) and `"{i}.1"` (values), `[1, kv_heads, pairs, dim]`; in the newer layout also `"{i}.2"`, how many of
//! the pairs count. Metadata are a flattened list: the older layout's has each layer's state in texts, the user's own texts, and the
//! class of each layer; the newer has the user's texts, the classes, and which tensors are plain numbers.

use std::collections::BTreeMap;
use std::path::Path;

use super::cache::Cache;
use super::hugging_face::{Tensors, entry, facts};
use super::own;
use super::target::Plan;
use super::{Format, MlxLayout};
use crate::cache::{Container, Entry, Output, header, shown};
use crate::error::{Error, Result};

/// Where our own facts are kept among the user's texts: one JSON object.
const OURS: &str = "kvsculpt";

impl MlxLayout {
    /// Beginnings of the names of the user's texts and of the layers' classes.
    fn prefixes(self) -> (&'static str, &'static str) {
        match self {
            Self::Texts => ("1.", "2."),
            Self::Scalars => ("0.", "1."),
        }
    }
}

/// The layout of a container that is a prompt cache.
pub(super) fn layout(container: &Container) -> Option<MlxLayout> {
    let third = container.metadata.get("2.0")?;
    if !third.is_empty() {
        Some(MlxLayout::Texts)
    } else if container.metadata.contains_key("1.0") {
        Some(MlxLayout::Scalars)
    } else {
        None
    }
}

pub(super) fn open(container: Container, layout: MlxLayout) -> Result<Cache> {
    let (users, classes) = layout.prefixes();
    let mut layers = Vec::new();
    let (mut names, mut capacity) = (Vec::new(), Vec::new());
    let mut expected = 0;
    while let Some(class) = container.metadata.get(&format!("{classes}{}", layers.len())) {
        let index = layers.len();
        let counts = check_class(&container, layout, index, class)?;
        let (key, value) = (format!("{index}.0"), format!("{index}.1"));
        let mut found = facts(&container, index, &key, &value)?;
        capacity.push(found.longest());
        expected += 2;
        if counts {
            let length = offset(&container, index, found.longest())?;
            found.lengths.fill(length);
            found.next_position = length;
            expected += 1;
        }
        layers.push(found);
        names.push([key, value]);
    }
    if layers.is_empty() || container.tensors.len() != expected {
        return Err(container.error(format!(
            "has {} tensors, and its metadata tell of {} layers with {expected}; save the prompt cache again",
            container.tensors.len(),
            layers.len()
        )));
    }
    let texts = texts(&container, users)?;
    let path = container.path().to_owned();
    let tensors = Tensors {
        container,
        names,
        capacity,
    };
    own::from_texts(path, Format::Mlx(layout), layers, texts, Box::new(tensors))
}

/// Refuses layers that are no plain caches; whether a tensor counts the layer's pairs.
fn check_class(container: &Container, layout: MlxLayout, index: usize, class: &str) -> Result<bool> {
    let why = match class {
        "KVCache" | "ConcatenateKVCache" => {
            if layout == MlxLayout::Texts && container.metadata.get(&format!("0.{index}")).is_some_and(|state| !state.is_empty()) {
                return Err(container.error(format!(
                    "has a state text for layer {index}, and a {class} has none; save the prompt cache again"
                )));
            }
            return Ok(layout == MlxLayout::Scalars && class == "KVCache");
        }
        "QuantizedKVCache" => "is quantised; make the prompt cache without --kv-bits",
        "RotatingKVCache" | "BatchRotatingKVCache" => {
            "keeps a window of positions that moves; make the prompt cache without --max-kv-size, of a model without sliding windows"
        }
        "BatchKVCache" => "holds several sequences; extract one",
        _ => "is no plain cache of keys and values, and only such can be converted",
    };
    Err(container.error(format!("has a {} in layer {index}, which {why}", shown(class))))
}

/// How many of a layer's pairs count.
fn offset(container: &Container, index: usize, capacity: usize) -> Result<usize> {
    let name = format!("{index}.2");
    let [] = container.shape(&name, [])?;
    let offset = container.integers(&name)?.first().copied().unwrap_or(0);
    let length = usize::try_from(offset).ok().filter(|length| (1..=capacity).contains(length));
    length.ok_or_else(|| {
        container.tensor_error(
            &name,
            format!("counts {offset} pairs, and layer {index} has room for {capacity}; save the prompt cache again"),
        )
    })
}

/// The user's texts by our names.
fn texts(container: &Container, prefix: &str) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for (key, text) in &container.metadata {
        let Some(key) = key.strip_prefix(prefix) else { continue };
        match key {
            "model" => {
                texts.insert("model".to_owned(), text.clone());
            }
            OURS => {
                let ours: BTreeMap<String, String> = serde_json::from_str(text).map_err(|error| {
                    container.error(format!("has metadata `{prefix}{OURS}` that cannot be read ({error}); leave it out"))
                })?;
                // The user's word on the model counts more.
                for (key, text) in ours {
                    texts.entry(key).or_insert(text);
                }
            }
            other => {
                texts.insert(format!("mlx.{other}"), text.clone());
            }
        }
    }
    Ok(texts)
}

/// Fails now as [`write`] would.
pub(super) fn check(plan: &Plan<'_>, layout: MlxLayout) -> Result<()> {
    for (number, facts) in plan.layers.iter().enumerate() {
        if facts.index != number {
            return Err(plan.cache.error(format!(
                "has no layer {number}, and an mlx-lm prompt cache holds all layers of a model; compress all of them"
            )));
        }
    }
    metadata(plan, layout).map(drop)
}

pub(super) fn write(plan: &Plan<'_>, path: &Path, layout: MlxLayout) -> Result<u64> {
    check(plan, layout)?;
    let mut output = Output::create(path)?;
    output.header(&metadata(plan, layout)?, &entries(plan, layout))?;
    if layout == MlxLayout::Scalars {
        for facts in &plan.layers {
            let length = i32::try_from(facts.longest()).map_err(|_| {
                plan.cache.error(format!(
                    "has {} pairs in layer {}, too many for mlx-lm",
                    facts.longest(),
                    facts.index
                ))
            })?;
            output.bytes(&length.to_le_bytes())?;
        }
    }
    for (number, facts) in plan.layers.iter().enumerate() {
        let pairs = plan.read(number)?;
        let label = |part: usize| format!("{number}.{part}");
        output.floats(&label(0), &pairs.key, facts.key_dtype, |at| facts.place(at, facts.dim))?;
        output.floats(&label(1), &pairs.value, facts.value_dtype, |at| facts.place(at, facts.value_dim))?;
    }
    output.finish()
}

/// Bytes of the file beside its pairs.
pub(super) fn beside(plan: &Plan<'_>, layout: MlxLayout) -> Result<u64> {
    let header = header(&plan.cache.path, &metadata(plan, layout)?, &entries(plan, layout))?;
    let lengths = if layout == MlxLayout::Scalars { 4 * plan.layers.len() } else { 0 };
    Ok((header.len() + lengths) as u64)
}

/// The tensors, those of the lengths first.
fn entries(plan: &Plan<'_>, layout: MlxLayout) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    if layout == MlxLayout::Scalars {
        for number in 0..plan.layers.len() {
            entries.push((format!("{number}.2"), "I32", Vec::new(), 4));
        }
    }
    for (number, facts) in plan.layers.iter().enumerate() {
        entries.push(entry(format!("{number}.0"), facts, facts.dim, facts.key_dtype));
        entries.push(entry(format!("{number}.1"), facts, facts.value_dim, facts.value_dtype));
    }
    entries
}

/// The flattened list of metadata.
fn metadata(plan: &Plan<'_>, layout: MlxLayout) -> Result<BTreeMap<String, String>> {
    let mut ours = own::texts(plan);
    // It is the stored length here, layer by layer.
    ours.remove("next_position");
    let model = ours.remove("model").ok_or_else(|| {
        Error::option(
            "--model",
            "mlx_lm.generate refuses a prompt cache that does not name its model; give the name or folder that it loads",
        )
    })?;
    let (users, classes) = layout.prefixes();
    let mut metadata = BTreeMap::new();
    metadata.insert(format!("{users}tokenizer_config"), "{}".to_owned());
    metadata.insert(format!("{users}model"), model);
    let theirs: Vec<String> = ours.keys().filter(|key| key.starts_with("mlx.")).cloned().collect();
    for key in theirs {
        if let (Some(text), Some(name)) = (ours.remove(&key), key.strip_prefix("mlx.")) {
            metadata.insert(format!("{users}{name}"), text);
        }
    }
    let texts = serde_json::to_string(&ours).map_err(|error| plan.cache.error(format!("has metadata that cannot be written: {error}")))?;
    metadata.insert(format!("{users}{OURS}"), texts);
    if layout == MlxLayout::Scalars {
        metadata.insert("2.0".to_owned(), String::new());
    }
    for number in 0..plan.layers.len() {
        metadata.insert(format!("{classes}{number}"), "KVCache".to_owned());
        match layout {
            MlxLayout::Texts => {
                metadata.insert(format!("0.{number}"), String::new());
            }
            MlxLayout::Scalars => {
                metadata.insert(format!("2.{}.0", number + 1), format!("{number}.2"));
                metadata.insert(format!("2.{}.1", number + 1), "scalar".to_owned());
            }
        }
    }
    Ok(metadata)
}
