//! The inputs of a self-test, and how far an output is from what is right.

use crate::engine::{Dims, Head, WEIGHT_ROWS};
use crate::reference::{self, State};

/// Rows and pairs of the heads: below and above the tiles of kernels.
const HEADS: [(u32, u32); 3] = [(33, 65), (130, 20), (5, 3)];

/// A batch of three heads.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) dims: Dims,
    pub(super) heads: Vec<Head>,
    pub(super) scale: f32,
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) base: Vec<f32>,
    pub(super) teacher: Vec<f32>,
    pub(super) mass_weight: Vec<f32>,
}

/// One head's inputs in f64.
#[derive(Debug)]
pub(super) struct Single {
    pub(super) queries: Vec<f64>,
    pub(super) keys: Vec<f64>,
    pub(super) values: Vec<f64>,
    pub(super) base: State,
    pub(super) teacher: State,
    pub(super) mass_weight: f64,
    pub(super) dim: usize,
    pub(super) value_dim: usize,
    pub(super) scale: f64,
}

impl Trial {
    pub(super) fn new(dims: Dims) -> Self {
        let (mut row, mut pair, mut square, mut weights) = (0, 0, 0, 0);
        let mut heads = Vec::new();
        for (index, (rows, pairs)) in (0..).zip(HEADS) {
            heads.push(Head {
                index,
                row,
                rows,
                pair,
                pairs,
                square,
                weights,
                padding: 0,
            });
            row += rows;
            pair += pairs;
            square += pairs * pairs;
            weights += rows.min(WEIGHT_ROWS) * pairs;
        }
        let (dim, value_dim, state_row) = (dims.dim as usize, dims.value_dim as usize, dims.state_row() as usize);
        let (rows, pairs) = (row as usize, pair as usize);
        let state = |seed: u64, mass: f32| {
            let mut state = numbers(seed, rows * state_row);
            for row in state.chunks_exact_mut(state_row) {
                row[value_dim] += mass;
                row[value_dim + 1..].fill(0.0);
            }
            state
        };
        Self {
            dims,
            scale: 1.0 / (dim as f32).sqrt(),
            queries: numbers(1, rows * dim),
            keys: numbers(2, pairs * dim),
            values: numbers(3, pairs * value_dim),
            base: state(4, 2.0),
            teacher: state(5, 3.0),
            mass_weight: (0..heads.len()).map(|head| 0.5 + head as f32).collect(),
            heads,
        }
    }

    pub(super) fn single(&self, head: &Head) -> Single {
        let (dim, value_dim, state_row) = (self.dims.dim as usize, self.dims.value_dim as usize, self.dims.state_row() as usize);
        Single {
            queries: wide(rows(head, &self.queries, dim)),
            keys: wide(pairs(head, &self.keys, dim)),
            values: wide(pairs(head, &self.values, value_dim)),
            base: State::from_array(rows(head, &self.base, state_row), value_dim),
            teacher: State::from_array(rows(head, &self.teacher, state_row), value_dim),
            mass_weight: f64::from(self.mass_weight[head.index as usize]),
            dim,
            value_dim,
            scale: f64::from(self.scale),
        }
    }

    /// The student's states, an input of what comes after attention.
    pub(super) fn states(&self) -> Vec<f32> {
        let state = |head: &Head| self.single(head).student().to_array(self.dims.value_dim as usize);
        self.heads.iter().flat_map(state).collect()
    }

    /// Floats of an array of `width` floats a row, and a pair.
    pub(super) fn floats(&self, width: u32) -> (usize, usize) {
        let rows: u32 = self.heads.iter().map(|head| head.rows).sum();
        let pairs: u32 = self.heads.iter().map(|head| head.pairs).sum();
        ((rows * width) as usize, (pairs * width) as usize)
    }

    /// Floats of `gram`, and of `weights`.
    pub(super) fn blocks(&self) -> (usize, usize) {
        let sum = |count: fn(&Head) -> u32| self.heads.iter().map(count).sum::<u32>() as usize;
        (sum(|head| head.pairs * head.pairs), sum(|head| head.rows * head.pairs))
    }
}

impl Single {
    pub(super) fn student(&self) -> State {
        reference::attention(
            &self.queries,
            &self.keys,
            &self.values,
            self.dim,
            self.value_dim,
            Some(&self.base),
            self.scale,
        )
    }

    /// The weights of the student.
    pub(super) fn weights(&self) -> Vec<f64> {
        reference::weights(&self.queries, &self.keys, self.dim, &self.student().mass, self.scale)
    }
}

/// Numbers of no symmetry between −1 and 1.2, the same for the same seed.
pub(super) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| random.f32() * 2.2 - 1.0).collect()
}

pub(super) fn wide(array: &[f32]) -> Vec<f64> {
    array.iter().copied().map(f64::from).collect()
}

#[allow(clippy::cast_possible_truncation, reason = "inputs are rounded to the engine's precision")]
pub(super) fn narrow(array: &[f64]) -> Vec<f32> {
    array.iter().map(|&x| x as f32).collect()
}

/// A head's part of an array of `width` floats a row.
pub(super) fn rows<'a>(head: &Head, array: &'a [f32], width: usize) -> &'a [f32] {
    &array[head.row as usize * width..(head.row + head.rows) as usize * width]
}

/// A head's part of an array of `width` floats a pair.
pub(super) fn pairs<'a>(head: &Head, array: &'a [f32], width: usize) -> &'a [f32] {
    &array[head.pair as usize * width..(head.pair + head.pairs) as usize * width]
}

/// A head's part of an array of `width` floats a head.
pub(super) fn of_head<'a>(head: &Head, array: &'a [f32], width: usize) -> &'a [f32] {
    &array[head.index as usize * width..(head.index as usize + 1) * width]
}

/// A head's square.
pub(super) fn square<'a>(head: &Head, array: &'a [f32]) -> &'a [f32] {
    &array[head.square as usize..(head.square + head.pairs * head.pairs) as usize]
}

/// The norm of the difference over the norm of what is right; not finite where an element is not, or one is missing.
pub(super) fn distance(found: &[f32], right: &[f64]) -> f64 {
    if found.len() != right.len() {
        return f64::INFINITY;
    }
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(right).map(|(&found, right)| f64::from(found) - right));
    difference / norm(&mut right.iter().copied()).max(f64::MIN_POSITIVE)
}

/// The larger of two errors; one that is no number is the largest of all.
pub(super) fn worse(one: f64, other: f64) -> f64 {
    if one.is_nan() || other.is_nan() { f64::NAN } else { one.max(other) }
}
