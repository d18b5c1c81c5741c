//! What numbers of a cache are like: ranges, norms, channels that stand out, where attention goes.

use kvsculpt::cache::{Capture, Layer, Queries};
use serde::Serialize;

/// A channel stands out where its root mean square is so many times the head's median.
const OUTLIER: f64 = 4.0;
/// First pairs whose attention is told.
const FIRST: usize = 4;
/// Newest pairs whose attention is told.
const NEWEST: usize = 64;
/// Query rows a query head that are looked at, evenly spaced.
const ROWS: usize = 48;

/// Pairs of one head, keys or values.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Numbers {
    pub(crate) least: f32,
    pub(crate) most: f32,
    /// Norms of the pairs.
    pub(crate) norm: Range,
    /// Channels that stand out, the most conspicuous first.
    pub(crate) outliers: Vec<Outlier>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Range {
    pub(crate) least: f64,
    pub(crate) mean: f64,
    pub(crate) most: f64,
}

/// A channel and how many times the median its root mean square is.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Outlier {
    pub(crate) channel: usize,
    pub(crate) times: f64,
}

/// Parts of the attention that a head's queries give, on the mean.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Attention {
    /// To the first 4 pairs.
    pub(crate) first: f64,
    /// To the newest 64 pairs.
    pub(crate) newest: f64,
    /// How many pairs share it, as if evenly: e to the entropy, the mean over rows.
    pub(crate) spread: f64,
}

/// Ranges, norms and outliers of `[pairs, channels]`.
pub(crate) fn numbers(pairs: &[f32], channels: usize) -> Numbers {
    let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
    let mut squares = vec![0.0_f64; channels];
    let mut norm = Range {
        least: f64::INFINITY,
        mean: 0.0,
        most: 0.0,
    };
    let count = (pairs.len() / channels).max(1) as f64;
    if pairs.is_empty() {
        (least, most, norm.least) = (0.0, 0.0, 0.0);
    }
    for pair in pairs.chunks_exact(channels) {
        let mut sum = 0.0;
        for (&x, square) in pair.iter().zip(&mut squares) {
            (least, most) = (least.min(x), most.max(x));
            let x = f64::from(x).powi(2);
            *square += x;
            sum += x;
        }
        let length = sum.sqrt();
        norm.least = norm.least.min(length);
        norm.most = norm.most.max(length);
        norm.mean += length / count;
    }
    let sizes = squares.iter().map(|square| (square / count).sqrt()).collect::<Vec<_>>();
    Numbers {
        least,
        most,
        norm,
        outliers: outliers(&sizes),
    }
}

fn outliers(sizes: &[f64]) -> Vec<Outlier> {
    let mut sorted = sizes.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    if median <= 0.0 {
        return Vec::new();
    }
    let times = sizes.iter().map(|size| size / median).enumerate();
    let mut found: Vec<Outlier> = times
        .filter(|&(_, times)| times >= OUTLIER)
        .map(|(channel, times)| Outlier { channel, times })
        .collect();
    found.sort_by(|one, other| other.times.total_cmp(&one.times));
    found
}

/// The mean norm of the first 4 pairs over that of all.
pub(crate) fn first_norm(pairs: &[f32], channels: usize) -> f64 {
    let norm = |pair: &[f32]| pair.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let norms: Vec<f64> = pairs.chunks_exact(channels).map(norm).collect();
    let mean = |norms: &[f64]| norms.iter().sum::<f64>() / norms.len().max(1) as f64;
    let all = mean(&norms);
    if all > 0.0 {
        mean(&norms[..FIRST.min(norms.len())]) / all
    } else {
        1.0
    }
}

/// Where the queries of each KV head look, by the probe rows, else the user's own, else the newest of the context turned to the
/// positions they were asked from; `None` where there are none of use.
pub(crate) fn attention(capture: &Capture, layer: &Layer) -> Option<Vec<Attention>> {
    let (queries, rotated) = match (&layer.probe_query, &layer.reference_query, &layer.query) {
        (Some(queries), ..) | (None, Some(queries), _) => (queries, true),
        (None, None, Some(queries)) => (queries, false),
        (None, None, None) => return None,
    };
    if !rotated && capture.rope.unsupported.is_some() {
        return None;
    }
    let group = layer.query_heads / layer.kv_heads;
    let heads = (0..layer.kv_heads).map(|head| {
        let rows = (head * group..(head + 1) * group).flat_map(|query_head| sample(capture, layer, queries, query_head, rotated));
        let keys = &layer.key[head * layer.tokens * layer.dim..(head + 1) * layer.tokens * layer.dim];
        mean(rows.map(|row| of_row(&row, keys, capture.scale)))
    });
    Some(heads.collect())
}

/// Rows of a query head: evenly spaced ones, or the newest of the context turned to their positions.
fn sample(capture: &Capture, layer: &Layer, queries: &Queries, query_head: usize, rotated: bool) -> Vec<Vec<f32>> {
    let all = &queries.data[query_head * queries.rows * layer.dim..(query_head + 1) * queries.rows * layer.dim];
    let count = queries.rows.min(ROWS);
    let place = |i: usize| {
        if rotated {
            i * queries.rows / count
        } else {
            queries.rows - count + i
        }
    };
    let rows = (0..count).map(place).map(|row| {
        let mut query = all[row * layer.dim..(row + 1) * layer.dim].to_vec();
        if !rotated {
            let position = capture.next_position - layer.tokens + row;
            capture.rope.rotate(&mut query, position as f64);
        }
        query
    });
    rows.collect()
}

fn of_row(query: &[f32], keys: &[f32], scale: f64) -> Attention {
    let dot = |key: &[f32]| f64::from(key.iter().zip(query).map(|(k, q)| k * q).sum::<f32>());
    let logits: Vec<f64> = keys.chunks_exact(query.len()).map(|key| scale * dot(key)).collect();
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let part = |weights: &[f64]| weights.iter().sum::<f64>() / sum;
    let entropy: f64 = weights.iter().filter(|&&w| w > 0.0).map(|w| -(w / sum) * (w / sum).ln()).sum();
    Attention {
        first: part(&weights[..FIRST.min(weights.len())]),
        newest: part(&weights[weights.len().saturating_sub(NEWEST)..]),
        spread: entropy.exp(),
    }
}

fn mean(rows: impl Iterator<Item = Attention>) -> Attention {
    let mut sum = Attention {
        first: 0.0,
        newest: 0.0,
        spread: 0.0,
    };
    let mut count = 0.0_f64;
    for row in rows {
        sum.first += row.first;
        sum.newest += row.newest;
        sum.spread += row.spread;
        count += 1.0;
    }
    Attention {
        first: sum.first / count,
        newest: sum.newest / count,
        spread: sum.spread / count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_values_are_measured_by_all() {
        let mut pairs = vec![3.0; 16];
        pairs[..4].fill(0.0);
        assert!((first_norm(&pairs, 1) - 0.0).abs() < 1e-12);
        assert!((first_norm(&[2.0; 12], 2) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_channel_of_many_times_the_median_stands_out() {
        let pairs = [1.0, -1.0, 8.0, 1.0, -1.0, 1.0, -8.0, 1.0];
        let found = numbers(&pairs, 4);
        assert_eq!((found.least, found.most), (-8.0, 8.0));
        let outliers: Vec<_> = found.outliers.iter().map(|outlier| (outlier.channel, outlier.times)).collect();
        assert_eq!(outliers, [(2, 8.0)]);
        assert!((found.norm.mean - 67.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn attention_is_shared_out_by_the_logits() {
        // Ten keys, all alike: the first four have four tenths, and ten pairs share it.
        let even = of_row(&[1.0, 0.0], &[0.5, 0.0].repeat(10), 1.0);
        assert!((even.first - 0.4).abs() < 1e-12 && (even.newest - 1.0).abs() < 1e-12);
        assert!((even.spread - 10.0).abs() < 1e-9);
        let mut keys = [0.0, 0.0].repeat(100);
        keys[0] = 50.0;
        let sink = of_row(&[1.0, 0.0], &keys, 1.0);
        assert!(sink.first > 0.999 && sink.newest < 1e-9 && sink.spread < 1.01);
    }
}
