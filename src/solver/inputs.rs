//! What a batch begins with: the arrays that hold what its heads give, for which nothing has to be computed. They are uploaded when the
//! batch begins, or while the one before it is worked on.

use super::chunks::Part;
use super::problem::Problem;
use super::rows::Rows;
use super::rowset::{Kind, joined};
use crate::engine::{Dims, Engine, Uploader};
use crate::error::Result;
use crate::options::Split;

/// The engine itself as who uploads.
pub(super) struct AtOnce<'a, E: Engine>(pub(super) &'a mut E);

impl<E: Engine> Uploader<E::Array> for AtOnce<'_, E> {
    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<E::Array> {
        self.0.upload(label, data)
    }

    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<E::Array> {
        self.0.upload_compact(label, data)
    }
}

/// The full cache of a batch's heads, on the engine.
#[derive(Debug)]
pub(crate) struct FullCache<A> {
    pub(crate) keys: A,
    pub(crate) values: A,
    pub(crate) fixed_keys: A,
    pub(crate) fixed_values: A,
}

impl<A> FullCache<A> {
    pub(super) fn upload(by: &mut dyn Uploader<A>, problems: &[&Problem], dims: Dims) -> Result<Self> {
        let value_dim = dims.value_dim as usize;
        // One after the other, so that the host holds a copy of one array at a time.
        let mut gathered = |label, count: fn(&Split) -> usize, width: usize, gather: &dyn Fn(&Problem, &mut Vec<f32>)| {
            let pairs: usize = problems.iter().map(|problem| count(&problem.split)).sum();
            let mut data = Vec::with_capacity(pairs * width);
            problems.iter().for_each(|problem| gather(problem, &mut data));
            by.upload_compact(label, &data)
        };
        let fixed = |split: &Split| split.sinks + split.tail;
        let dim = dims.dim as usize;
        Ok(Self {
            keys: gathered("keys", |split| split.tokens, dim, &|problem, data| {
                problem.push_keys(&problem.keys, data)
            })?,
            values: gathered("values", |split| split.tokens, value_dim, &|problem, data| {
                data.extend_from_slice(&problem.values);
            })?,
            fixed_keys: gathered("fixed keys", fixed, dim, &|problem, data| problem.assemble_wide(&[], data))?,
            fixed_values: gathered("fixed values", fixed, value_dim, &|problem, data| {
                problem.assemble(&problem.values, &[], value_dim, data);
            })?,
        })
    }
}

/// Rows of one kind, and what their heads' other chunks say to them.
#[derive(Debug)]
pub(crate) struct Given<A> {
    pub(super) queries: A,
    /// Floats of the queries.
    pub(super) floats: usize,
    /// Of heads that are cut into chunks, where these knew of each other by then.
    pub(super) parts: Option<Parts<A>>,
}

/// What chunks know of their heads: the others' state is in both teacher and student.
#[derive(Debug)]
pub(super) struct Parts<A> {
    pub(super) teacher: A,
    pub(super) others: A,
}

impl<A> Parts<A> {
    /// `None` where heads are not cut, or their chunks do not know of each other yet.
    pub(super) fn upload(by: &mut dyn Uploader<A>, problems: &[&Problem], dims: Dims, kind: Kind) -> Result<Option<Self>> {
        if problems.iter().all(|problem| problem.part.is_none()) {
            return Ok(None);
        }
        let parts = |state: for<'a> fn(&'a Part, &Rows, Kind, Dims) -> &'a [f32]| -> Vec<f32> {
            let chunks = problems.iter().filter_map(|problem| Some((problem.part.as_ref()?, &problem.rows)));
            joined(chunks.map(|(part, rows)| state(part, rows, kind, dims)))
        };
        Ok(Some(Self {
            teacher: by.upload("teacher", &parts(Part::teacher))?,
            others: by.upload("others", &parts(Part::others))?,
        }))
    }
}

impl<A> Given<A> {
    pub(super) fn upload(by: &mut dyn Uploader<A>, problems: &[&Problem], dims: Dims, kind: Kind) -> Result<Self> {
        let queries = joined(problems.iter().map(|problem| kind.rows(&problem.rows)));
        let floats = queries.len();
        Ok(Self {
            queries: by.upload("queries", &queries)?,
            floats,
            parts: Parts::upload(by, problems, dims, kind)?,
        })
    }
}

/// All that a batch begins with.
#[derive(Debug)]
pub(crate) struct Inputs<A> {
    pub(super) cache: FullCache<A>,
    /// In the order of [`Kind::ALL`]; `None` where no head has such rows.
    pub(super) rows: [Option<Given<A>>; 3],
    places: Vec<Place>,
}

impl<A> Inputs<A> {
    /// Uploads them; `None` where `stops` says so in between.
    pub(super) fn upload(by: &mut dyn Uploader<A>, problems: &[&Problem], stops: &dyn Fn() -> bool) -> Result<Option<Self>> {
        let Some(dims) = problems.first().map(|problem| problem.dims) else {
            return Ok(None);
        };
        let cache = FullCache::upload(by, problems, dims)?;
        let mut rows = [None, None, None];
        for (rows, kind) in rows.iter_mut().zip(Kind::ALL) {
            if stops() {
                return Ok(None);
            }
            if problems.iter().any(|problem| !kind.rows(&problem.rows).is_empty()) {
                *rows = Some(Given::upload(by, problems, dims, kind)?);
            }
        }
        Ok(Some(Self {
            cache,
            rows,
            places: places(problems),
        }))
    }

    /// Whether they are those of these problems.
    pub(super) fn is_of(&self, problems: &[&Problem]) -> bool {
        self.places == places(problems)
    }
}

/// A problem's layer, head and chunk.
type Place = (usize, usize, usize);

fn places(problems: &[&Problem]) -> Vec<Place> {
    problems
        .iter()
        .map(|problem| (problem.layer, problem.head, problem.chunk))
        .collect()
}
