//! Query statistics gathered from captures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::super::layout::name;
use super::super::output::{Entry, Output};
use super::super::rope::reorder;
use super::super::{Capture, Dtype, Pairing};
use super::statistics::{FORMAT, TENSORS};
use crate::error::{Error, Result};
use crate::reference::{cholesky, mean_diagonal};

/// The regression's ridge, times the mean square of an input.
const RIDGE: f64 = 1e-3;
/// Tokens that are added to the sums at once, so that they stay in a processor's caches.
const BLOCK: usize = 64;
/// What every capture of one model has alike.
const ALIKE: [&str; 5] = ["rope_theta", "rope_dim", "rope_scaling", "rope_pairing", "softmax_scale"];

/// Gathers what a model's queries are like from captures of it, the more and longer the better, and writes it to a file, whole or not
/// at all: the same bytes for the same captures in the same order. Layers are those that all captures have; `told` hears which part
/// of the work is done. Probe queries are not looked at. Returns the file's bytes.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// use kvsculpt::cache::{QueryStatistics, gather};
///
/// let path = folder.path().join("statistics.safetensors");
/// gather(&[capture], &path, &mut |share| print!("\r{:.0} %", 100.0 * share))?;
/// assert_eq!(QueryStatistics::open(&path)?.layers, [20]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::File`]: a capture without the context's queries, or of another model; a file that cannot be read or written.
pub fn gather(captures: &[Capture], path: &Path, told: &mut dyn FnMut(f64)) -> Result<u64> {
    let Some(first) = captures.first() else {
        return Err(Error::option(
            "CAPTURE",
            "none is given to gather statistics from; give one at least",
        ));
    };
    let layers = common_layers(captures)?;
    let (mut entries, mut sizes): (Vec<Entry>, Vec<Sizes>) = (Vec::new(), Vec::new());
    for &index in &layers {
        let layer = Sizes::of(captures, index)?;
        if let Some(other) = sizes.first()
            && (other.kv_heads, other.value_dim) != (layer.kv_heads, layer.value_dim)
        {
            return Err(Error::file(
                &first.path,
                format!("has layers of different shapes, such as layer {index}, of which no statistics can be gathered together"),
            ));
        }
        for kind in TENSORS {
            let (shape, dtype) = layer.tensor(kind);
            let bytes = shape.iter().product::<usize>() * dtype.bytes();
            entries.push((name(index, kind), dtype.name(), shape.to_vec(), bytes));
        }
        sizes.push(layer);
    }
    let mut output = Output::create(path)?;
    output.header(&metadata(captures, &sizes)?, &entries)?;
    for (number, (&index, &sizes)) in layers.iter().zip(&sizes).enumerate() {
        let made = of_layer(captures, index, sizes)?;
        for (kind, data) in TENSORS.into_iter().zip(&made) {
            let (_, dtype) = sizes.tensor(kind);
            output.floats(&name(index, kind), data, dtype, |element| format!("element {element}"))?;
        }
        told((number + 1) as f64 / layers.len() as f64);
    }
    output.finish()
}

fn common_layers(captures: &[Capture]) -> Result<Vec<usize>> {
    let of = |capture: &Capture| capture.layers.iter().copied().collect::<BTreeSet<usize>>();
    let common = captures.iter().map(of).reduce(|one, other| &one & &other).unwrap_or_default();
    match captures.first() {
        Some(first) if common.is_empty() => Err(Error::file(
            &first.path,
            "has no layer in common with the other captures; give captures of one model",
        )),
        _ => Ok(common.into_iter().collect()),
    }
}

/// Sizes of a layer, alike in all captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    kv_heads: usize,
    query_heads: usize,
    dim: usize,
    value_dim: usize,
}

impl Sizes {
    fn of(captures: &[Capture], index: usize) -> Result<Self> {
        let mut found = None;
        for capture in captures {
            let shape = capture.shape(index)?;
            if !shape.query {
                return Err(Error::file(
                    &capture.path,
                    format!(
                        "has no `query` in layer {index}, and statistics are gathered from the context's queries; give captures that have them"
                    ),
                ));
            }
            if let Some(what) = &capture.rope.unsupported {
                return Err(Error::file(
                    &capture.path,
                    format!("has {what}, so its keys cannot be turned back, and no statistics can be gathered"),
                ));
            }
            if capture.metadata.contains_key("queries") {
                return Err(Error::file(
                    &capture.path,
                    "has queries that are made up, and statistics are gathered from real ones; give captures with their own",
                ));
            }
            let sizes = Self {
                kv_heads: shape.kv_heads,
                query_heads: shape.query_heads,
                dim: shape.dim,
                value_dim: shape.value_dim,
            };
            if *found.get_or_insert(sizes) != sizes {
                return Err(Error::file(
                    &capture.path,
                    format!("has other shapes in layer {index} than the captures before it; give captures of one model"),
                ));
            }
        }
        found.ok_or_else(|| Error::option("CAPTURE", "none is given to gather statistics from; give one at least"))
    }

    fn inputs(self) -> usize {
        self.kv_heads * (self.dim + self.value_dim)
    }

    fn outputs(self) -> usize {
        self.query_heads * self.dim
    }

    fn tensor(self, kind: &str) -> ([usize; 3], Dtype) {
        match kind {
            "centre" => ([1, 1, self.inputs()], Dtype::F32),
            "mean" => ([self.query_heads, 1, self.dim], Dtype::F32),
            "weights" => ([self.query_heads, self.dim, self.inputs()], Dtype::Bf16),
            _ => ([self.query_heads, self.dim, self.dim], Dtype::Bf16),
        }
    }
}

fn metadata(captures: &[Capture], sizes: &[Sizes]) -> Result<BTreeMap<String, String>> {
    let mut metadata = BTreeMap::new();
    let (Some(first), Some(layer)) = (captures.first(), sizes.first()) else {
        return Ok(metadata);
    };
    for capture in captures {
        for key in ALIKE {
            // Different orders of channels are put into one; numbers may be written in several ways.
            let number = |capture: &Capture| capture.metadata.get(key).map(|text| text.parse::<f64>().map_err(|_| text.clone()));
            if key != "rope_pairing" && number(capture) != number(first) {
                return Err(Error::file(
                    &capture.path,
                    format!("has another {key} than {}; give captures of one model", first.path.display()),
                ));
            }
        }
    }
    for key in ALIKE.into_iter().chain(["model", "architecture"]) {
        if let Some(text) = first.metadata.get(key) {
            metadata.insert(key.to_owned(), text.clone());
        }
    }
    let digests = captures.iter().map(Capture::digest).collect::<Result<Vec<String>>>()?;
    let tokens: usize = captures.iter().map(|capture| capture.tokens).sum();
    for (key, text) in [
        ("format", FORMAT.to_owned()),
        ("version", "1".to_owned()),
        ("kv_heads", layer.kv_heads.to_string()),
        ("value_dim", layer.value_dim.to_string()),
        ("tokens", tokens.to_string()),
        ("sources", format!("sha256:{}", digests.join(" sha256:"))),
        ("tool", concat!("kvsculpt ", env!("CARGO_PKG_VERSION")).to_owned()),
    ] {
        metadata.insert(key.to_owned(), text);
    }
    Ok(metadata)
}

impl Capture {
    /// Appends the un-rotated keys of all KV heads at a token, channels in this order, and then their values.
    pub(super) fn push_token(&self, index: usize, token: usize, pairing: Pairing, known: &mut Vec<f32>) -> Result<()> {
        let shape = self.shape(index)?;
        let mut moved = vec![0.0; self.rope.dim()];
        for head in 0..shape.kv_heads {
            let start = known.len();
            known.extend(self.row(index, "key", head, token, shape.dim)?);
            self.rope.rotate(&mut known[start..], -self.position(token));
            if self.rope.pairing != pairing {
                reorder(&mut known[start..start + self.rope.dim()], &mut moved, pairing);
            }
        }
        for head in 0..shape.kv_heads {
            known.extend(self.row(index, "value", head, token, shape.value_dim)?);
        }
        Ok(())
    }
}

/// Inputs and outputs of all tokens, `[tokens, inputs]` and `[tokens, outputs]`.
fn rows(captures: &[Capture], index: usize, sizes: Sizes) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let pairing = captures.first().map_or(Pairing::Half, |first| first.rope.pairing);
    for capture in captures {
        let layer = capture.layer(index)?;
        let Some(queries) = &layer.query else { continue };
        let mut moved = vec![0.0; capture.rope.dim()];
        for token in (0..capture.tokens).filter(|&token| !capture.is_first(token)) {
            capture.push_token(index, token, pairing, &mut inputs)?;
            for query_head in 0..sizes.query_heads {
                let start = outputs.len();
                let row = (query_head * capture.tokens + token) * sizes.dim;
                outputs.extend_from_slice(&queries.data[row..row + sizes.dim]);
                if capture.rope.pairing != pairing {
                    reorder(&mut outputs[start..start + capture.rope.dim()], &mut moved, pairing);
                }
            }
        }
    }
    Ok((inputs, outputs))
}

/// Sums over tokens of products of centred inputs and outputs.
struct Sums {
    tokens: usize,
    /// `Xᵀ X`, `[inputs, inputs]`.
    gram: Vec<f64>,
    /// `Xᵀ Y`, `[inputs, outputs]`.
    product: Vec<f64>,
    /// `Yᵀ Y` of each query head, `[query_heads, dim, dim]`.
    square: Vec<f64>,
}

/// The layer's tensors in the order of [`TENSORS`].
fn of_layer(captures: &[Capture], index: usize, sizes: Sizes) -> Result<[Vec<f32>; 4]> {
    let (inputs, outputs) = rows(captures, index, sizes)?;
    let (x_mean, y_mean) = (mean(&inputs, sizes.inputs()), mean(&outputs, sizes.outputs()));
    let sums = sums(&inputs, &outputs, &x_mean, &y_mean, sizes);
    let ridge = RIDGE * mean_diagonal(&sums.gram, sizes.inputs());
    let factor = cholesky(&sums.gram, sizes.inputs(), [ridge, 0.0]);
    // Keys and values that never change tell nothing.
    let weights = factor.map_or_else(|| vec![0.0; sums.product.len()], |factor| solved(&factor, &sums.product, sizes));
    let noise = noise(&sums, &weights, ridge, sizes);
    let (p, m) = (sizes.inputs(), sizes.outputs());
    let transposed = (0..m * p).map(|at| weights[at % p * m + at / p]).collect::<Vec<f64>>();
    Ok([narrow(&x_mean), narrow(&y_mean), narrow(&transposed), narrow(&noise)])
}

fn narrow(numbers: &[f64]) -> Vec<f32> {
    #[allow(clippy::cast_possible_truncation, reason = "computed in f64, kept in f32 or less")]
    numbers.iter().map(|&number| number as f32).collect()
}

fn mean(rows: &[f32], width: usize) -> Vec<f64> {
    let mut mean = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    let count = (rows.len() / width).max(1) as f64;
    mean.iter_mut().for_each(|sum| *sum /= count);
    mean
}

/// `target += factor · row`.
fn add(target: &mut [f64], factor: f64, row: &[f64]) {
    for (target, x) in target.iter_mut().zip(row) {
        *target += factor * x;
    }
}

fn sums(inputs: &[f32], outputs: &[f32], x_mean: &[f64], y_mean: &[f64], sizes: Sizes) -> Sums {
    let (p, m, dim) = (sizes.inputs(), sizes.outputs(), sizes.dim);
    let mut sums = Sums {
        tokens: inputs.len() / p,
        gram: vec![0.0; p * p],
        product: vec![0.0; p * m],
        square: vec![0.0; m * dim],
    };
    let centred =
        |rows: &[f32], mean: &[f64]| -> Vec<f64> { rows.iter().zip(mean.iter().cycle()).map(|(&x, mean)| f64::from(x) - mean).collect() };
    for (x, y) in inputs.chunks(BLOCK * p).zip(outputs.chunks(BLOCK * m)) {
        let (x, y) = (centred(x, x_mean), centred(y, y_mean));
        for i in 0..p {
            let (gram, product) = (&mut sums.gram[i * p..(i + 1) * p], &mut sums.product[i * m..(i + 1) * m]);
            for (x, y) in x.chunks_exact(p).zip(y.chunks_exact(m)) {
                add(gram, x[i], x);
                add(product, x[i], y);
            }
        }
        for (i, square) in sums.square.chunks_exact_mut(dim).enumerate() {
            let head = i / dim * dim;
            for y in y.chunks_exact(m) {
                add(square, y[i], &y[head..head + dim]);
            }
        }
    }
    sums
}

/// `(L Lᵀ)⁻¹ XᵀY`, `[inputs, outputs]`, all outputs at once.
fn solved(factor: &[f64], product: &[f64], sizes: Sizes) -> Vec<f64> {
    let (p, m) = (sizes.inputs(), sizes.outputs());
    let mut rows = product.to_vec();
    for row in 0..p {
        let (before, rest) = rows.split_at_mut(row * m);
        let this = &mut rest[..m];
        for (i, other) in before.chunks_exact(m).enumerate() {
            add(this, -factor[row * p + i], other);
        }
        this.iter_mut().for_each(|x| *x /= factor[row * p + row]);
    }
    for row in (0..p).rev() {
        let (before, after) = rows.split_at_mut((row + 1) * m);
        let this = &mut before[row * m..];
        for (i, other) in after.chunks_exact(m).enumerate() {
            add(this, -factor[(row + 1 + i) * p + row], other);
        }
        this.iter_mut().for_each(|x| *x /= factor[row * p + row]);
    }
    rows
}

/// The factor of the rest's covariance: with `(XᵀX + ρI) B = XᵀY` it is `YᵀY − (XᵀY)ᵀB − ρ BᵀB` over the tokens left once the inputs
/// have used up theirs, but half of them at least.
fn noise(sums: &Sums, weights: &[f64], ridge: f64, sizes: Sizes) -> Vec<f64> {
    let (m, dim) = (sizes.outputs(), sizes.dim);
    let free = sums.tokens.saturating_sub(sizes.inputs()).max(sums.tokens.div_ceil(2)).max(1) as f64;
    let mut all = Vec::with_capacity(sums.square.len());
    for (head, square) in sums.square.chunks_exact(dim * dim).enumerate() {
        let mut rest = square.to_vec();
        for (product, weights) in sums.product.chunks_exact(m).zip(weights.chunks_exact(m)) {
            let (product, weights) = (&product[head * dim..(head + 1) * dim], &weights[head * dim..(head + 1) * dim]);
            for (row, rest) in rest.chunks_exact_mut(dim).enumerate() {
                add(rest, -(product[row] + ridge * weights[row]), weights);
            }
        }
        rest.iter_mut().for_each(|x| *x /= free);
        // Nothing left is a covariance too, and rounding may leave less than nothing.
        let size = square.iter().step_by(dim + 1).sum::<f64>() / (dim as f64 * free);
        let factor = [1e-9, 1e-6, 1e-3]
            .into_iter()
            .find_map(|ridge| cholesky(&rest, dim, [ridge * size, 0.0]));
        all.extend(factor.unwrap_or_else(|| vec![0.0; dim * dim]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is linear in keys and values is found, and what is left is noise of the right covariance.
    #[test]
    fn a_linear_law_is_found() {
        let sizes = Sizes {
            kv_heads: 1,
            query_heads: 2,
            dim: 4,
            value_dim: 4,
        };
        let stream = super::super::super::generate::Stream::new(3);
        let count = 4000;
        let inputs: Vec<f32> = (0..count * 8).map(|at| stream.bell(at) + 2.0).collect();
        let law = |output: usize, input: usize| ((output * 5 + input * 3) % 7) as f64 * 0.5 - 1.5;
        let mut outputs = Vec::new();
        for (row, x) in inputs.chunks_exact(8).enumerate() {
            for output in 0..8 {
                let told: f64 = (0..8).map(|input| law(output, input) * f64::from(x[input])).sum();
                let noise = f64::from(stream.part(1).bell((row * 8 + output) as u64)) * 0.25;
                outputs.extend(narrow(&[told + noise]));
            }
        }
        let (x_mean, y_mean) = (mean(&inputs, 8), mean(&outputs, 8));
        let sums = sums(&inputs, &outputs, &x_mean, &y_mean, sizes);
        let ridge = 1e-6 * mean_diagonal(&sums.gram, 8);
        let factor = cholesky(&sums.gram, 8, [ridge, 0.0]).unwrap();
        let weights = solved(&factor, &sums.product, sizes);
        for input in 0..8 {
            for output in 0..8 {
                assert!((weights[input * 8 + output] - law(output, input)).abs() < 0.02);
            }
        }
        let noise = noise(&sums, &weights, ridge, sizes);
        for (at, x) in noise.iter().enumerate() {
            let (row, column) = (at / 4 % 4, at % 4);
            let expected = if row == column { 0.25 } else { 0.0 };
            assert!((x - expected).abs() < 0.02, "{at} {x}");
        }
    }
}
