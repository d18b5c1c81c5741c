mod allocate;
mod file;
mod hull;
mod joined;
mod picture;
mod published;
mod target;
mod weights;

use super::{Curve, Point};

/// A curve through these lengths and errors.
fn curve(layer: usize, head: usize, points: &[(usize, f64)]) -> Curve {
    let points = points.iter().map(|&(length, error)| Point { length, error }).collect();
    Curve { layer, head, points }
}

/// A curve over a few lengths up to `whole`, falling with noise that may lift it, at the end zero.
fn noisy(random: &mut fastrand::Rng, layer: usize, head: usize, whole: usize) -> Curve {
    let least = random.usize(1..=(whole / 8).max(1));
    let mut lengths: Vec<usize> = (0..random.usize(0..12)).map(|_| random.usize(least..=whole)).collect();
    lengths.extend([least, whole]);
    lengths.sort_unstable();
    lengths.dedup();
    let scale = 10f64.powf(random.f64() * 6.0 - 5.0);
    let error = |length: usize| match length {
        length if length == whole => 0.0,
        length => scale * (1.0 - length as f64 / whole as f64).powi(3) * (0.5 + random.f64()),
    };
    let points: Vec<(usize, f64)> = lengths.iter().copied().zip(lengths.iter().copied().map(error)).collect();
    curve(layer, head, &points)
}

/// A convex curve of whole errors over every length from `least` to `whole`, at the end zero.
fn convex(random: &mut fastrand::Rng, layer: usize, head: usize, least: usize, whole: usize) -> Curve {
    let mut drops: Vec<u32> = (least..whole).map(|_| random.u32(0..20)).collect();
    drops.sort_unstable();
    let mut error = 0.0;
    let mut points = vec![(whole, 0.0)];
    for (drop, length) in drops.into_iter().zip((least..whole).rev()) {
        error += f64::from(drop);
        points.push((length, error));
    }
    points.reverse();
    curve(layer, head, &points)
}

/// Every choice of one item from each list.
fn choices(lists: &[Vec<usize>]) -> Vec<Vec<usize>> {
    lists.iter().fold(vec![Vec::new()], |begun, list| {
        let longer = |begun: Vec<usize>| list.iter().map(move |&item| begun.iter().copied().chain([item]).collect());
        begun.into_iter().flat_map(longer).collect()
    })
}

/// The error at a length that the curve names.
fn error_at(curve: &Curve, length: usize) -> f64 {
    curve.points.iter().find(|point| point.length == length).unwrap().error
}

/// `Σ weight · error` of curves that name every length.
fn weighted(curves: &[Curve], weights: &[f64], lengths: &[usize]) -> f64 {
    let errors = curves.iter().zip(lengths).map(|(curve, &length)| error_at(curve, length));
    errors.zip(weights).map(|(error, weight)| weight * error).sum()
}
