//! `kvsculpt convert`: a cache of one format in, the same cache in another format out.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use kvsculpt::cache::{Dtype, Pairing};
use kvsculpt::formats::{Cache, Format, Frame, Known, LayerFacts, LlamaVersion, MlxLayout, RopeFacts, Target};
use kvsculpt::{Error, Result};

use crate::arguments::{DtypeKind, Switch};
use crate::compress::is_same;
use crate::print;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatKind {
    /// Ours, each head with its own length
    Compressed,
    /// Ours, with queries; only from a capture
    Capture,
    /// mlx-lm's prompt cache, 0.32 and newer
    Mlx,
    /// The same, up to 0.31
    #[value(name = "mlx-0.31")]
    MlxTexts,
    /// llama.cpp's sequence state, version 3
    Llama,
    /// The same, version 2
    #[value(name = "llama-v2")]
    LlamaV2,
    /// Safetensors of [1, kv_heads, tokens, dim] tensors
    HuggingFace,
}

impl From<FormatKind> for Format {
    fn from(kind: FormatKind) -> Self {
        match kind {
            FormatKind::Compressed => Self::Compressed,
            FormatKind::Capture => Self::Capture,
            FormatKind::Mlx => Self::Mlx(MlxLayout::Scalars),
            FormatKind::MlxTexts => Self::Mlx(MlxLayout::Texts),
            FormatKind::Llama => Self::Llama(LlamaVersion::V3),
            FormatKind::LlamaV2 => Self::Llama(LlamaVersion::V2),
            FormatKind::HuggingFace => Self::HuggingFace,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PairingKind {
    /// Channel i with i + rope_dim/2
    Half,
    /// Channel 2i with 2i + 1
    Interleaved,
}

impl From<PairingKind> for Pairing {
    fn from(kind: PairingKind) -> Self {
        match kind {
            PairingKind::Half => Self::Half,
            PairingKind::Interleaved => Self::Interleaved,
        }
    }
}

/// Convert a cache to another engine's format.
///
/// Reads our captures and compressed caches, mlx-lm prompt caches, llama.cpp sequence states and safetensors as Hugging Face's users
/// write them; which it is shows from the contents. Where a format cannot hold the cache it says why and writes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file to read
    input: PathBuf,
    /// The file to write
    output: PathBuf,
    /// What to write [default: the format that is read]
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<FormatKind>,
    /// How keys and values are stored [default: as they are; f16 for llama.cpp]
    #[arg(long, value_enum)]
    dtype: Option<DtypeKind>,
    /// Before which position the keys are to stand: `absolute`, where they do; `rebased`, their stored length; or a number
    /// [default: rebased for mlx and hugging-face, else absolute]
    #[arg(long, value_name = "FRAME", value_parser = frame)]
    frame: Option<Frame>,
    /// Which channels of a written key rotate together [default: what the engine expects of the model's architecture]
    #[arg(long, value_enum)]
    pairing: Option<PairingKind>,
    /// Write llama.cpp's values transposed, for contexts without flash attention [default: as they were, else off]
    #[arg(long, value_enum, value_name = "on|off")]
    transposed: Option<Switch>,
    #[command(flatten)]
    known: KnownArguments,
}

/// What the file that is read does not say.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What the file that is read does not say")]
struct KnownArguments {
    /// The model's config.json: its architecture, KV heads and rotation
    #[arg(long, value_name = "FILE")]
    model_config: Option<PathBuf>,
    /// The model's name or folder, as the engine is given it
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The model's architecture, e.g. llama or qwen2
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// KV heads of a layer
    #[arg(long, value_name = "HEADS")]
    kv_heads: Option<usize>,
    /// The position of the next token, where it is not the stored length
    #[arg(long, value_name = "POSITION")]
    next_position: Option<usize>,
    /// The base of the rotary frequencies
    #[arg(long, value_name = "THETA", requires = "rope_dim")]
    rope_theta: Option<f64>,
    /// Channels of a key that rotate
    #[arg(long, value_name = "CHANNELS", requires = "rope_theta")]
    rope_dim: Option<usize>,
    /// The scaling of the frequencies, JSON as in the model's configuration
    #[arg(long, value_name = "JSON", requires = "rope_theta")]
    rope_scaling: Option<String>,
    /// Which channels of a key that is read rotate together
    #[arg(long, value_enum)]
    rope_pairing: Option<PairingKind>,
    /// The text's tokens as numbers with blanks or commas between, for llama.cpp
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,
}

impl KnownArguments {
    fn known(&self) -> Result<Known> {
        let mut known = Known {
            kv_heads: self.kv_heads,
            next_position: self.next_position,
            rope: self.rope_theta.zip(self.rope_dim).map(|(theta, dim)| RopeFacts {
                theta,
                dim,
                scaling: self.rope_scaling.clone(),
            }),
            pairing: self.rope_pairing.map(Into::into),
            architecture: self.architecture.clone(),
            model: self.model.clone(),
            token_ids: self.token_ids.as_deref().map(token_ids).transpose()?,
        };
        if let Some(path) = &self.model_config {
            known.add_configuration(path)?;
        }
        Ok(known)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { input, output, .. } = arguments;
    let read = [
        Some(input),
        arguments.known.model_config.as_ref(),
        arguments.known.token_ids.as_ref(),
    ];
    if read.into_iter().flatten().any(|path| is_same(path, output)) {
        return Err(Error::File {
            path: output.clone(),
            reason: "is a file that is read, which would be lost; choose another path".to_owned(),
        });
    }
    let cache = Cache::open(input, &arguments.known.known()?)?;
    let target = Target {
        dtype: arguments.dtype.map(Into::into),
        frame: arguments.frame,
        pairing: arguments.pairing.map(Into::into),
        transposed: arguments.transposed.map(|transposed| transposed == Switch::On),
        ..Target::new(arguments.to.map_or(cache.format, Into::into))
    };
    if target.transposed.is_some() && !matches!(target.format, Format::Llama(_)) {
        return Err(Error::Options {
            option: "--transposed",
            reason: format!(
                "says how llama.cpp's values are laid out, and a {} is to be written; leave it out, or give --to llama",
                target.format
            ),
        });
    }
    let written = cache.write(output, &target)?;
    let queries = matches!((cache.format, target.format), (Format::Capture, format) if format != Format::Capture);
    print(&format!(
        "read     {}: {}, {}\nwritten  {}: {}, {}, {} bytes\n{}{}",
        input.display(),
        cache.format,
        described(&cache.layers),
        output.display(),
        target.format,
        described(&written.layers),
        written.bytes,
        if written.turned {
            "Keys were turned to their new positions.\n"
        } else {
            ""
        },
        if queries { "The capture's queries are left behind.\n" } else { "" },
    ))
}

/// Layers in a line of words.
fn described(layers: &[LayerFacts]) -> String {
    let range = |values: &mut dyn Iterator<Item = usize>| {
        let values: Vec<usize> = values.collect();
        match (values.iter().min(), values.iter().max()) {
            (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
            (least, _) => least.copied().unwrap_or(0).to_string(),
        }
    };
    let mut dtypes: Vec<&str> = layers
        .iter()
        .flat_map(|layer| [layer.key_dtype, layer.value_dtype])
        .map(|dtype| match dtype {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        })
        .collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    format!(
        "{} layers of {} KV heads, {} pairs a head, next position {}, {}",
        layers.len(),
        range(&mut layers.iter().map(|layer| layer.lengths.len())),
        range(&mut layers.iter().flat_map(|layer| layer.lengths.iter().copied())),
        range(&mut layers.iter().map(|layer| layer.next_position)),
        dtypes.join(" and ")
    )
}

fn frame(text: &str) -> Result<Frame, String> {
    match text {
        "absolute" => Ok(Frame::Absolute),
        "rebased" => Ok(Frame::Rebased),
        number => number
            .parse()
            .map(Frame::At)
            .map_err(|_| "neither `absolute` nor `rebased` nor a position".to_owned()),
    }
}

/// Numbers with blanks, commas or brackets between.
fn token_ids(path: &Path) -> Result<Vec<i32>> {
    let refuse = |reason: String| Error::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}; check the path")))?;
    text.split(|letter: char| letter.is_whitespace() || matches!(letter, ',' | '[' | ']'))
        .filter(|word| !word.is_empty())
        .map(|word| {
            let shown: String = word.chars().take(40).collect();
            let number = word.parse().ok().filter(|&id: &i32| id >= 0);
            number.ok_or_else(|| refuse(format!("has `{}`, which is no token's number", shown.escape_debug())))
        })
        .collect()
}
