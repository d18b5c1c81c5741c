//! The smallest cache whose error stays below a bound.

use super::curve::{Curve, Point};
use super::plan::{Plan, Scope, Stretch};
use crate::error::{Error, Result};

/// The lengths of least sum at which `Σ weight · error / Σ weight ≤ max_error`, errors taken as by
/// [`allocate`](super::allocate).
///
/// They are what [`allocate`](super::allocate) gives for their sum: its steps are taken one by one, in the order of their gains, until
/// the error is good enough, and everything said there of lengths, pages and scopes holds. Where steps differ in cost, the
/// sum may exceed the least possible by less than the last step taken.
///
/// ```
/// use kvsculpt::budget::{Curve, Point, Scope, least_total};
///
/// let curve = |head, first| Curve { layer: 0, head, points: vec![Point { length: 10, error: first }, Point { length: 110, error: 0.0 }] };
/// let curves = [curve(0, 0.1), curve(1, 1.0)];
/// // The mean error 0.55 falls to 0.05 once the second head is whole.
/// let lengths = least_total(&curves, &[1.0, 1.0], Scope::Head, 1, 0.05)?;
/// assert!(lengths[0] < 20 && lengths[1] > 105, "{lengths:?}");
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Options`] if `max_error` is negative or not a number, or below the error of the whole caches where that is not 0,
/// and for a page of 0. [`Error::Shape`] as of [`allocate`](super::allocate).
pub fn least_total(curves: &[Curve], weights: &[f64], scope: Scope, page: usize, max_error: f64) -> Result<Vec<usize>> {
    if !(max_error.is_finite() && max_error >= 0.0) {
        return Err(Error::option("--max-error", format!("{max_error} is not zero or more")));
    }
    let plan = Plan::new(curves, weights, scope, page)?;
    let weight: f64 = weights.iter().sum();
    let bound = max_error * weight;
    if plan.floor() > bound {
        return Err(Error::option(
            "--max-error",
            format!(
                "{max_error:e} is below what the whole caches reach by these curves; the smallest that can be had is {:e}",
                plan.floor() / weight
            ),
        ));
    }
    // From the end, not by taking drops away from the start: where nothing more is to be gained the error is the floor
    // itself, without the rounding of a long subtraction.
    let mut after = vec![plan.floor(); plan.stretches.len() + 1];
    for (index, stretch) in plan.stretches.iter().enumerate().rev() {
        after[index] = after[index + 1] + (stretch.from.error - stretch.to.error);
    }
    let mut reached = plan.start();
    for (index, stretch) in plan.stretches.iter().enumerate() {
        if after[index] <= bound {
            break;
        }
        reached[stretch.group] = if after[index + 1] > bound {
            stretch.to.length
        } else {
            end(stretch, page, after[index + 1], bound)
        };
    }
    Ok(plan.lengths(&reached))
}

/// The first length of a stretch, on a page, where an error of `after` at its end comes below the bound.
fn end(stretch: &Stretch, page: usize, after: f64, bound: f64) -> usize {
    let Point { length: from, error } = stretch.from;
    let Point { length: to, error: last } = stretch.to;
    let good = |length: usize| after + (error - last) * ((to - length) as f64 / (to - from) as f64) <= bound;
    // `good` turns once, from false to true: a search between a length that is not and one that is.
    let (mut poor, mut enough) = (0, (to - from).div_ceil(page));
    let at = |pages: usize| (from + pages * page).min(to);
    while enough - poor > 1 {
        let middle = poor + (enough - poor) / 2;
        if good(at(middle)) {
            enough = middle;
        } else {
            poor = middle;
        }
    }
    at(enough)
}
