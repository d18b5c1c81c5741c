//! The heads of a request, read from the capture slice by slice, so that no more of it is in memory than may be.

use super::Request;
use super::bias;
use super::chunks;
use super::problem::{Cut, Problem};
use super::rows;
use super::size;
use crate::batch::{Shape, Shard, need};
use crate::cache::{CHUNK, Capture, Dtype, LayerShape};
use crate::engine::Dims;
use crate::error::{Error, Result};
use crate::options::Split;

/// Bytes of heads that are read at once where the request does not say what memory there is.
pub(super) const USUAL_SLICE: u64 = 1 << 30;

/// Where a head is in the capture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) layer: usize,
    pub(super) head: usize,
    pub(super) shape: &'a LayerShape,
}

impl Place<'_> {
    /// Bytes of the head's keys and values as the capture holds them.
    pub(super) fn source_bytes(&self, tokens: usize) -> u64 {
        (tokens * (self.shape.dim + self.shape.value_dim) * self.shape.dtype.bytes()) as u64
    }
}

/// What heads are read for: which sizes their problems have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage<'a> {
    /// Error curves: the most free pairs of a chunk, and the most that values are solved for.
    Curves { most: usize, solved: usize },
    /// Fitting: the free pairs of each head's chunks, and the curvature pairs of L-BFGS.
    Fit { free: &'a [Vec<usize>], history: u32 },
}

impl Stage<'_> {
    /// Curvature pairs that its batches need.
    pub(super) fn history(self) -> u32 {
        match self {
            Self::Curves { .. } => 0,
            Self::Fit { history, .. } => history,
        }
    }

    /// Whether there is anything to do for a problem of this shape: what keeps everything is not fitted.
    pub(super) fn works_on(self, shape: &Shape) -> bool {
        matches!(self, Self::Curves { .. }) || shape.free + shape.fixed < shape.tokens
    }
}

/// Bytes that a head takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// While its slice is worked on, its results counted in.
    pub(super) host: u64,
    /// Beside that while it is read.
    pub(super) reading: u64,
    /// Beside that, at most: while it is read, or while one of its chunks alone is on the engine.
    pub(super) beside: u64,
}

/// All heads of a request, or some of them.
#[derive(Clone, Debug)]
pub(super) struct Supply<'a> {
    pub(super) capture: &'a Capture,
    pub(super) request: &'a Request,
    /// Bytes that slices and batches may take together.
    pub(super) memory: Option<u64>,
    /// That of every head where all lengths are the same.
    pub(super) split: Split,
    /// The chunks of every head, whole.
    pub(super) chunks: Vec<Split>,
    /// In the order of layers and heads.
    pub(super) places: Vec<Place<'a>>,
    /// Layer and head of all heads of the request, be they supplied or another shard's.
    pub(super) all: Vec<(usize, usize)>,
}

impl<'a> Supply<'a> {
    pub(super) fn new(capture: &'a Capture, request: &'a Request, layers: &[usize], split: Split) -> Result<Self> {
        let mut places = Vec::new();
        for &layer in layers {
            let shape = capture.shape(layer)?;
            places.extend((0..shape.kv_heads).map(|head| Place { layer, head, shape }));
        }
        Ok(Self {
            capture,
            request,
            memory: request.memory,
            split,
            chunks: chunks::cut(split, request.options.chunk),
            all: places.iter().map(|place| (place.layer, place.head)).collect(),
            places,
        })
    }

    /// The bytes that all pairs together may take, where the target is one in bytes.
    pub(super) fn room(&self) -> Result<u64> {
        let mut layers: Vec<usize> = self.places.iter().map(|place| place.layer).collect();
        layers.dedup();
        size::room(self.capture, &layers, self.request, self.split, &self.all_pair_bytes())
    }

    /// The heads of one shard alone.
    pub(super) fn of_shard(&self, shard: Shard) -> Self {
        self.only(&shard.members(&self.costs()))
    }

    /// What all work on each head grows with, as far as the header tells it: its query heads and channels.
    pub(super) fn costs(&self) -> Vec<u64> {
        let cost = |place: &Place<'_>| (place.shape.query_heads / place.shape.kv_heads * (place.shape.dim + place.shape.value_dim)) as u64;
        self.places.iter().map(cost).collect()
    }

    /// Some of the heads alone.
    pub(super) fn only(&self, heads: &[usize]) -> Self {
        Self {
            places: heads.iter().map(|&head| self.places[head]).collect(),
            ..self.clone()
        }
    }

    /// The same heads, in so much memory.
    pub(super) fn within(&self, memory: Option<u64>) -> Self {
        Self { memory, ..self.clone() }
    }

    /// Layer and head of each.
    pub(super) fn heads(&self) -> Vec<(usize, usize)> {
        self.places.iter().map(|place| (place.layer, place.head)).collect()
    }

    /// How a head's layer will be stored.
    pub(super) fn dtype(&self, place: &Place<'_>) -> Dtype {
        self.request.dtype.unwrap_or(place.shape.dtype)
    }

    /// Bytes of a stored pair of this head.
    pub(super) fn pair_bytes(&self, head: usize) -> u64 {
        let shape = self.places[head].shape;
        let number = self.dtype(&self.places[head]).bytes();
        let bias = if self.request.options.has_bias() { 4 } else { 0 };
        (number * (shape.dim + shape.value_dim) + bias) as u64
    }

    /// Bytes of a stored pair of each head supplied.
    pub(super) fn all_pair_bytes(&self) -> Vec<u64> {
        (0..self.places.len()).map(|head| self.pair_bytes(head)).collect()
    }

    /// The chunks of one head, read from the capture; they do not know of each other yet.
    pub(super) fn read(&self, head: usize, stage: Stage<'_>) -> Result<Vec<Problem>> {
        let place = self.places[head];
        let layer = self.capture.head_as_stored(place.layer, place.head)?;
        let cut = Cut {
            split: self.split,
            chunks: &self.splits(head, stage),
            sampled: match stage {
                Stage::Curves { solved, .. } => Some((solved, self.request.options.curve_rows)),
                Stage::Fit { .. } => None,
            },
        };
        Problem::of_head(self.capture, &layer, place.head, &cut, &self.request.options)
    }

    /// How the pairs of a head's chunks are divided.
    fn splits(&self, head: usize, stage: Stage<'_>) -> Vec<Split> {
        let free = |chunk: usize| match stage {
            Stage::Curves { most, .. } => most,
            Stage::Fit { free, .. } => free[head][chunk],
        };
        let splits = self.chunks.iter().enumerate();
        splits
            .map(|(chunk, split)| Split {
                free: free(chunk),
                ..*split
            })
            .collect()
    }

    /// The sizes of a head's problems, by the header alone.
    pub(super) fn shapes(&self, head: usize, stage: Stage<'_>) -> Result<Vec<Shape>> {
        let options = &self.request.options;
        let shape = self.places[head].shape;
        let sampled = matches!(stage, Stage::Curves { .. }).then_some(options.curve_rows);
        let rows = rows::counts(shape, self.capture.next_position, self.split, options, sampled);
        let count =
            |number: usize| u32::try_from(number).map_err(|_| Error::shape("capture", format!("{number} is more than 32 bits count")));
        let bias = if options.has_bias() { bias::CHANNELS } else { 0 };
        let of_chunk = |split: Split| {
            let solved = match stage {
                Stage::Curves { solved, .. } => solved.min(split.free),
                Stage::Fit { .. } => split.free,
            };
            Ok(Shape {
                dims: Dims {
                    dim: count(shape.dim + bias)?,
                    value_dim: count(shape.value_dim)?,
                },
                tokens: count(split.tokens)?,
                fixed: count(split.sinks + split.tail)?,
                free: count(split.free)?,
                solved: count(solved)?,
                training: count(rows[0])?,
                validation: count(rows[1])?,
                probe: count(rows[2])?,
            })
        };
        self.splits(head, stage).into_iter().map(of_chunk).collect()
    }

    pub(super) fn need(&self, head: usize, stage: Stage<'_>, scratch: &impl Fn(&[Shape]) -> u64) -> Result<Need> {
        let shapes = self.shapes(head, stage)?;
        let layer = self.places[head].shape;
        let group = layer.query_heads / layer.kv_heads;
        let floats = |numbers: usize| 4 * numbers as u64;
        let (mut rows, mut width, mut state) = (0, 0, 0);
        if let Some(shape) = shapes.first() {
            rows = u64::from(shape.training) + u64::from(shape.validation) + u64::from(shape.probe);
            width = u64::from(shape.dims.dim);
            state = 4 * rows * u64::from(shape.dims.state_row());
        }
        let queries = 4 * rows * width;
        let pair = width + layer.value_dim as u64;
        let pairs = floats(self.split.tokens * (layer.dim + layer.value_dim));
        // All rows are drawn, and may be widened, before an error curve takes its sample of them.
        let drawn = rows::counts(layer, self.capture.next_position, self.split, &self.request.options, None);
        let made = self.capture.made_up_bytes(layer, (drawn[0] + drawn[1]) / group);
        let read_rows = layer.reference_rows.unwrap_or(0)
            + layer.probe_rows.unwrap_or(0)
            + if layer.query && made.is_none() { self.split.tokens } else { 0 };
        let drawn = 4 * width * drawn.iter().sum::<usize>() as u64;
        let reading = pairs + pairs.min(CHUNK as u64) + floats(group * read_rows * layer.dim) + 2 * drawn + made.unwrap_or(0);
        let mut beside = reading;
        let is_cut = shapes.len() > 1;
        // A state of the others for each chunk, and the teacher's.
        let mut host = pairs + queries + if is_cut { state * (shapes.len() as u64 + 1) } else { 0 };
        let history = stage.history();
        for shape in shapes {
            if is_cut {
                // Looked at by all rows: its pairs on both sides, queries on both sides, two states there, one here and, widened, two
                // more; and the states of all chunks.
                let looked_at = 8 * u64::from(shape.tokens) * pair + 2 * queries + (7 + self.chunks.len() as u64) * state;
                beside = beside.max(looked_at);
            }
            if matches!(stage, Stage::Fit { .. }) {
                // The result, put together with what stays as it is; of a chunk also its starts.
                host += 4 * (u64::from(shape.free) * if is_cut { 3 } else { 1 } + u64::from(shape.fixed)) * pair;
            }
            if stage.works_on(&shape) {
                beside = beside.max(need(&[shape], history, scratch(&[shape])));
            }
        }
        Ok(Need { host, reading, beside })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::options::{Options, Tail};

    /// What the header alone says of a head's problems is what they are, and slices hold every head once.
    #[test]
    fn sizes_foretold_are_sizes_found() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-layer20.safetensors");
        let capture = Capture::open(&path).unwrap();
        for (chunk, validation_rows, curve_rows, bias) in [(0, 64, 512, false), (500, 0, 300, true), (700, 7, 9, false), (700, 0, 3, true)]
        {
            let request = Request {
                options: Options {
                    tail: Tail::Pairs(100),
                    chunk,
                    validation_rows,
                    curve_rows,
                    bias,
                    ..Options::default()
                },
                ..Request::default()
            };
            let split = Split::uniform(capture.tokens, &request.options).unwrap();
            let supply = Supply::new(&capture, &request, &capture.layers, split).unwrap();
            let free = vec![vec![40; supply.chunks.len()]; 3];
            for stage in [Stage::Curves { most: 50, solved: 30 }, Stage::Fit { free: &free, history: 10 }] {
                let problems = supply.read(1, stage).unwrap();
                let found: Vec<Shape> = problems.iter().map(|problem| problem.shape().unwrap()).collect();
                assert_eq!(
                    supply.shapes(1, stage).unwrap(),
                    found,
                    "chunk {chunk}, {validation_rows} {curve_rows}"
                );
                let slices = supply.slices(stage, |_| 0).unwrap();
                assert_eq!(slices.iter().flat_map(|slice| slice.heads.clone()).collect::<Vec<_>>(), [0, 1, 2]);
            }
        }
    }
}
