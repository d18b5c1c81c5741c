//! Steps along a direction, and the directions of L-BFGS; every head on its own, sums in f64.

use rayon::prelude::*;

use super::layout;
use super::vectorised::vectorised;
use super::{Array, Table};
use crate::engine::{History, scalar};
use crate::error::Result;

/// Lanes a sum runs in.
const LANES: usize = 8;

/// `Σ f(a_i, b_i)`, in lanes.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(f64::from(a[i]), f64::from(b[i]));
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += f(f64::from(*a), f64::from(*b));
    }
    lanes.iter().sum()
}

vectorised! {
    /// `a·b`.
    fn dot<'a>(a: &'a [f32], b: &'a [f32]) -> f64 {
        sum(a, b, |a, b| a * b)
    }
}

vectorised! {
    /// `Σ |a|`.
    fn absolute_sum<'a>(a: &'a [f32]) -> f64 {
        sum(a, a, |a, _| a.abs())
    }
}

vectorised! {
    /// `max |a|`, or something not finite if any element is not.
    fn absolute_maximum<'a>(a: &'a [f32]) -> f32 {
        let (mut largest, mut spoiled) = (0.0f32, 0.0f32);
        for &x in a {
            largest = if x.abs() > largest { x.abs() } else { largest };
            // 0 for every finite x and NaN for any other, so one spoils the sum.
            spoiled += x * 0.0;
        }
        largest + spoiled
    }
}

vectorised! {
    /// `target ← target + factor · source`.
    fn add_scaled<'a>(target: &'a mut [f32], factor: f32, source: &'a [f32]) -> () {
        for (target, source) in target.iter_mut().zip(source) {
            *target += factor * *source;
        }
    }
}

/// `target ← factor · target`.
fn multiply(target: &mut [f32], factor: f32) {
    for x in target {
        *x *= factor;
    }
}

/// See [`Engine::step`](crate::engine::Engine::step).
pub(super) fn step(table: &Table, origin: &Array, direction: &Array, lengths: &Array, trial: &mut Array) -> Result<()> {
    let dim = table.widths().0;
    let trials = trial.parts(table.heads.iter().map(|head| layout::pairs(head, dim)))?;
    for (head, trial) in table.heads.iter().zip(trials) {
        trial.copy_from_slice(origin.part(layout::pairs(head, dim))?);
        add_scaled(
            trial,
            lengths.part(layout::own(head, 1))?[0],
            direction.part(layout::pairs(head, dim))?,
        );
    }
    Ok(())
}

/// See [`Engine::slope`](crate::engine::Engine::slope).
#[allow(clippy::cast_possible_truncation, reason = "scalars are f32")]
pub(super) fn slope(table: &Table, gradient: &Array, direction: &Array, scalars: &mut Array) -> Result<()> {
    let dim = table.widths().0;
    let scalars = scalars.parts(table.heads.iter().map(layout::scalars))?;
    let mut tasks = Vec::with_capacity(table.heads.len());
    for (head, scalars) in table.heads.iter().zip(scalars) {
        tasks.push((
            gradient.part(layout::pairs(head, dim))?,
            direction.part(layout::pairs(head, dim))?,
            scalars,
        ));
    }
    tasks.into_par_iter().for_each(|(gradient, direction, scalars)| {
        scalars[scalar::SLOPE] = dot(gradient, direction) as f32;
        scalars[scalar::GRADIENT_MAX] = absolute_maximum(gradient);
        scalars[scalar::GRADIENT_SUM] = absolute_sum(gradient) as f32;
    });
    Ok(())
}

/// One head's curvature history.
struct Curvature<'a> {
    steps: &'a [f32],
    changes: &'a [f32],
    curvatures: &'a [f32],
    /// Filled slots from the newest back.
    slots: Vec<usize>,
}

impl Curvature<'_> {
    /// `direction ← −H g`.
    #[allow(clippy::cast_possible_truncation, reason = "factors of f32 vectors")]
    fn direction(&self, gradient: &[f32], direction: &mut [f32]) {
        let length = gradient.len();
        let usable = || self.slots.iter().copied().filter(|slot| self.curvatures[2 * slot] != 0.0);
        let pair = |slot: usize| {
            let range = slot * length..(slot + 1) * length;
            (
                &self.steps[range.clone()],
                &self.changes[range],
                f64::from(self.curvatures[2 * slot]),
            )
        };
        direction.copy_from_slice(gradient);
        let mut projections = Vec::with_capacity(self.slots.len());
        for slot in usable() {
            let (step, change, inverse) = pair(slot);
            let projection = inverse * dot(step, direction);
            add_scaled(direction, -projection as f32, change);
            projections.push(projection);
        }
        let start = usable().next().map_or(1.0, |slot| self.curvatures[2 * slot + 1]);
        multiply(direction, start);
        let oldest_first: Vec<usize> = usable().collect();
        for (slot, projection) in oldest_first.into_iter().zip(projections).rev() {
            let (step, change, inverse) = pair(slot);
            let correction = projection - inverse * dot(change, direction);
            add_scaled(direction, correction as f32, step);
        }
        multiply(direction, -1.0);
    }
}

/// How many slots are filled, and the newest one's number.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole numbers below 2^24; anything else is bounded by the capacity"
)]
fn cursor(cursor: &[f32], capacity: usize) -> (usize, usize) {
    let filled = (cursor[0] as usize).min(capacity);
    (filled, (cursor[1] as usize).min(capacity.saturating_sub(1)))
}

/// See [`Engine::lbfgs_direction`](crate::engine::Engine::lbfgs_direction).
#[allow(clippy::cast_possible_truncation, reason = "scalars are f32")]
pub(super) fn direction(
    table: &Table,
    gradient: &Array,
    history: &History<Array>,
    direction: &mut Array,
    scalars: &mut Array,
) -> Result<()> {
    let (dim, capacity) = (table.widths().0, history.capacity as usize);
    let directions = direction.parts(table.heads.iter().map(|head| layout::pairs(head, dim)))?;
    let scalars = scalars.parts(table.heads.iter().map(layout::scalars))?;
    let mut tasks = Vec::with_capacity(table.heads.len());
    for (head, (direction, scalars)) in table.heads.iter().zip(directions.into_iter().zip(scalars)) {
        let (filled, newest) = cursor(history.cursor.part(layout::own(head, 2))?, capacity);
        let curvature = Curvature {
            steps: history.steps.part(layout::history(head, capacity, dim))?,
            changes: history.changes.part(layout::history(head, capacity, dim))?,
            curvatures: history.curvatures.part(layout::own(head, 2 * capacity))?,
            slots: (0..filled).map(|age| (newest + capacity - age) % capacity).collect(),
        };
        tasks.push((gradient.part(layout::pairs(head, dim))?, curvature, direction, scalars));
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(gradient, curvature, direction, scalars)| {
            curvature.direction(gradient, direction);
            scalars[scalar::DIRECTION_SLOPE] = dot(gradient, direction) as f32;
            scalars[scalar::DIRECTION_MAX] = absolute_maximum(direction);
        });
    Ok(())
}

/// What `push` reads and writes for one head.
struct Push<'a> {
    length: f32,
    direction: &'a [f32],
    new_gradient: &'a [f32],
    gradient: &'a mut [f32],
    origin: &'a mut [f32],
    step: &'a mut [f32],
    change: &'a mut [f32],
    curvature: &'a mut [f32],
    scalars: &'a mut [f32],
}

impl Push<'_> {
    #[allow(clippy::cast_possible_truncation, reason = "the history is f32")]
    fn run(self) {
        let old = self.gradient.iter_mut().zip(self.new_gradient);
        for ((change, (gradient, new)), (step, (origin, direction))) in self
            .change
            .iter_mut()
            .zip(old)
            .zip(self.step.iter_mut().zip(self.origin.iter_mut().zip(self.direction)))
        {
            *step = self.length * direction;
            *change = new - *gradient;
            *origin += *step;
            *gradient = *new;
        }
        let along = dot(self.step, self.change);
        let squared = dot(self.change, self.change);
        let (inverse, ratio) = (along.recip() as f32, (along / squared) as f32);
        let useful = along > 1e-10 * squared && inverse.is_finite() && inverse > 0.0 && ratio.is_finite();
        self.curvature.copy_from_slice(&if useful { [inverse, ratio] } else { [0.0, 0.0] });
        self.scalars[scalar::CURVATURE] = along as f32;
    }
}

/// See [`Engine::lbfgs_push`](crate::engine::Engine::lbfgs_push).
#[allow(clippy::too_many_arguments, reason = "the operands of the operation")]
pub(super) fn push(
    table: &Table,
    lengths: &Array,
    direction: &Array,
    new_gradient: &Array,
    gradient: &mut Array,
    origin: &mut Array,
    history: &mut History<Array>,
    scalars: &mut Array,
) -> Result<()> {
    let (dim, capacity) = (table.widths().0, history.capacity as usize);
    let mut newest = Vec::with_capacity(table.heads.len());
    for head in &table.heads {
        newest.push(cursor(history.cursor.part(layout::own(head, 2))?, capacity).1);
    }
    let pairs = || table.heads.iter().map(|head| layout::pairs(head, dim));
    let slots = || {
        table.heads.iter().zip(&newest).map(|(head, slot)| {
            let (start, length) = (layout::history(head, capacity, dim).start, head.pairs as usize * dim);
            start + slot * length..start + (slot + 1) * length
        })
    };
    let places = table.heads.iter().zip(&newest).map(|(head, slot)| {
        let start = layout::own(head, 2 * capacity).start + 2 * slot;
        start..start + 2
    });
    let mut gradients = gradient.parts(pairs())?.into_iter();
    let mut origins = origin.parts(pairs())?.into_iter();
    let mut steps = history.steps.parts(slots())?.into_iter();
    let mut changes = history.changes.parts(slots())?.into_iter();
    let mut curvatures = history.curvatures.parts(places)?.into_iter();
    let mut scalars = scalars.parts(table.heads.iter().map(layout::scalars))?.into_iter();
    let mut tasks = Vec::with_capacity(table.heads.len());
    for head in &table.heads {
        tasks.push(Push {
            length: lengths.part(layout::own(head, 1))?[0],
            direction: direction.part(layout::pairs(head, dim))?,
            new_gradient: new_gradient.part(layout::pairs(head, dim))?,
            gradient: gradients.next().unwrap_or_default(),
            origin: origins.next().unwrap_or_default(),
            step: steps.next().unwrap_or_default(),
            change: changes.next().unwrap_or_default(),
            curvature: curvatures.next().unwrap_or_default(),
            scalars: scalars.next().unwrap_or_default(),
        });
    }
    tasks.into_par_iter().with_max_len(1).for_each(Push::run);
    Ok(())
}
