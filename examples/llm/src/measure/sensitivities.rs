//! The file of a model's sensitivities.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kvsculpt::Options;
use serde::{Deserialize, Serialize};

use super::sensitivity::{Effect, LayerEffect, sensitivity};

/// The field `format` of every such file.
pub const FORMAT: &str = "kv-sensitivity";
/// The field `version` of the files that this program writes.
pub const VERSION: u32 = 1;

/// How much a model's words react to an error in each layer and head: one JSON object, its fields as here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivities {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The model's file.
    pub model: String,
    /// How the pieces were shortened.
    pub options: Options,
    /// Over what was measured.
    pub passages: Vec<Passage>,
    /// The largest KL of a cache that keeps everything, over the passages: what the path itself rounds, in nats a token.
    pub noise: f64,
    /// The layers, in their order.
    pub layers: Vec<Layer>,
}

/// A passage that was measured over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// The text's name.
    pub text: String,
    /// Its first character.
    pub offset: usize,
    /// Tokens in the cache.
    pub tokens: usize,
    /// Tokens that follow, over which was measured.
    pub next: usize,
    /// Digest of the capture.
    pub source: String,
    /// KL of the cache that keeps everything.
    pub noise: f64,
}

/// A layer; its figures are means over the passages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The layer's index.
    pub layer: usize,
    /// KL where this layer alone is shortened, in nats a token.
    pub kl: f64,
    /// Mean over its KV heads of the merged error on the queries of the tokens that follow.
    pub error: f64,
    /// `kl / error`; null where `kl ≤ 100 · max(noise, 1.4e-14)`, and then at most `100 · max(noise, 1.4e-14) / error`, or where
    /// `error ≤ 1e-10`, and then nothing is known of it (the numbers are those of [`sensitivity`]).
    pub sensitivity: Option<f64>,
    /// The part of all layers' `kl` that is this layer's, in [0, 1].
    pub share: f64,
    /// Its KV heads, in their order; empty where only layers were measured.
    pub heads: Vec<Head>,
}

/// A KV head; its figures are means over the passages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The KV head's index.
    pub head: usize,
    /// KL where this head alone is shortened, in nats a token.
    pub kl: f64,
    /// Its merged error on the queries of the tokens that follow.
    pub error: f64,
    /// As a layer's.
    pub sensitivity: Option<f64>,
}

impl Layer {
    /// Layer number `index` of each passage's layers, its share still to be found.
    fn mean(effects: &[Vec<LayerEffect>], index: usize, noise: f64) -> Self {
        let of = |layers: &Vec<LayerEffect>| layers[index].whole;
        let Effect { kl, error } = mean(effects.iter().map(of));
        let about = &effects[0][index];
        let head = |head: usize| Head::mean(effects.iter().map(|layers| layers[index].heads[head]), head, noise);
        Self {
            layer: about.layer,
            kl,
            error,
            sensitivity: sensitivity(Effect { kl, error }, noise),
            share: 0.0,
            heads: (0..about.heads.len()).map(head).collect(),
        }
    }
}

impl Head {
    /// A head as each passage found it.
    fn mean(effects: impl ExactSizeIterator<Item = Effect>, head: usize, noise: f64) -> Self {
        let Effect { kl, error } = mean(effects);
        Self {
            head,
            kl,
            error,
            sensitivity: sensitivity(Effect { kl, error }, noise),
        }
    }
}

/// The mean of some effects, of which there is at least one.
fn mean(effects: impl ExactSizeIterator<Item = Effect>) -> Effect {
    let count = effects.len() as f64;
    let sum = |sum: Effect, one: Effect| Effect {
        kl: sum.kl + one.kl,
        error: sum.error + one.error,
    };
    let Effect { kl, error } = effects.fold(Effect { kl: 0.0, error: 0.0 }, sum);
    Effect {
        kl: kl / count,
        error: error / count,
    }
}

impl Sensitivities {
    /// From each passage and what was found in it, layer by layer.
    ///
    /// # Errors
    /// No passage, or passages of different layers and heads.
    pub fn new(model: &str, options: &Options, found: Vec<(Passage, Vec<LayerEffect>)>) -> Result<Self> {
        let (passages, effects): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let first: &[LayerEffect] = effects.first().context("there is no passage to measure over")?;
        let shape =
            |layers: &[LayerEffect]| -> Vec<(usize, usize)> { layers.iter().map(|layer| (layer.layer, layer.heads.len())).collect() };
        ensure!(
            effects.iter().all(|layers| shape(layers) == shape(first)),
            "the passages were measured in different layers or heads"
        );
        let noise = passages.iter().map(|passage| passage.noise).fold(0.0, f64::max);
        let mut layers: Vec<Layer> = (0..first.len()).map(|index| Layer::mean(&effects, index, noise)).collect();
        let all: f64 = layers.iter().map(|layer| layer.kl).sum();
        for layer in &mut layers {
            layer.share = if all > 0.0 { layer.kl / all } else { 0.0 };
        }
        Ok(Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            model: model.to_owned(),
            options: options.clone(),
            passages,
            noise,
            layers,
        })
    }

    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// A folder that is missing or not writable, or a disk that is full.
    pub fn write(&self, path: &Path) -> Result<()> {
        let written = || -> Result<()> {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            let mut builder = tempfile::Builder::new();
            // As an ordinary new file would be, minus the user's mask; temporary files are private by default.
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let mut file = builder.prefix(".kvsculpt-").suffix(".partial").tempfile_in(folder)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        written().with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Reads such a file.
    ///
    /// # Errors
    /// A file that cannot be read or is another one, with the path.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let found: Self = serde_json::from_slice(&std::fs::read(path)?).context("is no file of sensitivities")?;
            ensure!(
                found.format == FORMAT,
                "is of the format `{}`, and `{FORMAT}` is needed",
                found.format
            );
            ensure!(
                found.version == VERSION,
                "is of version {}, and this program reads {VERSION}",
                found.version
            );
            Ok(found)
        };
        read().with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage(noise: f64) -> Passage {
        Passage {
            text: "a".into(),
            offset: 3,
            tokens: 10,
            next: 2,
            source: "0".into(),
            noise,
        }
    }

    fn effects(figures: [[f64; 2]; 4]) -> Vec<LayerEffect> {
        let [first, one, other, second] = figures.map(|[kl, error]| Effect { kl, error });
        vec![
            LayerEffect {
                layer: 0,
                whole: first,
                heads: vec![one, other],
            },
            LayerEffect {
                layer: 1,
                whole: second,
                heads: vec![second, second],
            },
        ]
    }

    fn measured() -> Sensitivities {
        let found = vec![
            (passage(1e-9), effects([[0.3, 0.1], [0.2, 0.1], [1e-8, 0.1], [0.1, 0.5]])),
            // A text that hardly disturbs the first layer, and there by chance looks a hundred times as sensitive.
            (passage(2e-9), effects([[0.3, 0.001], [0.2, 0.1], [1e-8, 0.1], [0.1, 0.5]])),
        ];
        Sensitivities::new("model", &Options::default(), found).unwrap()
    }

    #[test]
    fn sensitivity_is_the_quotient_of_the_sums() {
        let found = measured();
        let layer = &found.layers[0];
        assert!((layer.sensitivity.unwrap() - 0.6 / 0.101).abs() < 1e-9, "{layer:?}");
        assert!((layer.heads[0].sensitivity.unwrap() - 2.0).abs() < 1e-9, "{layer:?}");
        assert!((layer.share - 0.75).abs() < 1e-9 && (found.layers[1].share - 0.25).abs() < 1e-9);
        assert_eq!((found.noise, layer.heads[1].sensitivity), (2e-9, None));
    }

    #[test]
    fn a_file_comes_back_as_it_was_and_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.json");
        let found = measured();
        found.write(&path).unwrap();
        assert_eq!(Sensitivities::read(&path).unwrap(), found);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let newer = std::fs::read_to_string(&path).unwrap().replace("\"version\": 1", "\"version\": 2");
        std::fs::write(&path, newer).unwrap();
        assert!(format!("{:#}", Sensitivities::read(&path).unwrap_err()).contains("version 2"));
        assert!(found.write(&folder.path().join("missing/model.json")).is_err());
    }

    #[test]
    fn passages_of_different_heads_are_refused() {
        let mut short = effects([[0.1, 0.1]; 4]);
        short[1].heads.clear();
        let found = vec![(passage(0.0), effects([[0.1, 0.1]; 4])), (passage(0.0), short)];
        assert!(Sensitivities::new("model", &Options::default(), found).is_err());
        assert!(Sensitivities::new("model", &Options::default(), Vec::new()).is_err());
    }
}
