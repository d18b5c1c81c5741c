//! Inputs of attention and of everything after it, easy and hard.

use kvsculpt::engine::{Head, NO_MASS};
use kvsculpt::reference::{self, State};

use crate::batch::{Batch, pairs, rows};
use crate::compare::{EPSILON, wide};

/// What is hard about the inputs.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Nothing.
    Usual,
    /// Scores near ±80, whose exponentials do not fit f32.
    Extreme,
    /// All scores of a row are equal.
    Equal,
    /// Every key is there twice, with two values.
    Duplicate,
}

/// A batch's inputs.
pub struct Problem {
    pub batch: Batch,
    pub queries: Vec<f32>,
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    /// Rows in turn: about the pairs' mass, none at all, far more and far less than the pairs'.
    pub base: Vec<f32>,
    pub teacher: Vec<f32>,
    /// A different λ for each head.
    pub mass_weight: Vec<f32>,
    pub scale: f32,
}

/// One head's part of the inputs, in f64.
pub struct Single {
    pub queries: Vec<f64>,
    pub keys: Vec<f64>,
    pub values: Vec<f64>,
    pub base: State,
    pub teacher: State,
    pub mass_weight: f64,
    pub scale: f64,
    pub dim: usize,
    pub value_dim: usize,
    pub pairs: usize,
}

impl Problem {
    pub fn new(mut batch: Batch, kind: Kind) -> Self {
        let (dim, value_dim) = (batch.dim(), batch.value_dim());
        let scale = (dim as f32).sqrt().recip();
        let mut queries = batch.random(batch.rows() * dim, 1.0);
        let mut keys = batch.random(batch.pairs() * dim, 1.5);
        let values = batch.random(batch.pairs() * value_dim, 1.0);
        match kind {
            Kind::Usual => {}
            Kind::Extreme => {
                // All along one axis, either way: s q·k = ±80.
                let axis = batch.random(dim, 1.0);
                let length = (80.0 / scale / axis.iter().map(|a| a * a).sum::<f32>()).sqrt();
                for vectors in [&mut queries, &mut keys] {
                    for vector in vectors.chunks_exact_mut(dim) {
                        let sign = if batch.below(2) == 0 { length } else { -length };
                        vector.iter_mut().zip(&axis).for_each(|(x, a)| *x = sign * a + 0.05 * *x);
                    }
                }
            }
            Kind::Equal => {
                for head in &batch.heads {
                    let (first, end) = (head.pair as usize * dim, (head.pair + head.pairs) as usize * dim);
                    for pair in (first + dim..end).step_by(dim) {
                        keys.copy_within(first..first + dim, pair);
                    }
                }
            }
            Kind::Duplicate => {
                for head in &batch.heads {
                    for pair in (head.pair..head.pair + head.pairs - 1).step_by(2) {
                        let pair = pair as usize * dim;
                        keys.copy_within(pair..pair + dim, pair + dim);
                    }
                }
            }
        }
        let mass_weight = (0..batch.heads.len()).map(|head| 0.3 + 0.2 * head as f32).collect();
        let mut problem = Self {
            queries,
            keys,
            values,
            base: vec![0.0; batch.rows() * batch.state_row()],
            teacher: vec![0.0; batch.rows() * batch.state_row()],
            mass_weight,
            scale,
            batch,
        };
        problem.fill_states();
        problem
    }

    /// Bases around the pairs' own mass, and teachers somewhat away from the student.
    fn fill_states(&mut self) {
        let (state_row, value_dim) = (self.batch.state_row(), self.batch.value_dim());
        let noise = self.batch.random(self.base.len(), 1.0);
        for head in self.batch.heads.clone() {
            let own = self.single(&head).without_base().to_array(value_dim);
            for row in 0..head.rows as usize {
                let at = (head.row as usize + row) * state_row;
                let (noise, own) = (&noise[at..at + state_row], &own[row * state_row..][..state_row]);
                let own_mass = if head.pairs > 0 { own[value_dim] } else { 0.0 };
                let mass = match (row + head.index as usize) % 4 {
                    0 => own_mass + noise[value_dim],
                    1 => NO_MASS,
                    2 => own_mass + 60.0,
                    _ => own_mass - 60.0,
                };
                if mass > NO_MASS {
                    self.base[at..at + value_dim].copy_from_slice(&noise[..value_dim]);
                }
                self.base[at + value_dim] = mass;
                for channel in 0..value_dim {
                    self.teacher[at + channel] = 0.8 * own[channel] + 0.3 * noise[channel];
                }
                self.teacher[at + value_dim] = own_mass + 0.5 * noise[value_dim + 1];
            }
        }
    }

    /// One head's part.
    pub fn single(&self, head: &Head) -> Single {
        let (dim, value_dim, state_row) = (self.batch.dim(), self.batch.value_dim(), self.batch.state_row());
        Single {
            queries: wide(rows(head, &self.queries, dim)),
            keys: wide(pairs(head, &self.keys, dim)),
            values: wide(pairs(head, &self.values, value_dim)),
            base: State::from_array(rows(head, &self.base, state_row), value_dim),
            teacher: State::from_array(rows(head, &self.teacher, state_row), value_dim),
            mass_weight: f64::from(self.mass_weight[head.index as usize]),
            scale: f64::from(self.scale),
            dim,
            value_dim,
            pairs: head.pairs as usize,
        }
    }

    /// The student's state of every head, rounded: an input of what comes after attention.
    pub fn student(&self) -> Vec<f32> {
        let student = |head: &Head| self.single(head).student().to_array(self.batch.value_dim());
        self.batch.heads.iter().flat_map(student).collect()
    }
}

impl Single {
    fn attend(&self, base: Option<&State>) -> State {
        reference::attention(&self.queries, &self.keys, &self.values, self.dim, self.value_dim, base, self.scale)
    }

    pub fn without_base(&self) -> State {
        self.attend(None)
    }

    pub fn student(&self) -> State {
        self.attend(Some(&self.base))
    }

    /// What rounding does to a score: a part for each of the √dim additions, a part for the products.
    pub fn score_error(&self) -> f64 {
        let longest = |vectors: &[f64]| vectors.chunks_exact(self.dim).map(crate::compare::norm).fold(0.0, f64::max);
        let mut largest = 0.0_f64;
        for query in self.queries.chunks_exact(self.dim) {
            for key in self.keys.chunks_exact(self.dim) {
                largest = largest.max(self.scale * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>().abs());
            }
        }
        let products = self.scale * longest(&self.queries) * longest(&self.keys);
        EPSILON * ((self.dim as f64).sqrt() * largest + products + 16.0)
    }

    /// The relative error of a weight `e^{s q·k − l}` of a given l: the score's, the difference's, and the exponential's,
    /// which WGSL allows 3 + 2|x| ulp. The head's largest weight says how large |x| is where it matters.
    pub fn weight_error(&self, mass: &[f64]) -> f64 {
        let weights = reference::weights(&self.queries, &self.keys, self.dim, mass, self.scale);
        let exponent = -weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max).ln();
        self.score_error() + EPSILON * (crate::compare::largest(mass) + 4.0 + 2.0 * exponent.max(0.0))
    }

    /// The error of attention's mass, and of its output: that of a weight, and of summing them.
    pub fn state_error(&self, state: &State, base: Option<&State>) -> (f64, f64) {
        let real = |mass: &f64| *mass > f64::from(NO_MASS);
        let masses: Vec<f64> = state.mass.iter().copied().filter(real).collect();
        let weight = self.score_error() + EPSILON * ((self.pairs as f64).sqrt() + crate::compare::largest(&masses));
        let values = crate::compare::largest(&self.values).max(base.map_or(0.0, |base| crate::compare::largest(&base.output)));
        (weight, weight * values)
    }
}

/// The batches on which hard inputs are tried.
pub fn hard_problems() -> Vec<Problem> {
    let mut problems = Vec::new();
    for kind in [Kind::Extreme, Kind::Equal, Kind::Duplicate] {
        problems.push(Problem::new(Batch::new((64, 64), &[(65, 33), (2, 64), (33, 130)], &[0, 2]), kind));
        problems.push(Problem::new(Batch::all((96, 128), &[(31, 65), (64, 2)]), kind));
    }
    problems
}

/// The usual inputs on every batch.
pub fn usual_problems() -> Vec<Problem> {
    let usual = |batch| Problem::new(batch, Kind::Usual);
    crate::batch::batches().into_iter().map(usual).collect()
}
