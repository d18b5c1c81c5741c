//! The file of budgets, meant to be looked at and edited by hand.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::{self, Write as _};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::curve::Curve;
use super::json;
use crate::cache::Output;
use crate::error::{Error, Result};

/// The field `format` of every such file.
const FORMAT: &str = "kv-budgets";
/// The field `version` of the files that are written and read here.
const VERSION: u32 = 1;

/// How many pairs each head stores, of a cache of so many tokens.
///
/// As a file: `{"format": "kv-budgets", "version": 1, "tokens": 2048, "sinks": 4, "tail": 64, "layers": {"0": [120, 2048], "1": [96, 310]}}`,
/// one layer a line, for each of its KV heads the pairs stored: sinks, free pairs and tail. `sinks` and `tail` may both be left
/// out: the options say then how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budgets {
    tokens: usize,
    fixed: Option<(usize, usize)>,
    layers: BTreeMap<usize, Vec<usize>>,
}

impl Budgets {
    /// Budgets of these layers: by layer, the lengths of its heads, each from 1 to `tokens`.
    ///
    /// # Errors
    /// [`Error::Shape`] for no layers, a layer without heads, or a length outside `1..=tokens`.
    pub fn new(tokens: usize, layers: BTreeMap<usize, Vec<usize>>) -> Result<Self> {
        let refuse = |place: String, reason: String| Err(Error::shape(place, reason));
        if layers.is_empty() {
            return refuse(
                "budgets".to_owned(),
                "no layer is named; give at least one with the lengths of its heads".to_owned(),
            );
        }
        for (layer, lengths) in &layers {
            if lengths.is_empty() {
                return refuse(
                    format!("layer {layer}"),
                    "no head has a length; give one for each of its KV heads".to_owned(),
                );
            }
            for (head, &length) in lengths.iter().enumerate() {
                if length == 0 || length > tokens {
                    return refuse(
                        format!("layer {layer} head {head}"),
                        format!("a length of {length} pairs is not one of a cache of {tokens} tokens; give 1 to {tokens}"),
                    );
                }
            }
        }
        Ok(Self {
            tokens,
            fixed: None,
            layers,
        })
    }

    /// Budgets of a cache of `tokens` pairs a head from curves and the lengths that [`allocate`](super::allocate) gave for them.
    ///
    /// # Errors
    /// [`Error::Shape`] as of [`new`](Self::new), for lengths of another number, and where a layer's heads are not 0, 1, 2 … once each.
    pub fn from_curves(tokens: usize, curves: &[Curve], lengths: &[usize]) -> Result<Self> {
        if curves.len() != lengths.len() {
            return Err(Error::shape(
                "budgets",
                format!("{} lengths for {} error curves; one a curve is needed", lengths.len(), curves.len()),
            ));
        }
        let mut heads: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
        for (curve, &length) in curves.iter().zip(lengths) {
            if heads.entry(curve.layer).or_default().insert(curve.head, length).is_some() {
                return Err(Error::shape(
                    format!("layer {} head {}", curve.layer, curve.head),
                    "it has two error curves; one a head is needed",
                ));
            }
        }
        let mut layers = BTreeMap::new();
        for (layer, lengths) in heads {
            if let Some((missing, _)) = lengths.keys().enumerate().find(|&(at, &head)| at != head) {
                return Err(Error::shape(
                    format!("layer {layer} head {missing}"),
                    "it has no error curve; one a head is needed",
                ));
            }
            layers.insert(layer, lengths.into_values().collect());
        }
        Self::new(tokens, layers)
    }

    /// The same, for heads that keep so many of their first and newest pairs as they are.
    ///
    /// # Errors
    /// [`Error::Shape`] where the two leave none of the cache's pairs, or are together more than a head's length.
    pub fn with_fixed(self, sinks: usize, tail: usize) -> Result<Self> {
        let fixed = sinks.saturating_add(tail);
        if fixed >= self.tokens {
            return Err(Error::shape(
                "budgets",
                format!(
                    "{sinks} sinks and a tail of {tail} leave no zone of {} tokens; use fewer",
                    self.tokens
                ),
            ));
        }
        for (layer, lengths) in &self.layers {
            if let Some(head) = lengths.iter().position(|&length| length <= fixed) {
                return Err(Error::shape(
                    format!("layer {layer} head {head}"),
                    format!(
                        "{} pairs are used up by {sinks} sinks and a tail of {tail}; give at least {}",
                        lengths[head],
                        fixed + 1
                    ),
                ));
            }
        }
        Ok(Self {
            fixed: Some((sinks, tail)),
            ..self
        })
    }

    /// Sinks and tail of every head, where they are given.
    #[must_use]
    pub fn fixed(&self) -> Option<(usize, usize)> {
        self.fixed
    }

    /// Pairs a head of the whole cache has.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Pairs that a head stores; `None` if the layer or the head is not named.
    #[must_use]
    pub fn length(&self, layer: usize, head: usize) -> Option<usize> {
        self.layers.get(&layer)?.get(head).copied()
    }

    /// Layers in ascending order, each with the lengths of its heads.
    pub fn layers(&self) -> impl Iterator<Item = (usize, &[usize])> {
        self.layers.iter().map(|(&layer, lengths)| (layer, lengths.as_slice()))
    }

    /// Pairs that all heads store together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.layers.values().flatten().fold(0, |sum, &length| sum.saturating_add(length))
    }

    /// Each head's length as a fraction of the tokens, by layer: the grid for a [`heat_map`](super::heat_map).
    #[must_use]
    pub fn shares(&self) -> BTreeMap<usize, Vec<Option<f64>>> {
        let share = |&length: &usize| Some(length as f64 / self.tokens as f64);
        let shares = |(&layer, lengths): (&usize, &Vec<usize>)| (layer, lengths.iter().map(share).collect());
        self.layers.iter().map(shares).collect()
    }

    /// Reads such a file.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is not there, is above 64 MiB, is no JSON or of another format or version, names a layer
    /// twice or by something else than a number, or holds what [`new`](Self::new) refuses; with the place in it.
    pub fn read(path: &Path) -> Result<Self> {
        let written: Written = json::read(path, FORMAT, VERSION, "a file of budgets as kvsculpt writes it")?;
        let mut layers = BTreeMap::new();
        for (name, lengths) in written.layers.0 {
            let layer = name
                .parse::<usize>()
                .ok()
                .filter(|_| name.bytes().all(|byte| byte.is_ascii_digit()));
            let Some(layer) = layer else {
                let name: String = name.chars().take(40).collect();
                return Err(Error::file(
                    path,
                    format!("a layer is named {name:?}; name layers by their index, as in \"0\": [120, 2048]"),
                ));
            };
            match layers.entry(layer) {
                Entry::Vacant(place) => place.insert(lengths),
                Entry::Occupied(_) => return Err(Error::file(path, format!("layer {layer} is named twice; leave one of the two"))),
            };
        }
        let budgets = Self::new(written.tokens, layers).and_then(|budgets| match (written.sinks, written.tail) {
            (Some(sinks), Some(tail)) => budgets.with_fixed(sinks, tail),
            (None, None) => Ok(budgets),
            _ => Err(Error::shape("budgets", "one of `sinks` and `tail` is given; give both or neither")),
        });
        budgets.map_err(|error| Error::file(path, error.to_string()))
    }

    /// Writes the file whole or not at all, one layer a line, in their order.
    ///
    /// # Errors
    /// [`Error::File`] for a destination that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut output = Output::create(path)?;
        output.bytes(self.to_string().as_bytes())?;
        output.finish()?;
        Ok(())
    }
}

/// The text of the file.
impl fmt::Display for Budgets {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opening = format!(
            "  \"format\": \"{FORMAT}\",\n  \"version\": {VERSION},\n  \"tokens\": {}",
            self.tokens
        );
        let fixed = self
            .fixed
            .map_or_else(String::new, |(sinks, tail)| format!(",\n  \"sinks\": {sinks},\n  \"tail\": {tail}"));
        let mut layers = String::new();
        for (at, (layer, lengths)) in self.layers.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(layers, "{comma}\n    \"{layer}\": {lengths:?}")?;
        }
        writeln!(text, "{{\n{opening}{fixed},\n  \"layers\": {{{layers}\n  }}\n}}")
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u32,
    tokens: usize,
    sinks: Option<usize>,
    tail: Option<usize>,
    layers: Named,
}

/// Lengths by name, in the order of the file: a map would keep only the last of two layers of one name.
struct Named(Vec<(String, Vec<usize>)>);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Layers;
        impl<'de> Visitor<'de> for Layers {
            type Value = Named;

            fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
                text.write_str("layers by index, each with the lengths of its heads")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
                let mut named = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    named.push(entry);
                }
                Ok(Named(named))
            }
        }
        deserializer.deserialize_map(Layers)
    }
}
