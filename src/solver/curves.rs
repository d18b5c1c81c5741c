//! Error curves: what each head's error would be at every length, from nested select-fit.
//!
//! A head's pairs are laid by rank, so the first k of them are the seed of length k. At every length of a coarse grid the
//! values are solved on some of the training rows and judged on the validation rows, which no fit sees.

use super::batches::Work;
use super::candidates::{Batch, Order};
use super::problem::Problem;
use super::values::ValueSolve;
use crate::budget::{Curve, Point};
use crate::engine::Engine;
use crate::error::Result;
use crate::options::{Anchor, Method, Options};
use crate::reference::merged::Sums;

/// Lengths between neighbouring points of the grid differ by this factor.
const RATIO: f64 = std::f64::consts::SQRT_2;

/// Up to this share of the zone, a quotient, values are solved; above it a solve costs the most and gains the least, and what it
/// gained at the length before is taken over.
const SOLVED: (usize, usize) = (11, 20);

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

/// The curve of every head, over lengths: `fixed` pairs that every student of a head stores, and at least `least` free ones.
pub(super) fn all<E: Engine>(
    work: &mut Work<'_, E>,
    problems: &[Problem],
    least: usize,
    fixed: usize,
    options: &Options,
) -> Result<Vec<Curve>> {
    let Some(zone) = problems.first().map(|problem| problem.split.zone()) else {
        return Ok(Vec::new());
    };
    let grid = grid(least, zone);
    let most = grid.last().copied().unwrap_or(least);
    let sampled: Vec<Problem> = problems.iter().map(|problem| problem.sampled(most, options.curve_rows)).collect();
    let members: Vec<&Problem> = sampled.iter().collect();
    let found = work.in_batches(&members, 0, 0, |engine, members, scale, watch| {
        of_batch(engine, members, &grid, scale, options, watch)
    })?;
    let curve = |(problem, found): (&Problem, Vec<Sums>)| {
        let measured = grid.iter().zip(found).map(|(&free, sums)| Point {
            length: fixed + free,
            error: sums.errors().merged,
        });
        let whole = Point {
            length: problem.split.tokens,
            error: 0.0,
        };
        let mut points: Vec<Point> = measured.filter(|point| point.length < whole.length).collect();
        points.push(whole);
        Curve {
            layer: problem.layer,
            head: problem.head,
            points,
        }
    };
    Ok(problems.iter().zip(found).map(curve).collect())
}

/// For each head of a batch, whose `split.free` is the largest length of the grid, the error sums at every length.
fn of_batch<E: Engine>(
    engine: &mut E,
    problems: &[&Problem],
    grid: &[usize],
    scale: f32,
    options: &Options,
    watch: &mut dyn FnMut(f64) -> Result<()>,
) -> Result<Vec<Vec<Sums>>> {
    let Some(first) = problems.first() else { return Ok(Vec::new()) };
    let most = first.split.zone() * SOLVED.0 / SOLVED.1;
    let fits = matches!(options.method, Method::SelectFit | Method::Kvsculpt);
    let options = Options {
        // A random draw has no rank.
        method: Method::SelectFit,
        anchor: Anchor::Seed,
        ..options.clone()
    };
    let mut batch = Batch::new(engine, problems, first.dims, scale, &options, Order::Rank)?;
    let mut solve = ValueSolve::new(engine, first.dims, problems, &batch.training.heads, &batch.sizes, &options)?;
    let mut found: Vec<Vec<Sums>> = vec![Vec::with_capacity(grid.len()); problems.len()];
    let mut gains = vec![1.0; problems.len()];
    for (step, &pairs) in grid.iter().enumerate() {
        watch(step as f64 / grid.len() as f64)?;
        let count = u32::try_from(pairs).unwrap_or(u32::MAX);
        batch.training.shorten(engine, count)?;
        if let Some(rows) = &mut batch.validation {
            rows.shorten(engine, count)?;
        }
        // Whatever was solved at the length before is put back to the seed's.
        let heads = batch.training.heads.clone();
        batch.restore(engine, &heads)?;
        let select = batch.sums(engine)?;
        let mut candidates = vec![select];
        let solved = fits && pairs <= most;
        if solved {
            batch.refit(engine, &mut solve, &heads)?;
            candidates.push(batch.sums(engine)?);
            if options.bias {
                batch.fit_bias(engine, &mut solve, problems, &heads)?;
                batch.refit(engine, &mut solve, &heads)?;
                candidates.push(batch.sums(engine)?);
            }
        }
        for (index, found) in found.iter_mut().enumerate() {
            let of_head = candidates.iter().filter_map(|sums| sums[index]);
            let (Some(best), Some(select)) = (of_head.min_by(|a, b| a.merged.total_cmp(&b.merged)), candidates[0][index]) else {
                continue;
            };
            if solved && select.merged > 0.0 {
                gains[index] = best.merged / select.merged;
            }
            found.push(Sums {
                merged: select.merged * gains[index],
                ..best
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::grid;

    #[test]
    fn the_grid_ascends_from_the_least_to_below_the_zone() {
        assert_eq!(grid(1, 9), [1, 2, 3, 4, 6, 8]);
        assert_eq!(grid(16, 100), [16, 23, 32, 45, 64, 91]);
        assert_eq!(grid(16, 16), [16]);
        assert_eq!(grid(1, 1), [1]);
    }
}
