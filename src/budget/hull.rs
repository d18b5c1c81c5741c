//! Piecewise linear functions of a length: values, sums, and the convex function below.
//!
//! All take points in strictly ascending lengths, at least one.

use super::curve::Point;

/// The value at a length between the first point and the last; beyond them, the nearest one's.
pub(super) fn value(points: &[Point], length: usize) -> f64 {
    let after = points.partition_point(|point| point.length < length);
    match (after.checked_sub(1).map(|before| points[before]), points.get(after)) {
        (_, Some(at)) if at.length == length => at.error,
        (Some(before), Some(at)) => {
            let part = (length - before.length) as f64 / (at.length - before.length) as f64;
            before.error + (at.error - before.error) * part
        }
        (Some(end), None) => end.error,
        (None, first) => first.map_or(0.0, |first| first.error),
    }
}

/// What a function drops a pair between two points.
pub(super) fn slope(from: Point, to: Point) -> f64 {
    (from.error - to.error) / (to.length - from.length) as f64
}

/// The sum of functions, on the union of their lengths. Added in pairs, so that the work grows with the number of points
/// times the logarithm of the number of functions.
pub(super) fn sum(mut functions: Vec<Vec<Point>>) -> Vec<Point> {
    while functions.len() > 1 {
        functions = functions
            .chunks(2)
            .map(|pair| match pair {
                [one, other] => add(one, other),
                rest => rest.concat(),
            })
            .collect();
    }
    functions.pop().unwrap_or_default()
}

fn add(one: &[Point], other: &[Point]) -> Vec<Point> {
    let mut lengths: Vec<usize> = one.iter().chain(other).map(|point| point.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let at = |length| Point {
        length,
        error: value(one, length) + value(other, length),
    };
    lengths.into_iter().map(at).collect()
}

/// The largest convex function that never rises and lies nowhere above the points: vertices, from the first length to the
/// last, whose [`slope`]s as computed grow strictly smaller, the last perhaps zero.
pub(super) fn hull(points: &[Point]) -> Vec<Point> {
    let mut least = f64::INFINITY;
    let mut vertices: Vec<Point> = Vec::new();
    for &Point { length, error } in points {
        // A length can do no worse than a smaller one: the pairs in excess could be left out.
        least = least.min(error);
        let next = Point { length, error: least };
        // By slopes, not by a cross product, so that sorting slopes later can never put a function's stretches out of order.
        while let [.., before, last] = vertices.as_slice()
            && slope(*before, *last) <= slope(*last, next)
        {
            vertices.pop();
        }
        vertices.push(next);
    }
    vertices
}

/// A convex function on the lengths a page allows: its first length rounded up to a page, the multiples from there on, and its
/// last length. Convex again; between two of its vertices only whole pages lie, and perhaps a part of one before the last.
pub(super) fn paged(vertices: &[Point], page: usize) -> Vec<Point> {
    let Some((first, last)) = vertices.first().zip(vertices.last()) else {
        return Vec::new();
    };
    let up = |length: usize| length.checked_next_multiple_of(page).map_or(last.length, |up| up.min(last.length));
    let start = up(first.length);
    // Between the pages on either side of a vertex the function is linear: only these can be vertices on pages.
    let mut lengths: Vec<usize> = vertices
        .iter()
        .flat_map(|vertex| [vertex.length - vertex.length % page, up(vertex.length)])
        .chain([start, last.length - last.length % page, last.length])
        .map(|length| length.max(start))
        .collect();
    lengths.sort_unstable();
    lengths.dedup();
    let at = |length| Point {
        length,
        error: value(vertices, length),
    };
    hull(&lengths.into_iter().map(at).collect::<Vec<_>>())
}
