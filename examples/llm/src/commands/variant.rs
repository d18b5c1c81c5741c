//! A way to shorten a cache, and doing it.

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use kvsculpt::Options;
use kvsculpt::cache::{Capture, Compressed, CompressedLayer};
use kvsculpt::machine::Machine;
use kvsculpt::options::{Method, Split};
use kvsculpt::solver::{Observer, Request};
use serde::{Deserialize, Serialize};

/// A way to shorten a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodKind {
    /// Nothing is dropped: the full cache through the compressed path, to check the path
    Full,
    /// Pairs drawn at random: the floor
    Random,
    /// The pairs of highest summed attention, as they are
    Select,
    /// The same keys with values solved by least squares
    SelectFit,
    /// Keys by L-BFGS, values by least squares, in turn
    Kvsculpt,
}

/// Where options come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PresetKind {
    /// What measurements on queries never fitted favour
    Default,
    /// The paper's recipe to the letter
    Published,
}

/// One way to compress, with all that decides its result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Variant {
    /// How.
    pub method: MethodKind,
    /// Where the options come from.
    pub preset: PresetKind,
    /// The fraction of pairs kept; 1 where nothing is dropped.
    pub keep: f64,
    /// All options.
    #[serde(skip)]
    pub options: Options,
}

impl Variant {
    /// The preset's options with the method, `keep` and then `changes`, a JSON object of options, put over them.
    ///
    /// # Errors
    /// A change that names no option or does not fit it, or options without meaning.
    pub fn new(method: MethodKind, preset: PresetKind, keep: f64, changes: Option<&str>) -> Result<Self> {
        let mut options = match preset {
            PresetKind::Default => Options::default(),
            PresetKind::Published => Options::published(),
        };
        options.method = match method {
            MethodKind::Random => Method::Random,
            MethodKind::Select => Method::Select,
            MethodKind::SelectFit => Method::SelectFit,
            MethodKind::Full | MethodKind::Kvsculpt => Method::Kvsculpt,
        };
        if method == MethodKind::Full {
            return Ok(Self {
                method,
                preset,
                keep: 1.0,
                options,
            });
        }
        options.keep = keep;
        options.validate()?;
        if let Some(changes) = changes {
            options = changed(&options, changes).with_context(|| format!("--set {changes}"))?;
        }
        options.validate()?;
        Ok(Self {
            method,
            preset,
            keep: options.keep,
            options,
        })
    }
}

/// A shortened cache.
#[derive(Clone, Debug)]
pub struct Short {
    /// The cache.
    pub compressed: Compressed,
    /// Mean over heads of the merged output error on the capture's probe queries; none where nothing is dropped or there are none.
    pub probe_error: Option<f64>,
}

impl Variant {
    /// Fails now as [`shorten`](Self::shorten) would for a cache of `tokens` tokens, so that nothing is read in vain.
    ///
    /// # Errors
    /// A cache of that length leaves nothing to compress.
    pub fn check(&self, tokens: usize) -> Result<()> {
        if self.method != MethodKind::Full {
            Split::uniform(tokens, &self.options).context("sinks and tail are changed by --set, as in '{\"tail\": {\"pairs\": 64}}'")?;
        }
        Ok(())
    }

    /// Compresses a capture this way.
    ///
    /// # Errors
    /// What `kvsculpt` reports.
    pub fn shorten(&self, capture: &Capture, machine: &mut Machine, observer: &mut dyn Observer) -> Result<Short> {
        if self.method == MethodKind::Full {
            return Ok(Short {
                compressed: everything(capture)?,
                probe_error: None,
            });
        }
        let request = Request {
            options: self.options.clone(),
            ..Request::default()
        };
        let compression = machine.compress(capture, &request, observer)?;
        let errors: Vec<f64> = compression
            .outcomes
            .iter()
            .filter_map(|head| Some(head.result.probe?.merged))
            .collect();
        Ok(Short {
            compressed: compression.compressed,
            probe_error: (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64),
        })
    }
}

/// All pairs of a capture in the form of a compressed cache; the last first, so that what checks the path with it does not only
/// repeat the same sums.
fn everything(capture: &Capture) -> Result<Compressed> {
    let layer = |&index: &usize| -> Result<CompressedLayer> {
        let layer = capture.layer(index)?;
        Ok(CompressedLayer {
            index,
            dim: layer.dim,
            value_dim: layer.value_dim,
            lengths: vec![layer.tokens; layer.kv_heads],
            key: backwards(&layer.key, layer.tokens, layer.dim),
            value: backwards(&layer.value, layer.tokens, layer.value_dim),
            bias: None,
            dtype: layer.dtype,
        })
    };
    Ok(Compressed {
        layers: capture.layers.iter().map(layer).collect::<Result<_>>()?,
        metadata: capture.metadata.clone(),
    })
}

/// `[heads, tokens, channels]` with each head's tokens in reverse.
fn backwards(array: &[f32], tokens: usize, channels: usize) -> Vec<f32> {
    let heads = array.chunks_exact(tokens * channels);
    heads
        .flat_map(|head| head.chunks_exact(channels).rev().flatten().copied())
        .collect()
}

fn changed(options: &Options, changes: &str) -> Result<Options> {
    let mut all = serde_json::to_value(options)?;
    let serde_json::Value::Object(changes) = serde_json::from_str(changes).context("is no JSON; write for example {\"steps\": 20}")? else {
        bail!("is no JSON object; write for example {{\"steps\": 20}}");
    };
    for (name, value) in changes {
        if name == "method" || name == "keep" {
            bail!("`{name}` has an argument of its own, --{name}");
        }
        let Some(place) = all.get_mut(&name) else {
            let names: Vec<&str> = all.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            bail!("there is no option `{name}`; there are {}", names.join(", "));
        };
        let was = std::mem::replace(place, value);
        let fits = serde_json::from_value::<Options>(all.clone());
        fits.with_context(|| format!("`{name}` must be of the form of {was}"))?;
    }
    Ok(serde_json::from_value(all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_go_over_the_preset_and_wrong_ones_are_refused() {
        let of = |changes| Variant::new(MethodKind::Kvsculpt, PresetKind::Published, 0.4, Some(changes));
        let variant = of(r#"{"steps": 3, "tail": {"pairs": 64}}"#).unwrap();
        assert_eq!((variant.options.steps, variant.options.history, variant.keep), (3, 100, 0.4));
        for wrong in [
            "3",
            "{",
            r#"{"stepz": 3}"#,
            r#"{"steps": -3}"#,
            r#"{"refit_every": 0}"#,
            r#"{"keep": 0.2}"#,
            r#"{"method": "random"}"#,
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
