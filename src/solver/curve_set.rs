//! Error curves of all or some heads as a file (format `kv-curves`), and the lengths that follow from all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::allocation::{heads_of, lengths, shared};
use super::chunks::cut;
use super::plan;
use super::size::pairs_in;
use crate::batch::Shard;
use crate::budget::{Budgets, Curve, Scope, Weights, json};
use crate::cache::write_whole;
use crate::error::{Error, Result};
use crate::formats::Size;
use crate::options::{Allocator, Options, Split, Tail, Target};

/// The field `format` of every such file.
const FORMAT: &str = "kv-curves";
/// The version of the files that are written and read here.
const VERSION: u32 = 1;
/// Bytes such a file may have: a point of a curve takes some thirty, and many chunks have many curves.
const MOST_BYTES: u64 = 1 << 30;
/// Where such files come from.
const SOURCE: &str = "a file that `kvsculpt curves` wrote";

/// The error curves of the heads of one [`Shard`] or of all, and what else lengths are decided by.
///
/// As a file it is JSON; every number is written so that it is read back to the bit.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// use kvsculpt::{batch::Shard, cpu::CpuEngine, solver::{CurveSet, measure_curves, plan_curves}};
///
/// let path = folder.path().join("curves.json");
/// let curves = measure_curves(&mut CpuEngine::new(), &capture, &request, Shard::WHOLE, &mut ())?;
/// println!("{} heads in {} bytes", curves.heads().len(), curves.write(&path)?);
/// let read = CurveSet::read(&path)?;
/// assert_eq!(CurveSet::from_bytes("curves", &std::fs::read(&path).unwrap())?, read);
/// assert!(read.is_like(&plan_curves(&capture, &request, Shard::WHOLE)?));
/// assert_eq!((read.shard(), read.options(), read.curves()?.len()), (Shard::WHOLE, &request.options, 3));
/// // Of several shards; of one it is the set itself.
/// assert_eq!(CurveSet::joined(vec![(path, read.clone())])?, read);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CurveSet {
    pub(super) about: About,
    pub(super) shard: Shard,
    /// Layer and KV head, ascending.
    pub(super) heads: Vec<(usize, usize)>,
    /// The curves of their chunks, those of a head one after the other.
    pub(super) parts: Vec<Curve>,
}

/// What the curves are of; the same for all shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    /// The program and its version.
    pub(super) tool: String,
    /// The digest of the capture's file, and one of all that is said of it and of its queries.
    pub(super) source: String,
    /// What they were measured for.
    pub(super) options: Options,
    /// The split where all lengths are the same.
    pub(super) split: Split,
    /// KV heads of every layer.
    pub(super) whole: BTreeMap<usize, usize>,
    /// Bytes of a stored pair of each layer.
    pub(super) pair_bytes: BTreeMap<usize, u64>,
    /// The most that the file has beside its pairs, whatever the target.
    pub(super) header_bytes: u64,
    /// What all pairs may take together, where the target is one in bytes.
    pub(super) room: u64,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: String,
    version: u32,
    about: About,
    shard: (usize, usize),
    heads: Vec<(usize, usize)>,
    curves: Vec<Curve>,
}

impl CurveSet {
    /// The options that the curves were measured for.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.about.options
    }

    /// Which shard's heads they are of.
    #[must_use]
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// Layer and KV head of each, ascending.
    #[must_use]
    pub fn heads(&self) -> &[(usize, usize)] {
        &self.heads
    }

    /// The curve of each head, of all its chunks together.
    ///
    /// # Errors
    /// [`Error::Shape`] for curves without meaning.
    pub fn curves(&self) -> Result<Vec<Curve>> {
        heads_of(&self.parts, self.chunks().len())
    }

    /// Whether these are of the same capture, options, version and shard.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.about == other.about && self.shard == other.shard && self.heads == other.heads
    }

    /// How the zone of a head is cut.
    fn chunks(&self) -> Vec<Split> {
        cut(self.about.split, self.about.options.chunk)
    }

    /// Writes the file whole or not at all; returns its bytes.
    ///
    /// # Errors
    /// [`Error::File`] for a destination that cannot be written, [`Error::Write`] where writing fails on the way.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let written = Written {
            format: FORMAT.to_owned(),
            version: VERSION,
            about: self.about.clone(),
            shard: (self.shard.index(), self.shard.count()),
            heads: self.heads.clone(),
            curves: self.parts.clone(),
        };
        let mut text = serde_json::to_vec(&written).map_err(|error| Error::file(path, format!("cannot be written: {error}")))?;
        text.push(b'\n');
        write_whole(path, &text)
    }

    /// Reads such a file and checks that it has the curves of the heads it names, each with a meaning.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is not there, is above 1 GiB, or is no such file, with the place in it.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(path, json::read(path, MOST_BYTES, FORMAT, VERSION, SOURCE)?)
    }

    /// The same for a file in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: &[u8]) -> Result<Self> {
        let path = name.into();
        Self::of(&path, json::parse(&path, bytes, FORMAT, VERSION, SOURCE)?)
    }

    fn of(path: &Path, written: Written) -> Result<Self> {
        let refuse = |reason: String| Error::file(path, format!("{reason}; make it again"));
        let shard = Shard::new(written.shard.0, written.shard.1).map_err(|error| refuse(error.to_string()))?;
        let set = Self {
            about: written.about,
            shard,
            heads: written.heads,
            parts: written.curves,
        };
        set.check().map_err(refuse)?;
        Ok(set)
    }

    fn check(&self) -> Result<(), String> {
        let About {
            split,
            options,
            whole,
            pair_bytes,
            ..
        } = &self.about;
        options.validate().map_err(|error| error.to_string())?;
        let fixed = split.sinks.checked_add(split.tail);
        let kept = fixed.and_then(|fixed| fixed.checked_add(split.free));
        if split.free == 0 || kept.is_none_or(|kept| kept > split.tokens) || u32::try_from(split.tokens).is_err() {
            return Err("divides the pairs of a head in a way that cannot be".to_owned());
        }
        if !whole.keys().eq(pair_bytes.keys()) || pair_bytes.values().any(|&bytes| bytes == 0 || bytes > 1 << 20) {
            return Err("does not have the bytes of a pair of each layer".to_owned());
        }
        let ascend = self.heads.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascend
            || self
                .heads
                .iter()
                .any(|(layer, head)| whole.get(layer).is_none_or(|heads| head >= heads))
        {
            return Err("names heads that are not among its layers'".to_owned());
        }
        // Counted before the chunks are made: a hostile file may name very many.
        if self.heads.is_empty() && self.parts.is_empty() {
            return Ok(());
        }
        let zone = split.tokens - split.sinks - split.tail;
        if self.parts.is_empty() || (options.chunk > 0 && zone / options.chunk > 2 * self.parts.len() + 2) {
            return Err("does not have a curve of every chunk".to_owned());
        }
        let chunks = self.chunks();
        if Some(self.parts.len()) != self.heads.len().checked_mul(chunks.len()) {
            return Err("does not have a curve of every chunk".to_owned());
        }
        for (curves, &(layer, head)) in self.parts.chunks(chunks.len()).zip(&self.heads) {
            for (curve, chunk) in curves.iter().zip(&chunks) {
                let (first, last) = curve.ends().map_err(|error| error.to_string())?;
                let is_its = (curve.layer, curve.head) == (layer, head);
                if !is_its || last != chunk.tokens || first <= chunk.sinks + chunk.tail {
                    return Err(format!("has a curve of layer {layer} head {head} that is not of its pairs"));
                }
            }
        }
        Ok(())
    }

    /// The curves of all heads from those of all shards; each with the name of its file, for errors.
    ///
    /// # Errors
    /// [`Error::File`] for a file that does not belong to the first or has a head that another has too; [`Error::Shape`] where a head's
    /// curve is missing.
    pub fn joined(sets: Vec<(PathBuf, Self)>) -> Result<Self> {
        let mut names: BTreeMap<(usize, usize), PathBuf> = BTreeMap::new();
        let mut parts: BTreeMap<(usize, usize), Vec<Curve>> = BTreeMap::new();
        let mut like: Option<(PathBuf, About)> = None;
        for (path, set) in sets {
            let (first, about) = like.get_or_insert_with(|| (path.clone(), set.about.clone()));
            if let Some(reason) = set.about.differs(about) {
                return Err(Error::file(path, format!("{reason} {}", first.display())));
            }
            let count = set.chunks().len();
            for (&head, curves) in set.heads.iter().zip(set.parts.chunks(count)) {
                if let Some(other) = names.insert(head, path.clone()) {
                    let (layer, head, other) = (head.0, head.1, other.display());
                    let reason = format!("has layer {layer} head {head}, which {other} has too; leave one of the two out");
                    return Err(Error::file(path, reason));
                }
                parts.insert(head, curves.to_vec());
            }
        }
        let Some((_, about)) = like else {
            return Err(Error::shape(
                "curves",
                "there are none; give all files that `kvsculpt curves` wrote",
            ));
        };
        let mut heads = about
            .whole
            .iter()
            .flat_map(|(&layer, &heads)| (0..heads).map(move |head| (layer, head)));
        if let Some((layer, head)) = heads.find(|head| !parts.contains_key(head)) {
            return Err(Error::shape(
                format!("layer {layer} head {head}"),
                "no file has its error curve; give the files of all shards",
            ));
        }
        Ok(Self {
            about,
            shard: Shard::WHOLE,
            heads: parts.keys().copied().collect(),
            parts: parts.into_values().flatten().collect(),
        })
    }
}

impl About {
    /// Why curves of this and of the other have nothing to do with each other, in words that a file's name follows.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        if self.source != other.source {
            return Some("is of another capture, or of other queries or facts about it, than");
        }
        if self.tool != other.tool {
            return Some("is by another version of kvsculpt than");
        }
        if self.options != other.options {
            return Some("is measured with other options than");
        }
        (self != other).then_some("is of other layers, or for another dtype, than")
    }

    /// The split of the lengths asked for: sinks and tail are those that the curves were measured with.
    fn split_of(&self, options: &Options) -> Result<Split> {
        if options.target == self.options.target && options.keep.to_bits() == self.options.keep.to_bits() {
            return Ok(self.split);
        }
        let Some(Target::Bytes(bytes)) = options.target else {
            return match options.target {
                Some(Target::MaxError(_)) => Split::least(self.split.tokens, options),
                _ => Split::uniform(self.split.tokens, options),
            };
        };
        let pair = self
            .whole
            .iter()
            .map(|(layer, &heads)| heads as u64 * self.pair_bytes.get(layer).copied().unwrap_or(0))
            .fold(0, u64::saturating_add);
        let size = Size {
            beside: self.header_bytes,
            pair,
            cell: 0,
        };
        let kept = pairs_in(bytes, size, self.split.tokens, options)?;
        Split::of(self.split.tokens, kept, options)
    }
}

/// The lengths that serve a target best by the curves of all heads, with the options that the heads are to be compressed with.
///
/// Of `options` count `keep`, `target`, `budget` and `page`; all others are what the curves were measured with. Where these four are too,
/// the lengths are those that [`compress`](super::compress()) decides for the same weights, and parts compressed with them merge into its
/// very bytes; but for [`Target::MaxError`], which here holds by the curves alone and is told in the result as the share that is kept.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// use kvsculpt::{batch::Shard, cpu::CpuEngine, solver::{allocate, measure_curves}};
///
/// let curves = measure_curves(&mut CpuEngine::new(), &capture, &request, Shard::WHOLE, &mut ())?;
/// // Measured once, asked for twice.
/// let mut options = request.options.clone();
/// let lengths = [0.2, 0.4].map(|keep| {
///     options.keep = keep;
///     allocate(&curves, &options, None).map(|budgets| budgets.total())
/// });
/// assert!(matches!(lengths, [Ok(shorter), Ok(longer)] if shorter < longer));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] where a head's curve is missing; [`Error::Options`] for options without meaning, a target that cannot be met, or
/// weights that do not name every head.
pub fn allocate(curves: &CurveSet, options: &Options, weights: Option<&Weights>) -> Result<Budgets> {
    let about = &curves.about;
    let mut options = Options {
        keep: options.keep,
        target: options.target,
        budget: options.budget,
        page: options.page,
        ..about.options.clone()
    };
    // One length that holds a bound is found by curves too.
    let is_even = options.budget == Scope::Uniform && !matches!(options.target, Some(Target::MaxError(_)));
    if is_even || options.allocator != Allocator::Curves {
        return Err(Error::option(
            "--budget",
            "`uniform` needs no error curves; use `kvsculpt compress --budget uniform --shard`",
        ));
    }
    let is_measured_for = options.target == about.options.target && options.keep.to_bits() == about.options.keep.to_bits();
    if !is_measured_for {
        options.tail = Tail::Pairs(about.split.tail);
    }
    options.validate()?;
    // Once more, as if they came from one file: all heads have to be there.
    let all = CurveSet::joined(vec![(PathBuf::from("curves"), curves.clone())])?;
    let split = about.split_of(&options)?;
    let chunks = all.chunks();
    let weights = plan::weights(&all.heads, weights)?;
    let heads = heads_of(&all.parts, chunks.len())?;
    let pair_bytes: Vec<u64> = all
        .heads
        .iter()
        .filter_map(|(layer, _)| about.pair_bytes.get(layer).copied())
        .collect();
    let room = match options.target {
        Some(Target::Bytes(bytes)) if !is_measured_for => bytes.saturating_sub(about.header_bytes),
        _ => about.room,
    };
    let lengths = lengths(split, (room, &pair_bytes), &heads, &weights, &options)?;
    let free = shared(&chunks, &all.parts, &lengths)?;
    if let Some(Target::MaxError(_)) = options.target {
        options.target = None;
        options.tail = Tail::Pairs(split.tail);
        let share = crate::cache::share(lengths.iter().sum(), split.tokens, lengths.len());
        if share < 1.0 {
            options.keep = share;
        } else {
            options.target = Some(Target::Tokens(split.tokens));
        }
    }
    let mut by_layer: BTreeMap<usize, Vec<Vec<usize>>> = BTreeMap::new();
    for (&(layer, _), free) in all.heads.iter().zip(free) {
        by_layer.entry(layer).or_default().push(free);
    }
    let budgets = Budgets::from_curves(split.tokens, &heads, &lengths)?.with_fixed(split.sinks, split.tail)?;
    let budgets = if chunks.len() > 1 {
        budgets.with_chunks(by_layer)?
    } else {
        budgets
    };
    Ok(budgets.with_options(options).with_source(about.source.clone()))
}
