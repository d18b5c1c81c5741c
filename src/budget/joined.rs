//! One curve of a head from those of its parts.

use super::curve::{Curve, Point};
use super::plan::{Plan, Scope};
use crate::error::{Error, Result};

/// `min Σ error_i(length_i)` over the lengths of a head's parts that sum to its own, for every sum: the best that the head can do.
///
/// Each part's error is taken as by [`allocate`](super::allocate), whose lengths for scope `Head`, pages of 1 and equal weights reach the
/// curve. Of one part it is that part's own curve, as it was measured. Layer and head are those of the first.
///
/// ```
/// use kvsculpt::budget::{Curve, Point, joined};
///
/// let part = |first| Curve { layer: 0, head: 0, points: vec![Point { length: 1, error: first }, Point { length: 10, error: 0.0 }] };
/// // Two chunks of a head: what it gets goes to the worse one first.
/// let head = joined(&[part(0.9), part(9.0)])?;
/// assert!((head.error(2) - 9.9).abs() < 1e-9 && (head.error(11) - 0.9).abs() < 1e-9);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] for no parts, and as of [`allocate`](super::allocate).
pub fn joined(parts: &[Curve]) -> Result<Curve> {
    let first = parts
        .first()
        .ok_or_else(|| Error::shape("budgets", "a head without error curves of its parts has none itself"))?;
    if parts.len() == 1 {
        return Ok(first.clone());
    }
    let plan = Plan::new(parts, &vec![1.0; parts.len()], Scope::Head, 1)?;
    // From the end, so that no error falls below that of the whole head by rounding.
    let mut error = plan.floor();
    let mut length = plan.whole();
    let mut points = vec![Point { length, error }];
    for stretch in plan.stretches.iter().rev() {
        length -= stretch.pairs();
        error += stretch.from.error - stretch.to.error;
        points.push(Point { length, error });
    }
    points.reverse();
    Ok(Curve {
        layer: first.layer,
        head: first.head,
        points,
    })
}
