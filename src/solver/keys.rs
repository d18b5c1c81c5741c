//! Key steps: all heads' L-BFGS in lock-step rounds. A round is one evaluation of every head that is not at rest and
//! one small read; between rounds each head's own [`Descent`] decides what it does next.

use super::descent::{Action, Allowance, Descent, Reading, Source};
use super::rowset::RowSet;
use super::values::length;
use crate::batch::Workspace;
use crate::engine::{Dims, Engine, Evaluated, Evaluation, Head, History, SCALARS, scalar};
use crate::error::Result;

/// The arrays and machines of a batch's key steps.
#[derive(Debug)]
pub(crate) struct KeySteps<E: Engine> {
    /// One machine a head of the batch.
    pub(crate) descents: Vec<Descent>,
    trial: E::Array,
    direction: E::Array,
    /// At the origin, at the trial, at the best trial of the search in hand.
    gradient: E::Array,
    trial_gradient: E::Array,
    best_gradient: E::Array,
    history: History<E::Array>,
    lengths: E::Array,
    accepted: E::Array,
    tables: Tables<E>,
    dims: Dims,
}

/// Tables whose heads change from round to round.
#[derive(Debug)]
struct Tables<E: Engine> {
    active: E::Table,
    promoted: E::Table,
    from_trial: E::Table,
    from_best: E::Table,
    directed: E::Table,
}

/// What the rounds of a cycle work on.
#[derive(Debug)]
pub(crate) struct Cycle<'a, E: Engine> {
    pub(crate) rows: &'a mut RowSet<E>,
    /// Free keys: read as the origin, moved to every accepted point.
    pub(crate) keys: &'a mut E::Array,
    pub(crate) values: &'a E::Array,
    pub(crate) mass_weight: &'a E::Array,
    /// λ of each head, as in the array.
    pub(crate) mass_weights: &'a [f32],
    pub(crate) error: &'a mut E::Array,
    pub(crate) scalars: &'a mut E::Array,
    pub(crate) scale: f32,
}

impl<E: Engine> KeySteps<E> {
    pub(crate) fn new(engine: &mut E, dims: Dims, heads: &[Head], sizes: &Workspace, allowance: Allowance) -> Result<Self> {
        let count = heads.len();
        let keys = length(sizes.free_keys);
        let mut array = |label| engine.zeros(label, keys);
        let (trial, direction) = (array("trial keys")?, array("direction")?);
        let (gradient, trial_gradient, best_gradient) = (array("gradient")?, array("trial gradient")?, array("best gradient")?);
        let capacity = allowance.capacity;
        let history = History {
            capacity,
            steps: engine.zeros("history steps", length(sizes.history))?,
            changes: engine.zeros("history changes", length(sizes.history))?,
            curvatures: engine.zeros("history curvatures", count * capacity as usize * 2)?,
            cursor: engine.zeros("history cursor", count * 2)?,
        };
        Ok(Self {
            descents: vec![Descent::new(allowance); count],
            trial,
            direction,
            gradient,
            trial_gradient,
            best_gradient,
            history,
            lengths: engine.zeros("step lengths", count)?,
            accepted: engine.zeros("accepted lengths", count)?,
            tables: Tables {
                active: engine.table(dims, heads)?,
                promoted: engine.table(dims, heads)?,
                from_trial: engine.table(dims, heads)?,
                from_best: engine.table(dims, heads)?,
                directed: engine.table(dims, heads)?,
            },
            dims,
        })
    }

    /// What the next cycle may cost.
    pub(crate) fn allow(&mut self, allowance: Allowance) {
        for descent in &mut self.descents {
            descent.allowance = allowance;
        }
    }

    /// One cycle: key steps of these heads with fixed values until every one of them rests.
    ///
    /// `watch` is called every round with the share of the cycle's evaluations that is done; an error from it ends the work.
    pub(crate) fn cycle(
        &mut self,
        engine: &mut E,
        heads: &[Head],
        mut on: Cycle<'_, E>,
        most_evaluations: u32,
        mut watch: impl FnMut(f64) -> Result<()>,
    ) -> Result<()> {
        engine.round_begins();
        engine.set_table(&mut self.tables.active, heads)?;
        evaluate(engine, &self.tables.active, &mut on, None, &mut self.trial_gradient)?;
        engine.slope(&self.tables.active, &self.trial_gradient, &self.direction, on.scalars)?;
        engine.copy_pairs(&self.tables.active, self.dims.dim, &self.trial_gradient, &mut self.gradient)?;
        let mut found = engine.read(on.scalars)?;
        engine.round_ends();
        let mut actions: Vec<(Head, Action)> = Vec::with_capacity(heads.len());
        for head in heads {
            let reading = reading(&found, head, on.mass_weights);
            actions.push((*head, self.descents[head.index as usize].begin(&reading)));
        }
        let mut rounds = 0;
        loop {
            engine.round_begins();
            self.carry_out(engine, &mut actions, &mut on)?;
            if actions.is_empty() {
                return Ok(());
            }
            rounds += 1;
            watch((f64::from(rounds) / f64::from(most_evaluations)).min(1.0))?;
            found = engine.read(on.scalars)?;
            engine.round_ends();
            for (head, action) in &mut actions {
                let reading = reading(&found, head, on.mass_weights);
                tracing::trace!(
                    head = head.index,
                    length = self.descents[head.index as usize].length,
                    ?reading,
                    "evaluation"
                );
                *action = self.descents[head.index as usize].next(&reading);
            }
        }
    }

    /// Does what every head asked for, up to and including the evaluation of its next trial; heads at rest leave.
    fn carry_out(&mut self, engine: &mut E, actions: &mut Vec<(Head, Action)>, on: &mut Cycle<'_, E>) -> Result<()> {
        let chosen = |wanted: fn(&Action) -> bool| -> Vec<Head> {
            actions.iter().filter(|(_, action)| wanted(action)).map(|(head, _)| *head).collect()
        };
        let promoted = chosen(|action| matches!(action, Action::Again { promote: true }));
        let from_trial = chosen(|action| matches!(action, Action::Accept { source: Source::Trial, .. }));
        let from_best = chosen(|action| matches!(action, Action::Accept { source: Source::Best, .. }));
        let directed = chosen(|action| matches!(action, Action::Accept { go_on: true, .. } | Action::Redirect));
        let active = chosen(|action| !matches!(action, Action::Rest | Action::Accept { go_on: false, .. }));

        self.write_scalars(engine, actions)?;
        for (table, heads) in [
            (&mut self.tables.promoted, &promoted),
            (&mut self.tables.from_trial, &from_trial),
            (&mut self.tables.from_best, &from_best),
            (&mut self.tables.directed, &directed),
            (&mut self.tables.active, &active),
        ] {
            engine.set_table(table, heads)?;
        }
        engine.copy_pairs(&self.tables.promoted, self.dims.dim, &self.trial_gradient, &mut self.best_gradient)?;
        for (table, new_gradient) in [
            (&self.tables.from_trial, &self.trial_gradient),
            (&self.tables.from_best, &self.best_gradient),
        ] {
            engine.lbfgs_push(
                table,
                &self.accepted,
                &self.direction,
                new_gradient,
                &mut self.gradient,
                on.keys,
                &mut self.history,
                on.scalars,
            )?;
        }
        engine.lbfgs_direction(
            &self.tables.directed,
            &self.gradient,
            &self.history,
            &mut self.direction,
            on.scalars,
        )?;
        actions.retain(|(_, action)| !matches!(action, Action::Rest | Action::Accept { go_on: false, .. }));
        if actions.is_empty() {
            return Ok(());
        }
        engine.step(&self.tables.active, on.keys, &self.direction, &self.lengths, &mut self.trial)?;
        evaluate(engine, &self.tables.active, on, Some(&self.trial), &mut self.trial_gradient)?;
        engine.slope(&self.tables.active, &self.trial_gradient, &self.direction, on.scalars)
    }

    /// Step lengths, accepted lengths and history cursors, as the machines have them now.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "lengths in single precision; slots are small numbers"
    )]
    fn write_scalars(&mut self, engine: &mut E, actions: &[(Head, Action)]) -> Result<()> {
        let mut accepted = vec![0.0; self.descents.len()];
        for (head, action) in actions {
            if let Action::Accept { length, .. } = action {
                accepted[head.index as usize] = *length as f32;
            }
        }
        let lengths: Vec<f32> = self.descents.iter().map(|descent| descent.length as f32).collect();
        let cursor: Vec<f32> = self
            .descents
            .iter()
            .flat_map(|descent| [descent.filled as f32, descent.newest as f32])
            .collect();
        engine.write(&mut self.accepted, &accepted)?;
        engine.write(&mut self.lengths, &lengths)?;
        engine.write(&mut self.history.cursor, &cursor)
    }
}

/// Loss and gradient at the trial keys, or at the origin where there is no trial.
fn evaluate<E: Engine>(
    engine: &mut E,
    table: &E::Table,
    on: &mut Cycle<'_, E>,
    trial: Option<&E::Array>,
    gradient: &mut E::Array,
) -> Result<()> {
    let inputs = Evaluation {
        queries: &on.rows.queries,
        keys: trial.unwrap_or(on.keys),
        values: on.values,
        base: &on.rows.base,
        teacher: &on.rows.teacher,
        mass_weight: on.mass_weight,
        scale: on.scale,
    };
    let outputs = Evaluated {
        state: &mut on.rows.state,
        error: on.error,
        gradient,
        scalars: on.scalars,
    };
    engine.evaluate(table, &inputs, outputs)
}

/// The loss of a head from its scalars; infinite where a row is not finite.
pub(crate) fn loss(found: &[f32], head: &Head, mass_weights: &[f32]) -> f64 {
    let scalars = &found[head.index as usize * SCALARS..][..SCALARS];
    if scalars[scalar::NOT_FINITE] != 0.0 {
        return f64::INFINITY;
    }
    let mass_weight = f64::from(mass_weights[head.index as usize]);
    (f64::from(scalars[scalar::OUTPUT]) + mass_weight * f64::from(scalars[scalar::MASS])) / f64::from(head.rows)
}

fn reading(found: &[f32], head: &Head, mass_weights: &[f32]) -> Reading {
    let scalars = &found[head.index as usize * SCALARS..][..SCALARS];
    let at = |place: usize| f64::from(scalars[place]);
    Reading {
        loss: loss(found, head, mass_weights),
        slope: at(scalar::SLOPE),
        gradient_max: at(scalar::GRADIENT_MAX),
        gradient_sum: at(scalar::GRADIENT_SUM),
        direction_slope: at(scalar::DIRECTION_SLOPE),
        direction_max: at(scalar::DIRECTION_MAX),
        usable_pair: at(scalar::CURVATURE) > 0.0,
    }
}
