//! Short caches judged on the rows of a capture: what a finished file is worth, whoever made it.

use serde::{Deserialize, Serialize};

use super::rows::{Rows, rows};
use super::{Errors, Observer, bias, merged_sums};
use crate::cache::{Capture, Compressed, CompressedHead, LayerShape};
use crate::engine::{Dims, Engine, Head};
use crate::error::{Error, Result};
use crate::options::{Options, Split};

/// What one short cache is worth for one head.
///
/// ```
/// use kvsculpt::solver::Worth;
///
/// let worth = Worth::new(3, 1, 400);
/// assert_eq!((worth.layer, worth.head, worth.kept), (3, 1, 400));
/// assert!(worth.probe.is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Worth {
    /// Layer.
    pub layer: usize,
    /// KV head.
    pub head: usize,
    /// Pairs stored.
    pub kept: usize,
    /// On the rows that these options hold out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation: Option<Errors>,
    /// On the capture's probe rows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probe: Option<Errors>,
}

impl Worth {
    /// A head of so many pairs whose errors are not known yet.
    #[must_use]
    pub fn new(layer: usize, head: usize, kept: usize) -> Self {
        Self {
            layer,
            head,
            kept,
            validation: None,
            probe: None,
        }
    }
}

/// The errors of short caches against the whole one, head by head, on the capture's probe rows and on the validation rows that
/// `options` hold out: for every cache in `caches` its heads in the order of layers and heads.
///
/// Layers that are not in every cache are left out. A capture of one layer at a time is in memory.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{Options, cpu::CpuEngine, solver::{Request, compress, judge}};
///
/// let mut request = Request::default();
/// # request.options.method = kvsculpt::options::Method::SelectFit;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// let mut engine = CpuEngine::new();
/// let short = compress(&mut engine, &capture, &request, &mut ())?;
/// let worth = judge(&mut engine, &capture, &[&short.compressed], &Options::default(), &mut ())?;
/// assert_eq!(worth[0].len(), short.outcomes.len());
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] for caches whose heads, channels or next position are not the capture's; [`Error::Options`] where no layer is common; a file
/// that cannot be read; whatever the engine reports; [`Error::Cancelled`] where the observer asks to stop.
pub fn judge<E: Engine>(
    engine: &mut E,
    capture: &Capture,
    caches: &[&Compressed],
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<Worth>>> {
    let has = |cache: &Compressed, index: usize| cache.layers.iter().any(|layer| layer.index == index);
    let common: Vec<usize> = capture
        .layers
        .iter()
        .copied()
        .filter(|&index| caches.iter().all(|cache| has(cache, index)))
        .collect();
    if common.is_empty() {
        return Err(Error::option(
            "--capture",
            format!(
                "{} has no layer that all the caches hold; give the capture they were made from",
                capture.path.display()
            ),
        ));
    }
    for cache in caches {
        // One that names none is taken at its word.
        if let Ok(position) = cache.next_position()
            && position != capture.next_position
        {
            return Err(Error::shape(
                "short cache",
                format!(
                    "its keys stand before position {position}, and the capture's queries ask from position {}; give the capture it was made from, or the cache as it was before it was turned",
                    capture.next_position
                ),
            ));
        }
    }
    let mut found = vec![Vec::new(); caches.len()];
    for (done, &index) in common.iter().enumerate() {
        if !observer.progress(done, common.len(), done as f64 / common.len() as f64) {
            return Err(Error::Cancelled);
        }
        let teacher = Teacher::new(engine, capture, index, options)?;
        for (cache, found) in caches.iter().zip(&mut found) {
            teacher.judge(engine, cache, found)?;
        }
    }
    Ok(found)
}

/// The rows of a layer's heads and what the whole cache answers.
struct Teacher<'a> {
    index: usize,
    layer: &'a LayerShape,
    scale: f32,
    /// By head.
    rows: Vec<Rows>,
    /// By head, the states of validation and probe rows.
    states: Vec<[Vec<f32>; 2]>,
}

impl<'a> Teacher<'a> {
    fn new<E: Engine>(engine: &mut E, capture: &'a Capture, index: usize, options: &Options) -> Result<Self> {
        // Of the split only the tail counts, for how many rows are recent.
        let split = Split::uniform(capture.tokens, options).or_else(|_| Split::least(capture.tokens, options))?;
        let layer = capture.shape(index)?;
        #[allow(clippy::cast_possible_truncation, reason = "engines compute in single precision")]
        let scale = capture.scale as f32;
        let mut teacher = Self {
            index,
            layer,
            scale,
            rows: Vec::new(),
            states: Vec::new(),
        };
        for head in 0..layer.kv_heads {
            let own = capture.head_as_stored(index, head)?;
            let rows = rows(capture, &own, head, split, options)?;
            let mut states = [Vec::new(), Vec::new()];
            for (state, rows) in states.iter_mut().zip([&rows.validation, &rows.probe]) {
                *state = answers(engine, rows, &own.key, &own.value, (layer.dim, layer.value_dim), scale)?;
            }
            teacher.rows.push(rows);
            teacher.states.push(states);
        }
        Ok(teacher)
    }

    fn judge<E: Engine>(&self, engine: &mut E, cache: &Compressed, found: &mut Vec<Worth>) -> Result<()> {
        let index = self.index;
        let Some(stored) = cache.layers.iter().find(|layer| layer.index == index) else {
            return Ok(());
        };
        let wanted = (self.layer.kv_heads, self.layer.dim, self.layer.value_dim);
        let have = (stored.lengths.len(), stored.dim, stored.value_dim);
        if wanted != have {
            return Err(Error::shape(
                format!("layer {index}"),
                format!("the capture has heads and channels {wanted:?} and the short cache {have:?}; give the capture it was made from"),
            ));
        }
        for (head, pairs) in stored.heads().enumerate() {
            let errors = |engine: &mut E, rows: &[f32], teacher: &[f32]| -> Result<Option<Errors>> {
                if rows.is_empty() {
                    return Ok(None);
                }
                let student = self.student(engine, rows, pairs)?;
                Ok(Some(merged_sums(&student, teacher, self.layer.value_dim).errors()))
            };
            let (rows, states) = (&self.rows[head], &self.states[head]);
            found.push(Worth {
                layer: index,
                head,
                kept: pairs.length,
                validation: errors(engine, &rows.validation, &states[0])?,
                probe: errors(engine, &rows.probe, &states[1])?,
            });
        }
        Ok(())
    }

    /// What the short cache answers to these rows; a bias is one more channel of the keys.
    fn student<E: Engine>(&self, engine: &mut E, rows: &[f32], pairs: CompressedHead<'_>) -> Result<Vec<f32>> {
        let dims = (self.layer.dim, self.layer.value_dim);
        let Some(biases) = pairs.bias else {
            return answers(engine, rows, pairs.key, pairs.value, dims, self.scale);
        };
        let (mut wide_rows, mut wide_keys) = (Vec::new(), Vec::new());
        bias::widen(rows, dims.0, 1.0, &mut wide_rows);
        for (key, bias) in pairs.key.chunks_exact(dims.0).zip(biases) {
            bias::widen(key, dims.0, bias / self.scale, &mut wide_keys);
        }
        answers(
            engine,
            &wide_rows,
            &wide_keys,
            pairs.value,
            (dims.0 + bias::CHANNELS, dims.1),
            self.scale,
        )
    }
}

/// The state of these rows over these pairs, `[rows, value_dim + 4]`.
fn answers<E: Engine>(
    engine: &mut E,
    rows: &[f32],
    keys: &[f32],
    values: &[f32],
    (dim, value_dim): (usize, usize),
    scale: f32,
) -> Result<Vec<f32>> {
    let count = |number: usize| u32::try_from(number).map_err(|_| Error::shape("capture", format!("{number} is more than 32 bits count")));
    let dims = Dims {
        dim: count(dim)?,
        value_dim: count(value_dim)?,
    };
    let head = Head {
        rows: count(rows.len() / dim)?,
        pairs: count(keys.len() / dim)?,
        ..Head::default()
    };
    if head.rows == 0 {
        return Ok(Vec::new());
    }
    let table = engine.table(dims, &[head])?;
    let queries = engine.upload("queries", rows)?;
    let keys = engine.upload("keys", keys)?;
    let values = engine.upload("values", values)?;
    let mut state = engine.zeros("state", head.rows as usize * dims.state_row() as usize)?;
    engine.attention(&table, &queries, &keys, &values, None, scale, &mut state)?;
    engine.read(&state)
}
