//! Attention and what is made of it row by row.

use super::trial::{Single, Trial, distance, narrow, of_head, pairs, rows, worse};
use crate::engine::{Engine, Evaluated, Evaluation, Head, SCALARS, scalar};
use crate::error::Result;
use crate::reference::{self, State};

pub(super) fn attention<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let keys = engine.upload("keys", &trial.keys)?;
    let values = engine.upload("values", &trial.values)?;
    let base = engine.upload("base", &trial.base)?;
    attended(engine, trial, &keys, &values, Some(&base), Single::student)
}

/// In half precision, of numbers that lose nothing by it.
pub(super) fn compact_attention<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let rounded = |array: &[f32]| array.iter().map(|x| (x * 64.0).round() / 64.0).collect::<Vec<f32>>();
    let short = Trial {
        keys: rounded(&trial.keys),
        values: rounded(&trial.values),
        queries: trial.queries.clone(),
        base: trial.base.clone(),
        teacher: trial.teacher.clone(),
        mass_weight: trial.mass_weight.clone(),
        heads: trial.heads.clone(),
        ..*trial
    };
    let keys = engine.upload_compact("keys", &short.keys)?;
    let values = engine.upload_compact("values", &short.values)?;
    let right = |single: &Single| {
        let Single {
            queries,
            keys,
            values,
            dim,
            value_dim,
            scale,
            ..
        } = single;
        reference::attention(queries, keys, values, *dim, *value_dim, None, *scale)
    };
    attended(engine, &short, &keys, &values, None, right)
}

fn attended<E: Engine>(
    engine: &mut E,
    trial: &Trial,
    keys: &E::Array,
    values: &E::Array,
    base: Option<&E::Array>,
    right: impl Fn(&Single) -> State,
) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let queries = engine.upload("queries", &trial.queries)?;
    let mut state = engine.upload("state", &poison(trial.floats(trial.dims.state_row()).0))?;
    engine.attention(&table, &queries, keys, values, base, trial.scale, &mut state)?;
    let state = engine.read(&state)?;
    Ok(over(trial, |head, single| state_distance(trial, head, &state, &right(single))))
}

pub(super) fn scores<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let queries = engine.upload("queries", &trial.queries)?;
    let keys = engine.upload("keys", &trial.keys)?;
    let state = engine.upload("state", &trial.states())?;
    let mut scores = engine.upload("scores", &poison(trial.floats(1).1))?;
    engine.scores(&table, &queries, &keys, &state, trial.scale, &mut scores)?;
    let scores = engine.read(&scores)?;
    Ok(over(trial, |head, single| {
        let right = reference::scores(&single.queries, &single.keys, single.dim, &single.student().mass, single.scale);
        distance(pairs(head, &scores, 1), &right)
    }))
}

pub(super) fn effects<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let queries = engine.upload("queries", &trial.queries)?;
    let keys = engine.upload("keys", &trial.keys)?;
    let values = engine.upload("values", &trial.values)?;
    let state = engine.upload("state", &trial.states())?;
    let mut effects = engine.upload("effects", &poison(trial.floats(1).1))?;
    engine.effects(&table, &queries, &keys, &values, &state, trial.scale, &mut effects)?;
    let effects = engine.read(&effects)?;
    Ok(over(trial, |head, single| {
        let Single {
            queries,
            keys,
            values,
            dim,
            value_dim,
            scale,
            ..
        } = single;
        let right = reference::effects(queries, keys, values, *dim, *value_dim, &single.student(), *scale);
        distance(pairs(head, &effects, 1), &right)
    }))
}

pub(super) fn loss<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let state = engine.upload("state", &trial.states())?;
    let teacher = engine.upload("teacher", &trial.teacher)?;
    let mass_weight = engine.upload("mass weight", &trial.mass_weight)?;
    let mut error = engine.upload("error", &poison(trial.floats(trial.dims.state_row()).0))?;
    let mut scalars = engine.upload("scalars", &poison(trial.heads.len() * SCALARS))?;
    engine.loss(&table, &state, &teacher, &mass_weight, &mut error, &mut scalars)?;
    let (error, scalars) = (engine.read(&error)?, engine.read(&scalars)?);
    Ok(over(trial, |head, single| loss_distance(trial, head, single, &error, &scalars)))
}

pub(super) fn key_gradient<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let queries = engine.upload("queries", &trial.queries)?;
    let keys = engine.upload("keys", &trial.keys)?;
    let values = engine.upload("values", &trial.values)?;
    let error = engine.upload("error", &errors(trial))?;
    let mut gradient = engine.upload("gradient", &poison(trial.floats(trial.dims.dim).1))?;
    engine.key_gradient(&table, &queries, &keys, &values, &error, trial.scale, &mut gradient)?;
    let gradient = engine.read(&gradient)?;
    Ok(over(trial, |head, single| gradient_distance(head, single, &gradient)))
}

pub(super) fn evaluate<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let (states, gradients) = (trial.floats(trial.dims.state_row()).0, trial.floats(trial.dims.dim).1);
    let queries = engine.upload("queries", &trial.queries)?;
    let keys = engine.upload("keys", &trial.keys)?;
    let values = engine.upload("values", &trial.values)?;
    let base = engine.upload("base", &trial.base)?;
    let teacher = engine.upload("teacher", &trial.teacher)?;
    let mass_weight = engine.upload("mass weight", &trial.mass_weight)?;
    let mut state = engine.upload("state", &poison(states))?;
    let mut error = engine.upload("error", &poison(states))?;
    let mut gradient = engine.upload("gradient", &poison(gradients))?;
    let mut scalars = engine.upload("scalars", &poison(trial.heads.len() * SCALARS))?;
    let inputs = Evaluation {
        queries: &queries,
        keys: &keys,
        values: &values,
        base: &base,
        teacher: &teacher,
        mass_weight: &mass_weight,
        scale: trial.scale,
    };
    let outputs = Evaluated {
        state: &mut state,
        error: &mut error,
        gradient: &mut gradient,
        scalars: &mut scalars,
    };
    engine.evaluate(&table, &inputs, outputs)?;
    let (state, error) = (engine.read(&state)?, engine.read(&error)?);
    let (gradient, scalars) = (engine.read(&gradient)?, engine.read(&scalars)?);
    Ok(over(trial, |head, single| {
        let rows = worse(
            state_distance(trial, head, &state, &single.student()),
            loss_distance(trial, head, single, &error, &scalars),
        );
        worse(rows, gradient_distance(head, single, &gradient))
    }))
}

/// The worst head.
pub(super) fn over(trial: &Trial, of: impl Fn(&Head, &Single) -> f64) -> f64 {
    trial.heads.iter().map(|head| of(head, &trial.single(head))).fold(0.0, worse)
}

/// What any forgotten output would show.
pub(super) fn poison(count: usize) -> Vec<f32> {
    vec![f32::NAN; count]
}

/// Output and mass each by their own size.
fn state_distance(trial: &Trial, head: &Head, state: &[f32], right: &State) -> f64 {
    let (value_dim, state_row) = (trial.dims.value_dim as usize, trial.dims.state_row() as usize);
    let found = State::from_array(rows(head, state, state_row), value_dim);
    worse(
        distance(&narrow(&found.output), &right.output),
        distance(&narrow(&found.mass), &right.mass),
    )
}

/// What is right of `loss`.
fn lost(single: &Single) -> reference::Loss {
    reference::loss(&single.student(), &single.teacher, single.mass_weight)
}

/// Error rows as an engine lays them out.
pub(super) fn errors(trial: &Trial) -> Vec<f32> {
    let mut errors = Vec::new();
    for head in &trial.heads {
        let single = trial.single(head);
        let loss = lost(&single);
        for (row, error) in loss.error.chunks_exact(single.value_dim).enumerate() {
            errors.extend(narrow(error));
            errors.extend(narrow(&[loss.correction[row], loss.mass[row], loss.mass_error[row], 0.0]));
        }
    }
    errors
}

fn loss_distance(trial: &Trial, head: &Head, single: &Single, error: &[f32], scalars: &[f32]) -> f64 {
    let (value_dim, state_row) = (single.value_dim, trial.dims.state_row() as usize);
    let loss = lost(single);
    let (mut parts, found) = (0.0, rows(head, error, state_row).chunks_exact(state_row));
    let column = |place: usize| found.clone().map(|row| row[place]).collect::<Vec<f32>>();
    let rows: Vec<f32> = found.clone().flat_map(|row| &row[..value_dim]).copied().collect();
    for (found, right) in [
        (rows, &loss.error),
        (column(value_dim), &loss.correction),
        (column(value_dim + 1), &loss.mass),
        (column(value_dim + 2), &loss.mass_error),
    ] {
        parts = worse(parts, distance(&found, right));
    }
    let scalars = of_head(head, scalars, SCALARS);
    for (place, right) in [
        (scalar::OUTPUT, loss.output_sum),
        (scalar::MASS, loss.mass_sum),
        (scalar::SCALE, loss.scale_sum),
    ] {
        parts = worse(parts, distance(&scalars[place..=place], &[right]));
    }
    worse(parts, f64::from(scalars[scalar::NOT_FINITE]))
}

fn gradient_distance(head: &Head, single: &Single, gradient: &[f32]) -> f64 {
    let right = reference::key_gradient(
        &single.queries,
        &single.keys,
        &single.values,
        single.dim,
        &lost(single),
        single.scale,
    );
    distance(pairs(head, gradient, single.dim), &right)
}
