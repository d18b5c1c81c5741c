//! The value solve, from weights to values: the same bits again, and for each head by itself.

use kvsculpt::engine::{Engine, Head, SCALARS, scalar};

use crate::batch::{batches, of_head, pairs};
use crate::compare::{bits, poison};
use crate::problem::{Kind, Problem};

pub fn same_bits_again_and_alone<E: Engine>(engine: &mut E) {
    for batch in batches() {
        let batch = batch.all_active();
        let problem = Problem::new(batch, Kind::Usual);
        let (state_row, value_dim) = (problem.batch.state_row(), problem.batch.value_dim());
        let student = problem.student();
        let error: Vec<f32> = student.iter().zip(&problem.teacher).map(|(ours, theirs)| ours - theirs).collect();
        assert_eq!(error.len(), problem.batch.rows() * state_row);
        let mut run = |heads: &[Head]| fit(engine, &problem, &student, &error, heads);
        let whole = run(&problem.batch.heads);
        assert!(whole.iter().all(|value| value.is_finite()));
        assert_eq!(bits(&run(&problem.batch.heads)), bits(&whole));
        for head in &problem.batch.heads {
            let alone = run(std::slice::from_ref(head));
            assert_eq!(
                bits(pairs(head, &alone, value_dim)),
                bits(pairs(head, &whole, value_dim)),
                "{head:?}"
            );
        }
    }
}

/// New values of these heads, the old ones their anchor.
fn fit<E: Engine>(engine: &mut E, problem: &Problem, student: &[f32], error: &[f32], heads: &[Head]) -> Vec<f32> {
    let batch = &problem.batch;
    let table = engine.table(batch.dims, heads).unwrap();
    let queries = engine.upload("queries", &problem.queries).unwrap();
    let keys = engine.upload("keys", &problem.keys).unwrap();
    let anchor = engine.upload("anchor", &problem.values).unwrap();
    let state = engine.upload("state", student).unwrap();
    let error = engine.upload("error", error).unwrap();
    // Not relative alone: where the base holds all the mass, the Gram is 0.
    let ridge = engine.upload("ridge", &[1e-4, 1e-2].repeat(batch.heads.len())).unwrap();
    let mut poisoned = |label, len| engine.upload(label, &poison(len)).unwrap();
    let mut weights = poisoned("weights", batch.weights());
    let mut gram = poisoned("gram", batch.squares());
    let mut factor = poisoned("factor", batch.squares());
    let mut rhs = poisoned("rhs", batch.pairs() * batch.value_dim());
    let mut values = poisoned("values", batch.pairs() * batch.value_dim());
    let mut scalars = poisoned("scalars", batch.heads.len() * SCALARS);
    for rows in [0..512, 512..1024] {
        engine
            .weights(&table, &queries, &keys, &state, problem.scale, rows.clone(), &mut weights)
            .unwrap();
        engine.gram(&table, &weights, rows.clone(), &mut gram).unwrap();
        engine.rhs(&table, &weights, &error, rows, &mut rhs).unwrap();
    }
    engine.cholesky(&table, &gram, &ridge, &mut factor, &mut scalars).unwrap();
    engine.solve(&table, &factor, &rhs, &anchor, &mut values).unwrap();
    let scalars = engine.read(&scalars).unwrap();
    assert!(heads.iter().all(|head| of_head(head, &scalars, SCALARS)[scalar::FACTORED] == 1.0));
    engine.read(&values).unwrap()
}
