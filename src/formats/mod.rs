//! Other people's cache files: read, turned to what another engine wants, written.
//!
//! A [`Cache`] holds keys, values and what their file says of them, but no queries. It is opened from any [`Format`] and
//! written as any that can hold it; a [`Target`] says which, in what frame of positions, channel pairing and dtype. What a
//! format cannot hold is refused in one sentence; nothing is ever padded. Where nothing has to turn, every number comes
//! out with the bits it went in with.
//!
//! | format | lengths | next position | biases | dtypes |
//! |---|---|---|---|---|
//! | [`Compressed`](Format::Compressed) | one a head | any | yes | F32, F16, BF16, alike for keys and values |
//! | [`Mlx`](Format::Mlx) | one a layer | the stored length | no | F32, F16, BF16 |
//! | [`HuggingFace`](Format::HuggingFace) | one a layer | any; the stored length, then one for all layers, unless told otherwise | no | F32, F16, BF16 |
//! | [`Llama`](Format::Llama) | one | any | no | F32, F16, BF16; F16 unless told otherwise |
//! | [`Capture`](Format::Capture) | one | any | no | read only: it needs queries |
//!
//! # Frames
//!
//! Cached keys are rotated to positions. Engines that count the next token's position by the stored length (mlx-lm, Hugging
//! Face's `generate`) need the keys of a shortened cache rotated back by as much as it is shorter: with fixed rotary
//! frequencies a rotation of every key by one angle a channel pair, exact up to rounding. It needs the frequencies:
//! [`RopeFacts`], which our files carry and others leave to the caller ([`Known`]).
//!
//! ```no_run
//! use std::path::Path;
//! use kvsculpt::formats::{Cache, Format, Known, Target};
//!
//! # fn main() -> kvsculpt::Result<()> {
//! let cache = Cache::open(Path::new("short.safetensors"), &Known::default())?;
//! cache.write(Path::new("prompt.safetensors"), &Target::new(Format::Mlx(Default::default())))?;
//! # Ok(())
//! # }
//! ```
//!
//! # To be compressed
//!
//! [`Cache::into_capture`] puts queries beside a cache that has none, so that [`compress`](crate::solver::compress) takes it; best
//! those that [`QueryStatistics`](crate::cache::QueryStatistics) of its model draw.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use kvsculpt::cache::{QuerySource, QueryStatistics};
//! use kvsculpt::formats::{Cache, Known};
//!
//! # fn main() -> kvsculpt::Result<()> {
//! let statistics = QueryStatistics::open(Path::new("qwen2.5-0.5b.statistics"))?;
//! let mut known = Known::default();
//! known.add_statistics(&statistics);
//! let cache = Cache::open(Path::new("prompt.safetensors"), &known)?;
//! let capture = cache.into_capture(QuerySource::Statistics(Arc::new(statistics)), 0)?;
//! # Ok(())
//! # }
//! ```

mod cache;
mod capture;
mod configuration;
mod hugging_face;
mod known;
mod llama;
mod mlx;
mod own;
mod target;
mod turn;

use std::fmt;
use std::path::Path;

pub use cache::{Cache, LayerFacts, LayerPairs, RopeFacts};
pub use known::Known;
pub use target::{Frame, Target, Written};

pub(crate) use target::Size;

use crate::cache::{Container, Source};
use crate::error::{Error, Result};

/// The layouts of mlx-lm's prompt caches.
///
/// ```
/// use kvsculpt::formats::{Format, MlxLayout};
///
/// // mlx-lm reads one of them, by its release.
/// assert_eq!(Format::Mlx(MlxLayout::Texts).to_string(), "mlx-lm prompt cache (up to 0.31)");
/// assert_eq!(Format::Mlx(MlxLayout::default()).to_string(), "mlx-lm prompt cache (0.32 and newer)");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MlxLayout {
    /// Up to 0.31: the state's numbers are texts of the metadata.
    Texts,
    /// 0.32 and newer: they are tensors without axes.
    #[default]
    Scalars,
}

/// The versions of llama.cpp's sequence-state files. For models without several positions a token they differ in the number alone,
/// and llama.cpp reads only its own.
///
/// ```
/// use kvsculpt::formats::LlamaVersion;
///
/// // What llama.cpp reads since August 2026.
/// assert_eq!(LlamaVersion::default(), LlamaVersion::V3);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LlamaVersion {
    /// Until August 2026, and llama-cpp-python built on it.
    V2,
    /// Since then.
    #[default]
    V3,
}

impl LlamaVersion {
    /// The number in the file.
    ///
    /// ```
    /// use kvsculpt::formats::LlamaVersion;
    ///
    /// assert_eq!([LlamaVersion::V2.number(), LlamaVersion::V3.number()], [2, 3]);
    /// ```
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// What kind of file a cache is in.
///
/// ```
/// use kvsculpt::{formats::{Format, LlamaVersion, Target}, options::Scope};
///
/// // One length for all heads, or each its own: it depends on who reads the file.
/// assert_eq!(Target::new(Format::Llama(LlamaVersion::V3)).scope(), Scope::Uniform);
/// assert_eq!(Target::new(Format::Compressed).scope(), Scope::Head);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Ours: a cache and its queries ([`Capture`](crate::cache::Capture)).
    Capture,
    /// Ours: each head with its own length ([`Compressed`](crate::cache::Compressed)).
    Compressed,
    /// mlx-lm's prompt cache, of `KVCache` layers.
    Mlx(MlxLayout),
    /// llama.cpp's state of one sequence, as `llama_state_seq_save_file` and a server's slot save write it.
    Llama(LlamaVersion),
    /// Safetensors of `[1, kv_heads, tokens, dim]` tensors, as users of Hugging Face's `DynamicCache` write them.
    HuggingFace,
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Capture => "capture",
            Self::Compressed => "compressed cache",
            Self::Mlx(MlxLayout::Texts) => "mlx-lm prompt cache (up to 0.31)",
            Self::Mlx(MlxLayout::Scalars) => "mlx-lm prompt cache (0.32 and newer)",
            Self::Llama(LlamaVersion::V2) => "llama.cpp sequence state, version 2",
            Self::Llama(LlamaVersion::V3) => "llama.cpp sequence state, version 3",
            Self::HuggingFace => "safetensors of [1, kv_heads, tokens, dim] tensors",
        })
    }
}

/// The format of a file, by its contents alone.
///
/// ```
/// use kvsculpt::formats::{Format, detect};
///
/// assert_eq!(detect("tests/data/smollm2-layer20.safetensors".as_ref())?, Format::Capture);
/// // What is none says so.
/// assert!(detect("Cargo.toml".as_ref()).is_err());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::File`]: not readable, or none of the formats, with the name of what it is where that is known.
pub fn detect(path: &Path) -> Result<Format> {
    match opened(Source::open(path)?)? {
        Opened::Llama(_, version) => Ok(Format::Llama(version)),
        Opened::Container(container) => Ok(container_format(&container)),
    }
}

/// A file whose format is known as far as its first bytes tell.
enum Opened {
    Llama(Source, LlamaVersion),
    Container(Container),
}

/// First bytes of files that are taken for caches by mistake, and what to do about each.
const MISTAKEN: [(&[u8], &str); 6] = [
    (
        b"{\"format",
        "is JSON, such as error curves, and no cache; `kvsculpt allocate` takes what `kvsculpt curves` wrote",
    ),
    (
        b"nsgg",
        "is llama.cpp's state of a whole context; save one sequence instead (llama_state_seq_save_file, or a server's slot save)",
    ),
    (
        b"GGUF",
        "is a model, not a cache; save a sequence's state (llama_state_seq_save_file, or a server's slot save)",
    ),
    (
        b"PK\x03\x04",
        "is a zip file, such as torch.save writes; load it where it was written and save its tensors with safetensors",
    ),
    (
        b"\x80\x02",
        "is a pickle; load it where it was written and save its tensors with safetensors",
    ),
    (
        b"\x93NUMPY",
        "is a single NumPy array; save keys and values of all layers with safetensors",
    ),
];

fn opened(source: Source) -> Result<Opened> {
    let mut first = [0; 8];
    let length = usize::try_from(source.length).map_or(8, |length| length.min(8));
    source.read_at(0, &mut first[..length])?;
    // A container's first bytes may look like any of these, but then its header fits into the file.
    if u64::from_le_bytes(first) > source.length
        && let Some((_, reason)) = MISTAKEN.iter().find(|(bytes, _)| first[..length].starts_with(bytes))
    {
        return Err(Error::file(&source.path, *reason));
    }
    if length == 8 && first.starts_with(b"qsgg") {
        let version = llama::version(&source, u32::from_le_bytes([first[4], first[5], first[6], first[7]]))?;
        return Ok(Opened::Llama(source, version));
    }
    let container = Container::new(source)?;
    if container.metadata.get("format").is_some_and(|format| format == "kv-part") {
        return Err(container.error("is a part of a compressed cache; put all parts together with `kvsculpt merge`"));
    }
    Ok(Opened::Container(container))
}

fn container_format(container: &Container) -> Format {
    match container.metadata.get("format").map(String::as_str) {
        Some("kv-capture") => Format::Capture,
        Some("kv-compressed") => Format::Compressed,
        _ => mlx::layout(container).map_or(Format::HuggingFace, Format::Mlx),
    }
}
