//! The smallest cache whose error, measured when it is finished, is within a bound.
//!
//! Error curves say how long heads have to be, but they are made from few rows and from values alone. So what comes out of them is fitted,
//! judged on the validation rows, and the curves are asked again for a bound as much larger or smaller as the error was off.

use super::batches::Work;
use super::compress::fit;
use super::plan::Plan;
use super::{Outcome, Request, Timings};
use crate::cache::{Capture, CompressedLayer};
use crate::engine::Engine;
use crate::error::Result;

/// Fits from which the smallest within the bound is taken.
const FITS: i32 = 4;
/// Fits after which a bound that none was within is met by keeping everything.
const MOST_FITS: i32 = 8;
/// An error above this share of the bound is near enough to it.
const NEAR: f64 = 0.9;
/// How far the curves are followed in one go.
const FOLLOWED: (f64, f64) = (0.05, 4.0);

/// Heads that are fitted: their layers and what became of them.
type Fit = (Vec<CompressedLayer>, Vec<Outcome>);

/// Fits all heads so that their mean error on validation rows, weighed as the request says, is at most `bound`; `plan` is what the
/// curves gave for it, and becomes the plan of what is returned. Without validation rows the curves have the last word.
pub(super) fn fit_within<E: Engine>(
    work: &mut Work<'_, E>,
    capture: &Capture,
    request: &Request,
    plan: &mut Plan,
    bound: f64,
    timings: &mut Timings,
) -> Result<Fit> {
    let (begin, share) = work.stage;
    let mut best: Option<(Fit, Vec<Vec<usize>>)> = None;
    let mut asked = bound;
    for attempt in 1.. {
        // How many fits there will be is not known: each is half of what is left.
        let left = share * 0.5_f64.powi(attempt);
        work.stage = (begin + share - 2.0 * left, left);
        let fitted = fit(work, capture, request, &plan.free, timings)?;
        let Some(error) = mean(&fitted.1, &plan.weights) else {
            return Ok(fitted);
        };
        tracing::debug!(asked, error, bound, "fitted within a bound");
        // An error of nothing or beyond numbers says only in which direction to go.
        let change = (0.5 * (NEAR + 1.0) * bound / error).clamp(FOLLOWED.0, FOLLOWED.1);
        let change = if change.is_nan() { 1.0 } else { change };
        let next;
        if error <= bound {
            best = Some((fitted, plan.free.clone()));
            asked *= change;
            next = plan.within(work.supply, &request.options, asked)?;
            if error >= NEAR * bound || attempt >= FITS || pairs(&next) >= pairs(&plan.free) {
                break;
            }
        } else if best.is_some() || asked == 0.0 {
            best = best.or_else(|| Some((fitted, plan.free.clone())));
            break;
        } else {
            asked = if attempt >= MOST_FITS { 0.0 } else { asked * change.min(0.9) };
            next = plan.within(work.supply, &request.options, asked)?;
        }
        plan.free = next;
    }
    match best {
        Some((fitted, free)) => {
            plan.free = free;
            Ok(fitted)
        }
        None => fit(work, capture, request, &plan.free, timings),
    }
}

fn pairs(free: &[Vec<usize>]) -> usize {
    free.iter().flatten().sum()
}

/// The mean error of heads on validation rows; `None` where a head has none. A head whose error is no number counts as one that says nothing.
fn mean(outcomes: &[Outcome], weights: &[f64]) -> Option<f64> {
    let errors = outcomes.iter().map(|head| head.result.validation.map(|errors| errors.merged));
    let errors: Vec<f64> = errors.collect::<Option<_>>()?;
    let all: f64 = weights.iter().sum();
    let sum = errors
        .iter()
        .zip(weights)
        .map(|(&error, weight)| weight * if error.is_finite() { error } else { 1.0 });
    Some(sum.sum::<f64>() / all)
}
