//! Which query rows a head is fitted to, and which are held out.

use crate::cache::{Capture, Layer, LayerShape, Queries};
use crate::error::Result;
use crate::options::{Options, Split};

/// One head's rows: its query heads' rows one after the other, `[rows, dim]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rows {
    /// Fitted to.
    pub(crate) training: Vec<f32>,
    /// Held out of every fit; which candidate is returned is decided by them.
    pub(crate) validation: Vec<f32>,
    /// The capture's probe queries: only reported on.
    pub(crate) probe: Vec<f32>,
}

/// A context query: the token it was asked at and the position it is to be asked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Draw {
    token: usize,
    position: usize,
}

impl Rows {
    /// At most about `most` of the training rows, for an error curve. Without validation rows every fourth of those is held out;
    /// probe rows are left out.
    pub(crate) fn sampled(&self, dim: usize, most: usize) -> Self {
        let count = self.training.len() / dim;
        let stride = stride(count, most);
        let mut rows = Self {
            validation: self.validation.clone(),
            ..Self::default()
        };
        rows.training.reserve_exact(count.div_ceil(stride) * dim);
        let holds_out = rows.validation.is_empty() && count / stride >= 4;
        for (place, row) in self.training.chunks_exact(dim).step_by(stride).enumerate() {
            let target = if holds_out && place % 4 == 2 {
                &mut rows.validation
            } else {
                &mut rows.training
            };
            target.extend_from_slice(row);
        }
        rows
    }
}

/// Every how many-th of `count` rows is taken where `most` are wanted.
fn stride(count: usize, most: usize) -> usize {
    count.div_ceil(most.max(1)).max(1)
}

/// How many rows of each kind [`rows`] gives for a head of such a layer: training, validation, probe; where `sampled` is given, after
/// [`Rows::sampled`] with it.
pub(crate) fn counts(shape: &LayerShape, next_position: usize, split: Split, options: &Options, sampled: Option<usize>) -> [usize; 3] {
    let group = shape.query_heads / shape.kv_heads;
    let (training, validation) = match shape.reference_rows {
        Some(rows) => {
            let held = held_of(rows, options);
            (rows - held, held)
        }
        None => {
            let (training, validation) = draws(split.tokens, next_position, split, options);
            (training.len(), validation.len())
        }
    };
    let (training, validation) = (group * training, group * validation);
    let Some(most) = sampled else {
        return [training, validation, group * shape.probe_rows.unwrap_or(0)];
    };
    let stride = stride(training, most);
    let taken = training.div_ceil(stride);
    if validation == 0 && training / stride >= 4 {
        let held = (taken + 1) / 4;
        return [taken - held, held, 0];
    }
    [taken, validation, 0]
}

/// Rows of a layer of one KV head, which is this one of its layer in the capture; `split` is that of the whole head.
pub(crate) fn rows(capture: &Capture, layer: &Layer, head: usize, split: Split, options: &Options) -> Result<Rows> {
    let heads = 0..layer.query_heads;
    let probe = layer.probe_query.as_ref().map_or_else(Vec::new, |queries| queries.data.clone());
    let mut rows = Rows { probe, ..Rows::default() };
    if let Some(queries) = &layer.reference_query {
        split_given(queries, layer.dim, heads, options, &mut rows);
        return Ok(rows);
    }
    let (training, validation) = draws(layer.tokens, capture.next_position, split, options);
    rows.training.reserve_exact(heads.len() * training.len() * layer.dim);
    rows.validation.reserve_exact(heads.len() * validation.len() * layer.dim);
    let mut tokens: Vec<usize> = training.iter().chain(&validation).map(|draw| draw.token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let asked = capture.queries_at(layer, head, &tokens)?;
    for all in asked.chunks_exact(tokens.len() * layer.dim) {
        for (draws, rows) in [(&training, &mut rows.training), (&validation, &mut rows.validation)] {
            for draw in draws {
                let start = rows.len();
                let place = tokens.partition_point(|&token| token < draw.token);
                rows.extend_from_slice(&all[place * layer.dim..(place + 1) * layer.dim]);
                capture.rope.rotate(&mut rows[start..], draw.position as f64);
            }
        }
    }
    Ok(rows)
}

/// How many of a query head's `rows` own rows are held out: an eighth, one at least, and no more than the options say.
fn held_of(rows: usize, options: &Options) -> usize {
    if rows < 2 {
        return 0;
    }
    rows.div_ceil(8).min(options.validation_rows)
}

/// The user's own rows, those that are held out evenly spaced among them.
fn split_given(queries: &Queries, dim: usize, heads: std::ops::Range<usize>, options: &Options, rows: &mut Rows) {
    let held = held_of(queries.rows, options);
    for query_head in heads {
        let all = &queries.data[query_head * queries.rows * dim..(query_head + 1) * queries.rows * dim];
        for (number, row) in all.chunks_exact(dim).enumerate() {
            let target = if is_held(number, queries.rows, held) {
                &mut rows.validation
            } else {
                &mut rows.training
            };
            target.extend_from_slice(row);
        }
    }
}

/// The tokens and positions of training and validation rows, the same for every query head.
///
/// Recent rows: the newest tokens at their own positions. Context rows: tokens spaced uniformly over the whole
/// context, turned to positions spread over the horizon, the newest soonest; without a horizon the i-th to position `next + i`. Of each
/// kind an evenly spaced share is held out.
fn draws(tokens: usize, next_position: usize, split: Split, options: &Options) -> (Vec<Draw>, Vec<Draw>) {
    let recent = options.recent_rows.unwrap_or(split.tail).min(tokens);
    let context = options.context_rows.min(tokens);
    let all = (recent + context).max(1);
    let held = options.validation_rows.min(all / 2);
    let held_recent = held * recent / all;
    let first_position = next_position - tokens;
    let recent_draws = (tokens - recent..tokens).map(|token| Draw {
        token,
        position: first_position + token,
    });
    let context_draws = (0..context).map(|i| Draw {
        token: if context > 1 {
            i * (tokens - 1) / (context - 1)
        } else {
            tokens - 1
        },
        position: next_position + options.horizon.map_or(i, |horizon| (context - 1 - i) * horizon / context),
    });
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    deal(recent_draws, recent, held_recent, &mut training, &mut validation);
    deal(context_draws, context, held - held_recent, &mut training, &mut validation);
    if training.is_empty() {
        training.push(Draw {
            token: tokens - 1,
            position: next_position,
        });
    }
    (training, validation)
}

/// Deals `held` of `count` draws, evenly spaced, to `validation` and the rest to `training`.
fn deal(draws: impl Iterator<Item = Draw>, count: usize, held: usize, training: &mut Vec<Draw>, validation: &mut Vec<Draw>) {
    for (i, draw) in draws.enumerate() {
        if is_held(i, count, held) {
            validation.push(draw);
        } else {
            training.push(draw);
        }
    }
}

/// Whether the i-th of `count` is one of `held` that are evenly spaced: how many of the first i + 1 are held rises there.
fn is_held(i: usize, count: usize, held: usize) -> bool {
    (2 * i + 3) * held / (2 * count) > (2 * i + 1) * held / (2 * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(tail: usize) -> Split {
        Split {
            tokens: 2048,
            sinks: 0,
            free: 358,
            tail,
        }
    }

    #[test]
    fn published_rows_are_the_tail_and_128_uniform_context_rows() {
        let (training, validation) = draws(2048, 2048, split(256), &Options::published());
        assert!(validation.is_empty());
        assert_eq!(training.len(), 384);
        assert_eq!(
            training[0],
            Draw {
                token: 1792,
                position: 1792
            }
        );
        assert_eq!(
            training[255],
            Draw {
                token: 2047,
                position: 2047
            }
        );
        assert_eq!(training[256], Draw { token: 0, position: 2048 });
        assert_eq!(training[257], Draw { token: 16, position: 2049 });
        assert_eq!(
            training[383],
            Draw {
                token: 2047,
                position: 2175
            }
        );
    }

    #[test]
    fn context_rows_are_spread_over_the_horizon_the_newest_soonest() {
        for (context, horizon) in [(8, 4), (4, 8), (512, 256), (1, 9)] {
            let options = Options {
                recent_rows: Some(0),
                context_rows: context,
                horizon: Some(horizon),
                ..Options::published()
            };
            let (training, _) = draws(2048, 3000, split(0), &options);
            assert_eq!(training.len(), context);
            let newest = training.last().unwrap();
            assert_eq!((newest.token, newest.position), (2047, 3000));
            assert!(
                training
                    .windows(2)
                    .all(|pair| pair[0].token < pair[1].token && pair[0].position >= pair[1].position)
            );
            // The last of them is within one row's share of the end.
            let farthest = training[0].position - 3000;
            assert!(
                farthest < horizon && (farthest + 1) * context + horizon > horizon * context,
                "{context} {horizon} {farthest}"
            );
        }
    }

    #[test]
    fn of_own_rows_an_eighth_is_held_out_and_one_at_least() {
        for (count, most, held) in [
            (1, 64, 0),
            (2, 64, 1),
            (7, 64, 1),
            (16, 64, 2),
            (80, 64, 10),
            (80, 3, 3),
            (80, 0, 0),
            (4096, 64, 64),
        ] {
            let options = Options {
                validation_rows: most,
                ..Options::default()
            };
            let queries = Queries {
                rows: count,
                #[allow(clippy::cast_precision_loss, reason = "small whole numbers")]
                data: (0..2 * count).map(|row| row as f32).collect(),
            };
            let mut rows = Rows::default();
            split_given(&queries, 1, 0..2, &options, &mut rows);
            assert_eq!(
                (rows.training.len(), rows.validation.len()),
                (2 * (count - held), 2 * held),
                "{count}"
            );
            assert!(rows.validation.iter().all(|row| !rows.training.contains(row)));
            // The same of every query head.
            #[allow(clippy::cast_precision_loss, reason = "a small whole number")]
            let shifted: Vec<f32> = rows.validation[..held].iter().map(|row| row + count as f32).collect();
            assert_eq!(rows.validation[held..], shifted);
        }
    }

    #[test]
    fn held_out_rows_are_never_trained_on_and_counted_exactly() {
        for (recent, context, held) in [(256, 512, 64), (0, 100, 10), (16, 0, 5), (256, 2048, 511), (1, 1, 9)] {
            let options = Options {
                recent_rows: Some(recent),
                context_rows: context,
                validation_rows: held,
                ..Options::published()
            };
            let (training, validation) = draws(2048, 5000, split(64), &options);
            assert_eq!(training.len() + validation.len(), recent + context);
            assert_eq!(validation.len(), held.min((recent + context) / 2), "{recent} {context} {held}");
            assert!(validation.iter().all(|draw| !training.contains(draw)));
        }
    }
}
