//! Steps of the keys: moving, slopes, L-BFGS.

use super::attend::{over, poison};
use super::trial::{Trial, distance, narrow, numbers, of_head, pairs, wide, worse};
use crate::engine::{Engine, Head, History, SCALARS, scalar};
use crate::error::Result;
use crate::reference;

/// Slots of a head's history.
const CAPACITY: u32 = 3;

pub(super) fn copy_pairs<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let source = engine.upload("source", &trial.keys)?;
    let mut target = engine.upload("target", &poison(trial.keys.len()))?;
    engine.copy_pairs(&table, trial.dims.dim, &source, &mut target)?;
    Ok(distance(&engine.read(&target)?, &wide(&trial.keys)))
}

pub(super) fn step<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let directions = numbers(7, trial.keys.len());
    let origin = engine.upload("origin", &trial.keys)?;
    let direction = engine.upload("direction", &directions)?;
    let lengths = engine.upload("lengths", &trial.mass_weight)?;
    let mut target = engine.upload("trial", &poison(trial.keys.len()))?;
    engine.step(&table, &origin, &direction, &lengths, &mut target)?;
    let target = engine.read(&target)?;
    Ok(over(trial, |head, single| {
        let direction = wide(pairs(head, &directions, single.dim));
        let right = reference::step(&single.keys, &direction, single.mass_weight);
        distance(pairs(head, &target, single.dim), &right)
    }))
}

pub(super) fn slope<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let directions = numbers(8, trial.keys.len());
    let gradient = engine.upload("gradient", &trial.keys)?;
    let direction = engine.upload("direction", &directions)?;
    let mut scalars = engine.upload("scalars", &poison(trial.heads.len() * SCALARS))?;
    engine.slope(&table, &gradient, &direction, &mut scalars)?;
    let scalars = engine.read(&scalars)?;
    Ok(over(trial, |head, single| {
        let right = reference::slope(&single.keys, &wide(pairs(head, &directions, single.dim)));
        let found = of_head(head, &scalars, SCALARS);
        let found = [found[scalar::SLOPE], found[scalar::GRADIENT_MAX], found[scalar::GRADIENT_SUM]];
        distance(&found, &[right.slope, right.largest, right.sum])
    }))
}

pub(super) fn lbfgs_direction<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let dim = trial.dims.dim as usize;
    let curved = Curved::new(trial);
    let gradient = engine.upload("gradient", &trial.keys)?;
    let history = History {
        capacity: CAPACITY,
        steps: engine.upload("steps", &curved.steps)?,
        changes: engine.upload("changes", &curved.changes)?,
        curvatures: engine.upload("curvatures", &curved.curvatures)?,
        // All slots filled; the first is the newest, so that the ring is gone round.
        cursor: engine.upload("cursor", &[CAPACITY as f32, 0.0].repeat(trial.heads.len()))?,
    };
    let mut direction = engine.upload("direction", &poison(trial.keys.len()))?;
    let mut scalars = engine.upload("scalars", &poison(trial.heads.len() * SCALARS))?;
    engine.lbfgs_direction(&table, &gradient, &history, &mut direction, &mut scalars)?;
    let (direction, scalars) = (engine.read(&direction)?, engine.read(&scalars)?);
    Ok(over(trial, |head, single| {
        // Oldest first: slots 1, 2, 0.
        let ring: Vec<_> = [1, 2, 0].iter().map(|&slot| curved.slot(head, slot, dim)).collect();
        let right = reference::direction(&single.keys, &ring);
        let slope: f64 = right.iter().zip(&single.keys).map(|(d, g)| d * g).sum();
        let most = right.iter().fold(0.0, |most: f64, d| most.max(d.abs()));
        let found = of_head(head, &scalars, SCALARS);
        worse(
            distance(pairs(head, &direction, dim), &right),
            distance(&[found[scalar::DIRECTION_SLOPE], found[scalar::DIRECTION_MAX]], &[slope, most]),
        )
    }))
}

pub(super) fn lbfgs_push<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let dim = trial.dims.dim as usize;
    let directions = numbers(9, trial.keys.len());
    // Gradients of a quadratic, so that every head's curvature is of use.
    let before = numbers(10, trial.keys.len());
    let after: Vec<f32> = before
        .iter()
        .zip(&directions)
        .enumerate()
        .map(|(i, (g, d))| g + bend(i) * d)
        .collect();
    let lengths = engine.upload("lengths", &trial.mass_weight)?;
    let direction = engine.upload("direction", &directions)?;
    let new_gradient = engine.upload("new gradient", &after)?;
    let mut gradient = engine.upload("gradient", &before)?;
    let mut origin = engine.upload("origin", &trial.keys)?;
    let mut scalars = engine.upload("scalars", &poison(trial.heads.len() * SCALARS))?;
    let slots = CAPACITY as usize * trial.keys.len();
    let mut history = History {
        capacity: CAPACITY,
        steps: engine.upload("steps", &poison(slots))?,
        changes: engine.upload("changes", &poison(slots))?,
        curvatures: engine.upload("curvatures", &poison(trial.heads.len() * CAPACITY as usize * 2))?,
        cursor: engine.upload("cursor", &[2.0, 1.0].repeat(trial.heads.len()))?,
    };
    engine.lbfgs_push(
        &table,
        &lengths,
        &direction,
        &new_gradient,
        &mut gradient,
        &mut origin,
        &mut history,
        &mut scalars,
    )?;
    let found = Curved {
        steps: engine.read(&history.steps)?,
        changes: engine.read(&history.changes)?,
        curvatures: engine.read(&history.curvatures)?,
    };
    let (gradient, origin, scalars) = (engine.read(&gradient)?, engine.read(&origin)?, engine.read(&scalars)?);
    Ok(over(trial, |head, single| {
        let part = |array: &[f32]| wide(pairs(head, array, dim));
        let right = reference::push(single.mass_weight, &part(&directions), &part(&after), &part(&before), &single.keys);
        let (step, change) = found.slot(head, 1, dim);
        let curvature = &of_head(head, &found.curvatures, CAPACITY as usize * 2)[2..4];
        let curvature_right = right.curvature.unwrap_or([f64::NAN; 2]);
        let scalar = &of_head(head, &scalars, SCALARS)[scalar::CURVATURE..=scalar::CURVATURE];
        [
            distance(&narrow(&step), &right.step),
            distance(&narrow(&change), &right.change),
            distance(curvature, &curvature_right),
            distance(pairs(head, &origin, dim), &right.origin),
            distance(pairs(head, &gradient, dim), &part(&after)),
            distance(scalar, &[right.step_change]),
        ]
        .into_iter()
        .fold(0.0, worse)
    }))
}

/// A curvature between a half and two, by the element.
fn bend(element: usize) -> f32 {
    0.5 + 1.5 * (element * 7 % 11) as f32 / 10.0
}

/// A history, every slot of it filled.
struct Curved {
    steps: Vec<f32>,
    changes: Vec<f32>,
    curvatures: Vec<f32>,
}

impl Curved {
    fn new(trial: &Trial) -> Self {
        let count = CAPACITY as usize * trial.keys.len();
        let steps = numbers(11, count);
        let changes = steps.iter().enumerate().map(|(i, s)| s * bend(i)).collect();
        let mut curved = Self {
            steps,
            changes,
            curvatures: Vec::new(),
        };
        for head in &trial.heads {
            for slot in 0..CAPACITY as usize {
                let (step, change) = curved.slot(head, slot, trial.dims.dim as usize);
                let curvature = reference::curvature(&step, &change).unwrap_or([0.0; 2]);
                curved.curvatures.extend(narrow(&curvature));
            }
        }
        curved
    }

    /// Step and change of a head's slot.
    fn slot(&self, head: &Head, slot: usize, dim: usize) -> (Vec<f64>, Vec<f64>) {
        let length = head.pairs as usize * dim;
        let part = |array: &[f32]| wide(&pairs(head, array, CAPACITY as usize * dim)[slot * length..(slot + 1) * length]);
        (part(&self.steps), part(&self.changes))
    }
}
