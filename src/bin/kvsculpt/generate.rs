//! `kvsculpt generate`: a capture made up by a seed.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kvsculpt::Result;
use kvsculpt::cache::Generator;

use crate::arguments::DtypeKind;
use crate::report::size;
use crate::{Talk, print};

/// Make up a capture of any size, for tests and measurements.
///
/// Its statistics are modelled on captures of real models: sinks, outlier channels, local and retrieval-like heads, rotated keys. The
/// same flags give the same bytes on every machine. The file is written a few rows at a time, so it may be larger than memory.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    shape: Shape,
    /// Layers
    #[arg(long, value_name = "COUNT", default_value_t = Generator::default().layers)]
    layers: usize,
    /// KV heads a layer
    #[arg(long, value_name = "COUNT", default_value_t = Generator::default().kv_heads)]
    kv_heads: usize,
    /// Query heads a KV head
    #[arg(long, value_name = "COUNT", default_value_t = Generator::default().group)]
    group: usize,
    /// Channels of keys and values
    #[arg(long, value_name = "CHANNELS", default_value_t = Generator::default().dim)]
    dim: usize,
    /// Tokens in the cache
    #[arg(long, value_name = "COUNT", default_value_t = Generator::default().tokens)]
    tokens: usize,
    /// How numbers are stored
    #[arg(long, value_enum, default_value_t = DtypeKind::F16)]
    dtype: DtypeKind,
}

/// What a measurement is to have in common with a file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Shape {
    /// Queries that are only reported on, a query head
    #[arg(long, value_name = "COUNT", default_value_t = Generator::default().probes)]
    pub(crate) probes: usize,
    /// The base of the rotary frequencies
    #[arg(long, value_name = "THETA", default_value_t = Generator::default().rope_theta)]
    pub(crate) rope_theta: f64,
    /// What the numbers are drawn by
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

pub(crate) fn run(arguments: &Arguments, talk: Talk) -> Result<()> {
    let mut generator = Generator::default();
    generator.layers = arguments.layers;
    generator.kv_heads = arguments.kv_heads;
    generator.group = arguments.group;
    generator.dim = arguments.dim;
    generator.tokens = arguments.tokens;
    generator.probes = arguments.shape.probes;
    generator.rope_theta = arguments.shape.rope_theta;
    generator.seed = arguments.shape.seed;
    let bar = bar(talk);
    let bytes = generator.write(&arguments.output, arguments.dtype.into(), &mut |part| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a small number")]
        bar.set_position((part * STEPS as f64) as u64);
    });
    bar.finish_and_clear();
    let bytes = bytes?;
    let Generator {
        layers,
        kv_heads,
        group,
        dim,
        tokens,
        ..
    } = generator;
    print(&format!(
        "{}: {layers} layers of {kv_heads} KV heads and {} query heads, {tokens} tokens, {dim} channels, {}\n",
        arguments.output.display(),
        kv_heads * group,
        size(bytes)
    ))
}

/// Steps of the bar.
const STEPS: u64 = 1000;

/// A bar on standard error; nothing where that is no terminal.
fn bar(talk: Talk) -> ProgressBar {
    let target = if talk.quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = ProgressBar::with_draw_target(Some(STEPS), target);
    if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} {bar:30} {percent:>3} %  writing") {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar
}
