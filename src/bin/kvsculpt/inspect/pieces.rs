//! What stands beside caches: error curves, lengths, sensitivities, statistics of queries.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use kvsculpt::budget::{Budgets, Curve, Weights, heat_map, length_table};
use kvsculpt::cache::{Pairing, QueryStatistics};
use kvsculpt::options::Target;
use kvsculpt::solver::CurveSet;
use kvsculpt::{Options, Result};
use serde::{Deserialize, Serialize};

use super::text::line;
use super::{file_bytes, others};
use crate::report::size;
use crate::table::{Body, number};

/// The formats of files that are no whole caches, as they name themselves.
pub(super) const PART: &str = "kv-part";
const CURVES: &str = "kv-curves";
const BUDGETS: &str = "kv-budgets";
const SENSITIVITIES: &str = "kv-sensitivity";
const STATISTICS: &str = "kv-query-statistics";
/// The most that is read of a text, and of a safetensors header, to know a file's format; whoever reads the whole has bounds of its own.
const MOST_TEXT: u64 = 1 << 30;
const MOST_HEADER: u64 = 100 << 20;

/// Heads of a layer beyond which none are drawn: a file may name any number.
const MOST_DRAWN: usize = 1024;

/// What a JSON file says of itself.
#[derive(Deserialize)]
struct Opening {
    format: String,
}

/// What a safetensors file says of itself.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: Opening,
}

/// The format that a file of ours names, JSON or safetensors; none where it is something else, or cannot be read.
pub(super) fn format(path: &Path) -> Option<String> {
    let mut first = [0; 8];
    let mut file = File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    file.read_exact(&mut first).ok()?;
    // The length of a safetensors header is below 2⁵⁶, so text is never taken for one.
    if first[7] != 0 {
        let text = first.chain(file.take(MOST_TEXT));
        return Some(serde_json::from_reader::<_, Opening>(std::io::BufReader::new(text)).ok()?.format);
    }
    let length = u64::from_le_bytes(first);
    if length > bytes.min(MOST_HEADER) {
        return None;
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).ok()?;
    Some(serde_json::from_slice::<Header>(&header).ok()?.metadata.format)
}

/// A file of one of these formats; none where it is of another.
pub(super) fn of(path: &Path, format: Option<&str>) -> Result<Option<Piece>> {
    let holds = match format {
        Some(CURVES) => Holds::Curves(CurveFacts::of(&CurveSet::read(path)?)?),
        Some(BUDGETS) => Holds::Lengths(Box::new(LengthFacts::of(&Budgets::read(path)?))),
        Some(SENSITIVITIES) => Holds::Weights(WeightFacts::of(&Weights::read(path)?)),
        Some(STATISTICS) => Holds::Statistics(StatisticsFacts::of(&QueryStatistics::open(path)?)),
        _ => return Ok(None),
    };
    Ok(Some(Piece {
        file: path.to_owned(),
        bytes: file_bytes(path)?,
        format: format.unwrap_or_default().to_owned(),
        holds,
    }))
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Piece {
    file: PathBuf,
    /// Bytes of the whole file.
    bytes: u64,
    format: String,
    #[serde(flatten)]
    holds: Holds,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Holds {
    Curves(CurveFacts),
    Lengths(Box<LengthFacts>),
    Weights(WeightFacts),
    Statistics(StatisticsFacts),
}

/// What error curves are of, and how far they reach.
#[derive(Debug, Serialize)]
struct CurveFacts {
    shard: String,
    /// Method, size and all else that they were measured for.
    options: Options,
    heads: Vec<HeadCurve>,
}

/// One head's curve, of all its chunks together.
#[derive(Debug, Serialize)]
struct HeadCurve {
    layer: usize,
    head: usize,
    points: usize,
    /// The shortest length, and the whole cache.
    lengths: (usize, usize),
    /// The least and the largest error of what is shorter than the whole.
    errors: (f64, f64),
}

impl CurveFacts {
    fn of(set: &CurveSet) -> Result<Self> {
        Ok(Self {
            shard: set.shard().to_string(),
            options: set.options().clone(),
            heads: set.curves()?.iter().map(HeadCurve::of).collect(),
        })
    }

    fn text(&self, text: &mut String) {
        let heads = &self.heads;
        line(
            text,
            "part",
            &format!("{}, of which these are the {} heads", self.shard, heads.len()),
        );
        let method = serde_json::to_value(self.options.method).ok();
        let method = method.as_ref().and_then(|method| method.as_str()).unwrap_or_default();
        let wanted = match self.options.target {
            Some(Target::Tokens(pairs)) => format!("{pairs} pairs a head"),
            Some(Target::Bytes(bytes)) => format!("a file of {bytes} bytes at most"),
            Some(Target::MaxError(error)) => format!("an error of {error} at most"),
            _ => format!("keep {}", self.options.keep),
        };
        line(
            text,
            "method",
            &format!("{method}, for {wanted} where `allocate` is told nothing else"),
        );
        let mut table = Body::new(["layer", "head", "points", "lengths", "errors"].map(String::from).to_vec());
        for curve in heads {
            let errors = [curve.errors.1, curve.errors.0].map(|error| number(Some(error)));
            table.row(vec![
                curve.layer.to_string(),
                curve.head.to_string(),
                curve.points.to_string(),
                format!("{}–{}", curve.lengths.0, curve.lengths.1),
                errors.join(" … "),
            ]);
        }
        text.push('\n');
        text.push_str(&table.text(&[]));
    }
}

impl HeadCurve {
    fn of(curve: &Curve) -> Self {
        let whole = curve.points.last().map_or(0, |point| point.length);
        let errors = || curve.points.iter().filter(|point| point.length < whole).map(|point| point.error);
        Self {
            layer: curve.layer,
            head: curve.head,
            points: curve.points.len(),
            lengths: (curve.points.first().map_or(0, |point| point.length), whole),
            errors: (
                errors().reduce(f64::min).unwrap_or_default(),
                errors().reduce(f64::max).unwrap_or_default(),
            ),
        }
    }
}

/// Every head's length.
#[derive(Debug, Serialize)]
pub(crate) struct LengthFacts {
    /// Pairs a head of the whole cache has.
    tokens: usize,
    heads: usize,
    /// Pairs that all heads store, and which part of all that is.
    pairs: usize,
    kept: f64,
    /// Sinks and tail of every head, where they are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    fixed: Option<(usize, usize)>,
    /// Lengths of heads by layer.
    layers: BTreeMap<usize, Vec<usize>>,
    /// What they were decided by, and for which capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Options>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip)]
    budgets: Budgets,
}

impl LengthFacts {
    pub(crate) fn of(budgets: &Budgets) -> Self {
        let layers: BTreeMap<usize, Vec<usize>> = budgets.layers().map(|(layer, lengths)| (layer, lengths.to_vec())).collect();
        let heads = layers.values().map(Vec::len).sum();
        Self {
            tokens: budgets.tokens(),
            heads,
            pairs: budgets.total(),
            kept: budgets.total() as f64 / (budgets.tokens() as f64 * heads as f64),
            fixed: budgets.fixed(),
            layers,
            options: budgets.options().cloned(),
            source: budgets.source().map(str::to_owned),
            budgets: budgets.clone(),
        }
    }

    fn text(&self, text: &mut String) {
        line(text, "tokens", &format!("{} a head", self.tokens));
        if let Some((sinks, tail)) = self.fixed {
            line(text, "kept", &format!("{sinks} sinks and a tail of {tail} in each head"));
        }
        line(text, "source", self.source.as_deref().unwrap_or("not said"));
        text.push('\n');
        text.push_str(&length_table(&self.budgets));
        if self.layers.len() > 1 {
            text.push('\n');
            text.push_str(&heat_map("Share of the pairs that each head keeps", &self.budgets.shares()));
        }
    }
}

/// What an error costs in each layer and head.
#[derive(Debug, Serialize)]
struct WeightFacts {
    /// By which two files of one name can be told apart.
    digest: String,
    mean: f64,
    weights: Vec<WeightOf>,
}

#[derive(Debug, Serialize)]
struct WeightOf {
    layer: usize,
    /// None where a layer was measured as a whole.
    head: Option<usize>,
    weight: f64,
}

impl WeightFacts {
    fn of(weights: &Weights) -> Self {
        let all = weights.iter();
        let all: Vec<WeightOf> = all.map(|(layer, head, weight)| WeightOf { layer, head, weight }).collect();
        Self {
            digest: weights.digest(),
            mean: all.iter().map(|of| of.weight).sum::<f64>() / all.len().max(1) as f64,
            weights: all,
        }
    }

    fn text(&self, text: &mut String) {
        let mut layers: BTreeMap<usize, Vec<&WeightOf>> = BTreeMap::new();
        for of in &self.weights {
            layers.entry(of.layer).or_default().push(of);
        }
        line(text, "digest", &self.digest);
        line(
            text,
            "weights",
            &format!("{} in {} layers, as multiples of their mean", self.weights.len(), layers.len()),
        );
        let relative = |weight: f64| weight / self.mean.max(f64::MIN_POSITIVE);
        let mut table = Body::new(["layer", "mean", "least", "most", "in head"].map(String::from).to_vec());
        for (layer, heads) in &layers {
            let mean = heads.iter().map(|of| relative(of.weight)).sum::<f64>() / heads.len() as f64;
            let least = heads.iter().map(|of| relative(of.weight)).reduce(f64::min);
            let most = heads.iter().max_by(|one, other| one.weight.total_cmp(&other.weight));
            let place = most
                .and_then(|of| of.head)
                .map_or_else(|| "all".to_owned(), |head| head.to_string());
            let most = most.map(|of| relative(of.weight));
            table.row(vec![layer.to_string(), number(Some(mean)), number(least), number(most), place]);
        }
        text.push('\n');
        text.push_str(&table.text(&[]));
        let is_drawn = |of: &WeightOf| of.head.is_some_and(|head| head < MOST_DRAWN);
        if layers.len() > 1 && self.weights.iter().all(is_drawn) {
            text.push('\n');
            text.push_str(&heat_map(
                "Weight of each head, its square root as a share of the largest's",
                &self.shares(&layers),
            ));
        }
    }

    /// Weights differ by orders of magnitude, so their roots are drawn.
    fn shares(&self, layers: &BTreeMap<usize, Vec<&WeightOf>>) -> BTreeMap<usize, Vec<Option<f64>>> {
        let largest = self.weights.iter().map(|of| of.weight).fold(f64::MIN_POSITIVE, f64::max);
        let of_layer = |heads: &[&WeightOf]| {
            let count = heads.iter().filter_map(|of| of.head).max().map_or(0, |head| head + 1);
            let mut shares = vec![None; count];
            for of in heads {
                if let Some(share) = of.head.and_then(|head| shares.get_mut(head)) {
                    *share = Some((of.weight / largest).sqrt());
                }
            }
            shares
        };
        layers.iter().map(|(&layer, heads)| (layer, of_layer(heads))).collect()
    }
}

/// Of which model queries are known.
#[derive(Debug, Serialize)]
struct StatisticsFacts {
    layers: Vec<usize>,
    /// KV heads a layer.
    kv_heads: usize,
    pairing: Pairing,
    metadata: BTreeMap<String, String>,
}

impl StatisticsFacts {
    fn of(statistics: &QueryStatistics) -> Self {
        Self {
            layers: statistics.layers.clone(),
            kv_heads: statistics.kv_heads,
            pairing: statistics.pairing,
            metadata: others(&statistics.metadata),
        }
    }

    fn text(&self, text: &mut String) {
        let layers: Vec<String> = self.layers.iter().map(ToString::to_string).collect();
        line(text, "layers", &format!("{} of {} KV heads", layers.join(", "), self.kv_heads));
        line(text, "rope", &format!("{:?}", self.pairing).to_lowercase());
        for (key, value) in &self.metadata {
            let short: String = value.chars().take(80).flat_map(char::escape_debug).collect();
            line(text, key, &short);
        }
    }
}

impl Piece {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        line(&mut text, "file", &format!("{} ({})", self.file.display(), size(self.bytes)));
        line(&mut text, "format", &self.format);
        match &self.holds {
            Holds::Curves(curves) => curves.text(&mut text),
            Holds::Weights(weights) => weights.text(&mut text),
            Holds::Lengths(lengths) => lengths.text(&mut text),
            Holds::Statistics(statistics) => statistics.text(&mut text),
        }
        text
    }
}
