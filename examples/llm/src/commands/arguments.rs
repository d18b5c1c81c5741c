//! Arguments that several subcommands share.

use anyhow::{Context as _, Result, bail};
use candle_core::Device;
use clap::{Args, ValueEnum};
use kvsculpt::Options;
use kvsculpt::gpu::Selection;
use kvsculpt::machine::{Machine, Preference, choose};
use kvsculpt::options::Method;
use serde::{Deserialize, Serialize};

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
            return Ok(Self { method, preset, keep: 1.0, options });
        }
        options.keep = keep;
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

fn changed(options: &Options, changes: &str) -> Result<Options> {
    let mut all = serde_json::to_value(options)?;
    let serde_json::Value::Object(changes) = serde_json::from_str(changes)? else {
        bail!("is no JSON object; write for example {{\"steps\": 20}}");
    };
    for (name, value) in changes {
        match all.get_mut(&name) {
            Some(place) => *place = value,
            None => bail!("there is no option `{name}`"),
        }
    }
    Ok(serde_json::from_value(all)?)
}

/// Which ways to compress are compared.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Methods (every combination is measured)")]
pub struct VariantArguments {
    /// Fractions of the pairs that are kept
    #[arg(long, value_name = "FRACTION,…", value_delimiter = ',', default_value = "0.3")]
    keep: Vec<f64>,
    /// How the short cache is made
    #[arg(long, value_enum, value_name = "METHOD,…", value_delimiter = ',', default_values_t = [MethodKind::Select, MethodKind::SelectFit, MethodKind::Kvsculpt])]
    method: Vec<MethodKind>,
    /// Where the options come from
    #[arg(long, value_enum, value_name = "PRESET,…", value_delimiter = ',', default_values_t = [PresetKind::Default])]
    preset: Vec<PresetKind>,
    /// Options put over every preset, by their names in the library: '{"steps": 20}'
    #[arg(long, value_name = "JSON")]
    set: Option<String>,
}

impl VariantArguments {
    /// Every combination, each once.
    ///
    /// # Errors
    /// As [`Variant::new`].
    pub fn variants(&self) -> Result<Vec<Variant>> {
        let mut variants: Vec<Variant> = Vec::new();
        for &keep in &self.keep {
            for &method in &self.method {
                for &preset in &self.preset {
                    let variant = Variant::new(method, preset, keep, self.set.as_deref())?;
                    let known = |other: &Variant| other.method == method && (method == MethodKind::Full || *other == variant);
                    if !variants.iter().any(known) {
                        variants.push(variant);
                    }
                }
            }
        }
        Ok(variants)
    }
}
