//! A cache without queries: what is common to all formats.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{Format, Known, Opened, container_format, hugging_face, llama, mlx, opened, own};
use crate::cache::{Capture, Compressed, Dtype, Pairing, Rope, Source};
use crate::error::{Error, Result};

/// What turns keys to positions, as a model's configuration says it; [`Rope::new`] says which scalings are known.
///
/// ```
/// use kvsculpt::{cache::Pairing, formats::RopeFacts};
///
/// let facts = RopeFacts { theta: 10_000.0, dim: 64, scaling: None };
/// assert_eq!(facts.rope(Pairing::Interleaved)?.frequencies.len(), 32);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFacts {
    /// The base of the frequencies θ^(−2i / dim).
    pub theta: f64,
    /// Channels that rotate: the first so many of a key.
    pub dim: usize,
    /// A scaling of the frequencies, as JSON.
    pub scaling: Option<String>,
}

impl RopeFacts {
    /// The rotation itself, for keys whose channels are paired so.
    ///
    /// # Errors
    /// As [`Rope::new`].
    pub fn rope(&self, pairing: Pairing) -> Result<Rope> {
        Rope::new(self.theta, self.dim, pairing, self.scaling.as_deref())
    }
}

/// What is known of a layer without reading its arrays.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// # let short = kvsculpt::solver::compress(&mut kvsculpt::cpu::CpuEngine::new(), &capture, &request, &mut ())?.compressed;
/// use kvsculpt::formats::{Cache, Known};
///
/// let cache = Cache::from_compressed("short", short, &Known::default())?;
/// for layer in &cache.layers {
///     println!("layer {}: {} pairs, {} in the longest head", layer.index, layer.pairs(), layer.longest());
///     // All of one length, as mlx-lm needs it.
///     assert_eq!(layer.length(), Some(layer.longest()));
/// }
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerFacts {
    /// The layer's number in its model.
    pub index: usize,
    /// Stored pairs of each KV head.
    pub lengths: Vec<usize>,
    /// Channels of a key.
    pub dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// How keys are, or are to be, stored.
    pub key_dtype: Dtype,
    /// How values are, or are to be, stored.
    pub value_dtype: Dtype,
    /// Whether pairs have a bias on their logit.
    pub bias: bool,
    /// The position of the next token in the frame that the layer's keys are rotated in.
    pub next_position: usize,
}

impl LayerFacts {
    /// Stored pairs of all heads together.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Stored pairs a head, where all heads have as many.
    #[must_use]
    pub fn length(&self) -> Option<usize> {
        let first = *self.lengths.first()?;
        self.lengths.iter().all(|&length| length == first).then_some(first)
    }

    /// The longest head's pairs.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Where an element of the layer's arrays is, in words.
    pub(super) fn place(&self, element: usize, channels: usize) -> String {
        let (mut row, channel) = (element / channels, element % channels);
        for (head, &length) in self.lengths.iter().enumerate() {
            if row < length {
                return format!("head {head}, pair {row}, channel {channel}");
            }
            row -= length;
        }
        format!("channel {channel} after the last head")
    }
}

/// The arrays of a layer, heads one after the other, widened to f32.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// # let short = kvsculpt::solver::compress(&mut kvsculpt::cpu::CpuEngine::new(), &capture, &request, &mut ())?.compressed;
/// use kvsculpt::formats::{Cache, Known, LayerPairs};
///
/// let cache = Cache::from_compressed("short", short, &Known::default())?;
/// let LayerPairs { key, value, .. } = cache.read(0)?;
/// assert_eq!(key.len() / cache.layers[0].dim, value.len() / cache.layers[0].value_dim);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerPairs {
    /// `[Σ lengths, dim]`, after RoPE.
    pub key: Vec<f32>,
    /// `[Σ lengths, value_dim]`.
    pub value: Vec<f32>,
    /// `[Σ lengths]`, added to the scaled logits.
    pub bias: Option<Vec<f32>>,
}

/// Where a cache's arrays are read from, one layer at a time.
pub(super) trait Layers: fmt::Debug + Send + Sync {
    /// Reads the layer that is `number`th in the file and has these facts.
    fn read(&self, number: usize, facts: &LayerFacts) -> Result<LayerPairs>;

    /// The capture behind it, where there is one.
    fn capture(&self) -> Option<&Capture> {
        None
    }

    /// The same, taken out.
    fn into_capture(self: Box<Self>) -> Option<Capture> {
        None
    }

    /// SHA-256 of the file, where there is one.
    fn digest(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// An open cache of any format: its header is read and checked, its layers are read one at a time.
///
/// It holds no queries. What a capture made of it lacks are queries (before RoPE, or training queries after RoPE) and the
/// softmax scale where `metadata` does not have it; everything else of a
/// [`Context`](crate::cache::Context) and its [`Layer`](crate::cache::Layer)s is here.
///
/// ```
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// # let (capture, prompt) = (folder.path().join("capture.safetensors"), folder.path().join("prompt.safetensors"));
/// # let mut generator = kvsculpt::cache::Generator::default();
/// # (generator.layers, generator.kv_heads, generator.group, generator.dim) = (2, 2, 2, 16);
/// # (generator.tokens, generator.probes) = (64, 0);
/// # generator.write(&capture, kvsculpt::cache::Dtype::F16, &mut |_| {})?;
/// use kvsculpt::{cache::QuerySource, formats::{Cache, Format, Known, MlxLayout, Target}};
///
/// // A capture, or any other cache, as mlx-lm reads it.
/// let known = Known { architecture: Some("llama".into()), model: Some("a model".into()), ..Known::default() };
/// let written = Cache::open(&capture, &known)?.write(&prompt, &Target::new(Format::Mlx(MlxLayout::Scalars)))?;
/// let cache = Cache::from_bytes("prompt", std::fs::read(&prompt).unwrap(), &known)?;
/// assert_eq!((cache.format, cache.layers.len()), (Format::Mlx(MlxLayout::Scalars), written.layers.len()));
/// assert_eq!(cache.read(1)?.key.len(), 2 * 64 * 16);
/// // To be compressed, with queries guessed for want of any.
/// assert_eq!(cache.into_capture(QuerySource::Keys, 0)?.queries(), "guessed from keys");
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Cache {
    /// The file, or the name that stands for it.
    pub path: PathBuf,
    /// What it was read from.
    pub format: Format,
    /// Layers present, ascending.
    pub layers: Vec<LayerFacts>,
    /// Tokens of the text that the cache stands for; as many as it stores where its file does not say.
    pub tokens: usize,
    /// Those tokens' numbers in the model's vocabulary, where they are known.
    pub token_ids: Option<Vec<i32>>,
    /// Positions of the stored pairs, alike in all heads and layers, where they are not simply the last ones before the
    /// next position.
    pub positions: Option<Vec<i32>>,
    /// How keys are turned to positions, where it is known.
    pub rope: Option<RopeFacts>,
    /// Which channels of a key rotate together, where it is known.
    pub pairing: Option<Pairing>,
    /// All other texts of the file, by the names that our own files use; what another format calls its own is kept under that
    /// format's name and a dot.
    pub metadata: BTreeMap<String, String>,
    pub(super) source: Box<dyn Layers>,
}

impl Cache {
    /// Opens a file of any [`Format`] and checks everything its header can tell.
    ///
    /// # Errors
    /// [`Error::File`], naming the place and what to do; [`Error::Options`] where something must be [`Known`] that is not, or
    /// what is contradicts the file.
    pub fn open(path: &Path, known: &Known) -> Result<Self> {
        Self::new(Source::open(path)?, known)
    }

    /// The same for a file in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>, known: &Known) -> Result<Self> {
        Self::new(Source::from_bytes(name.into(), bytes.into()), known)
    }

    fn new(source: Source, known: &Known) -> Result<Self> {
        let cache = match opened(source)? {
            Opened::Llama(source, version) => llama::open(source, version, known),
            Opened::Container(container) => match container_format(&container) {
                Format::Capture => own::capture(Capture::new(own::told(container, known))?),
                Format::Compressed => own::compressed(container.path().to_owned(), Compressed::take(container)?),
                Format::Mlx(layout) => mlx::open(container, layout),
                Format::HuggingFace | Format::Llama(_) => hugging_face::open(container, known),
            },
        };
        cache?.told(known)
    }

    /// A compressed cache in memory, as [`compress`](crate::solver::compress) returns it; `name` stands for the path in errors.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use kvsculpt::{cpu::CpuEngine, formats::{Cache, Format, Known}, solver::compress};
    ///
    /// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?.compressed;
    /// let cache = Cache::from_compressed("short", short, &Known::default())?;
    /// assert_eq!((cache.format, cache.tokens), (Format::Compressed, capture.tokens));
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] where its arrays do not fit together or the metadata `next_position` is missing.
    pub fn from_compressed(name: impl Into<PathBuf>, compressed: Compressed, known: &Known) -> Result<Self> {
        own::compressed(name.into(), compressed)?.told(known)
    }

    /// Reads the arrays of the layer that is `number`th in [`layers`](Self::layers) and checks that every number is finite.
    ///
    /// # Errors
    /// [`Error::File`], naming the place and what to do; [`Error::Shape`] where there is no such layer.
    pub fn read(&self, number: usize) -> Result<LayerPairs> {
        let facts = self.layers.get(number).ok_or_else(|| {
            let layers = self.layers.len();
            Error::shape("cache", format!("has {layers} layers, so none is number {number} from 0"))
        })?;
        self.source.read(number, facts)
    }

    /// An error about the file as a whole.
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        Error::file(&self.path, reason)
    }
}
