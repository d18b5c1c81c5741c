//! The least-squares problem of the values.

use super::attend::{errors, over, poison};
use super::trial::{Trial, distance, narrow, numbers, of_head, pairs, square, wide, worse};
use crate::engine::{Engine, Head, SCALARS, scalar};
use crate::error::Result;
use crate::reference;

/// A plain ridge and one relative to the diagonal.
const RIDGE: [f64; 2] = [1e-3, 0.1];

pub(super) fn weights<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let queries = engine.upload("queries", &trial.queries)?;
    let keys = engine.upload("keys", &trial.keys)?;
    let state = engine.upload("state", &trial.states())?;
    let mut weights = engine.upload("weights", &poison(trial.blocks().1))?;
    engine.weights(&table, &queries, &keys, &state, trial.scale, all_rows(trial), &mut weights)?;
    let weights = engine.read(&weights)?;
    Ok(over(trial, |head, single| distance(block(head, &weights), &single.weights())))
}

pub(super) fn gram<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let weights = engine.upload("weights", &all_weights(trial))?;
    let mut gram = engine.upload("gram", &poison(trial.blocks().0))?;
    engine.gram(&table, &weights, all_rows(trial), &mut gram)?;
    let gram = engine.read(&gram)?;
    Ok(over(trial, |head, single| {
        let right = reference::gram(&single.weights(), head.pairs as usize);
        distance(&lower(head, square(head, &gram)), &lower(head, &right))
    }))
}

pub(super) fn rhs<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let weights = engine.upload("weights", &all_weights(trial))?;
    let error = engine.upload("error", &errors(trial))?;
    let mut rhs = engine.upload("rhs", &poison(trial.floats(trial.dims.value_dim).1))?;
    engine.rhs(&table, &weights, &error, all_rows(trial), &mut rhs)?;
    let rhs = engine.read(&rhs)?;
    Ok(over(trial, |head, single| {
        let loss = reference::loss(&single.student(), &single.teacher, single.mass_weight);
        let right = reference::rhs(&single.weights(), &loss.error, head.pairs as usize, single.value_dim);
        distance(pairs(head, &rhs, single.value_dim), &right)
    }))
}

pub(super) fn cholesky<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let gram = engine.upload("gram", &all_grams(trial))?;
    let ridge = engine.upload("ridge", &narrow(&RIDGE).repeat(trial.heads.len()))?;
    let mut factor = engine.upload("factor", &poison(trial.blocks().0))?;
    let mut scalars = engine.upload("scalars", &poison(trial.heads.len() * SCALARS))?;
    engine.cholesky(&table, &gram, &ridge, &mut factor, &mut scalars)?;
    let (factor, scalars) = (engine.read(&factor)?, engine.read(&scalars)?);
    Ok(over(trial, |head, single| {
        let pairs = head.pairs as usize;
        let gram = reference::gram(&single.weights(), pairs);
        // A factor that was not found would be at an infinite distance.
        let right = reference::cholesky(&gram, pairs, RIDGE).unwrap_or_default();
        let scalars = of_head(head, &scalars, SCALARS);
        let told = worse(
            distance(&scalars[scalar::FACTORED..=scalar::FACTORED], &[1.0]),
            distance(
                &scalars[scalar::DIAGONAL..=scalar::DIAGONAL],
                &[reference::mean_diagonal(&gram, pairs)],
            ),
        );
        worse(told, distance(&lower(head, square(head, &factor)), &lower(head, &right)))
    }))
}

pub(super) fn solve<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let (factors, width) = (all_factors(trial), trial.dims.value_dim);
    let given = numbers(6, trial.floats(width).1);
    let factor = engine.upload("factor", &factors)?;
    let rhs = engine.upload("rhs", &given)?;
    let anchor = engine.upload("anchor", &trial.values)?;
    let mut values = engine.upload("values", &poison(given.len()))?;
    engine.solve(&table, &factor, &rhs, &anchor, &mut values)?;
    let values = engine.read(&values)?;
    Ok(over(trial, |head, single| {
        let (rhs, width) = (wide(pairs(head, &given, single.value_dim)), single.value_dim);
        let right = reference::solve(&wide(square(head, &factors)), &rhs, &single.values, head.pairs as usize, width);
        distance(pairs(head, &values, width), &right)
    }))
}

/// The five in a row, as a value solve does them.
pub(super) fn fit<E: Engine>(engine: &mut E, trial: &Trial) -> Result<f64> {
    let table = engine.table(trial.dims, &trial.heads)?;
    let (squares, block) = trial.blocks();
    let queries = engine.upload("queries", &trial.queries)?;
    let keys = engine.upload("keys", &trial.keys)?;
    let state = engine.upload("state", &trial.states())?;
    let error = engine.upload("error", &errors(trial))?;
    let ridge = engine.upload("ridge", &narrow(&RIDGE).repeat(trial.heads.len()))?;
    let anchor = engine.upload("anchor", &trial.values)?;
    let mut weights = engine.upload("weights", &poison(block))?;
    let mut gram = engine.upload("gram", &poison(squares))?;
    let mut factor = engine.upload("factor", &poison(squares))?;
    let mut rhs = engine.upload("rhs", &poison(trial.values.len()))?;
    let mut values = engine.upload("values", &poison(trial.values.len()))?;
    let mut scalars = engine.zeros("scalars", trial.heads.len() * SCALARS)?;
    engine.weights(&table, &queries, &keys, &state, trial.scale, all_rows(trial), &mut weights)?;
    engine.gram(&table, &weights, all_rows(trial), &mut gram)?;
    engine.rhs(&table, &weights, &error, all_rows(trial), &mut rhs)?;
    engine.cholesky(&table, &gram, &ridge, &mut factor, &mut scalars)?;
    engine.solve(&table, &factor, &rhs, &anchor, &mut values)?;
    let values = engine.read(&values)?;
    Ok(over(trial, |head, single| {
        let (count, width) = (head.pairs as usize, single.value_dim);
        let weights = single.weights();
        let loss = reference::loss(&single.student(), &single.teacher, single.mass_weight);
        let rhs = reference::rhs(&weights, &loss.error, count, width);
        let factor = reference::cholesky(&reference::gram(&weights, count), count, RIDGE).unwrap_or_default();
        if factor.is_empty() {
            return f64::INFINITY;
        }
        distance(
            pairs(head, &values, width),
            &reference::solve(&factor, &rhs, &single.values, count, width),
        )
    }))
}

fn all_rows(trial: &Trial) -> std::ops::Range<u32> {
    0..trial.heads.iter().map(|head| head.rows).max().unwrap_or(0)
}

/// A head's weights.
fn block<'a>(head: &Head, array: &'a [f32]) -> &'a [f32] {
    &array[head.weights as usize..(head.weights + head.rows * head.pairs) as usize]
}

fn all_weights(trial: &Trial) -> Vec<f32> {
    trial.heads.iter().flat_map(|head| narrow(&trial.single(head).weights())).collect()
}

fn all_grams(trial: &Trial) -> Vec<f32> {
    let gram = |head: &Head| narrow(&reference::gram(&trial.single(head).weights(), head.pairs as usize));
    trial.heads.iter().flat_map(gram).collect()
}

fn all_factors(trial: &Trial) -> Vec<f32> {
    let factor = |head: &Head| {
        let pairs = head.pairs as usize;
        let gram = reference::gram(&trial.single(head).weights(), pairs);
        narrow(&reference::cholesky(&gram, pairs, RIDGE).unwrap_or_else(|| vec![f64::NAN; pairs * pairs]))
    };
    trial.heads.iter().flat_map(factor).collect()
}

/// The lower triangle, the only one with meaning.
fn lower<T: Copy>(head: &Head, square: &[T]) -> Vec<T> {
    let pairs = head.pairs as usize;
    square
        .chunks_exact(pairs)
        .enumerate()
        .flat_map(|(row, line)| &line[..=row])
        .copied()
        .collect()
}
