//! How much a model reacts to an error in each layer and head.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::json;
use crate::cache::hexadecimal;
use crate::error::{Error, Result};

/// The field `format` of every such file.
const FORMAT: &str = "kv-sensitivity";
/// The version of the files that are read here.
const VERSION: u32 = 1;
/// Where such files come from.
const SOURCE: &str = "a file that `kvsculpt-llm sensitivity` wrote";

/// A weight for each layer and head, from a file that `kvsculpt-llm sensitivity` measured.
///
/// ```
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// use kvsculpt::budget::Weights;
///
/// let text = br#"{"format": "kv-sensitivity", "version": 1, "layers": [
///     {"layer": 0, "sensitivity": 0.5, "heads": [{"head": 0, "sensitivity": 4.0}, {"head": 1, "sensitivity": 1.0}]},
///     {"layer": 1, "sensitivity": 2.5}]}"#;
/// let weights = Weights::from_bytes("sensitivities", text)?;
/// assert_eq!([weights.weight(0, 1), weights.weight(1, 7), weights.weight(2, 0)], [Some(1.0), Some(2.5), None]);
/// // Their mean becomes 1.
/// assert_eq!(weights.powered(1.0)?.weight(0, 0), Some(1.6));
/// # let path = folder.path().join("sensitivities.json");
/// # kvsculpt::cache::write_whole(&path, text)?;
/// assert_eq!(Weights::read(&path)?.digest(), weights.digest());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    layers: BTreeMap<usize, LayerWeights>,
}

/// What was measured of a layer, and is drawn on.
#[derive(Clone, Debug, PartialEq)]
enum LayerWeights {
    /// The layer as a whole.
    Whole(f64),
    /// Each head; the whole is then of no use.
    Heads(BTreeMap<usize, f64>),
}

impl Weights {
    /// Reads a file of sensitivities; each weight is a sensitivity. One too small to be measured (null) is taken as the
    /// smallest that was, heads' among heads and layers' among layers.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is not there, is above 64 MiB, is no JSON or of another format or version, names a layer
    /// or a head twice, measured nothing, or holds a sensitivity that is negative or not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let measured: Measured = json::read(path, json::MOST_BYTES, FORMAT, VERSION, SOURCE)?;
        Self::of(&measured).map_err(|reason| Error::file(path, reason))
    }

    /// The same for a file in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: &[u8]) -> Result<Self> {
        let path = name.into();
        let measured: Measured = json::parse(&path, bytes, FORMAT, VERSION, SOURCE)?;
        Self::of(&measured).map_err(|reason| Error::file(path, reason))
    }

    /// A short digest of all weights, by which two files of one name can be told apart.
    #[must_use]
    pub fn digest(&self) -> String {
        hexadecimal(&Sha256::digest(format!("{:?}", self.layers))[..4])
    }

    /// A head's weight, or its layer's where that layer's heads were not measured; `None` if neither was.
    #[must_use]
    pub fn weight(&self, layer: usize, head: usize) -> Option<f64> {
        match self.layers.get(&layer)? {
            LayerWeights::Whole(weight) => Some(*weight),
            LayerWeights::Heads(heads) => heads.get(&head).copied(),
        }
    }

    /// Every weight with its layer and head, ascending; without a head where a layer was measured as a whole.
    ///
    /// ```
    /// use kvsculpt::budget::Weights;
    ///
    /// let text = br#"{"format": "kv-sensitivity", "version": 1, "layers": [
    ///     {"layer": 0, "sensitivity": 0.5, "heads": [{"head": 3, "sensitivity": 4.0}]}, {"layer": 1, "sensitivity": 2.5}]}"#;
    /// let weights = Weights::from_bytes("sensitivities", text)?;
    /// assert_eq!(weights.iter().collect::<Vec<_>>(), [(0, Some(3), 4.0), (1, None, 2.5)]);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (usize, Option<usize>, f64)> {
        self.layers.iter().flat_map(|(&layer, weights)| match weights {
            LayerWeights::Whole(weight) => vec![(layer, None, *weight)],
            LayerWeights::Heads(heads) => heads.iter().map(|(&head, &weight)| (layer, Some(head), weight)).collect(),
        })
    }

    /// `weight^exponent`, divided by their mean over what [`weight`](Self::weight) draws on: the heads measured, and each layer
    /// of which no head was. 1 keeps proportions, 0.5 takes roots, 0 makes all weights 1.
    ///
    /// # Errors
    /// [`Error::Shape`] if the exponent is negative or not finite, or the weights are all 0.
    pub fn powered(&self, exponent: f64) -> Result<Self> {
        if !(exponent.is_finite() && exponent >= 0.0) {
            return Err(Error::shape(
                "sensitivities",
                format!("their exponent is {exponent}; it must be finite and zero or more, as 0.5"),
            ));
        }
        let largest = self.used().fold(0.0, f64::max);
        if largest == 0.0 {
            return Err(Error::shape("sensitivities", "all are zero, and nothing can be weighed by them"));
        }
        let power = |weight: f64| (weight / largest).powf(exponent);
        let mean = self.used().map(power).sum::<f64>() / self.used().count() as f64;
        let scaled = |weight: f64| power(weight) / mean;
        let powered = |layer: &LayerWeights| match layer {
            LayerWeights::Whole(weight) => LayerWeights::Whole(scaled(*weight)),
            LayerWeights::Heads(heads) => LayerWeights::Heads(heads.iter().map(|(&head, &weight)| (head, scaled(weight))).collect()),
        };
        Ok(Self {
            layers: self.layers.iter().map(|(&index, layer)| (index, powered(layer))).collect(),
        })
    }

    /// All weights.
    fn used(&self) -> impl Iterator<Item = f64> {
        self.iter().map(|(_, _, weight)| weight)
    }

    /// From the file's contents; refusals in words.
    fn of(measured: &Measured) -> Result<Self, String> {
        let (heads, layers) = (
            measured.layers.iter().flat_map(|layer| &layer.heads).map(|head| head.sensitivity),
            measured.layers.iter().map(|layer| layer.sensitivity),
        );
        let (least_head, least_layer) = (smallest(heads), smallest(layers));
        let mut found = BTreeMap::new();
        for layer in &measured.layers {
            let place = || format!("layer {}", layer.layer);
            let mut weights = BTreeMap::new();
            for head in &layer.heads {
                let place = || format!("layer {} head {}", layer.layer, head.head);
                if weights.insert(head.head, filled(head.sensitivity, least_head, place)?).is_some() {
                    return Err(format!("{} stands there twice; make the file again", place()));
                }
            }
            let weights = if weights.is_empty() {
                LayerWeights::Whole(filled(layer.sensitivity, least_layer, place)?)
            } else {
                LayerWeights::Heads(weights)
            };
            if found.insert(layer.layer, weights).is_some() {
                return Err(format!("{} stands there twice; make the file again", place()));
            }
        }
        if found.is_empty() {
            return Err("names no layer; make the file again".to_owned());
        }
        Ok(Self { layers: found })
    }
}

fn smallest(sensitivities: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    sensitivities.flatten().min_by(f64::total_cmp)
}

/// The sensitivity, or the smallest measured where it was too small to measure.
fn filled(sensitivity: Option<f64>, least: Option<f64>, place: impl Fn() -> String) -> Result<f64, String> {
    match sensitivity.or(least) {
        None => Err("holds no sensitivity that could be measured; measure with a smaller --keep".to_owned()),
        Some(value) if value.is_finite() && value >= 0.0 => Ok(value),
        Some(value) => Err(format!(
            "the sensitivity of {} is {value}; it must be finite and zero or more: make the file again",
            place()
        )),
    }
}

/// What is needed of the file.
#[derive(Deserialize)]
struct Measured {
    layers: Vec<MeasuredLayer>,
}

#[derive(Deserialize)]
struct MeasuredLayer {
    layer: usize,
    sensitivity: Option<f64>,
    #[serde(default)]
    heads: Vec<MeasuredHead>,
}

#[derive(Deserialize)]
struct MeasuredHead {
    head: usize,
    sensitivity: Option<f64>,
}
