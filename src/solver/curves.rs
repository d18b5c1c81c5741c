//! Error curves: what each head's error would be at every length, from nested select-fit.
//!
//! A head's pairs are laid by rank, so the first k of them are the seed of length k. At every length of a coarse grid the
//! values are solved on some of the training rows and judged on the validation rows, which no fit sees.

use super::Timings;
use super::batches::{Members, Watch, Work};
use super::candidates::{Batch, Order};
use super::problem::Problem;
use super::supply::Stage;
use super::values::ValueSolve;
use crate::budget::{Curve, Point};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::{Anchor, Method, Options, Split};
use crate::reference::merged::Sums;

/// Lengths between neighbouring points of the grid differ by this factor.
const RATIO: f64 = std::f64::consts::SQRT_2;

/// Up to this share of the zone, a quotient, values are solved; above it a solve costs the most and gains the least, and what it
/// gained at the length before is taken over. Of two captures at five keeps nine got the very lengths that 11/20 gives, in up to two fifths
/// less time.
const SOLVED: (usize, usize) = (3, 10);

/// Values are never solved for more pairs than this: the work grows with their square, and such heads are all but whole.
const MOST_SOLVED: usize = 2048;

/// The lengths at which errors are found: from `least` on, each about √2 times the one before, all below `zone`; `least` where
/// that leaves none.
fn grid(least: usize, zone: usize) -> Vec<usize> {
    let mut lengths = vec![least];
    let mut next = least as f64;
    loop {
        next *= RATIO;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "below the zone, a count of tokens"
        )]
        let length = next.min(zone as f64).round() as usize;
        if length >= zone {
            return lengths;
        }
        if lengths.last() != Some(&length) {
            lengths.push(length);
        }
    }
}

/// At which lengths the curves of a request are measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Free pairs of a chunk, ascending.
    pub(super) lengths: Vec<usize>,
    /// The most that values are solved for.
    pub(super) solved: usize,
}

impl Grid {
    /// For chunks of these zones, which have at least `least` free pairs each.
    pub(super) fn new(chunks: &[Split], least: usize) -> Self {
        // Zones differ by one at most.
        let zone = chunks.iter().map(|chunk| chunk.zone()).min().unwrap_or(least);
        Self {
            lengths: grid(least, zone),
            solved: (zone * SOLVED.0 / SOLVED.1).min(MOST_SOLVED),
        }
    }

    /// What heads are read for.
    pub(super) fn stage(&self) -> Stage<'static> {
        Stage::Curves {
            most: self.lengths.last().copied().unwrap_or(1),
            solved: self.solved,
        }
    }
}

/// The curve of every chunk of a slice: `problems` are sampled, and have the largest length of the grid.
pub(super) fn of_slice<E: Engine>(work: &mut Work<'_, '_, E>, problems: &[Problem], grid: &Grid, options: &Options) -> Result<Vec<Curve>> {
    if let Some(problem) = problems.iter().find(|problem| problem.rows.validation.is_empty()) {
        return Err(Error::shape(
            format!("layer {} head {}", problem.layer, problem.head),
            "it has too few query rows to hold any out, by which lengths could be decided; give at least 4, or use --budget uniform",
        ));
    }
    let members: Vec<&Problem> = problems.iter().collect();
    let mut found: Vec<Vec<f64>> = vec![Vec::new(); problems.len()];
    let stage = |engine: &mut E, members: Members<'_, E>, scale, _: &mut Timings, watch: &mut Watch<'_>| {
        of_batch(engine, members, &grid.lengths, grid.solved, scale, options, watch)
    };
    work.in_batches(&members, 0, 0, &mut Timings::default(), stage, |_, batch, errors, _| {
        for (&member, errors) in batch.iter().zip(errors) {
            found[member] = errors;
        }
        Ok(())
    })?;
    let curve = |(problem, found): (&Problem, Vec<f64>)| {
        let fixed = problem.split.sinks + problem.split.tail;
        let lengths = grid.lengths.iter().zip(mended(found));
        let mut points: Vec<Point> = lengths
            .map(|(&free, error)| Point {
                length: fixed + free,
                error,
            })
            .filter(|point| point.length < problem.split.tokens)
            .collect();
        points.push(Point {
            length: problem.split.tokens,
            error: 0.0,
        });
        Curve {
            layer: problem.layer,
            head: problem.head,
            points,
        }
    };
    Ok(problems.iter().zip(found).map(curve).collect())
}

/// Numeric trouble at a length is no reason to give up: the error before it is taken, or that of a head that says nothing.
fn mended(errors: Vec<f64>) -> Vec<f64> {
    let mut last = 1.0;
    let finite = errors.into_iter().map(|error| {
        if error.is_finite() {
            last = error;
        }
        last
    });
    finite.collect()
}

/// The error that counts; a head whose teacher says nothing, and whose student neither, has none.
fn error(sums: Option<Sums>) -> f64 {
    match sums {
        Some(sums) if sums.merged == 0.0 => 0.0,
        Some(sums) => sums.errors().merged,
        None => f64::NAN,
    }
}

/// For each head of a batch, whose `split.free` is the largest length of the grid, the error at every length of what the method would
/// return. Values are solved up to `most` pairs.
fn of_batch<E: Engine>(
    engine: &mut E,
    (problems, inputs): Members<'_, E>,
    grid: &[usize],
    most: usize,
    scale: f32,
    options: &Options,
    watch: &mut Watch<'_>,
) -> Result<Vec<Vec<f64>>> {
    let Some(first) = problems.first() else { return Ok(Vec::new()) };
    let method = options.method;
    let options = Options {
        // A random draw has no rank.
        method: Method::SelectFit,
        anchor: Anchor::Seed,
        ..options.clone()
    };
    let mut batch = Batch::new(engine, (problems, inputs), first.dims, scale, &options, Order::Rank)?;
    let mut solve = ValueSolve::new(engine, first.dims, problems, &batch.training.heads, &batch.sizes, &options)?;
    let mut found: Vec<Vec<f64>> = vec![Vec::with_capacity(grid.len()); problems.len()];
    let mut gains = vec![1.0; problems.len()];
    for (step, &pairs) in grid.iter().enumerate() {
        watch(step as f64 / grid.len() as f64)?;
        let count = u32::try_from(pairs).unwrap_or(u32::MAX);
        batch.shorten(engine, count)?;
        // Whatever was solved at the length before is put back to the seed's.
        let heads = batch.training.heads.clone();
        batch.restore(engine, &heads)?;
        let mut candidates = vec![batch.sums(engine)?];
        let solved = matches!(method, Method::SelectFit | Method::Kvsculpt) && pairs <= most;
        if solved {
            batch.refit(engine, &mut solve, &heads)?;
            candidates.push(batch.sums(engine)?);
            if options.has_bias() {
                batch.fit_bias(engine, &mut solve, problems, &heads)?;
                batch.refit(engine, &mut solve, &heads)?;
                candidates.push(batch.sums(engine)?);
            }
        }
        for (index, found) in found.iter_mut().enumerate() {
            let mut errors = candidates.iter().map(|sums| error(sums[index]));
            let select = error(candidates[0][index]);
            // Only the whole method returns the best of its candidates; the others return their last, better or not.
            let returned = match method {
                Method::Kvsculpt => errors.filter(|error| error.is_finite()).fold(f64::INFINITY, f64::min),
                _ => errors.next_back().unwrap_or(select),
            };
            let gain = returned / select;
            if solved && gain.is_finite() {
                gains[index] = gain;
            }
            found.push(if solved { returned } else { select * gains[index] });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{grid, mended};

    #[test]
    fn the_grid_ascends_from_the_least_to_below_the_zone() {
        assert_eq!(grid(1, 9), [1, 2, 3, 4, 6, 8]);
        assert_eq!(grid(16, 100), [16, 23, 32, 45, 64, 91]);
        assert_eq!(grid(16, 16), [16]);
        assert_eq!(grid(1, 1), [1]);
    }

    #[test]
    fn what_is_not_finite_takes_the_error_before_it() {
        assert_eq!(mended(vec![f64::NAN, 0.5, f64::INFINITY, 0.25]), [1.0, 0.5, 0.5, 0.25]);
    }
}
