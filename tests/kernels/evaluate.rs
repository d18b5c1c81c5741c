//! Attention, loss and key gradient in one go: the same numbers as one by one, and the same bits in any batch.

use kvsculpt::engine::{Engine, Evaluated, Evaluation, Head, SCALARS};
use kvsculpt::reference::{self, Loss};

use crate::attention::close_state;
use crate::batch::{Batch, batches, of_head, pairs, rows};
use crate::compare::{EPSILON, SLACK, bits, close, largest, norm, poison, untouched};
use crate::key_gradient::{inherited, magnitude, sums_error};
use crate::loss::{close_rows, close_sums};
use crate::problem::{Kind, Problem, Single, hard_problems, usual_problems};

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
        let batch = Batch {
            active: vec![true; batch.heads.len()],
            ..batch
        };
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
            check_head(problem, head, &actual);
        } else {
            for array in [&actual.state, &actual.error, &actual.gradient, &actual.scalars] {
                untouched("an output", head, array);
            }
        }
    }
}

fn check_head(problem: &Problem, head: &Head, actual: &Outputs) {
    let single = problem.single(head);
    let student = single.student();
    let loss = reference::loss(&student, &single.teacher, single.mass_weight);
    let expected = reference::key_gradient(&single.queries, &single.keys, &single.values, single.dim, &loss, single.scale);
    close_state(problem, head, &actual.state, &student, Some(&single.base));

    let (mass, output) = single.state_error(&student, Some(&single.base));
    // A mass is also rounded when it is stored.
    let mass = mass + EPSILON * (largest(&student.mass) + largest(&single.teacher.mass));
    let output = output + EPSILON * (largest(&student.output) + largest(&single.teacher.output));
    let bounds = [output, correction_error(&single, &loss, &student.output, mass, output), mass, mass];
    close_rows(&problem.batch, head, &actual.error, &loss, bounds.map(|bound| SLACK * bound));
    // |Σ a² − Σ b²| ≤ ‖a − b‖ (2 ‖b‖ + ‖a − b‖)
    let sum = |error: f64, terms: usize, sum: f64| {
        let distance = SLACK * error * (terms as f64).sqrt();
        distance * (2.0 * sum.sqrt() + distance) + SLACK * EPSILON * ((terms as f64).sqrt() + 4.0) * sum
    };
    let rows = loss.mass.len();
    let sums = [
        sum(output, rows * single.value_dim, loss.output_sum),
        sum(mass, rows, loss.mass_sum),
    ];
    close_sums(head, &actual.scalars, &loss, sums);

    let relative = single.weight_error(&loss.mass) + mass + sums_error(head, single.value_dim);
    let bound = relative * magnitude(&single, &loss) + inherited(&single, &loss, &student, (mass, output));
    close("gradient", head, &actual.gradient, &expected, SLACK * bound);
}

/// The error of `e·ŷ − λδ` from errors of each output channel and of the mass, and its own roundings.
fn correction_error(single: &Single, loss: &Loss, student: &[f64], mass: f64, output: f64) -> f64 {
    let channels = (single.value_dim as f64).sqrt();
    let longest = |rows: &[f64]| rows.chunks_exact(single.value_dim).map(norm).fold(0.0, f64::max);
    let (error, student) = (longest(&loss.error), longest(student));
    let shift = single.mass_weight * largest(&loss.mass_error);
    channels * output * (error + student) + single.mass_weight * mass + EPSILON * (channels * error * student + shift)
}
