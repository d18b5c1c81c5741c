//! A way to shorten a cache, and doing it.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use kvsculpt::Options;
use kvsculpt::budget::{Scope, Weights};
use kvsculpt::cache::{Capture, Compressed, CompressedLayer, Dtype};
use kvsculpt::machine::Machine;
use kvsculpt::options::{Allocator, Method, Split};
use kvsculpt::solver::{Observer, Outcome, Request};
use serde::{Deserialize, Serialize};

use super::recorded::Recorded;
use super::session::name;

/// To what power sensitivities count where nothing else is said.
pub const POWER: f64 = 0.5;

/// A way to shorten a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodKind {
    /// Nothing is dropped: the full cache through the compressed path, to check the path
    Full,
    /// Pairs drawn at random: the floor
    Random,
    /// The pairs that rank highest, as they are
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

impl PresetKind {
    /// Its options.
    #[must_use]
    pub fn options(self) -> Options {
        match self {
            Self::Default => Options::default(),
            Self::Published => Options::published(),
        }
    }
}

/// Which heads share a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScopeKind {
    /// All heads of all layers
    Uniform,
    /// The heads of a layer
    Layer,
    /// None: every head has its own
    Head,
}

/// How the short cache's numbers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeKind {
    /// IEEE single precision: nothing is lost
    #[default]
    F32,
    /// IEEE half precision
    F16,
    /// The upper half of a single
    Bf16,
}

impl DtypeKind {
    /// Whether nothing is lost.
    #[must_use]
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
    pub fn is_exact(&self) -> bool {
        *self == Self::F32
    }

    /// For labels: `, dtype: f16`; nothing where nothing is lost.
    #[must_use]
    pub fn changed(self) -> String {
        if self.is_exact() {
            return String::new();
        }
        format!(", dtype: {}", super::words::spelled(self))
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// The cache as a file of these numbers gives it back.
    fn stored(self, mut cache: Compressed) -> Result<Compressed> {
        if self.is_exact() {
            return Ok(cache);
        }
        for layer in &mut cache.layers {
            layer.dtype = self.dtype();
        }
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("short.safetensors");
        cache.write(&path)?;
        Ok(Compressed::read(&path)?)
    }
}

/// A thing that is done or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is done
    On,
    /// It is not
    Off,
}

/// What each head's error weighs, by a file of sensitivities.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighing {
    /// The file's name, a digest of what it says, and the power where that is not the usual one.
    pub name: String,
    weights: Weights,
}

impl Weighing {
    /// The file's sensitivities to this power.
    ///
    /// # Errors
    /// As [`Weights::read`] and [`Weights::powered`].
    pub fn read(path: &Path, power: f64) -> Result<Self> {
        let measured = Weights::read(path)?;
        // A file that was written again, or another of the same name, is not the same.
        let name = format!("{} {}", name(path), measured.digest());
        let weights = measured.powered(power).with_context(|| path.display().to_string())?;
        Ok(Self {
            name: if power == POWER {
                name
            } else {
                format!("{name} to the power {power}")
            },
            weights,
        })
    }
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
    /// What weighs errors; none: all weigh the same, or nothing is decided by them.
    #[serde(skip)]
    pub weighing: Option<Weighing>,
    /// How the short cache's numbers are stored.
    pub dtype: DtypeKind,
}

impl Variant {
    /// The preset's options with the method, `keep` and then `changes`, a JSON object of options, put over them.
    ///
    /// # Errors
    /// A change that names no option or does not fit it, or options without meaning.
    pub fn new(method: MethodKind, preset: PresetKind, keep: f64, changes: Option<&str>) -> Result<Self> {
        let mut options = preset.options();
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
                weighing: None,
                dtype: DtypeKind::default(),
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
            weighing: None,
            dtype: DtypeKind::default(),
        })
    }

    /// This way with other heads sharing a length, and with biases or without; as it is where nothing is said, or nothing dropped.
    #[must_use]
    pub fn with(mut self, budget: Option<ScopeKind>, bias: Option<Switch>) -> Self {
        if self.method == MethodKind::Full {
            return self;
        }
        if let Some(budget) = budget {
            self.options.budget = match budget {
                ScopeKind::Uniform => Scope::Uniform,
                ScopeKind::Layer => Scope::Layer,
                ScopeKind::Head => Scope::Head,
            };
        }
        if let Some(bias) = bias {
            self.options.bias = bias == Switch::On;
        }
        self
    }

    /// This way with weights where lengths are decided by weighted errors, and else as it is.
    #[must_use]
    pub fn weighed(mut self, weighing: &Weighing) -> Self {
        let by_errors = self.options.budget != Scope::Uniform && self.options.allocator == Allocator::Curves;
        if self.method != MethodKind::Full && by_errors {
            self.weighing = Some(weighing.clone());
        }
        self
    }

    /// This way with its numbers stored so.
    #[must_use]
    pub const fn stored_as(mut self, dtype: DtypeKind) -> Self {
        self.dtype = dtype;
        self
    }

    /// What a row says of the weights.
    #[must_use]
    pub fn sensitivities(&self) -> Option<String> {
        Some(self.weighing.as_ref()?.name.clone())
    }

    /// Whether a row that says this of itself was made this way, its method aside.
    #[must_use]
    pub fn made(&self, options: &Recorded, sensitivities: Option<&str>) -> bool {
        options.are(&self.options) && self.sensitivities().as_deref() == sensitivities
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
    /// A cache of that length leaves nothing to compress, or no whole page.
    pub fn check(&self, tokens: usize) -> Result<()> {
        if self.method == MethodKind::Full {
            return Ok(());
        }
        let split =
            Split::uniform(tokens, &self.options).context("sinks and tail are changed by --set, as in '{\"tail\": {\"pairs\": 64}}'")?;
        let Options { page, .. } = self.options;
        ensure!(
            split.kept() / page * page > split.sinks + split.tail,
            "{} pairs a head hold no page of {page} beside {} sinks and a tail of {}; keep more, or use a smaller page",
            split.kept(),
            split.sinks,
            split.tail
        );
        Ok(())
    }

    /// Compresses a capture this way.
    ///
    /// # Errors
    /// What `kvsculpt` reports.
    pub fn shorten(&self, capture: &Capture, machine: &mut Machine, observer: &mut dyn Observer) -> Result<Short> {
        if self.method == MethodKind::Full {
            return Ok(Short {
                compressed: self.dtype.stored(everything(capture)?)?,
                probe_error: None,
            });
        }
        let compression = machine.compress(capture, &self.request(), observer)?;
        Ok(Short {
            compressed: self.dtype.stored(compression.compressed)?,
            probe_error: probe_error(&compression.outcomes),
        })
    }

    /// This way as the library is asked for it.
    #[must_use]
    pub fn request(&self) -> Request {
        Request {
            options: self.options.clone(),
            weights: self.weighing.as_ref().map(|weighing| weighing.weights.clone()),
            dtype: Some(self.dtype.dtype()),
            ..Request::default()
        }
    }
}

/// Mean over heads of the merged output error on probe queries; none where there are none.
#[must_use]
pub fn probe_error(heads: &[Outcome]) -> Option<f64> {
    let errors: Vec<f64> = heads.iter().filter_map(|head| Some(head.result.probe?.merged)).collect();
    (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
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
        if ["method", "keep", "budget", "bias"].contains(&name.as_str()) {
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
            r#"{"budget": "head"}"#,
            r#"{"bias": true}"#,
            r#"{"page": 0}"#,
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    fn usual(method: MethodKind, preset: PresetKind) -> Variant {
        Variant::new(method, preset, 0.3, None).unwrap()
    }

    #[test]
    fn budgets_and_biases_go_over_the_preset_where_something_is_dropped() {
        let variant = usual(MethodKind::Kvsculpt, PresetKind::Published).with(Some(ScopeKind::Layer), Some(Switch::On));
        assert_eq!((variant.options.budget, variant.options.bias), (Scope::Layer, true));
        let same = usual(MethodKind::Select, PresetKind::Default);
        assert_eq!(same.clone().with(None, None), same);
        let full = usual(MethodKind::Full, PresetKind::Default);
        assert_eq!(full.clone().with(Some(ScopeKind::Uniform), Some(Switch::On)), full);
    }

    #[test]
    fn weights_go_where_weighted_errors_decide_and_a_row_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.json");
        let file = r#"{"format": "kv-sensitivity", "version": 1, "layers": [{"layer": 0, "sensitivity": 2.0}]}"#;
        std::fs::write(&path, file).unwrap();
        let read = |power| Weighing::read(&path, power).unwrap();
        let by_errors = usual(MethodKind::Kvsculpt, PresetKind::Default);
        let weighed = by_errors.clone().weighed(&read(POWER));
        let name = weighed.sensitivities().unwrap();
        assert_eq!(name, format!("small {}", Weights::read(&path).unwrap().digest()));
        let again = by_errors.clone().weighed(&read(1.0));
        assert_eq!(again.sensitivities().unwrap(), format!("{name} to the power 1"));
        for other in [
            by_errors.clone().with(Some(ScopeKind::Uniform), None),
            usual(MethodKind::Kvsculpt, PresetKind::Published).with(Some(ScopeKind::Head), None),
            usual(MethodKind::Full, PresetKind::Default),
        ] {
            assert_eq!(other.clone().weighed(&read(POWER)), other);
        }
        let options = Recorded::of(&by_errors.options).unwrap();
        assert!(weighed.made(&options, Some(&name)) && by_errors.made(&options, None));
        assert!(!weighed.made(&options, None) && !weighed.made(&options, Some("large")) && !by_errors.made(&options, Some(&name)));
        std::fs::write(&path, file.replace("2.0", "3.0")).unwrap();
        assert_ne!(by_errors.clone().weighed(&read(POWER)).sensitivities().unwrap(), name);
        assert!(!by_errors.clone().with(None, Some(Switch::On)).made(&options, None));
        let refused = format!("{:#}", Weighing::read(&path, -1.0).unwrap_err());
        assert!(refused.contains("small.json") && refused.contains("zero or more"), "{refused}");
        assert!(Weighing::read(folder.path(), 1.0).is_err());
    }

    #[test]
    fn numbers_are_as_a_file_gives_them_back() {
        let number = 1.0 + 2.0_f32.powi(-9);
        let exact = Compressed {
            layers: vec![CompressedLayer {
                index: 0,
                dim: 4,
                value_dim: 4,
                lengths: vec![1],
                key: vec![number; 4],
                value: vec![-number; 4],
                bias: Some(vec![number]),
                dtype: Dtype::F32,
            }],
            metadata: [("format", "kv-compressed"), ("version", "1"), ("next_position", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        let stored = |dtype: DtypeKind| {
            let layer = dtype.stored(exact.clone()).unwrap().layers.remove(0);
            (layer.key[0], layer.value[0], layer.bias.unwrap()[0])
        };
        assert_eq!(stored(DtypeKind::F32), (number, -number, number));
        assert_eq!(stored(DtypeKind::F16), (number, -number, number));
        assert_eq!(stored(DtypeKind::Bf16), (1.0, -1.0, number), "biases stay single");
        let variant = usual(MethodKind::Select, PresetKind::Default).stored_as(DtypeKind::Bf16);
        assert_eq!(variant.request().dtype, Some(Dtype::Bf16));
    }

    #[test]
    fn a_page_that_nothing_fills_is_refused_before_anything_is_read() {
        let of = |page: usize| Variant::new(MethodKind::Select, PresetKind::Default, 0.3, Some(&format!("{{\"page\": {page}}}"))).unwrap();
        of(16).check(100).unwrap();
        let refused = format!("{:#}", of(64).check(100).unwrap_err());
        assert!(refused.contains("page of 64"), "{refused}");
    }
}
