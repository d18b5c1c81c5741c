//! A total shared out so that the weighted error is least.

use super::curve::Curve;
use super::plan::{Plan, Scope};
use crate::error::{Error, Result};

/// `argmin Σ weight · error(length)` over lengths that sum to `total`, each error taken on the largest convex function that never
/// rises and lies nowhere above its curve.
///
/// Weights and lengths are in the order of the curves. A length is a multiple of `page`, or the head's whole cache; its least
/// is the curve's rounded up to a page, or the whole cache where that is shorter. Heads bound by `scope` have one length: the
/// largest of their least lengths or more, their weighted curves added up. Of equal gains the one of the lower curve is taken.
///
/// With scope `Head` and a page of 1 the sum is `total` exactly. Otherwise a step is a page for every head of a group, and what is
/// left over is less than the smallest step a group that is not whole takes next: less than a page with scope `Head`, less
/// than `page · heads` with `Layer` and `Uniform`, where `heads` are those of any layer (of all layers) not kept whole. The lengths
/// are best for the sum they reach where all steps cost the same; where a last step is shorter, because a cache is no
/// multiple of the page, or layers differ in heads, best to within the gain of one step.
///
/// ```
/// use kvsculpt::budget::{Curve, Point, Scope, allocate};
///
/// let curve = |head, first| Curve {
///     layer: 0,
///     head,
///     points: vec![Point { length: 10, error: first }, Point { length: 20, error: 0.1 * first }, Point { length: 100, error: 0.0 }],
/// };
/// // The second head loses ten times as much, and gets what there is to give.
/// let curves = [curve(0, 0.1), curve(1, 1.0)];
/// assert_eq!(allocate(&curves, &[1.0, 1.0], Scope::Head, 1, 30)?, [10, 20]);
/// assert_eq!(allocate(&curves, &[1.0, 1.0], Scope::Layer, 1, 40)?, [20, 20]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Options`] if `total` is below the sum of the least lengths or above the sum of whole caches, with the sum that
/// would do, and for a page of 0. [`Error::Shape`] for curves without points, lengths that do not ascend, errors or weights that
/// are negative or not finite, weights of another number or all zero, and heads bound together whose caches differ in length.
pub fn allocate(curves: &[Curve], weights: &[f64], scope: Scope, page: usize, total: usize) -> Result<Vec<usize>> {
    let plan = Plan::new(curves, weights, scope, page)?;
    let mut reached = plan.start();
    let (least, whole) = (plan.total(&reached), plan.whole());
    if total < least {
        let (option, pages) = if page > 1 {
            ("--page", format!(", rounded up to pages of {page}"))
        } else {
            ("--budget", String::new())
        };
        let share = if least < whole {
            format!("a keep of {:.4}", (least as f64 / whole as f64 * 1e4).ceil() / 1e4)
        } else {
            "which is everything".to_owned()
        };
        return Err(Error::option(
            option,
            format!(
                "{total} pairs are fewer than {} heads need at their least lengths{pages}; the smallest total that serves is {least}, {share}",
                curves.len()
            ),
        ));
    }
    if total > whole {
        return Err(Error::option(
            "--budget",
            format!("{total} pairs are more than the {whole} that the whole caches hold; at most {whole} can be stored"),
        ));
    }
    let mut remaining = total - least;
    // Why what is left is less than a step: a group stops short of a stretch's end only where its next step, at most a page
    // for each of its heads, exceeds what remained then, and `remaining` only shrinks. A group that never stopped short is whole.
    for stretch in &plan.stretches {
        let length = &mut reached[stretch.group];
        if *length != stretch.from.length {
            continue;
        }
        let pairs = if stretch.pairs() <= remaining {
            stretch.to.length - stretch.from.length
        } else {
            // Whole pages only: a stretch begins on one.
            remaining / stretch.heads / page * page
        };
        *length += pairs;
        remaining -= pairs * stretch.heads;
    }
    Ok(plan.lengths(&reached))
}
