//! Arguments that several subcommands share, and the forms they are written in.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use kvsculpt::budget::Budgets;
use kvsculpt::cache::Dtype;
use kvsculpt::gpu::Selection;
use kvsculpt::machine::Preference;
use kvsculpt::options::{Method, Tail};
use kvsculpt::{Error, Options, Result};

use crate::config::Config;
use crate::finer::FinerArguments;
use crate::lengths::LengthArguments;

/// Layers above this are a slip of the pen, not a model.
const MOST_LAYERS: usize = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineKind {
    /// A GPU where there is one, else the CPU engine (with a notice)
    Auto,
    /// A GPU, or the software driver that stands in for one
    Gpu,
    /// The CPU engine
    Cpu,
}

impl From<EngineKind> for Preference {
    fn from(kind: EngineKind) -> Self {
        match kind {
            EngineKind::Auto => Self::Auto,
            EngineKind::Gpu => Self::Gpu,
            EngineKind::Cpu => Self::Cpu,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKind {
    Vulkan,
    Metal,
    Dx12,
}

/// On what machine to compute.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct EngineArguments {
    /// What computes
    #[arg(long, value_enum, default_value_t = EngineKind::Auto, value_name = "ENGINE")]
    pub(crate) engine: EngineKind,
    /// Use only GPU adapters of this interface [default: the variable WGPU_BACKEND, else all]
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub(crate) backend: Option<BackendKind>,
    /// The adapter's number in `kvsculpt devices`, or a part of its name [default: the variable WGPU_ADAPTER_NAME, else the first].
    /// Several with commas share the heads; `cpu` among them is the CPU engine
    #[arg(long, value_name = "INDEX|NAME,…")]
    pub(crate) adapter: Option<String>,
    /// How much of the heads each of several adapters gets, e.g. 3,1 [default: all the same]
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', requires = "adapter")]
    pub(crate) shares: Vec<NonZeroU32>,
    /// Let products go by the GPU's cooperative matrices (tensor cores; `kvsculpt devices` says which adapters have them). Experimental: as
    /// exact as without, other in the last bits, and not measured on hardware yet. An adapter without them is refused
    #[arg(long)]
    pub(crate) cooperative_matrices: bool,
}

impl EngineArguments {
    /// The adapter wanted, software drivers allowed.
    pub(crate) fn selection(&self) -> Selection {
        let backend = self.backend.and_then(|backend| backend.to_possible_value());
        Selection {
            backend: backend.map(|value| value.get_name().to_owned()),
            adapter: self.adapter.clone(),
            cooperative_matrices: self.cooperative_matrices,
            ..Selection::default()
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum MethodKind {
    /// Pairs drawn at random: the floor
    Random,
    /// The pairs that rank highest, as they are
    Select,
    /// The same keys with values solved by least squares
    SelectFit,
    /// Keys by L-BFGS, values by least squares, in turn
    Kvsculpt,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PresetKind {
    /// What measurements on queries never fitted favour
    Default,
    /// The paper's recipe to the letter
    Published,
}

impl PresetKind {
    pub(crate) fn options(self) -> Options {
        match self {
            Self::Default => Options::default(),
            Self::Published => Options::published(),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DtypeKind {
    F32,
    F16,
    Bf16,
}

impl From<DtypeKind> for Dtype {
    fn from(kind: DtypeKind) -> Self {
        match kind {
            DtypeKind::F32 => Self::F32,
            DtypeKind::F16 => Self::F16,
            DtypeKind::Bf16 => Self::Bf16,
        }
    }
}

/// A thing that is done or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// What decides the result; what is not given is the preset's.
#[derive(Clone, Debug, Args)]
pub(crate) struct OptionArguments {
    /// How a head's short cache is made [default: kvsculpt]
    #[arg(long, value_enum)]
    method: Option<MethodKind>,
    /// Where the options that are not given come from [default: what --config says, else default]
    #[arg(long, value_enum)]
    preset: Option<PresetKind>,
    /// Take options from this TOML file, under the names the library and --json have for them, and `preset`; what is given here wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, value_name = "PAIRS|auto", value_parser = tail, help = with_presets(
        "Newest pairs that stay as they are: a number, or `auto` for a quarter of the kept pairs, at most 256 (with --max-error an eighth of the cache, at most 64)",
        |options| match options.tail {
            Tail::Auto => "auto".into(),
            Tail::Pairs(pairs) => pairs.to_string(),
        },
    ))]
    tail: Option<Tail>,
    #[arg(long, value_name = "PAIRS", help = with_presets("First pairs that stay as they are", |options| options.sinks.to_string()))]
    sinks: Option<usize>,
    #[arg(long, help = with_presets("Outer steps of key optimisation", |options| options.steps.to_string()))]
    steps: Option<u32>,
    #[arg(long, value_enum, help = with_presets(
        "Whether free pairs get a bias on their logit, for users of the cache that can add one",
        |options| if options.bias { "on".into() } else { "off".into() },
    ))]
    bias: Option<Switch>,
    /// Seeds the method `random`, and queries that are drawn or guessed [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    pub(crate) lengths: LengthArguments,
    #[command(flatten)]
    finer: FinerArguments,
}

impl OptionArguments {
    /// Files that are read beside the capture.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Path> {
        self.config.as_deref().into_iter().chain(self.lengths.sources())
    }

    /// Whether the flags or the file of `--config` say this option, one of `method`, `sinks`, `tail` and `budget`; a preset does not
    /// count.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn says(&self, option: &str) -> Result<bool> {
        let config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        let given = match option {
            "method" => self.method.is_some(),
            "sinks" => self.sinks.is_some(),
            "tail" => self.tail.is_some(),
            _ => self.lengths.says_budget(),
        };
        Ok(given || config.says(option))
    }

    /// Whether a preset is named, here or in the file of `--config`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn says_preset(&self) -> Result<bool> {
        let config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        Ok(self.preset.is_some() || config.preset().is_some())
    }

    /// The preset, or where none is named what the file of budgets says; over it what the file of `--config` says, over that what was
    /// given.
    ///
    /// # Errors
    /// A file that cannot be read, or has what is no option.
    pub(crate) fn options(&self, budgets: Option<&Budgets>) -> Result<Options> {
        let config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        let preset = match (self.preset, config.preset()) {
            (Some(PresetKind::Published), _) | (None, Some("published")) => Options::published(),
            (None, None) => budgets.and_then(Budgets::options).cloned().unwrap_or_default(),
            _ => Options::default(),
        };
        let mut options = config.over(preset).map_err(|reason| Error::File {
            path: self.config.clone().unwrap_or_default(),
            reason,
        })?;
        replace(&mut options.method, self.method.map(method));
        replace(&mut options.tail, self.tail);
        replace(&mut options.sinks, self.sinks);
        replace(&mut options.steps, self.steps);
        replace(&mut options.bias, self.bias.map(|bias| bias == Switch::On));
        replace(&mut options.seed, self.seed);
        self.lengths.put_over(&mut options);
        self.finer.put_over(&mut options);
        Ok(options)
    }
}

/// The help of an option with what it is in each preset.
pub(crate) fn with_presets(help: &str, value: impl Fn(&Options) -> String) -> String {
    let (default, published) = (value(&Options::default()), value(&Options::published()));
    if default == published {
        format!("{help} [default: {default}]")
    } else {
        format!("{help} [default: {default}; published: {published}]")
    }
}

pub(crate) fn replace<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

pub(crate) fn method(kind: MethodKind) -> Method {
    match kind {
        MethodKind::Random => Method::Random,
        MethodKind::Select => Method::Select,
        MethodKind::SelectFit => Method::SelectFit,
        MethodKind::Kvsculpt => Method::Kvsculpt,
    }
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "auto" => Ok(Tail::Auto),
        number => number
            .parse()
            .map(Tail::Pairs)
            .map_err(|_| "neither a number of pairs nor `auto`".into()),
    }
}

/// Layers as they are written, `0,7-9`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layers(pub(crate) Vec<usize>);

/// Reads layers: numbers and ranges, both ends counted, with commas between.
pub(crate) fn layers(text: &str) -> Result<Layers, String> {
    let number = |text: &str| {
        let layer = text.trim().parse().ok().filter(|&layer: &usize| layer < MOST_LAYERS);
        layer.ok_or_else(|| format!("`{text}` is no layer; write numbers and ranges such as 0,7-9"))
    };
    let mut layers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("the range {part} is empty; write the smaller number first"));
        }
        layers.extend(first..=last);
    }
    layers.sort_unstable();
    layers.dedup();
    Ok(Layers(layers))
}

/// Reads a size such as `2GiB`, `500MB` or a plain number of bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let refuse = || "write a size such as 2GiB, 500MB or a number of bytes".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit: u64 = match text[digits.len()..].trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(refuse()),
    };
    let number: f64 = digits.parse().map_err(|_| refuse())?;
    let size = number * unit as f64;
    if !(size >= 1.0 && size < u64::MAX as f64) {
        return Err(refuse());
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie within the type just above"
    )]
    Ok(size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_and_ranges() {
        assert_eq!(layers("7-9,0,8").unwrap(), Layers(vec![0, 7, 8, 9]));
        for wrong in ["", "a", "3-", "9-7", "0-99999999", "1,,2", "-1"] {
            assert!(layers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("1.5 kb"), Ok(1500));
        assert_eq!(bytes("77"), Ok(77));
        for wrong in ["", "GiB", "-1", "0", "1PiB", "1e30", "nan", "2Gi B", "ß"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
