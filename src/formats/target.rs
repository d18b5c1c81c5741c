//! What a cache is to be written as, and whether that can hold it.

use std::collections::BTreeMap;
use std::path::Path;

use super::cache::{Cache, LayerFacts, LayerPairs};
use super::known::{hugging_face_pairing, llama_pairing};
use super::turn::Turn;
use super::{Format, hugging_face, llama, mlx, own};
use crate::budget::Scope;
use crate::cache::{Capture, CompressedLayer, Dtype, Pairing, Rope};
use crate::error::{Error, Result};

/// Before which position the written keys stand.
///
/// ```
/// use kvsculpt::formats::{Format, Frame, MlxLayout, Target};
///
/// // mlx-lm goes on from the stored length; to go on elsewhere the application says so.
/// let mut target = Target::new(Format::Mlx(MlxLayout::Scalars));
/// assert_eq!(target.frame, None);
/// target.frame = Some(Frame::At(4096));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Where they stand in the file that is read.
    Absolute,
    /// Before the position that is the stored length, layer by layer.
    Rebased,
    /// Before this one.
    At(usize),
}

/// What a cache is to be written as.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{formats::{Format, LlamaVersion, Target}, options::Scope};
///
/// let target = Target::new(Format::Llama(LlamaVersion::V3));
/// assert!(target.scope() == Scope::Uniform && !target.holds_bias());
/// // Told before the work, so that nothing is done in vain: this capture does not name its tokens, and has one layer of many.
/// println!("{:?}", target.check(&capture, &capture.layers, 200));
/// assert!(Target::new(Format::Compressed).check(&capture, &capture.layers, 200).is_ok());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The file's format.
    pub format: Format,
    /// How keys and values are stored; as they were if `None`, but F16 in llama.cpp's files made from others.
    pub dtype: Option<Dtype>,
    /// The frame of positions; if `None` rebased for [`Format::Mlx`] and [`Format::HuggingFace`], else absolute.
    pub frame: Option<Frame>,
    /// Which channels of a key rotate together; what the engine expects of the model's architecture if `None`.
    pub pairing: Option<Pairing>,
    /// Whether llama.cpp's file has its values transposed, as contexts without flash attention want; as it was if
    /// `None`, and not in files made from others.
    pub transposed: Option<bool>,
}

impl Target {
    /// A format, everything else as that format's engine expects it.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            dtype: None,
            frame: None,
            pairing: None,
            transposed: None,
        }
    }
}

/// What was written.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// # let short = kvsculpt::solver::compress(&mut kvsculpt::cpu::CpuEngine::new(), &capture, &request, &mut ())?.compressed;
/// use kvsculpt::formats::{Cache, Format, Known, Target, Written};
///
/// let path = folder.path().join("again.safetensors");
/// let cache = Cache::from_compressed("short", short, &Known::default())?;
/// let written: Written = cache.write(&path, &Target::new(Format::Compressed))?;
/// assert!(written.bytes == path.metadata().unwrap().len() && !written.turned);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Written {
    /// The file's bytes.
    pub bytes: u64,
    /// The layers as they are in it.
    pub layers: Vec<LayerFacts>,
    /// Whether keys were turned to other positions.
    pub turned: bool,
}

impl Target {
    /// How far lengths may differ in a cache that is written so.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self.format {
            // No compression ends in a capture: `check` says so.
            Format::Compressed | Format::Capture => Scope::Head,
            Format::Mlx(_) => Scope::Layer,
            Format::HuggingFace if matches!(self.frame, Some(Frame::Absolute | Frame::At(_))) => Scope::Layer,
            Format::HuggingFace | Format::Llama(_) => Scope::Uniform,
        }
    }

    /// Whether pairs may have a bias on their logit in a cache that is written so.
    #[must_use]
    pub fn holds_bias(&self) -> bool {
        self.format == Format::Compressed
    }

    /// Fails now as [`Cache::write`] would for what a capture is compressed to, so that nothing is done in vain; `layers` are those
    /// compressed, `kept` the pairs of every head where all have as many.
    ///
    /// # Errors
    /// As [`Cache::write`], but for what only the numbers themselves show.
    pub fn check(&self, capture: &Capture, layers: &[usize], kept: usize) -> Result<()> {
        if self.format == Format::Compressed {
            return Ok(());
        }
        if self.format == Format::Capture {
            return Err(Error::option(
                "--to",
                "a compressed cache holds no queries, which a capture needs; leave it out, or name another format",
            ));
        }
        let cache = even(capture, layers, kept, capture.metadata.clone())?;
        let plan = Plan::new(&cache, self)?;
        match self.format {
            Format::Mlx(layout) => mlx::check(&plan, layout),
            Format::Llama(_) => llama::check(&plan),
            _ => Ok(()),
        }
    }

    /// What a file takes in which heads have at most all pairs of the capture, with these texts or shorter ones.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn size(&self, capture: &Capture, layers: &[usize], texts: BTreeMap<String, String>) -> Result<Size> {
        // No number of a header is longer in a shorter cache.
        let cache = even(capture, layers, capture.tokens, texts)?;
        let plan = Plan::new(&cache, self)?;
        let pair: usize = plan.layers.iter().map(|facts| facts.lengths.len() * pair_bytes(facts)).sum();
        let (beside, cell) = match self.format {
            Format::Mlx(layout) => (mlx::beside(&plan, layout)?, 0),
            Format::HuggingFace => (hugging_face::beside(&plan)?, 0),
            Format::Llama(_) => llama::beside(&plan)?,
            Format::Compressed | Format::Capture => return Err(cache.error(format!("is not counted as a {}", self.format))),
        };
        Ok(Size {
            beside,
            pair: pair as u64,
            cell,
        })
    }
}

/// Bytes of a file whose heads are all of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Beside the pairs, at most.
    pub(crate) beside: u64,
    /// The keys, values and biases of a pair of every head.
    pub(crate) pair: u64,
    /// What such a pair takes beside.
    pub(crate) cell: u64,
}

/// Bytes of one pair of one head.
fn pair_bytes(facts: &LayerFacts) -> usize {
    facts.dim * facts.key_dtype.bytes() + facts.value_dim * facts.value_dtype.bytes()
}

/// What a capture would be compressed to if every head had as many pairs; its numbers cannot be read.
fn even(capture: &Capture, layers: &[usize], kept: usize, texts: BTreeMap<String, String>) -> Result<Cache> {
    let facts = own::facts(capture, layers, kept)?;
    let source = Box::new(Vec::<CompressedLayer>::new());
    own::from_texts(capture.path.clone(), Format::Compressed, facts, texts, source)
}

impl Cache {
    /// Writes the cache as the target says, whole or not at all; always the same bytes for the same contents.
    ///
    /// # Errors
    /// [`Error::File`]: the format cannot hold the cache, or the file cannot be written; [`Error::Options`] where the target has no
    /// meaning or something must be [`Known`](super::Known) for it; else as [`read`](Self::read).
    pub fn write(&self, path: &Path, target: &Target) -> Result<Written> {
        let plan = Plan::new(self, target)?;
        let bytes = match target.format {
            Format::Capture => own::write_capture(&plan, path)?,
            Format::Compressed => own::write_compressed(&plan, path)?,
            Format::Mlx(layout) => mlx::write(&plan, path, layout)?,
            Format::HuggingFace => hugging_face::write(&plan, path)?,
            Format::Llama(version) => llama::write(&plan, path, version, target.transposed)?,
        };
        let turned = plan.turned();
        Ok(Written {
            bytes,
            turned,
            layers: plan.layers,
        })
    }
}

/// A cache and what becomes of it.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) cache: &'a Cache,
    /// The layers as they are to be.
    pub(super) layers: Vec<LayerFacts>,
    /// Which channels of a key are to rotate together.
    pub(super) pairing: Option<Pairing>,
    /// The cache's positions in the new frame.
    pub(super) positions: Option<Vec<i32>>,
    turns: Vec<Turn>,
}

impl<'a> Plan<'a> {
    fn new(cache: &'a Cache, target: &Target) -> Result<Self> {
        check_holds(cache, target)?;
        let pairing = pairing(cache, target)?;
        let mut plan = Self {
            cache,
            layers: Vec::new(),
            pairing,
            positions: None,
            turns: Vec::new(),
        };
        // A capture that is written again has one dtype for everything.
        let whole = match (target.format, cache.source.capture()) {
            (Format::Capture, Some(capture)) => Some(capture.dtype()?),
            _ => None,
        };
        for facts in &cache.layers {
            let next_position = next_position(cache, facts, target)?;
            plan.turns.push(turn(cache, facts, next_position, pairing)?);
            let dtype = |stored: Dtype| match (target.dtype, target.format, cache.format) {
                (Some(dtype), _, _) => dtype,
                (None, Format::Capture, _) => whole.unwrap_or(stored),
                // F32 holds either of two.
                (None, Format::Compressed, _) if facts.key_dtype != facts.value_dtype => Dtype::F32,
                (None, Format::Llama(_), Format::Llama(_)) => stored,
                (None, Format::Llama(_), _) => Dtype::F16,
                (None, _, _) => stored,
            };
            plan.layers.push(LayerFacts {
                next_position,
                key_dtype: dtype(facts.key_dtype),
                value_dtype: dtype(facts.value_dtype),
                ..facts.clone()
            });
        }
        plan.positions = plan.shifted_positions();
        Ok(plan)
    }

    /// The arrays of a layer as they are to be.
    pub(super) fn read(&self, number: usize) -> Result<LayerPairs> {
        let mut pairs = self.cache.read(number)?;
        if let (Some(turn), Some(facts)) = (self.turns.get(number), self.layers.get(number)) {
            turn.apply(&mut pairs.key, facts.dim);
        }
        Ok(pairs)
    }

    /// Whether keys are turned to other positions.
    pub(super) fn turned(&self) -> bool {
        self.turns.iter().any(|turn| turn.rotation.is_some())
    }

    /// The next position, where it is the same in all layers.
    pub(super) fn next_position(&self) -> Option<usize> {
        let first = self.layers.first()?.next_position;
        self.layers.iter().all(|layer| layer.next_position == first).then_some(first)
    }

    /// Where the cache stood before it was turned, as an earlier conversion left it on record.
    pub(super) fn original(&self) -> Option<&str> {
        self.cache.metadata.get("source_next_position").map(String::as_str)
    }

    fn shifted_positions(&self) -> Option<Vec<i32>> {
        let positions = self.cache.positions.as_ref()?;
        let (from, to) = (self.cache.layers.first()?.next_position, self.next_position()?);
        let shift = i64::try_from(to).ok()? - i64::try_from(from).ok()?;
        let moved = |&position: &i32| i32::try_from(i64::from(position) + shift).ok().filter(|&position| position >= 0);
        positions.iter().map(moved).collect()
    }
}

/// Refuses what the format has no place for.
fn check_holds(cache: &Cache, target: &Target) -> Result<()> {
    let format = target.format;
    if matches!(format, Format::Compressed) {
        return Ok(());
    }
    if let Some(layer) = cache.layers.iter().find(|layer| layer.bias) {
        return Err(cache.error(format!(
            "has biases on the logits of its pairs in layer {}, and no {format} can hold one; compress again with --bias off",
            layer.index
        )));
    }
    if let Some(layer) = cache.layers.iter().find(|layer| layer.length().is_none()) {
        let shortest = layer.lengths.iter().min().copied().unwrap_or(0);
        let (lengths, scope) = match target.scope() {
            Scope::Uniform => ("one length for all heads and layers", "uniform"),
            _ => ("one length for all heads of a layer", "layer"),
        };
        return Err(cache.error(format!(
            "stores {shortest} to {} pairs a head in layer {}, and a {format} has {lengths}; compress again with --budget {scope}",
            layer.longest(),
            layer.index
        )));
    }
    if !matches!(format, Format::Llama(_)) {
        return Ok(());
    }
    let lengths = || cache.layers.iter().map(LayerFacts::longest);
    match (lengths().min(), lengths().max()) {
        (Some(shortest), Some(longest)) if shortest != longest => Err(cache.error(format!(
            "stores {shortest} to {longest} pairs by layer, and a {format} has one length for all layers; compress again with --budget uniform"
        ))),
        _ => Ok(()),
    }
}

/// Which channels of a key rotate together in the written file.
fn pairing(cache: &Cache, target: &Target) -> Result<Option<Pairing>> {
    let architecture = cache.metadata.get("architecture").map(String::as_str);
    let wanted = target.pairing.or(match target.format {
        Format::Mlx(_) | Format::HuggingFace => Some(hugging_face_pairing(architecture)),
        Format::Llama(_) if !matches!(cache.format, Format::Llama(_)) => architecture.and_then(llama_pairing),
        _ => cache.pairing,
    });
    let foreign = matches!(target.format, Format::Llama(_)) != matches!(cache.format, Format::Llama(_));
    if wanted.is_none() && foreign && !matches!(target.format, Format::Compressed | Format::Capture) {
        return Err(Error::option(
            "--pairing",
            format!(
                "which channels of a key rotate together depends in a {} on the model's architecture, and {} is not among those known; give half or interleaved, or --architecture",
                target.format,
                architecture.unwrap_or("none named")
            ),
        ));
    }
    if wanted.is_some() && cache.pairing.is_none() {
        return Err(Error::option(
            "--rope-pairing",
            format!(
                "{} does not say which channels of a key rotate together; give half or interleaved, or --architecture",
                cache.path.display()
            ),
        ));
    }
    Ok(wanted)
}

fn next_position(cache: &Cache, facts: &LayerFacts, target: &Target) -> Result<usize> {
    let by_length = matches!(target.format, Format::Mlx(_) | Format::HuggingFace);
    let usual = if by_length { Frame::Rebased } else { Frame::Absolute };
    let next_position = match target.frame.unwrap_or(usual) {
        Frame::Absolute => facts.next_position,
        Frame::At(position) => position,
        Frame::Rebased if matches!(target.format, Format::HuggingFace) => one_length(cache)?,
        Frame::Rebased => facts.length().ok_or_else(|| {
            cache.error(format!(
                "has heads of different lengths in layer {}, so there is no one stored length to count from; compress again with --budget layer",
                facts.index
            ))
        })?,
    };
    if u32::try_from(next_position).is_err() {
        return Err(Error::option(
            "--frame",
            format!("{next_position} is too large; the most is {}", u32::MAX),
        ));
    }
    if matches!(target.format, Format::Mlx(_)) && facts.length() != Some(next_position) {
        return Err(Error::option(
            "--frame",
            format!(
                "mlx-lm counts the next position by the stored length, which is {} in layer {}, not {next_position}; leave it out",
                facts.longest(),
                facts.index
            ),
        ));
    }
    Ok(next_position)
}

/// The stored length of all layers, as Hugging Face's models count from one for all.
fn one_length(cache: &Cache) -> Result<usize> {
    let longest = cache.layers.iter().map(LayerFacts::longest);
    match (longest.clone().min(), longest.max()) {
        (Some(least), Some(most)) if least == most => Ok(most),
        (least, most) => Err(cache.error(format!(
            "stores {} to {} pairs by layer, and Hugging Face's models count the next position from one length for all layers; compress again with --budget uniform, or give --frame absolute where your code passes position_ids",
            least.unwrap_or(0),
            most.unwrap_or(0)
        ))),
    }
}

fn turn(cache: &Cache, facts: &LayerFacts, next_position: usize, pairing: Option<Pairing>) -> Result<Turn> {
    let mut turn = Turn {
        rotation: None,
        order: None,
    };
    if next_position != facts.next_position {
        // Both fit 32 bits, so f64 holds them.
        let shift = next_position as f64 - facts.next_position as f64;
        turn.rotation = Some((rotation(cache, facts, next_position)?, shift));
    }
    if let Some(wanted) = pairing
        && cache.pairing != Some(wanted)
    {
        let rotating = cache.rope.as_ref().ok_or_else(|| {
            Error::option(
                "--rope-dim",
                format!(
                    "the channels of {}'s keys must be put in another order, and it does not say how many of them rotate; give it with --rope-theta, or --model-config",
                    cache.path.display()
                ),
            )
        })?;
        turn.order = Some((rotating.dim, wanted));
    }
    Ok(turn)
}

/// The rotation of a layer's keys, where it can be known.
fn rotation(cache: &Cache, facts: &LayerFacts, next_position: usize) -> Result<Rope> {
    let why = format!(
        "the keys of layer {} stand before position {} and are to stand before {next_position}",
        facts.index, facts.next_position
    );
    let Some(rope) = &cache.rope else {
        return Err(Error::option(
            "--rope-theta",
            format!(
                "{why}, and {} does not say how they rotate; give it with --rope-dim, or --model-config",
                cache.path.display()
            ),
        ));
    };
    let pairing = cache.pairing.ok_or_else(|| {
        Error::option(
            "--rope-pairing",
            format!(
                "{why}, and {} does not say which channels rotate together; give half or interleaved, or --architecture",
                cache.path.display()
            ),
        )
    })?;
    let rope = rope.rope(pairing)?;
    match &rope.unsupported {
        Some(what) => Err(cache.error(format!(
            "cannot be turned to other positions: {why}, and the model has {what}, which is not known here; use --frame absolute where the format allows it"
        ))),
        None => Ok(rope),
    }
}
