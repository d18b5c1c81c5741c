//! A shard of a compressed cache, and the whole put together of all of them (format `kv-part`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Dtype;
use super::compressed::{Compressed, CompressedLayer};
use super::container::Container;
use crate::batch::Shard;
use crate::error::{Error, Result};

/// The field `format` of every such file.
const FORMAT: &str = "kv-part";
/// The metadata that holds what [`About`] says.
const ABOUT: &str = "part";

/// The heads of one [`Shard`] of a compressed cache, and all that is needed to [merge] it with the others.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{batch::Shard, cache::Part, cpu::CpuEngine, solver::{compress_part, plan_part}};
///
/// let path = folder.path().join("part.safetensors");
/// Part::check_writable(&path)?;
/// let shard = Shard::new(0, 3)?;
/// let part = compress_part(&mut CpuEngine::new(), &capture, &request, shard, &mut ())?.part;
/// assert_eq!((part.shard()?, part.heads().count()), (shard, 1));
/// println!("{} pairs in {} bytes", part.pairs(), part.write(&path)?);
/// // A job that is started again need not do it again.
/// assert!(Part::read(&path)?.is_like(&plan_part(&capture, &request, shard)?));
/// assert_eq!(Part::from_bytes("part", std::fs::read(&path).unwrap())?, part);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The layers that the part has heads of, ascending, with those heads alone; none where the shard is empty.
    pub(crate) layers: Vec<CompressedLayer>,
    pub(crate) about: About,
}

/// What a part is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    /// The shard's index and count.
    pub(crate) shard: (usize, usize),
    /// The part's heads by layer, ascending.
    pub(crate) heads: BTreeMap<usize, Vec<usize>>,
    /// KV heads of every layer of the whole, and how it is stored.
    pub(crate) whole: BTreeMap<usize, (usize, Dtype)>,
    /// Tokens of the capture.
    pub(crate) tokens: usize,
    /// A digest of the lengths of all heads of the whole.
    pub(crate) budgets: String,
    /// The metadata of the whole but for `keep` and `report`, which no part knows.
    pub(crate) metadata: BTreeMap<String, String>,
    /// What the report says of each of the part's heads: JSON, kept as text so that not a digit changes.
    pub(crate) reports: Vec<String>,
}

impl Part {
    /// Which part it is.
    ///
    /// # Errors
    /// [`Error::Options`]: never for a part that was read or made here.
    pub fn shard(&self) -> Result<Shard> {
        Shard::new(self.about.shard.0, self.about.shard.1)
    }

    /// Its heads: layer and KV head, ascending.
    pub fn heads(&self) -> impl Iterator<Item = (usize, usize)> {
        let heads = self.about.heads.iter();
        heads.flat_map(|(&layer, heads)| heads.iter().map(move |&head| (layer, head)))
    }

    /// Pairs that its heads store together.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.lengths).sum()
    }

    /// Its heads alone as a compressed cache, to be looked at: what a layer's first head is here need not be its head 0, which
    /// [`heads`](Self::heads) tells. The metadata are those of the whole, but for a report of these heads and without the share that is kept.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use kvsculpt::{batch::Shard, cpu::CpuEngine, solver::compress_part};
    ///
    /// let part = compress_part(&mut CpuEngine::new(), &capture, &request, Shard::new(0, 2)?, &mut ())?.part;
    /// let alone = part.alone();
    /// assert_eq!(alone.layers[0].lengths.iter().sum::<usize>(), part.pairs());
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn alone(&self) -> Compressed {
        let mut metadata = self.about.metadata.clone();
        metadata.insert("report".into(), format!("[{}]", self.about.reports.join(",")));
        Compressed {
            layers: self.layers.clone(),
            metadata,
        }
    }

    /// Whether this is what a shard of the same capture, options, lengths and version would be.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        // A part to be has no report yet.
        let (mut one, mut other) = (self.about.clone(), other.about.clone());
        one.reports.clear();
        other.reports.clear();
        one == other
    }

    /// Fails now as [`write`](Self::write) would for this path.
    ///
    /// # Errors
    /// [`Error::File`]: a folder that is missing or not writable, or a path that is no file.
    pub fn check_writable(path: &Path) -> Result<()> {
        Compressed::check_writable(path)
    }

    /// Writes the file whole or not at all, always the same bytes for the same contents; returns their number.
    ///
    /// # Errors
    /// As [`Compressed::write`].
    pub fn write(&self, path: &Path) -> Result<u64> {
        let about = serde_json::to_string(&self.about).map_err(|error| Error::file(path, format!("cannot be written: {error}")))?;
        let metadata = [("format", FORMAT.to_owned()), ("version", "1".to_owned()), (ABOUT, about)];
        let metadata = metadata.into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
        super::compressed::write(path, &metadata, &self.layers)
    }

    /// Reads a part and checks its shapes, that every number is finite, and that it has the heads it says.
    ///
    /// # Errors
    /// [`Error::File`], naming what is wrong and what to do.
    pub fn read(path: &Path) -> Result<Self> {
        Self::take(&Container::open(path)?)
    }

    /// The same for a file in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::take(&Container::from_bytes(name.into(), bytes.into())?)
    }

    fn take(container: &Container) -> Result<Self> {
        container.check_format(
            FORMAT,
            (
                "kv-compressed",
                "is a whole compressed cache, not a part of one; `kvsculpt compress --shard` makes parts",
            ),
        )?;
        let text = container.text(ABOUT)?;
        let about: About = serde_json::from_str(text).map_err(|error| {
            container.error(format!(
                "has metadata `{ABOUT}` that cannot be understood ({error}); make the part again"
            ))
        })?;
        let layers = if about.heads.is_empty() {
            Vec::new()
        } else {
            super::compressed::layers_of(container)?
        };
        let part = Self { layers, about };
        part.check()
            .map_err(|reason| container.error(format!("{reason}; make the part again")))?;
        Ok(part)
    }

    fn check(&self) -> Result<(), String> {
        let about = &self.about;
        Shard::new(about.shard.0, about.shard.1).map_err(|error| error.to_string())?;
        // Larger counts no engine takes, and sums of them could overflow.
        if about.tokens == 0 || u32::try_from(about.tokens).is_err() || about.whole.is_empty() {
            return Err("is a part of nothing, or of more than can be counted".to_owned());
        }
        for (layer, heads) in &about.heads {
            let all = about.whole.get(layer).map_or(0, |&(heads, _)| heads);
            if heads.is_empty() || heads.windows(2).any(|pair| pair[0] >= pair[1]) || heads.iter().any(|&head| head >= all) {
                return Err(format!("says it has the heads {heads:?} of the {all} of layer {layer}"));
            }
        }
        let found = self.layers.iter().map(|layer| (layer.index, layer.lengths.len()));
        if !found.eq(about.heads.iter().map(|(&layer, heads)| (layer, heads.len()))) {
            return Err("does not hold the heads that it says".to_owned());
        }
        if about.reports.len() != self.heads().count() {
            return Err("does not have a line of the report for each of its heads".to_owned());
        }
        Ok(())
    }
}

/// The compressed cache that all these parts are of, in the very bytes of one run when written.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{batch::Shard, cache::merge, cpu::CpuEngine, solver::compress_part};
///
/// let part = |index: usize| {
///     let found = compress_part(&mut CpuEngine::new(), &capture, &request, Shard::new(index, 2)?, &mut ())?;
///     Ok((format!("part {index}").into(), found.part))
/// };
/// let parts = (0..2).map(part).collect::<kvsculpt::Result<Vec<_>>>()?;
/// // One alone lacks heads.
/// assert!(merge(parts[..1].to_vec()).is_err());
/// assert_eq!(merge(parts)?.layers[0].lengths.len(), 3);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::File`] with the name of a part that does not belong to the first, or has a head that another has too;
/// [`Error::Shape`] where a head is missing.
pub fn merge(parts: Vec<(PathBuf, Part)>) -> Result<Compressed> {
    let Some((first, like)) = parts.first().map(|(path, part)| (path.clone(), part.about.clone())) else {
        return Err(Error::shape(
            "merge",
            "there are no parts; give all that `kvsculpt compress --shard` wrote",
        ));
    };
    for (path, part) in &parts {
        belongs(&part.about, &like).map_err(|reason| Error::file(path, format!("{reason} {}", first.display())))?;
    }
    let mut found: BTreeMap<(usize, usize), (usize, &CompressedLayer, usize, &str)> = BTreeMap::new();
    for (number, (path, part)) in parts.iter().enumerate() {
        let layers = part
            .layers
            .iter()
            .flat_map(|layer| (0..layer.lengths.len()).map(move |at| (layer, at)));
        for ((head, report), (layer, at)) in part.heads().zip(&part.about.reports).zip(layers) {
            if let Some((other, ..)) = found.insert(head, (number, layer, at, report)) {
                return Err(Error::file(
                    path,
                    format!(
                        "has layer {} head {}, which {} has too; leave one of the two out",
                        head.0,
                        head.1,
                        parts[other].0.display()
                    ),
                ));
            }
        }
    }
    if let Some((layer, head)) = every(&like.whole).find(|head| !found.contains_key(head)) {
        return Err(Error::shape(
            format!("layer {layer} head {head}"),
            missing(&like, parts.iter().map(|(_, part)| part.about.shard.0).collect()),
        ));
    }
    let mut layers = Vec::new();
    for (&index, &(count, _)) in &like.whole {
        let heads: Vec<(usize, &CompressedLayer, usize)> = (0..count)
            .filter_map(|head| found.get(&(index, head)))
            .map(|&(part, layer, at, _)| (part, layer, at))
            .collect();
        layers.push(joined(&heads, |part| parts[part].0.as_path())?);
    }
    let reports: Vec<&str> = found.values().map(|&(.., report)| report).collect();
    let mut metadata = like.metadata;
    let pairs: usize = layers.iter().flat_map(|layer| &layer.lengths).sum();
    metadata.insert("keep".into(), share(pairs, like.tokens, reports.len()).to_string());
    metadata.insert("report".into(), format!("[{}]", reports.join(",")));
    Ok(Compressed { layers, metadata })
}

/// The fraction of all pairs that is kept.
pub(crate) fn share(pairs: usize, tokens: usize, heads: usize) -> f64 {
    pairs as f64 / (tokens * heads) as f64
}

fn every(whole: &BTreeMap<usize, (usize, Dtype)>) -> impl Iterator<Item = (usize, usize)> {
    whole
        .iter()
        .flat_map(|(&layer, &(heads, _))| (0..heads).map(move |head| (layer, head)))
}

/// Which shards are not there, as far as there are few.
fn missing(like: &About, there: Vec<usize>) -> String {
    let count = like.shard.1;
    let absent: Vec<String> = (0..count)
        .filter(|index| !there.contains(index))
        .take(8)
        .map(|index| format!("{index}/{count}"))
        .collect();
    if absent.is_empty() {
        "no part has it, though every shard is there; make the parts again".to_owned()
    } else {
        format!("no part has it; give the parts of shards {} too", absent.join(", "))
    }
}

/// Why a part is not of the same whole as another, in words that a file's name follows.
fn belongs(one: &About, other: &About) -> Result<(), String> {
    let text = |about: &About, key: &str| about.metadata.get(key).cloned();
    for (key, what) in [
        ("source", "is of another capture than"),
        ("tool", "is by another version of kvsculpt than"),
        ("options", "is made with other options than"),
        ("queries", "is made with other queries than"),
        ("query_statistics", "is made with other query statistics than"),
    ] {
        if text(one, key) != text(other, key) {
            return Err(what.to_owned());
        }
    }
    if one.shard.1 != other.shard.1 {
        return Err(format!("is one of {} parts, and of {} is", one.shard.1, other.shard.1));
    }
    if one.whole != other.whole || one.tokens != other.tokens {
        return Err("is of other layers, or stored in another dtype, than".to_owned());
    }
    if one.budgets != other.budgets {
        return Err("is made with other budgets than".to_owned());
    }
    if one.metadata != other.metadata {
        return Err("has other metadata than".to_owned());
    }
    Ok(())
}

/// A layer of these heads: the part each is in, the layer there, and its place in it.
fn joined<'a>(heads: &[(usize, &CompressedLayer, usize)], path: impl Fn(usize) -> &'a Path) -> Result<CompressedLayer> {
    let Some(&(_, first, _)) = heads.first() else {
        return Err(Error::shape("merge", "a layer has no heads; make the parts again"));
    };
    let mut whole = CompressedLayer {
        lengths: Vec::new(),
        key: Vec::new(),
        value: Vec::new(),
        bias: first.bias.is_some().then(Vec::new),
        ..first.clone()
    };
    for &(part, layer, at) in heads {
        if (layer.dim, layer.value_dim, layer.dtype, layer.bias.is_some())
            != (first.dim, first.value_dim, first.dtype, first.bias.is_some())
        {
            return Err(Error::file(
                path(part),
                format!(
                    "stores layer {} in another dtype or shape than {}; make both again",
                    layer.index,
                    path(heads[0].0).display()
                ),
            ));
        }
        // Lengths were checked against the arrays when the part was read or made.
        if let Some(head) = layer.heads().nth(at) {
            whole.lengths.push(head.length);
            whole.key.extend_from_slice(head.key);
            whole.value.extend_from_slice(head.value);
            if let (Some(whole), Some(bias)) = (&mut whole.bias, head.bias) {
                whole.extend_from_slice(bias);
            }
        }
    }
    Ok(whole)
}
