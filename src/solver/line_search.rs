//! A line search for the strong Wolfe conditions as a machine that is fed one evaluation at a time, so that every head
//! of a batch can be at its own place in its own search.
//!
//! Nocedal and Wright, *Numerical Optimization*, 2nd ed., algorithms 3.5 (bracket) and 3.6 (zoom), with cubic
//! interpolation kept away from the ends of the interval. Losses are sums in single precision: where two of them differ by
//! little more than rounding, their slopes decide instead (the approximate Wolfe condition of Hager and Zhang, SIAM J. Optim.
//! 16, 2005, and secant steps), so that a search does not follow noise and every engine takes the same steps.

/// Sufficient decrease, c₁.
const DECREASE: f64 = 1e-4;
/// Curvature, c₂: loose, as quasi-Newton methods want it.
const CURVATURE: f64 = 0.9;
/// Losses this close, relatively, may differ by rounding alone.
const ROUNDING: f64 = 1e-6;
/// Losses this close, relatively, differ too little to interpolate by.
const INTERPOLABLE: f64 = 1e-4;
/// Evaluations a search may take.
const MOST_EVALUATIONS: u32 = 25;
/// An interval over which no coordinate moves more than this is a point (the tolerance of the published optimiser).
const SMALLEST_MOVE: f64 = 1e-9;

/// Loss and slope at a step length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) length: f64,
    pub(crate) loss: f64,
    pub(crate) slope: f64,
}

impl Point {
    fn finite(self) -> bool {
        self.loss.is_finite() && self.slope.is_finite()
    }
}

/// What to do after an evaluation. `promote` says that the trial just evaluated is the best point so far and its
/// gradient must be kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Evaluate here next.
    Try { length: f64, promote: bool },
    /// Take the trial just evaluated.
    TakeTrial(Point),
    /// Take the best earlier trial, the one promoted last.
    TakeBest(Point),
    /// No length lowers the loss.
    Fail,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Lengths grow until an interval holds a good one.
    Bracket { previous: Point },
    /// The interval between `low` (best so far) and `high` shrinks.
    Zoom { low: Point, high: Point, cornered: bool },
}

/// One search along one direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineSearch {
    start: Point,
    direction_max: f64,
    phase: Phase,
    evaluations: u32,
}

impl LineSearch {
    /// A search from a point with this loss; slope and size of the direction become known with the first trial.
    pub(crate) fn new(loss: f64, slope: f64, direction_max: f64) -> Self {
        let start = Point { length: 0.0, loss, slope };
        Self {
            start,
            direction_max,
            phase: Phase::Bracket { previous: start },
            evaluations: 0,
        }
    }

    /// Takes the evaluation of the length asked for last.
    pub(crate) fn next(&mut self, trial: Point) -> Verdict {
        self.evaluations += 1;
        match self.phase {
            Phase::Bracket { previous } => self.bracket(previous, trial),
            Phase::Zoom { low, high, cornered } => self.zoom(low, high, cornered, trial),
        }
    }

    fn decreases(&self, trial: Point) -> bool {
        let enough = trial.loss <= self.start.loss + DECREASE * trial.length * self.start.slope;
        let same = (trial.loss - self.start.loss).abs() <= ROUNDING * self.start.loss.abs();
        let by_slope = same && trial.slope <= (2.0 * DECREASE - 1.0) * self.start.slope;
        trial.finite() && (enough || by_slope)
    }

    fn flattens(&self, trial: Point) -> bool {
        trial.slope.abs() <= -CURVATURE * self.start.slope
    }

    fn bracket(&mut self, previous: Point, trial: Point) -> Verdict {
        if !self.decreases(trial) || (self.evaluations > 1 && above(trial.loss, previous.loss)) {
            return self.shrink(previous, trial, false, false);
        }
        if self.flattens(trial) {
            return Verdict::TakeTrial(trial);
        }
        if trial.slope >= 0.0 {
            return self.shrink(trial, previous, false, true);
        }
        if self.evaluations >= MOST_EVALUATIONS {
            return Verdict::TakeTrial(trial);
        }
        let (least, most) = (trial.length + 0.01 * (trial.length - previous.length), trial.length * 10.0);
        // By slopes alone: far from a minimum the cubic through two nearby points is decided by rounding.
        let length = secant(previous, trial).unwrap_or(most).clamp(least, most);
        self.phase = Phase::Bracket { previous: trial };
        Verdict::Try { length, promote: true }
    }

    fn zoom(&mut self, low: Point, high: Point, cornered: bool, trial: Point) -> Verdict {
        if !self.decreases(trial) || above(trial.loss, low.loss) {
            return self.shrink(low, trial, cornered, false);
        }
        if self.flattens(trial) {
            return Verdict::TakeTrial(trial);
        }
        let high = if trial.slope * (high.length - low.length) >= 0.0 {
            low
        } else {
            high
        };
        self.shrink(trial, high, cornered, true)
    }

    /// Asks for the next length inside the interval, or ends where the interval or the patience is used up.
    /// `promote`: `low` is the trial just evaluated.
    fn shrink(&mut self, low: Point, high: Point, cornered: bool, promote: bool) -> Verdict {
        let (least, most) = if low.length < high.length {
            (low.length, high.length)
        } else {
            (high.length, low.length)
        };
        let width = most - least;
        let moves = width * self.direction_max > SMALLEST_MOVE;
        if self.evaluations >= MOST_EVALUATIONS || !moves {
            return match (low.length > 0.0 && !above(low.loss, self.start.loss), promote) {
                (false, _) => Verdict::Fail,
                (true, true) => Verdict::TakeTrial(low),
                (true, false) => Verdict::TakeBest(low),
            };
        }
        let mut length = if high.finite() {
            between(low, high)
        } else {
            low.length + 0.1 * (high.length - low.length)
        };
        // Too near an end twice in a row, the interval would hardly shrink: step a tenth inside.
        let margin = 0.1 * width;
        let near = high.finite() && (most - length).min(length - least) < margin;
        let cornered = if near && (cornered || length >= most || length <= least) {
            length = if most - length < length - least {
                most - margin
            } else {
                least + margin
            };
            false
        } else {
            near
        };
        self.phase = Phase::Zoom { low, high, cornered };
        Verdict::Try { length, promote }
    }
}

/// Whether a loss is above another by more than rounding.
fn above(loss: f64, other: f64) -> bool {
    loss > other + ROUNDING * other.abs()
}

/// Where the line through two slopes crosses zero; `None` where it rises in no direction.
fn secant(a: Point, b: Point) -> Option<f64> {
    let rise = (b.slope - a.slope) / (b.length - a.length);
    (rise > 0.0).then(|| a.length - a.slope / rise)
}

/// Where the cubic through two points with slopes has its minimum, if it has one.
fn cubic_minimum(a: Point, b: Point) -> Option<f64> {
    let (a, b) = if a.length <= b.length { (a, b) } else { (b, a) };
    let width = b.length - a.length;
    let d1 = a.slope + b.slope + 3.0 * (a.loss - b.loss) / width;
    let d2 = (d1 * d1 - a.slope * b.slope).sqrt();
    let minimum = b.length - width * ((b.slope + d2 - d1) / (b.slope - a.slope + 2.0 * d2));
    minimum.is_finite().then_some(minimum)
}

/// A length between two points where the loss may be lowest; their middle where neither losses nor slopes tell.
fn between(low: Point, high: Point) -> f64 {
    let tells = (low.loss - high.loss).abs() > INTERPOLABLE * low.loss.abs().min(high.loss.abs());
    let found = if tells { cubic_minimum(low, high) } else { secant(low, high) };
    let (least, most) = (low.length.min(high.length), low.length.max(high.length));
    found.unwrap_or(0.5 * (least + most)).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search on a function given with its derivative; returns the length taken and the evaluations.
    fn search(function: impl Fn(f64) -> (f64, f64), first: f64) -> Option<(f64, u32)> {
        let (loss, slope) = function(0.0);
        let mut search = LineSearch::new(loss, slope, 1.0);
        let mut length = first;
        let mut best = None;
        loop {
            let (loss, slope) = function(length);
            match search.next(Point { length, loss, slope }) {
                Verdict::Try { length: next, promote } => {
                    if promote {
                        best = Some(length);
                    }
                    length = next;
                }
                Verdict::TakeTrial(point) => {
                    assert_eq!(point.length, length);
                    return Some((length, search.evaluations));
                }
                Verdict::TakeBest(point) => {
                    assert_eq!(Some(point.length), best, "the best point is the one promoted last");
                    return Some((point.length, search.evaluations));
                }
                Verdict::Fail => return None,
            }
        }
    }

    fn strong_wolfe(function: impl Fn(f64) -> (f64, f64), length: f64) -> bool {
        let ((f0, g0), (f, g)) = (function(0.0), function(length));
        f <= f0 + DECREASE * length * g0 && g.abs() <= -CURVATURE * g0
    }

    #[test]
    fn finds_wolfe_points_from_far_too_short_and_far_too_long() {
        let functions: [fn(f64) -> (f64, f64); 3] = [
            |t| ((t - 3.0).powi(2), 2.0 * (t - 3.0)),
            |t| (-t / (t * t + 2.0), (t * t - 2.0) / (t * t + 2.0).powi(2)),
            |t| {
                (
                    (t - 1.0).powi(4) + 0.1 * (5.0 * t).sin(),
                    4.0 * (t - 1.0).powi(3) + 0.5 * (5.0 * t).cos(),
                )
            },
        ];
        for function in functions {
            // The last function rises at first from 0 in no case: all three slopes at 0 are negative.
            assert!(function(0.0).1 < 0.0);
            for first in [1e-3, 0.1, 0.5, 10.0, 1000.0] {
                let (length, evaluations) = search(function, first).unwrap();
                assert!(strong_wolfe(function, length), "first {first}: {length}");
                assert!(evaluations <= 16, "first {first}: {evaluations} evaluations");
            }
        }
    }

    #[test]
    fn steps_back_from_values_that_are_not_finite() {
        let function = |t: f64| {
            if t > 0.3 {
                (f64::NAN, f64::NAN)
            } else {
                ((t - 0.2).powi(2), 2.0 * (t - 0.2))
            }
        };
        let (length, _) = search(function, 5.0).unwrap();
        assert!(strong_wolfe(function, length));
    }

    #[test]
    fn fails_where_nothing_is_lower() {
        assert_eq!(search(|t| (if t > 0.0 { 1.1 } else { 1.0 }, -1.0), 0.5), None);
    }
}
