//! Arguments that several subcommands share.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use candle_core::Device;
use clap::{Args, ValueEnum};
use kvsculpt::gpu::Selection;
use kvsculpt::machine::{Machine, Preference, choose};

use super::session::read_text;
use super::variant::{MethodKind, POWER, PresetKind, ScopeKind, Switch, Variant, Weighing};

/// Which model, and where it computes.
#[derive(Clone, Debug, Args)]
pub struct ModelArguments {
    /// A GGUF file, or a model's name on the hub (owner/name, owner/name/file.gguf or owner/name:Q4_K_M)
    pub model: String,
    /// Where the model itself computes; all but cpu need the feature of that name
    #[arg(long, value_enum, default_value_t = DeviceKind::Cpu, help_heading = "Machine")]
    pub model_device: DeviceKind,
}

/// Where the model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The CPU
    Cpu,
    /// The first CUDA device
    Cuda,
    /// The first Metal device
    Metal,
}

impl DeviceKind {
    /// Opens it.
    ///
    /// # Errors
    /// A device that is not there, or that this program was built without.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => Device::new_cuda(0).context("no CUDA device could be opened; build with --features cuda where there is one"),
            Self::Metal => Device::new_metal(0).context("no Metal device could be opened; build with --features metal where there is one"),
        }
    }
}

/// What compresses.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct EngineArguments {
    /// What compresses: a GPU where there is one and else the CPU, or one of them
    #[arg(long, value_enum, default_value_t = EngineKind::Auto, value_name = "ENGINE")]
    engine: EngineKind,
    /// The GPU adapter's number in `kvsculpt devices`, or a part of its name [default: the variable WGPU_ADAPTER_NAME, else the first]
    #[arg(long, value_name = "INDEX|NAME")]
    adapter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineKind {
    Auto,
    Gpu,
    Cpu,
}

impl EngineArguments {
    /// Opens the machine; a notice goes to standard error.
    ///
    /// # Errors
    /// As [`choose`].
    pub fn open(&self) -> Result<Machine> {
        let preference = match self.engine {
            EngineKind::Auto => Preference::Auto,
            EngineKind::Gpu => Preference::Gpu,
            EngineKind::Cpu => Preference::Cpu,
        };
        let choice = choose(
            preference,
            &Selection {
                adapter: self.adapter.clone(),
                ..Selection::default()
            },
        )?;
        if let Some(notice) = &choice.notice {
            eprintln!("note: {notice}");
        }
        Ok(choice.open()?)
    }
}

/// Which passages are read.
#[derive(Clone, Debug, Args)]
pub struct TextArguments {
    /// Texts (UTF-8); the figures of a single one are noisy
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// Characters at which reading begins, in each text
    #[arg(long, value_name = "CHARACTER,…", value_delimiter = ',', default_value = "0")]
    offset: Vec<usize>,
}

impl TextArguments {
    /// Fails now as reading a text later would, so that nothing is measured in vain.
    ///
    /// # Errors
    /// As [`read_text`], for the first that fails.
    pub fn check(&self) -> Result<()> {
        self.texts.iter().try_for_each(|path| read_text(path).map(drop))
    }

    /// Every text from every offset on.
    pub fn passages(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.texts
            .iter()
            .flat_map(|path| self.offset.iter().map(move |&offset| (path.as_path(), offset)))
    }
}

/// Which ways to compress are compared.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Methods (every combination is measured)")]
pub struct VariantArguments {
    /// Fractions of the pairs that are kept
    #[arg(
        long,
        value_name = "FRACTION,…",
        value_delimiter = ',',
        default_value = "0.3",
        allow_negative_numbers = true
    )]
    keep: Vec<f64>,
    /// How the short cache is made
    #[arg(long, value_enum, value_name = "METHOD,…", value_delimiter = ',', default_values_t = [MethodKind::Select, MethodKind::SelectFit, MethodKind::Kvsculpt])]
    method: Vec<MethodKind>,
    /// Where the options come from
    #[arg(long, value_enum, value_name = "PRESET,…", value_delimiter = ',', default_values_t = [PresetKind::Default])]
    preset: Vec<PresetKind>,
    /// Which heads share a length [default: the preset's]
    #[arg(long, value_enum, value_name = "SCOPE,…", value_delimiter = ',')]
    budget: Vec<ScopeKind>,
    /// Whether free pairs get a bias on their logit [default: the preset's]
    #[arg(long, value_enum, value_name = "on,off", value_delimiter = ',')]
    bias: Vec<Switch>,
    /// Let each head's error weigh as much as this file says of it, which `sensitivity` wrote, wherever lengths are decided by errors
    #[arg(long, value_name = "FILE")]
    sensitivities: Option<PathBuf>,
    /// Sensitivities count to this power: 1 as they are, 0 not at all
    #[arg(long, value_name = "POWER", default_value_t = POWER, requires = "sensitivities")]
    sensitivity_power: f64,
    /// Options put over every preset, by their names in the library: '{"steps": 20}'; given several times, each is a way of its own ('{}'
    /// changes nothing)
    #[arg(long, value_name = "JSON")]
    set: Vec<String>,
}

impl VariantArguments {
    /// Every combination, each once.
    ///
    /// # Errors
    /// As [`Variant::new`] and [`Weighing::read`], and sensitivities that are of use to none.
    pub fn variants(&self) -> Result<Vec<Variant>> {
        let weighing = self.sensitivities.as_deref();
        let weighing = weighing.map(|path| Weighing::read(path, self.sensitivity_power)).transpose()?;
        let sets = or_the_preset(&self.set);
        let mut variants: Vec<Variant> = Vec::new();
        for &keep in &self.keep {
            for &method in &self.method {
                for (&preset, changes) in self.preset.iter().flat_map(|preset| sets.iter().map(move |set| (preset, set))) {
                    let variant = Variant::new(method, preset, keep, changes.as_deref())?;
                    for variant in self.chosen(&variant) {
                        let variant = match &weighing {
                            Some(weighing) => variant.weighed(weighing),
                            None => variant,
                        };
                        let known = |other: &Variant| other.method == method && (method == MethodKind::Full || *other == variant);
                        if !variants.iter().any(known) {
                            variants.push(variant);
                        }
                    }
                }
            }
        }
        ensure!(
            weighing.is_none() || variants.iter().any(|variant| variant.weighing.is_some()),
            "--sensitivities weighs error curves, and by none are these lengths decided; use --budget head or layer with the default preset"
        );
        Ok(variants)
    }

    /// The way with every combination of budget and bias.
    fn chosen(&self, variant: &Variant) -> Vec<Variant> {
        let budgets = or_the_preset(&self.budget);
        let biases = or_the_preset(&self.bias);
        let with = |&budget| biases.iter().map(move |&bias| variant.clone().with(budget, bias));
        budgets.iter().flat_map(with).collect()
    }
}

/// Each value; where there is none the preset's.
fn or_the_preset<T: Clone>(values: &[T]) -> Vec<Option<T>> {
    if values.is_empty() {
        vec![None]
    } else {
        values.iter().cloned().map(Some).collect()
    }
}

/// Reads a number of tokens: at least 1, and far below what overflows.
///
/// # Errors
/// Any other text, in words for the user.
pub fn tokens(text: &str) -> Result<usize, String> {
    match some_tokens(text) {
        Ok(0) => Err("at least 1 is needed".to_owned()),
        other => other,
    }
}

/// Reads a number of tokens that may be 0.
///
/// # Errors
/// Any other text, in words for the user.
pub fn some_tokens(text: &str) -> Result<usize, String> {
    const MOST: usize = 1 << 24;
    let number = text.parse().ok().filter(|&number: &usize| number <= MOST);
    number.ok_or_else(|| format!("write a whole number up to {MOST}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::words::label;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        variants: VariantArguments,
    }

    fn labels(arguments: &[&str]) -> Result<Vec<String>> {
        let line = Line::try_parse_from([&["x"], arguments].concat())?;
        Ok(line.variants.variants()?.iter().map(label).collect())
    }

    #[test]
    fn every_combination_of_budget_and_bias_is_measured_once() {
        let all = labels(&["--method", "full,kvsculpt", "--budget", "head,uniform", "--bias", "on,off"]).unwrap();
        let expected = [
            "full (default) at keep 1",
            "kvsculpt (default, bias: on) at keep 0.3",
            "kvsculpt (default) at keep 0.3",
            "kvsculpt (default, bias: on, budget: uniform) at keep 0.3",
            "kvsculpt (default, budget: uniform) at keep 0.3",
        ];
        assert_eq!(all, expected);
        assert_eq!(
            labels(&["--method", "select", "--preset", "default,published"]).unwrap(),
            ["select (default) at keep 0.3", "select (published) at keep 0.3"]
        );
        assert_eq!(
            labels(&[
                "--method",
                "kvsculpt",
                "--set",
                "{}",
                "--set",
                r#"{"steps": 3}"#,
                "--set",
                r#"{"sinks": 0}"#
            ])
            .unwrap(),
            [
                "kvsculpt (default) at keep 0.3",
                "kvsculpt (default, steps: 3) at keep 0.3",
                "kvsculpt (default, sinks: 0) at keep 0.3"
            ]
        );
        assert!(labels(&["--budget", "half"]).is_err() && labels(&["--bias", "maybe"]).is_err());
    }

    #[test]
    fn sensitivities_go_to_those_they_are_of_use_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.json");
        let file = r#"{"format": "kv-sensitivity", "version": 1, "layers": [{"layer": 0, "sensitivity": 2.0}]}"#;
        std::fs::write(&path, file).unwrap();
        let digest = kvsculpt::budget::Weights::read(&path).unwrap().digest();
        let given = |more: &[&str]| labels(&[&["--method", "select", "--sensitivities", path.to_str().unwrap()], more].concat());
        assert_eq!(
            given(&["--budget", "uniform,layer"]).unwrap(),
            [
                "select (default, budget: uniform) at keep 0.3".to_owned(),
                format!("select (default, budget: layer, sensitivities: small {digest}) at keep 0.3")
            ]
        );
        let refused = format!("{:#}", given(&["--preset", "published"]).unwrap_err());
        assert!(refused.contains("--sensitivities"), "{refused}");
        assert!(given(&["--sensitivity-power", "-1"]).is_err());
        assert!(labels(&["--sensitivity-power", "1"]).is_err());
    }
}
