//! The smallest cache whose error, measured when it is finished, is within a bound.
//!
//! Error curves say how long heads have to be, but they are made from few rows and from values alone. So what comes out of them is fitted,
//! judged on the validation rows, and the curves are asked again for a bound as much larger or smaller as the error was off.

use super::allocation::mean_error;
use super::compress::fit;
use super::jobs::Course;
use super::plan::Plan;
use super::supply::Supply;
use super::{Outcome, Request, Timings};
use crate::error::Result;
use crate::options::Options;

/// Fits after which the smallest within the bound so far is taken.
const FITS: u32 = 4;
/// Fits after which a bound that none was within is met by keeping everything.
const MOST_FITS: u32 = 8;
/// An error above this share of the bound is near enough to it.
const NEAR: f64 = 0.9;
/// How far the curves are followed in one go.
const FOLLOWED: (f64, f64) = (0.05, 4.0);

/// Lengths that were tried: the free pairs of heads' chunks, and the error that the curves give them.
struct Tried {
    free: Vec<Vec<usize>>,
    foretold: f64,
}

/// Fits all heads so that their mean error on validation rows, weighed as the request says, is at most `bound`; `plan` is what the
/// curves gave for it, and becomes the plan of what is returned. Heads without validation rows do not count; where none has any, the
/// curves have the last word.
pub(super) fn fit_within(
    course: &mut Course<'_>,
    request: &Request,
    plan: &mut Plan,
    bound: f64,
    timings: &mut Timings,
) -> Result<Vec<Outcome>> {
    let (begin, mut left) = course.stage;
    let end = begin + left;
    let (mut good, mut bad): (Option<Tried>, Option<f64>) = (None, None);
    for attempt in 1.. {
        // How many fits there will be is not known: each is half of what is left.
        course.stage = (end - left, left / 2.0);
        left /= 2.0;
        let fitted = fit(course, request, &plan.free, timings)?;
        let Some(error) = mean(&fitted, &plan.weights) else {
            return Ok(fitted);
        };
        let foretold = plan.foretold(course.supply);
        tracing::debug!(error, bound, foretold, "fitted within a bound");
        let change = (0.5 * (NEAR + 1.0) * bound / error).clamp(FOLLOWED.0, FOLLOWED.1);
        let next = if error <= bound {
            if error >= NEAR * bound || attempt >= FITS {
                return Ok(fitted);
            }
            let asked = bad.map_or_else(|| (foretold * change).min(f64::MAX), |bad| (foretold * bad).sqrt());
            let next = plan.within(course.supply, &request.options, asked)?;
            if pairs(&next) >= pairs(&plan.free) {
                return Ok(fitted);
            }
            good = Some(Tried {
                free: plan.free.clone(),
                foretold,
            });
            next
        } else {
            bad = Some(foretold);
            match &good {
                Some(good) if attempt >= FITS => good.free.clone(),
                Some(good) => plan.between(course.supply, &request.options, good, foretold)?,
                None => plan.longer(
                    course.supply,
                    &request.options,
                    if attempt >= MOST_FITS { 0.0 } else { foretold * change },
                )?,
            }
        };
        if pairs(&next) == pairs(&plan.free) {
            // Everything is kept, and no cache is nearer to the full one.
            return Ok(fitted);
        }
        plan.free = next;
        if good.as_ref().is_some_and(|good| good.free == plan.free) {
            break;
        }
    }
    // The best was not the last: it is made again, rather than kept beside every other.
    course.stage = (end - left, left);
    fit(course, request, &plan.free, timings)
}

impl Plan {
    /// The mean error of heads of these lengths, by the curves.
    fn foretold(&self, supply: &Supply<'_>) -> f64 {
        let fixed = supply.split.sinks + supply.split.tail;
        let lengths: Vec<usize> = self.free.iter().map(|free| fixed + free.iter().sum::<usize>()).collect();
        mean_error(&self.curves, &self.weights, &lengths)
    }

    /// The smallest cache that the curves give an error of at most `asked`, or less where it would be no larger than this one.
    fn longer(&self, supply: &Supply<'_>, options: &Options, mut asked: f64) -> Result<Vec<Vec<usize>>> {
        loop {
            let next = self.within(supply, options, asked)?;
            if asked == 0.0 || pairs(&next) > pairs(&self.free) {
                return Ok(next);
            }
            asked = if asked < f64::MIN_POSITIVE { 0.0 } else { asked / 2.0 };
        }
    }

    /// A cache larger than this one, whose error was too large, and smaller than a good one; the good one's lengths where the curves have
    /// nothing between.
    fn between(&self, supply: &Supply<'_>, options: &Options, good: &Tried, foretold: f64) -> Result<Vec<Vec<usize>>> {
        let next = self.within(supply, options, (good.foretold * foretold).sqrt())?;
        let lies_between = pairs(&next) > pairs(&self.free) && pairs(&next) < pairs(&good.free);
        Ok(if lies_between { next } else { good.free.clone() })
    }
}

fn pairs(free: &[Vec<usize>]) -> usize {
    free.iter().flatten().sum()
}

/// The mean error of the heads that have validation rows; `None` where none has. A head whose teacher says nothing, and which says nothing
/// either, has no error, as in its curve; another whose error is no number counts as one that says nothing.
pub(super) fn mean(outcomes: &[Outcome], weights: &[f64]) -> Option<f64> {
    let (mut sum, mut all) = (0.0, 0.0);
    for (head, weight) in outcomes.iter().zip(weights) {
        let Some(found) = head.result.validation else { continue };
        let silent = found.merged.is_nan() && head.result.loss.is_finite();
        let error = if silent { 0.0 } else { found.merged };
        sum += weight * if error.is_finite() { error } else { 1.0 };
        all += weight;
    }
    (all > 0.0).then(|| sum / all)
}
