//! The file of budgets, meant to be looked at and edited by hand.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::curve::Curve;
use super::json;
use crate::cache::Output;
use crate::error::{Error, Result};
use crate::options::Options;

/// The field `format` of every such file.
const FORMAT: &str = "kv-budgets";
/// The field `version` of the files that are written and read here.
const VERSION: u32 = 1;
/// Where such files come from.
const SOURCE: &str = "a file of budgets as kvsculpt writes it";

/// How many pairs each head stores, of a cache of so many tokens.
///
/// As a file: `{"format": "kv-budgets", "version": 1, "tokens": 2048, "sinks": 4, "tail": 64, "layers": {"0": [120, 2048], "1": [96, 310]}}`,
/// one layer a line, for each of its KV heads the pairs stored: sinks, free pairs and tail. `sinks` and `tail` may both be left
/// out: the options say then how many there are. A file that [`allocate`](crate::solver::allocate) made has `options` too, by which
/// the lengths were decided, the `source` they were decided for, and where heads are cut into chunks `chunks`: for each head of each layer the free pairs of its chunks.
///
/// ```
/// use kvsculpt::budget::Budgets;
///
/// let budgets = Budgets::new(2048, [(0, vec![120, 2048]), (1, vec![96, 310])].into())?.with_fixed(4, 64)?;
/// assert_eq!((budgets.length(1, 0), budgets.total()), (Some(96), 2574));
/// assert_eq!(Budgets::from_bytes("lengths", budgets.to_string().as_bytes())?, budgets);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// ```
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// use kvsculpt::{Options, budget::{Budgets, Curve, Point}};
///
/// // Heads in two chunks: 4 sinks, 20 and 30 free pairs, 10 of the tail.
/// let budgets = Budgets::new(1000, [(5, vec![64])].into())?.with_fixed(4, 10)?.with_chunks([(5, vec![vec![20, 30]])].into())?;
/// assert!(budgets.is_shared());
/// assert_eq!((budgets.free_pairs(5, 0), budgets.fixed(), budgets.tokens()), (Some([20, 30].as_slice()), Some((4, 10)), 1000));
/// assert_eq!(budgets.shares()[&5], [Some(0.064)]);
///
/// // Of curves and what `allocate` gave for them; the file says what they were decided by, and for which capture.
/// let curves = [Curve { layer: 5, head: 0, points: vec![Point { length: 64, error: 0.1 }, Point { length: 1000, error: 0.0 }] }];
/// let decided = Budgets::from_curves(1000, &curves, &[64])?.with_options(Options::default()).with_source("a digest".into());
/// assert_eq!((decided.options(), decided.source()), (Some(&Options::default()), Some("a digest")));
/// let path = folder.path().join("budgets.json");
/// decided.write(&path)?;
/// assert_eq!(Budgets::read(&path)?, decided);
/// assert_eq!(decided.layers().collect::<Vec<_>>(), [(5, [64].as_slice())]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Budgets {
    tokens: usize,
    fixed: Option<(usize, usize)>,
    layers: BTreeMap<usize, Vec<usize>>,
    chunks: Option<BTreeMap<usize, Vec<Vec<usize>>>>,
    options: Option<Options>,
    source: Option<String>,
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
            chunks: None,
            options: None,
            source: None,
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

    /// The same, decided by these options.
    #[must_use]
    pub fn with_options(self, options: Options) -> Self {
        Self {
            options: Some(options),
            ..self
        }
    }

    /// The same, decided for what this says: a capture, its facts and the queries of it. Another is refused.
    #[must_use]
    pub fn with_source(self, source: String) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// The same, for heads that are cut into chunks: by layer and head, the free pairs of its chunks. Sinks and tail must be
    /// [given](Self::with_fixed).
    ///
    /// # Errors
    /// [`Error::Shape`] where that is not so, where these are not the heads that have lengths, or where a head's sinks, free pairs and tail
    /// do not add up to its length.
    pub fn with_chunks(self, chunks: BTreeMap<usize, Vec<Vec<usize>>>) -> Result<Self> {
        let Some((sinks, tail)) = self.fixed else {
            return Err(Error::shape(
                "budgets",
                "free pairs of chunks are given, and `sinks` and `tail` are not; give them too",
            ));
        };
        for (layer, lengths) in &self.layers {
            for (head, &length) in lengths.iter().enumerate() {
                let free = chunks.get(layer).and_then(|heads| heads.get(head));
                let sum = free.map(|free| {
                    free.iter()
                        .fold(sinks.saturating_add(tail), |sum, &pairs| sum.saturating_add(pairs))
                });
                if sum != Some(length) {
                    return Err(Error::shape(
                        format!("layer {layer} head {head}"),
                        format!(
                            "its length is {length}, and its sinks, tail and the free pairs of its `chunks` make {}; change both, or take `chunks` out",
                            sum.unwrap_or(0)
                        ),
                    ));
                }
            }
        }
        if chunks
            .iter()
            .any(|(layer, heads)| self.layers.get(layer).map(Vec::len) != Some(heads.len()))
        {
            return Err(Error::shape(
                "budgets",
                "`chunks` names heads that `layers` gives no length; name the same in both",
            ));
        }
        Ok(Self {
            chunks: Some(chunks),
            ..self
        })
    }

    /// What the lengths were decided by, where the file says it.
    #[must_use]
    pub fn options(&self) -> Option<&Options> {
        self.options.as_ref()
    }

    /// The capture, facts and queries that the lengths were decided for, where the file says it.
    #[must_use]
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Whether it is said how the chunks of heads share their free pairs.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.chunks.is_some()
    }

    /// The free pairs of each chunk of a head, where they are given.
    #[must_use]
    pub fn free_pairs(&self, layer: usize, head: usize) -> Option<&[usize]> {
        self.chunks.as_ref()?.get(&layer)?.get(head).map(Vec::as_slice)
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
        Self::of(path, json::read(path, json::MOST_BYTES, FORMAT, VERSION, SOURCE)?)
    }

    /// The same for a file in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: &[u8]) -> Result<Self> {
        let path = name.into();
        Self::of(&path, json::parse(&path, bytes, FORMAT, VERSION, SOURCE)?)
    }

    fn of(path: &Path, written: Written) -> Result<Self> {
        let layers = by_index(path, written.layers)?;
        let budgets = Self::new(written.tokens, layers).and_then(|budgets| match (written.sinks, written.tail) {
            (Some(sinks), Some(tail)) => budgets.with_fixed(sinks, tail),
            (None, None) => Ok(budgets),
            _ => Err(Error::shape("budgets", "one of `sinks` and `tail` is given; give both or neither")),
        });
        let in_file = |error: Error| Error::file(path, error.to_string());
        let mut budgets = budgets.map_err(in_file)?;
        if let Some(chunks) = written.chunks {
            budgets = budgets.with_chunks(by_index(path, chunks)?).map_err(in_file)?;
        }
        budgets.options = written.options;
        budgets.source = written.source;
        Ok(budgets)
    }

    /// Writes the file whole or not at all, one layer a line, in their order.
    ///
    /// # Errors
    /// [`Error::File`] for a destination that cannot be written, [`Error::Write`] where writing fails on the way.
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
        write!(text, "{{\n{opening}{fixed}")?;
        if let Some(options) = &self.options {
            let options = serde_json::to_string(options).map_err(|_| fmt::Error)?;
            write!(text, ",\n  \"options\": {options}")?;
        }
        if let Some(source) = &self.source {
            let source = serde_json::to_string(source).map_err(|_| fmt::Error)?;
            write!(text, ",\n  \"source\": {source}")?;
        }
        write_layers(text, "layers", &self.layers)?;
        if let Some(chunks) = &self.chunks {
            write_layers(text, "chunks", chunks)?;
        }
        writeln!(text, "\n}}")
    }
}

/// A field of the file that holds something of each layer, one a line.
fn write_layers<T: fmt::Debug>(text: &mut fmt::Formatter<'_>, field: &str, layers: &BTreeMap<usize, T>) -> fmt::Result {
    write!(text, ",\n  \"{field}\": {{")?;
    for (at, (layer, heads)) in layers.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        write!(text, "{comma}\n    \"{layer}\": {heads:?}")?;
    }
    write!(text, "\n  }}")
}

/// Layers by their index, each once.
fn by_index<T>(path: &Path, named: Named<T>) -> Result<BTreeMap<usize, T>> {
    let mut layers = BTreeMap::new();
    for (name, heads) in named.0 {
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
            Entry::Vacant(place) => place.insert(heads),
            Entry::Occupied(_) => return Err(Error::file(path, format!("layer {layer} is named twice; leave one of the two"))),
        };
    }
    Ok(layers)
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
    layers: Named<Vec<usize>>,
    chunks: Option<Named<Vec<Vec<usize>>>>,
    options: Option<Options>,
    source: Option<String>,
}

/// What is said of layers by name, in the order of the file: a map would keep only the last of two layers of one name.
struct Named<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Layers<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Layers<T> {
            type Value = Named<T>;

            fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
                text.write_str("layers by index, each with the lengths of its heads")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut named = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    named.push(entry);
                }
                Ok(Named(named))
            }
        }
        deserializer.deserialize_map(Layers(PhantomData))
    }
}
