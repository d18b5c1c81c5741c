//! A batch on the CPU engine, made from random problems.

use super::super::{Array, CpuEngine, Table};
use crate::engine::{Dims, Engine, Evaluated, Evaluation, Head, NO_MASS, SCALARS, WEIGHT_ROWS};

pub(super) const SCALE: f32 = 0.25;

/// One head's inputs.
pub(super) struct Problem {
    pub(super) rows: usize,
    pub(super) pairs: usize,
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) base: Vec<f32>,
    pub(super) teacher: Vec<f32>,
}

impl Problem {
    pub(super) fn random(dims: Dims, rows: usize, pairs: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut floats = |count: usize, size: f32| -> Vec<f32> { (0..count).map(|_| size * (random.f32() * 2.0 - 1.0)).collect() };
        let (dim, value_dim) = (dims.dim as usize, dims.value_dim as usize);
        let width = value_dim + 4;
        let mut base = floats(rows * width, 1.0);
        let mut teacher = floats(rows * width, 1.0);
        for row in base.chunks_mut(width).chain(teacher.chunks_mut(width)) {
            row[value_dim + 1..].fill(0.0);
        }
        // Every third row has no pairs in its base.
        for row in base.chunks_mut(width).step_by(3) {
            row.fill(0.0);
            row[value_dim] = NO_MASS;
        }
        Self {
            rows,
            pairs,
            queries: floats(rows * dim, 2.0),
            keys: floats(pairs * dim, 2.0),
            values: floats(pairs * value_dim, 1.0),
            base,
            teacher,
        }
    }
}

/// A batch on the engine.
pub(super) struct Batch {
    pub(super) engine: CpuEngine,
    pub(super) table: Table,
    pub(super) heads: Vec<Head>,
    pub(super) queries: Array,
    pub(super) keys: Array,
    pub(super) values: Array,
    pub(super) base: Array,
    pub(super) teacher: Array,
    pub(super) mass_weight: Array,
    pub(super) state: Array,
    pub(super) error: Array,
    pub(super) gradient: Array,
    pub(super) scalars: Array,
}

pub(super) fn narrow(x: usize) -> u32 {
    u32::try_from(x).unwrap()
}

impl Batch {
    pub(super) fn new(dims: Dims, problems: &[&Problem]) -> Self {
        let mut engine = CpuEngine::new();
        let (mut heads, mut square, mut weights, mut row, mut pair) = (Vec::new(), 0, 0, 0, 0);
        for (index, problem) in problems.iter().enumerate() {
            heads.push(Head {
                index: narrow(index),
                row: narrow(row),
                rows: narrow(problem.rows),
                pair: narrow(pair),
                pairs: narrow(problem.pairs),
                square: narrow(square),
                weights: narrow(weights),
                padding: 0,
            });
            row += problem.rows;
            pair += problem.pairs;
            square += problem.pairs * problem.pairs;
            weights += problem.rows.min(WEIGHT_ROWS as usize) * problem.pairs;
        }
        let join = |part: fn(&Problem) -> &Vec<f32>| problems.iter().flat_map(|problem| part(problem).clone()).collect::<Vec<f32>>();
        let width = dims.state_row() as usize;
        let nan = |count: usize| vec![f32::NAN; count];
        Self {
            table: engine.table(dims, &heads).unwrap(),
            queries: engine.upload("queries", &join(|p| &p.queries)).unwrap(),
            keys: engine.upload("keys", &join(|p| &p.keys)).unwrap(),
            values: engine.upload("values", &join(|p| &p.values)).unwrap(),
            base: engine.upload("base", &join(|p| &p.base)).unwrap(),
            teacher: engine.upload("teacher", &join(|p| &p.teacher)).unwrap(),
            mass_weight: engine.upload("mass_weight", &vec![0.7; heads.len()]).unwrap(),
            state: engine.upload("state", &nan(row * width)).unwrap(),
            error: engine.upload("error", &nan(row * width)).unwrap(),
            gradient: engine.upload("gradient", &nan(pair * dims.dim as usize)).unwrap(),
            scalars: engine.upload("scalars", &nan(heads.len() * SCALARS)).unwrap(),
            engine,
            heads,
        }
    }

    pub(super) fn evaluate(&mut self) {
        let inputs = Evaluation {
            queries: &self.queries,
            keys: &self.keys,
            values: &self.values,
            base: &self.base,
            teacher: &self.teacher,
            mass_weight: &self.mass_weight,
            scale: SCALE,
        };
        let outputs = Evaluated {
            state: &mut self.state,
            error: &mut self.error,
            gradient: &mut self.gradient,
            scalars: &mut self.scalars,
        };
        self.engine.evaluate(&self.table, &inputs, outputs).unwrap();
    }

    /// The operations one by one.
    pub(super) fn evaluate_in_parts(&mut self) {
        let Self { engine, table, .. } = self;
        let base = Some(&self.base);
        engine
            .attention(table, &self.queries, &self.keys, &self.values, base, SCALE, &mut self.state)
            .unwrap();
        engine
            .loss(
                table,
                &self.state,
                &self.teacher,
                &self.mass_weight,
                &mut self.error,
                &mut self.scalars,
            )
            .unwrap();
        engine
            .key_gradient(
                table,
                &self.queries,
                &self.keys,
                &self.values,
                &self.error,
                SCALE,
                &mut self.gradient,
            )
            .unwrap();
    }

    /// New values for the student, in blocks of weights; the factor and values that come out.
    pub(super) fn solve(&mut self, ridge: [f32; 2]) -> [Vec<f32>; 3] {
        let Self { engine, table, heads, .. } = self;
        let squares: usize = heads.iter().map(|head| (head.pairs * head.pairs) as usize).sum();
        let blocks: usize = heads.iter().map(|head| (head.rows.min(WEIGHT_ROWS) * head.pairs) as usize).sum();
        let mut weights = engine.upload("weights", &vec![f32::NAN; blocks]).unwrap();
        let mut gram = engine.upload("gram", &vec![f32::NAN; squares]).unwrap();
        let mut factor = engine.upload("factor", &vec![f32::NAN; squares]).unwrap();
        let mut rhs = engine.upload("rhs", &vec![f32::NAN; self.values.data.len()]).unwrap();
        let mut solved = engine.upload("solved", &vec![f32::NAN; self.values.data.len()]).unwrap();
        let ridge = engine.upload("ridge", &ridge.repeat(heads.len())).unwrap();
        let most = heads.iter().map(|head| head.rows).max().unwrap();
        let mut start = 0;
        while start < most {
            let rows = start..start + WEIGHT_ROWS;
            engine
                .weights(table, &self.queries, &self.keys, &self.state, SCALE, rows.clone(), &mut weights)
                .unwrap();
            engine.gram(table, &weights, rows.clone(), &mut gram).unwrap();
            engine.rhs(table, &weights, &self.error, rows, &mut rhs).unwrap();
            start += WEIGHT_ROWS;
        }
        engine.cholesky(table, &gram, &ridge, &mut factor, &mut self.scalars).unwrap();
        engine.solve(table, &factor, &rhs, &self.values, &mut solved).unwrap();
        [gram.data, rhs.data, solved.data]
    }
}
