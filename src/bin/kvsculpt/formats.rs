//! Arguments about other engines' formats, which several subcommands share: what a file that is read does not say, and how one that is
//! written is laid out.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use kvsculpt::cache::{Dtype, Pairing};
use kvsculpt::formats::{Format, Frame, Known, LlamaVersion, MlxLayout, RopeFacts, Target};
use kvsculpt::{Error, Result};

use crate::arguments::Switch;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FormatKind {
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

/// How the file that is written is laid out.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "How the file that is written is laid out")]
pub(crate) struct LayoutArguments {
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
}

impl LayoutArguments {
    /// What is to be written.
    ///
    /// # Errors
    /// An argument without meaning for the format.
    pub(crate) fn target(&self, format: Format, dtype: Option<Dtype>) -> Result<Target> {
        let target = Target {
            dtype,
            frame: self.frame,
            pairing: self.pairing.map(Into::into),
            transposed: self.transposed.map(|transposed| transposed == Switch::On),
            ..Target::new(format)
        };
        if target.transposed.is_some() && !matches!(format, Format::Llama(_)) {
            return Err(Error::Options {
                option: "--transposed",
                reason: format!(
                    "says how llama.cpp's values are laid out, and a {format} is to be written; leave it out, or give --to llama"
                ),
            });
        }
        Ok(target)
    }
}

/// What the file that is read does not say.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "What the file that is read does not say")]
pub(crate) struct KnownArguments {
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
    /// Files that are read for it.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Path> {
        self.model_config.iter().chain(&self.token_ids).map(PathBuf::as_path)
    }

    /// What is known, files read.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub(crate) fn known(&self) -> Result<Known> {
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
