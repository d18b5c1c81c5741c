//! Which candidate of each head is the best so far, and why a head stops.

use super::descent::{Descent, Rest};
use super::{Judged, Stop};

/// Refits without a better validation error after which a head's keys are left alone.
const MOST_REFITS_WITHOUT_GAIN: u32 = 3;

/// Which candidate of each head is the best so far, and which heads still work.
#[derive(Debug)]
pub(crate) struct Track {
    /// The best validation error so far; infinite where there are no validation rows: the newest candidate wins then.
    pub(crate) best: Vec<f64>,
    /// Whether the candidate in hand is the best.
    pub(crate) in_hand: Vec<bool>,
    pub(crate) without_gain: Vec<u32>,
    pub(crate) stops: Vec<Stop>,
    pub(crate) losses: Vec<f64>,
}

impl Track {
    pub(crate) fn new(select: &[Judged]) -> Self {
        let heads = select.len();
        Self {
            best: select
                .iter()
                .map(|judged| judged.validation.map_or(f64::INFINITY, |errors| errors.merged))
                .collect(),
            in_hand: vec![true; heads],
            without_gain: vec![0; heads],
            stops: vec![Stop::NotOptimised; heads],
            losses: vec![f64::INFINITY; heads],
        }
    }

    /// Whether the best candidate's validation error is below the tolerance; notes it as the head's stop reason.
    pub(crate) fn good_enough(&mut self, index: usize, tolerance: f64) -> bool {
        let good = self.best[index] < tolerance;
        if good {
            self.stops[index] = Stop::GoodEnough;
        }
        good
    }

    /// Takes candidates out of hand that are not finite; whether there was any.
    pub(crate) fn reject_broken(&mut self, result: &[Judged]) -> bool {
        let mut any = false;
        for (index, judged) in result.iter().enumerate().filter(|(_, judged)| !judged.loss.is_finite()) {
            (self.in_hand[index], self.stops[index], any) = (false, Stop::NotFinite, true);
            tracing::debug!(head = index, loss = judged.loss, "not finite: the last good iterate is returned");
        }
        any
    }
}

/// Why a head stops after a cycle, if it does.
pub(crate) fn stop(descent: &Descent, track: &mut Track, index: usize, tolerance: f64) -> Option<Stop> {
    let loss = descent.loss;
    let before = std::mem::replace(&mut track.losses[index], loss);
    if track.good_enough(index, tolerance) {
        return Some(Stop::GoodEnough);
    }
    match descent.rest {
        // With the values solved anew there may be a slope again, unless there was none to begin with.
        Some(Rest::Converged) if descent.cycle_iterations == 0 => Some(Stop::Converged),
        _ if track.without_gain[index] >= MOST_REFITS_WITHOUT_GAIN => Some(Stop::NoBetter),
        Some(Rest::Flat) if before - loss <= 1e-6 * loss => Some(Stop::Flat),
        _ => None,
    }
}
