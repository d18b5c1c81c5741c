//! One head's L-BFGS as a machine: it is told what an evaluation gave and says what to do next. Arrays stay on the
//! engine; this holds scalars only.

use super::line_search::{LineSearch, Point, Verdict};

/// A gradient whose largest element is below this, in the head's own units of loss, has vanished.
const VANISHED: f64 = 1e-7;
/// A relative change of the loss below this is rounding.
const ROUNDING: f64 = 1e-7;
/// So many changes in a row that are rounding end a cycle.
const PATIENCE: u32 = 3;

/// What one evaluation at the trial point gave, and the direction's own numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    /// Loss; infinite where a row was not finite.
    pub(crate) loss: f64,
    /// Slope along the direction at the trial.
    pub(crate) slope: f64,
    /// Largest element of the trial's gradient.
    pub(crate) gradient_max: f64,
    /// Sum of the gradient's absolute elements at the trial.
    pub(crate) gradient_sum: f64,
    /// Slope at the origin.
    pub(crate) direction_slope: f64,
    /// Largest element of the direction.
    pub(crate) direction_max: f64,
    /// Whether the pair pushed last has positive curvature.
    pub(crate) usable_pair: bool,
}

/// Which trial's gradient belongs to the accepted point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The trial just evaluated.
    Trial,
    /// The one promoted last.
    Best,
}

/// What the engine is to do for a head before the next evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    /// Try another length along the same direction; `promote`: keep the gradient of the trial just evaluated.
    Again { promote: bool },
    /// Move to this length, remember the curvature; with `go_on`, take a new direction and try it.
    Accept { source: Source, length: f64, go_on: bool },
    /// Take a new direction from the origin (its history may have been cleared) and try it.
    Redirect,
    /// Nothing until the values are solved again.
    Rest,
}

/// Why a head rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It has done the cycle's iterations or evaluations.
    Done,
    /// Its gradient vanished.
    Converged,
    /// No step lowers its loss.
    Flat,
    /// Its origin is not finite.
    NotFinite,
}

/// What a cycle (the key steps between two value solves) may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    pub(crate) iterations: u32,
    pub(crate) evaluations: u32,
    /// First trial length of a search.
    pub(crate) learning_rate: f64,
    /// Slots of the curvature ring.
    pub(crate) capacity: u32,
}

/// One head's state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descent {
    pub(crate) allowance: Allowance,
    /// Filled slots of the curvature ring and the newest one.
    pub(crate) filled: u32,
    pub(crate) newest: u32,
    /// A loss of ordinary size for this head: what the gradient is small against.
    pub(crate) unit: f64,
    /// The length to evaluate next.
    pub(crate) length: f64,
    /// The loss at the origin.
    pub(crate) loss: f64,
    /// Why the head rests, if it does.
    pub(crate) rest: Option<Rest>,
    /// Over all cycles.
    pub(crate) iterations: u32,
    pub(crate) evaluations: u32,
    search: Option<LineSearch>,
    pub(crate) cycle_iterations: u32,
    cycle_evaluations: u32,
    unchanged: u32,
    pushed: bool,
    /// Sum of the origin gradient's absolute elements, as last seen.
    gradient_sum: f64,
}

impl Descent {
    pub(crate) fn new(allowance: Allowance) -> Self {
        Self {
            allowance,
            filled: 0,
            newest: 0,
            unit: 1.0,
            length: 0.0,
            loss: f64::INFINITY,
            rest: None,
            iterations: 0,
            evaluations: 0,
            search: None,
            cycle_iterations: 0,
            cycle_evaluations: 0,
            unchanged: 0,
            pushed: false,
            gradient_sum: 1.0,
        }
    }

    /// Begins a cycle from an evaluation at the origin (with its freshly solved values).
    pub(crate) fn begin(&mut self, reading: &Reading) -> Action {
        self.rest = None;
        self.search = None;
        self.cycle_iterations = 0;
        self.cycle_evaluations = 1;
        self.evaluations += 1;
        self.unchanged = 0;
        self.pushed = false;
        self.loss = reading.loss;
        self.gradient_sum = reading.gradient_sum;
        if !reading.loss.is_finite() || !reading.gradient_max.is_finite() {
            return self.rest(Rest::NotFinite);
        }
        if reading.gradient_max <= VANISHED * self.unit {
            return self.rest(Rest::Converged);
        }
        self.redirect()
    }

    /// Takes the evaluation at the last trial.
    pub(crate) fn next(&mut self, reading: &Reading) -> Action {
        self.evaluations += 1;
        self.cycle_evaluations += 1;
        if std::mem::take(&mut self.pushed) && !reading.usable_pair {
            self.filled = self.filled.saturating_sub(1);
            self.newest = (self.newest + self.allowance.capacity - 1) % self.allowance.capacity;
        }
        let descends = reading.direction_slope < 0.0 && reading.direction_max.is_finite();
        if self.search.is_none() && !descends {
            return self.fail();
        }
        let search = self
            .search
            .get_or_insert_with(|| LineSearch::new(self.loss, reading.direction_slope, reading.direction_max));
        match search.next(Point {
            length: self.length,
            loss: reading.loss,
            slope: reading.slope,
        }) {
            Verdict::Try { length, promote } => {
                self.length = length;
                Action::Again { promote }
            }
            Verdict::TakeTrial(point) => {
                self.gradient_sum = reading.gradient_sum;
                self.accept(point, Source::Trial, reading.gradient_max)
            }
            Verdict::TakeBest(point) => self.accept(point, Source::Best, f64::INFINITY),
            Verdict::Fail => self.fail(),
        }
    }

    fn accept(&mut self, point: Point, source: Source, gradient_max: f64) -> Action {
        self.iterations += 1;
        self.cycle_iterations += 1;
        let rounding = (self.loss - point.loss).abs() <= ROUNDING * self.loss;
        self.unchanged = if rounding { self.unchanged + 1 } else { 0 };
        self.loss = point.loss;
        self.search = None;
        self.pushed = true;
        self.filled = (self.filled + 1).min(self.allowance.capacity);
        self.newest = (self.newest + 1) % self.allowance.capacity;
        if gradient_max <= VANISHED * self.unit {
            self.rest = Some(Rest::Converged);
        } else if self.unchanged >= PATIENCE {
            self.rest = Some(Rest::Flat);
        } else if self.cycle_iterations >= self.allowance.iterations || self.cycle_evaluations >= self.allowance.evaluations {
            self.rest = Some(Rest::Done);
        } else {
            self.length = self.allowance.learning_rate;
        }
        Action::Accept {
            source,
            length: point.length,
            go_on: self.rest.is_none(),
        }
    }

    /// A direction that leads nowhere: forget the history and go straight down once, else rest.
    fn fail(&mut self) -> Action {
        self.search = None;
        if self.filled == 0 {
            return self.rest(Rest::Flat);
        }
        if self.cycle_evaluations >= self.allowance.evaluations {
            return self.rest(Rest::Done);
        }
        self.filled = 0;
        self.redirect()
    }

    fn redirect(&mut self) -> Action {
        // Straight down, the gradient's own length says nothing: the first step moves by about one in all.
        let first = if self.filled == 0 {
            (1.0 / self.gradient_sum).min(1.0)
        } else {
            1.0
        };
        self.length = first * self.allowance.learning_rate;
        Action::Redirect
    }

    fn rest(&mut self, why: Rest) -> Action {
        self.rest = Some(why);
        Action::Rest
    }
}
