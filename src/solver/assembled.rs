//! A head put together from its chunks, and what it is worth as a whole.

use super::chunks::Viewer;
use super::fit::{Fitted, Pairs};
use super::problem::Problem;
use super::rowset::Kind;
use super::{Judged, Outcome, Stop, merged_sums};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Method, Options, Strength};
use crate::reference::merged::Sums;

/// What became of a head of these chunks. Where all its chunks' starts together beat the chunks' results together on the
/// validation rows, the chunks get that start back: the promise is the head's, and chunks were judged one by one.
pub(super) fn outcome<E: Engine>(
    engine: &mut E,
    chunks: &[Problem],
    fitted: &mut [Fitted],
    scale: f32,
    options: &Options,
) -> Result<Outcome> {
    let (Some(first), Some(begin)) = (chunks.first(), fitted.first()) else {
        return Err(Error::shape("head", "it has no chunks"));
    };
    if chunks.len() == 1 {
        return Ok(begin.outcome.clone());
    }
    let mut outcome = aggregate(fitted, &begin.outcome);
    if fitted.iter().all(|chunk| chunk.outcome.stop == Stop::Whole) {
        return Ok(outcome);
    }
    let viewer = Viewer::new(engine, &first.rows, first.dims, scale)?;
    let starts = begin.starts.len();
    let mut judge = |pick: fn(&Fitted) -> Option<&Pairs>| judged(engine, &viewer, chunks, fitted, pick, options);
    outcome.select = judge(|chunk| chunk.starts.first())?;
    outcome.select_fit = match starts {
        2 => Some(judge(|chunk| chunk.starts.get(1))?),
        _ => None,
    };
    outcome.result = judge(|chunk| Some(&chunk.pairs))?;
    // Who asks for another method by name gets it, better or not.
    if options.method == Method::Kvsculpt {
        let error = |judged: &Judged| judged.validation.map_or(f64::NAN, |errors| errors.merged);
        for (number, start) in [Some(outcome.select), outcome.select_fit].into_iter().flatten().enumerate() {
            // Written so that a result that is not finite loses too.
            let stays = error(&outcome.result) <= error(&start) || error(&start).is_nan();
            if !stays {
                tracing::debug!(layer = outcome.layer, head = outcome.head, "its chunks' starts are better together");
                outcome.result = start;
                for chunk in &mut *fitted {
                    chunk.pairs.clone_from(&chunk.starts[number]);
                }
            }
        }
    }
    Ok(outcome)
}

/// Counts of all chunks together; errors are those of the first. The head ended as the chunk that took most iterations did, unless one
/// ran into trouble.
fn aggregate(fitted: &[Fitted], first: &Outcome) -> Outcome {
    let sum = |pick: fn(&Outcome) -> usize| fitted.iter().map(|chunk| pick(&chunk.outcome)).sum();
    let total = |pick: fn(&Outcome) -> u32| fitted.iter().map(|chunk| pick(&chunk.outcome)).fold(0, u32::saturating_add);
    let broken = fitted.iter().find(|chunk| chunk.outcome.stop == Stop::NotFinite);
    let open = fitted.iter().filter(|chunk| chunk.outcome.stop != Stop::Whole);
    let longest = open.max_by_key(|chunk| chunk.outcome.iterations);
    Outcome {
        tokens: sum(|chunk| chunk.tokens),
        kept: sum(|chunk| chunk.kept),
        free: sum(|chunk| chunk.free),
        chunks: fitted.len(),
        iterations: total(|chunk| chunk.iterations),
        evaluations: total(|chunk| chunk.evaluations),
        stop: broken.or(longest).map_or(first.stop, |chunk| chunk.outcome.stop),
        ..first.clone()
    }
}

/// What a head is worth whose chunks have these free pairs.
fn judged<E: Engine>(
    engine: &mut E,
    viewer: &Viewer<E>,
    chunks: &[Problem],
    fitted: &[Fitted],
    pick: fn(&Fitted) -> Option<&Pairs>,
    options: &Options,
) -> Result<Judged> {
    // One chunk after the other, each merged with those before it: no more than one is on the engine.
    let mut running: Option<E::Array> = None;
    for (chunk, fitted) in chunks.iter().zip(fitted) {
        let Some(pairs) = pick(fitted) else { continue };
        let (kept, dims) = (chunk.split.kept(), chunk.dims);
        let mut keys = Vec::with_capacity(kept * dims.dim as usize);
        let mut values = Vec::with_capacity(kept * dims.value_dim as usize);
        chunk.assemble_wide(&pairs.keys, &mut keys);
        chunk.assemble(&chunk.values, &pairs.values, dims.value_dim as usize, &mut values);
        running = Some(viewer.state(engine, &keys, &values, running.as_ref())?);
    }
    let (Some(first), Some(state)) = (chunks.first(), running) else {
        return Err(Error::shape("head", "it has no chunks"));
    };
    let state = engine.read(&state)?;
    let (rows, dims) = (&first.rows, first.dims);
    let sums = |kind: Kind| -> Option<Sums> {
        let place = super::chunks::floats(rows, kind, dims);
        let teacher = first.part.as_ref()?.teacher(rows, kind, dims);
        (!place.is_empty()).then(|| merged_sums(&state[place], teacher, dims.value_dim as usize))
    };
    let training = sums(Kind::Training).ok_or_else(|| Error::shape("head", "it has no training rows"))?;
    let count = training.rows as f64;
    let mass_weight = match options.mass_weight {
        Strength::Absolute(weight) => weight,
        Strength::Relative(weight) => weight * training.output_scale / count,
    };
    let errors = training.errors();
    Ok(Judged {
        loss: (training.output + mass_weight * training.mass) / count,
        output: errors.output,
        mass: errors.mass,
        validation: sums(Kind::Validation).map(|sums| sums.errors()),
        probe: sums(Kind::Probe).map(|sums| sums.errors()),
    })
}
