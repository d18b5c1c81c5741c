//! `s = t d`, `y = g₊ − g` into the newest slot, `origin ← origin + s`, `gradient ← g₊`.

use kvsculpt::engine::{Engine, Head, History, SCALARS, scalar};
use kvsculpt::reference;

use crate::batch::{Batch, batches, of_head, pairs};
use crate::compare::{EPSILON, SLACK, bits, close, largest, other_scalars_untouched, poison, scalar_close, untouched, wide};
use crate::lbfgs_direction::curvature_pair;

/// Slots a head.
const CAPACITY: usize = 3;

pub fn ragged_batches<E: Engine>(engine: &mut E) {
    for mut batch in batches() {
        let moves = Moves::new(&mut batch);
        let results = moves.run(engine, &batch);
        for (head, active) in batch.each() {
            if active {
                check_head(&batch, head, &moves, &results);
            } else {
                check_left_alone(&batch, head, &moves, &results);
            }
        }
    }
}

/// Curvature of the wrong sign, none at all, and a NaN are kept out of the recursion; the point moves all the same.
pub fn pairs_of_no_use<E: Engine>(engine: &mut E) {
    let mut batch = Batch::all((64, 64), &[(1, 33), (1, 65), (1, 31), (1, 2)]);
    let mut moves = Moves::new(&mut batch);
    let range = |head: &Head| head.pair as usize * 64..(head.pair + head.pairs) as usize * 64;
    for place in range(&batch.heads[0]) {
        moves.new_gradient[place] = 2.0 * moves.gradient[place] - moves.new_gradient[place];
    }
    let same = range(&batch.heads[1]);
    moves.new_gradient[same.clone()].copy_from_slice(&moves.gradient[same]);
    moves.new_gradient[range(&batch.heads[2]).start + 70] = f32::NAN;
    let results = moves.run(engine, &batch);
    for head in &batch.heads[..3] {
        let curvature = of_head(head, &results.curvatures, CAPACITY * 2)[moves.newest(head) * 2];
        assert_eq!(curvature, 0.0, "{head:?}");
        check_point(&batch, head, &moves, &results);
    }
    check_head(&batch, &batch.heads[3], &moves, &results);
}

/// Accepted steps of a quadratic.
struct Moves {
    lengths: Vec<f32>,
    direction: Vec<f32>,
    gradient: Vec<f32>,
    new_gradient: Vec<f32>,
    origin: Vec<f32>,
    /// A slot for each head, after as many filled ones.
    cursor: Vec<f32>,
}

/// The arrays after a push.
struct Results {
    steps: Vec<f32>,
    changes: Vec<f32>,
    curvatures: Vec<f32>,
    cursor: Vec<f32>,
    origin: Vec<f32>,
    gradient: Vec<f32>,
    scalars: Vec<f32>,
}

impl Moves {
    fn new(batch: &mut Batch) -> Self {
        let len = batch.pairs() * batch.dim();
        let (direction, change) = curvature_pair(batch, len);
        let gradient = batch.random(len, 1.0);
        Self {
            lengths: (0..batch.heads.len()).map(|head| 0.25 + head as f32).collect(),
            new_gradient: gradient.iter().zip(&change).map(|(gradient, change)| gradient + change).collect(),
            direction,
            gradient,
            origin: batch.random(len, 1.0),
            cursor: (0..batch.heads.len())
                .flat_map(|head| [(head % CAPACITY + 1) as f32, (head % CAPACITY) as f32])
                .collect(),
        }
    }

    fn newest(&self, head: &Head) -> usize {
        head.index as usize % CAPACITY
    }

    fn run<E: Engine>(&self, engine: &mut E, batch: &Batch) -> Results {
        let table = batch.table(engine);
        let slots = CAPACITY * batch.pairs() * batch.dim();
        let mut upload = |label, data: &[f32]| engine.upload(label, data).unwrap();
        let lengths = upload("lengths", &self.lengths);
        let direction = upload("direction", &self.direction);
        let new_gradient = upload("new gradient", &self.new_gradient);
        let mut gradient = upload("gradient", &self.gradient);
        let mut origin = upload("origin", &self.origin);
        let mut scalars = upload("scalars", &poison(batch.heads.len() * SCALARS));
        #[allow(clippy::cast_possible_truncation, reason = "3")]
        let mut history = History {
            capacity: CAPACITY as u32,
            steps: upload("steps", &poison(slots)),
            changes: upload("changes", &poison(slots)),
            curvatures: upload("curvatures", &poison(batch.heads.len() * CAPACITY * 2)),
            cursor: upload("cursor", &self.cursor),
        };
        engine
            .lbfgs_push(
                &table,
                &lengths,
                &direction,
                &new_gradient,
                &mut gradient,
                &mut origin,
                &mut history,
                &mut scalars,
            )
            .unwrap();
        Results {
            steps: engine.read(&history.steps).unwrap(),
            changes: engine.read(&history.changes).unwrap(),
            curvatures: engine.read(&history.curvatures).unwrap(),
            cursor: engine.read(&history.cursor).unwrap(),
            origin: engine.read(&origin).unwrap(),
            gradient: engine.read(&gradient).unwrap(),
            scalars: engine.read(&scalars).unwrap(),
        }
    }

    fn expected(&self, batch: &Batch, head: &Head) -> reference::Pushed {
        let part = |array: &[f32]| wide(pairs(head, array, batch.dim()));
        reference::push(
            f64::from(self.lengths[head.index as usize]),
            &part(&self.direction),
            &part(&self.new_gradient),
            &part(&self.gradient),
            &part(&self.origin),
        )
    }
}

/// The new point and its gradient, and the cursor as it was.
fn check_point(batch: &Batch, head: &Head, moves: &Moves, results: &Results) {
    let (dim, expected) = (batch.dim(), moves.expected(batch, head));
    let bound = EPSILON * (largest(&expected.origin) + largest(&expected.step));
    close("origin", head, pairs(head, &results.origin, dim), &expected.origin, SLACK * bound);
    assert_eq!(
        bits(pairs(head, &results.gradient, dim)),
        bits(pairs(head, &moves.new_gradient, dim)),
        "{head:?}"
    );
    assert_eq!(of_head(head, &results.cursor, 2), of_head(head, &moves.cursor, 2), "{head:?}");
}

fn check_head(batch: &Batch, head: &Head, moves: &Moves, results: &Results) {
    check_point(batch, head, moves, results);
    let expected = moves.expected(batch, head);
    let (len, newest) = (expected.step.len(), moves.newest(head));
    for slot in 0..CAPACITY {
        let part = |array| &pairs(head, array, CAPACITY * batch.dim())[slot * len..(slot + 1) * len];
        let (step, change) = (part(&results.steps), part(&results.changes));
        let curvature = &of_head(head, &results.curvatures, CAPACITY * 2)[slot * 2..][..2];
        if slot != newest {
            untouched("another slot's step", head, step);
            untouched("another slot's change", head, change);
            untouched("another slot's curvature", head, curvature);
            continue;
        }
        close("step", head, step, &expected.step, SLACK * EPSILON * largest(&expected.step));
        close(
            "change",
            head,
            change,
            &expected.change,
            SLACK * EPSILON * largest(&expected.change),
        );
        let [inverse, start] = expected.curvature.unwrap();
        // s·y is a sum of positive terms but for the rounding of g₊, and so is y·y.
        let relative = SLACK * EPSILON * ((len as f64).sqrt() + 4.0);
        close("1 / s·y", head, &curvature[..1], &[inverse], relative * inverse);
        close("s·y / y·y", head, &curvature[1..], &[start], relative * start);
        scalar_close(
            "s·y",
            head,
            &results.scalars,
            scalar::CURVATURE,
            expected.step_change,
            relative * expected.step_change,
        );
    }
    other_scalars_untouched(head, &results.scalars, &[scalar::CURVATURE]);
}

fn check_left_alone(batch: &Batch, head: &Head, moves: &Moves, results: &Results) {
    let dim = batch.dim();
    untouched("steps", head, pairs(head, &results.steps, CAPACITY * dim));
    untouched("changes", head, pairs(head, &results.changes, CAPACITY * dim));
    untouched("curvatures", head, of_head(head, &results.curvatures, CAPACITY * 2));
    untouched("scalars", head, of_head(head, &results.scalars, SCALARS));
    assert_eq!(
        bits(pairs(head, &results.origin, dim)),
        bits(pairs(head, &moves.origin, dim)),
        "{head:?}"
    );
    assert_eq!(
        bits(pairs(head, &results.gradient, dim)),
        bits(pairs(head, &moves.gradient, dim)),
        "{head:?}"
    );
}
