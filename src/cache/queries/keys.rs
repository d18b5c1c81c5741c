//! Queries guessed from a head's keys alone.
//!
//! Nothing in a cache says which way its queries point, so this is a guess about what keys and queries share: both are about the
//! tokens' content, in about the same channels. A query is a key without its rotation and without what all keys have in common, with
//! as much noise again, so large that attention falls on about as many pairs as real queries' does.

use super::super::generate::Stream;
use super::super::{Capture, Layer, LayerShape};
use super::FIRST;

/// Pairs that share the attention of the median guessed query: e to the entropy.
const SHARED_BY: f64 = 64.0;
/// Guessed queries by which their size is found.
const SAMPLE: usize = 64;
/// Halvings of the interval in which the size is looked for.
const HALVINGS: usize = 24;

/// Floats that making up a head's queries takes: its keys once more, and the sample's logits in double precision.
pub(super) fn floats(shape: &LayerShape, tokens: usize) -> usize {
    tokens * (shape.dim + 2 * SAMPLE)
}

/// `c (k − k̄ + σ z)` at each token, `[query_heads, tokens, dim]`, z of its own for every query head.
pub(super) fn queries(capture: &Capture, layer: &Layer, head: usize, tokens: &[usize], seed: u64) -> Vec<f32> {
    let dim = layer.dim;
    let mut keys = layer.key.clone();
    for (token, key) in keys.chunks_exact_mut(dim).enumerate() {
        capture.rope.rotate(key, -capture.position(token));
    }
    let (mean, spread) = moments(capture, &keys, dim);
    let noise = Stream::new(seed).part(layer.index as u64);
    let made = |query_head: usize, token: usize| {
        let noise = noise.part((head * layer.query_heads + query_head) as u64);
        let mut query: Vec<f32> = (0..dim)
            .map(|channel| spread[channel] * noise.bell((token * dim + channel) as u64))
            .collect();
        if !capture.is_first(token) {
            let key = &keys[token * dim..(token + 1) * dim];
            for ((query, key), mean) in query.iter_mut().zip(key).zip(&mean) {
                *query += key - mean;
            }
        }
        query
    };
    let size = size(capture, layer, |token| made(0, token));
    let heads = 0..layer.query_heads;
    let rows = heads.flat_map(|query_head| tokens.iter().map(move |&token| (query_head, token)));
    rows.flat_map(|(query_head, token)| made(query_head, token))
        .map(|x| size * x)
        .collect()
}

/// Mean and standard deviation of each channel, the first tokens of a text left out.
fn moments(capture: &Capture, keys: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut sum, mut squares, mut count) = (vec![0.0_f64; dim], vec![0.0_f64; dim], 0.0);
    for (_, key) in keys.chunks_exact(dim).enumerate().filter(|(token, _)| !capture.is_first(*token)) {
        for ((&x, sum), square) in key.iter().zip(&mut sum).zip(&mut squares) {
            *sum += f64::from(x);
            *square += f64::from(x).powi(2);
        }
        count += 1.0;
    }
    let mean: Vec<f64> = sum.iter().map(|sum| sum / count).collect();
    let spread = squares
        .iter()
        .zip(&mean)
        .map(|(square, mean)| (square / count - mean * mean).max(0.0).sqrt());
    (spread_narrow(mean.iter().copied()), spread_narrow(spread))
}

fn spread_narrow(numbers: impl Iterator<Item = f64>) -> Vec<f32> {
    #[allow(clippy::cast_possible_truncation, reason = "means of f32, kept as such")]
    numbers.map(|x| x as f32).collect()
}

/// The size at which the median query's attention is shared by so many pairs.
fn size(capture: &Capture, layer: &Layer, made: impl Fn(usize) -> Vec<f32>) -> f32 {
    let count = layer.tokens.min(SAMPLE);
    let rows: Vec<Vec<f64>> = (0..count)
        .map(|i| {
            let first = FIRST.min(layer.tokens - 1);
            let mut query = made(first + i * (layer.tokens - first) / count);
            capture.rope.rotate(&mut query, (capture.next_position + i) as f64);
            let score = |key: &[f32]| key.iter().zip(&query).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum::<f64>();
            layer.key.chunks_exact(layer.dim).map(|key| capture.scale * score(key)).collect()
        })
        .collect();
    // Fewer pairs than that share nothing out.
    let wanted = SHARED_BY.min(layer.tokens as f64 / 4.0).max(1.0);
    let (mut low, mut high) = (-12.0_f64, 6.0_f64);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        let mut shared: Vec<f64> = rows.iter().map(|row| shared_by(row, middle.exp2())).collect();
        shared.sort_by(f64::total_cmp);
        if shared[count / 2] > wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    #[allow(clippy::cast_possible_truncation, reason = "between 2^-12 and 2^6")]
    let size = f64::midpoint(low, high).exp2() as f32;
    size
}

/// How many pairs share the attention of logits times a size, as if evenly: e to the entropy.
fn shared_by(logits: &[f64], size: f64) -> f64 {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut product) = (0.0, 0.0);
    for logit in logits {
        let below = size * (logit - most);
        let weight = below.exp();
        sum += weight;
        product += weight * below;
    }
    (sum.ln() - product / sum).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_shared_by_fewer_the_larger_the_size() {
        let even = [0.5; 8];
        assert!((shared_by(&even, 3.0) - 8.0).abs() < 1e-12);
        let logits = [0.0, 1.0, 2.0, 5.0];
        let [weak, strong] = [0.01, 9.0].map(|size| shared_by(&logits, size));
        assert!(weak > 3.99 && (1.0..1.001).contains(&strong), "{weak} {strong}");
    }
}
