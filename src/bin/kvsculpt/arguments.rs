//! Arguments that several subcommands share, and the forms they are written in.

use clap::{Args, ValueEnum};
use kvsculpt::Options;
use kvsculpt::cache::Dtype;
use kvsculpt::gpu::Selection;
use kvsculpt::options::{Anchor, Method, Strength, Tail};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BackendKind {
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
    backend: Option<BackendKind>,
    /// The adapter's number in `kvsculpt devices`, or a part of its name [default: the variable WGPU_ADAPTER_NAME, else the first]
    #[arg(long, value_name = "INDEX|NAME")]
    pub(crate) adapter: Option<String>,
}

impl EngineArguments {
    /// The adapter wanted, software drivers allowed.
    pub(crate) fn selection(&self) -> Selection {
        let backend = self.backend.and_then(|backend| backend.to_possible_value());
        Selection {
            backend: backend.map(|value| value.get_name().to_owned()),
            adapter: self.adapter.clone(),
            ..Selection::default()
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum MethodKind {
    /// Pairs drawn at random: the floor
    Random,
    /// The pairs of highest summed attention, as they are
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AnchorKind {
    /// Zero, as published
    Zero,
    /// The values the seed's pairs had in the cache
    Seed,
}

/// What decides the result; what is not given is the preset's.
#[derive(Clone, Debug, Args)]
pub(crate) struct OptionArguments {
    /// Fraction of the pairs that is kept, sinks and tail counted [default: 0.3]
    #[arg(long, value_name = "FRACTION")]
    keep: Option<f64>,
    /// How a head's short cache is made [default: kvsculpt]
    #[arg(long, value_enum)]
    method: Option<MethodKind>,
    /// Where the options that are not given come from
    #[arg(long, value_enum, default_value_t = PresetKind::Default)]
    preset: PresetKind,
    /// Newest pairs that stay as they are: a number, or `auto` for a quarter of the kept pairs, at most 256
    #[arg(long, value_name = "PAIRS|auto", value_parser = tail)]
    tail: Option<Tail>,
    /// First pairs that stay as they are
    #[arg(long, value_name = "PAIRS")]
    sinks: Option<usize>,
    /// Outer steps of key optimisation
    #[arg(long)]
    steps: Option<u32>,
    /// Seeds the method `random` [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    finer: FinerArguments,
}

/// The finer points of the method. A STRENGTH is a plain number (`1e-3`), or a number followed by x (`1e-3x`): so many times the
/// head's own scale.
#[derive(Clone, Debug, Args)]
#[command(
    next_help_heading = "The method's finer points (a STRENGTH is a plain number as in the paper, e.g. 1e-3, or with an x behind it, 1e-3x, \
                               so many times the head's own scale)"
)]
struct FinerArguments {
    /// What an error in the mass costs beside one in the output; x: times the teacher's mean squared output
    #[arg(long, value_name = "STRENGTH", value_parser = strength)]
    mass_weight: Option<Strength>,
    /// Ridge of the value solve; x: times the Gram's mean diagonal
    #[arg(long, value_name = "STRENGTH", value_parser = strength)]
    ridge: Option<Strength>,
    /// What the ridge pulls values toward
    #[arg(long, value_enum)]
    anchor: Option<AnchorKind>,
    /// Training rows a query head from the whole context, turned to the positions that follow
    #[arg(long, value_name = "ROWS")]
    context_rows: Option<usize>,
    /// Training rows a query head at the newest positions; `tail`: as many as the tail is long
    #[arg(long, value_name = "ROWS|tail", value_parser = recent_rows)]
    recent_rows: Option<RecentRows>,
    /// Rows a query head held out of every fit, by which the best iterate is chosen; 0: the last one is returned
    #[arg(long, value_name = "ROWS")]
    validation_rows: Option<usize>,
    /// Curvature pairs that L-BFGS remembers
    #[arg(long, value_name = "PAIRS")]
    history: Option<u32>,
    /// L-BFGS iterations in an outer step
    #[arg(long)]
    iterations: Option<u32>,
    /// Solve the values again after so many outer steps
    #[arg(long, value_name = "STEPS")]
    refit_every: Option<u32>,
    /// First trial length of a line search
    #[arg(long, value_name = "LENGTH")]
    learning_rate: Option<f64>,
}

/// Training rows at the newest positions, `None` for the tail's length.
#[derive(Clone, Copy, Debug)]
struct RecentRows(Option<usize>);

impl OptionArguments {
    /// The preset with what was given put over it.
    pub(crate) fn options(&self) -> Options {
        let mut options = match self.preset {
            PresetKind::Default => Options::default(),
            PresetKind::Published => Options::published(),
        };
        replace(&mut options.keep, self.keep);
        replace(&mut options.method, self.method.map(method));
        replace(&mut options.tail, self.tail);
        replace(&mut options.sinks, self.sinks);
        replace(&mut options.steps, self.steps);
        replace(&mut options.seed, self.seed);
        self.finer.put_over(&mut options);
        options
    }
}

impl FinerArguments {
    fn put_over(&self, options: &mut Options) {
        replace(&mut options.mass_weight, self.mass_weight);
        replace(&mut options.ridge, self.ridge);
        replace(
            &mut options.anchor,
            self.anchor.map(|anchor| match anchor {
                AnchorKind::Zero => Anchor::Zero,
                AnchorKind::Seed => Anchor::Seed,
            }),
        );
        replace(&mut options.context_rows, self.context_rows);
        replace(&mut options.recent_rows, self.recent_rows.map(|rows| rows.0));
        replace(&mut options.validation_rows, self.validation_rows);
        replace(&mut options.history, self.history);
        replace(&mut options.iterations, self.iterations);
        replace(&mut options.refit_every, self.refit_every);
        replace(&mut options.learning_rate, self.learning_rate);
    }
}

fn replace<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

fn method(kind: MethodKind) -> Method {
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

fn recent_rows(text: &str) -> Result<RecentRows, String> {
    match text {
        "tail" => Ok(RecentRows(None)),
        number => number
            .parse()
            .map(|rows| RecentRows(Some(rows)))
            .map_err(|_| "neither a number of rows nor `tail`".into()),
    }
}

fn strength(text: &str) -> Result<Strength, String> {
    let refuse = |_| "write a number, or a number with x behind it for so many times the head's own scale".to_owned();
    match text.strip_suffix('x') {
        Some(factor) => factor.parse().map(Strength::Relative).map_err(refuse),
        None => text.parse().map(Strength::Absolute).map_err(refuse),
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

    #[test]
    fn a_strength_is_absolute_unless_it_ends_in_x() {
        assert_eq!(strength("1e-3"), Ok(Strength::Absolute(1e-3)));
        assert_eq!(strength("0.25x"), Ok(Strength::Relative(0.25)));
        assert!(strength("x").is_err() && strength("1y").is_err());
    }
}
