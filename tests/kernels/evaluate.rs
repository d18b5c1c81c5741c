//! Attention, loss and key gradient in one go: the same numbers as one by one, and the same bits in any batch.

use kvsculpt::engine::{Engine, Evaluated, Evaluation, Head, SCALARS};

use crate::attention::close_state;
use crate::batch::{Batch, batches, of_head, pairs, rows};
use crate::compare::{bits, poison, untouched};
use crate::problem::{Kind, Problem, hard_problems, usual_problems};
use crate::{key_gradient, loss};

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for problem in usual_problems() {
        check(engine, &problem);
    }
}

pub fn hard_inputs<E: Engine>(engine: &mut E) {
    for problem in hard_problems() {
        check(engine, &problem);
    }
}

/// Twice the same batch, and then each head by itself.
pub fn same_bits_again_and_alone<E: Engine>(engine: &mut E) {
    for batch in batches() {
        let batch = batch.all_active();
        let problem = Problem::new(batch, Kind::Usual);
        let whole = run(engine, &problem, &problem.batch.heads);
        assert_eq!(run(engine, &problem, &problem.batch.heads).bits(), whole.bits());
        for head in &problem.batch.heads {
            let alone = run(engine, &problem, std::slice::from_ref(head));
            assert_eq!(
                alone.of(head, &problem.batch).bits(),
                whole.of(head, &problem.batch).bits(),
                "{head:?}"
            );
        }
    }
}

/// What an evaluation leaves.
struct Outputs {
    state: Vec<f32>,
    error: Vec<f32>,
    gradient: Vec<f32>,
    scalars: Vec<f32>,
}

impl Outputs {
    /// One head's part.
    fn of(&self, head: &Head, batch: &Batch) -> Self {
        Self {
            state: rows(head, &self.state, batch.state_row()).to_vec(),
            error: rows(head, &self.error, batch.state_row()).to_vec(),
            gradient: pairs(head, &self.gradient, batch.dim()).to_vec(),
            scalars: of_head(head, &self.scalars, SCALARS).to_vec(),
        }
    }

    fn bits(&self) -> [Vec<u32>; 4] {
        [&self.state, &self.error, &self.gradient, &self.scalars].map(|array| bits(array))
    }
}

fn run<E: Engine>(engine: &mut E, problem: &Problem, heads: &[Head]) -> Outputs {
    let batch = &problem.batch;
    let table = engine.table(batch.dims, heads).unwrap();
    let queries = engine.upload("queries", &problem.queries).unwrap();
    let keys = engine.upload("keys", &problem.keys).unwrap();
    let values = engine.upload("values", &problem.values).unwrap();
    let base = engine.upload("base", &problem.base).unwrap();
    let teacher = engine.upload("teacher", &problem.teacher).unwrap();
    let mass_weight = engine.upload("mass weight", &problem.mass_weight).unwrap();
    let mut poisoned = |label, len| engine.upload(label, &poison(len)).unwrap();
    let mut state = poisoned("state", batch.rows() * batch.state_row());
    let mut error = poisoned("error", batch.rows() * batch.state_row());
    let mut gradient = poisoned("gradient", batch.pairs() * batch.dim());
    let mut scalars = poisoned("scalars", batch.heads.len() * SCALARS);
    let inputs = Evaluation {
        queries: &queries,
        keys: &keys,
        values: &values,
        base: &base,
        teacher: &teacher,
        mass_weight: &mass_weight,
        scale: problem.scale,
    };
    let outputs = Evaluated {
        state: &mut state,
        error: &mut error,
        gradient: &mut gradient,
        scalars: &mut scalars,
    };
    engine.evaluate(&table, &inputs, outputs).unwrap();
    Outputs {
        state: engine.read(&state).unwrap(),
        error: engine.read(&error).unwrap(),
        gradient: engine.read(&gradient).unwrap(),
        scalars: engine.read(&scalars).unwrap(),
    }
}

fn check<E: Engine>(engine: &mut E, problem: &Problem) {
    let batch = &problem.batch;
    let outputs = run(engine, problem, &batch.chosen());
    for (head, active) in batch.each() {
        let actual = outputs.of(head, batch);
        if active {
            check_head(problem, head, &actual, &outputs.scalars);
        } else {
            for array in [&actual.state, &actual.error, &actual.gradient, &actual.scalars] {
                untouched("an output", head, array);
            }
        }
    }
}

/// The state against the reference, and each later result against the reference of what the engine itself put before
/// it: bounds that also covered all inherited errors would hide a mistake of the later operation.
fn check_head(problem: &Problem, head: &Head, actual: &Outputs, scalars: &[f32]) {
    let (batch, single) = (&problem.batch, problem.single(head));
    close_state(problem, head, &actual.state, &single.student(), Some(&single.base));
    let teacher = rows(head, &problem.teacher, batch.state_row());
    loss::check_head(batch, head, (&actual.state, teacher, single.mass_weight), &actual.error, scalars);
    key_gradient::check_head(&single, head, &actual.error, &actual.gradient);
}
