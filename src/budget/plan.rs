//! What every allocation by curves works on: groups of heads of one length, and the stretches by which they may grow.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::curve::{Curve, Point};
use super::hull;
use crate::error::{Error, Result};

/// Which heads must be of one length.
///
/// ```
/// use kvsculpt::budget::Scope;
///
/// assert_eq!(Scope::default(), Scope::Head);
/// assert_eq!(serde_json::to_string(&Scope::Layer).ok().as_deref(), Some("\"layer\""));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All heads of all layers.
    Uniform,
    /// The heads of a layer.
    Layer,
    /// Every head has its own.
    #[default]
    Head,
}

/// Heads of one length.
struct Group {
    /// Their curves.
    curves: Vec<usize>,
    /// The convex function below `Σ weight · error` of the curves, on the lengths the group may get.
    vertices: Vec<Point>,
}

/// A group's way from one vertex to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    /// Its group.
    pub(super) group: usize,
    /// Heads that grow together.
    pub(super) heads: usize,
    /// The group's length before and after.
    pub(super) from: Point,
    pub(super) to: Point,
    /// What the weighted error drops by a pair stored.
    gain: f64,
}

impl Stretch {
    /// Pairs that the whole stretch costs.
    pub(super) fn pairs(&self) -> usize {
        (self.to.length - self.from.length) * self.heads
    }
}

/// Groups at their least lengths, and all stretches, those first that gain most by a pair.
pub(super) struct Plan {
    groups: Vec<Group>,
    /// In the order of falling gain; a group's own are in the order of their lengths, since its function is convex.
    pub(super) stretches: Vec<Stretch>,
    heads: usize,
}

impl Plan {
    /// # Errors
    /// [`Error::Shape`] for curves or weights without meaning, or heads that must be of one length and cannot.
    /// [`Error::Options`] for a page of nothing.
    pub(super) fn new(curves: &[Curve], weights: &[f64], scope: Scope, page: usize) -> Result<Self> {
        if page == 0 {
            return Err(Error::option("--page", "must be at least 1"));
        }
        check(curves, weights)?;
        let groups = grouped(curves, scope)
            .into_iter()
            .map(|members| Group::new(curves, weights, members, page))
            .collect::<Result<Vec<_>>>()?;
        let mut stretches: Vec<Stretch> = groups
            .iter()
            .enumerate()
            .flat_map(|(index, group)| group.stretches(index))
            .collect();
        // Stable, so that equal gains stay in the order of the curves and of the lengths.
        stretches.sort_by(|one, other| other.gain.total_cmp(&one.gain));
        Ok(Self {
            groups,
            stretches,
            heads: curves.len(),
        })
    }

    /// The least length of each group, for [`lengths`](Self::lengths).
    pub(super) fn start(&self) -> Vec<usize> {
        self.groups.iter().map(|group| group.vertices[0].length).collect()
    }

    /// Pairs of all heads together, where groups have these lengths.
    pub(super) fn total(&self, reached: &[usize]) -> usize {
        self.groups
            .iter()
            .zip(reached)
            .map(|(group, length)| group.curves.len() * length)
            .sum()
    }

    /// Pairs of all whole caches.
    pub(super) fn whole(&self) -> usize {
        self.groups.iter().map(|group| group.curves.len() * group.last().length).sum()
    }

    /// `Σ weight · error` where every head keeps its whole cache.
    pub(super) fn floor(&self) -> f64 {
        self.groups.iter().map(|group| group.last().error).sum()
    }

    /// Each curve's length, where groups have these.
    pub(super) fn lengths(&self, reached: &[usize]) -> Vec<usize> {
        let mut lengths = vec![0; self.heads];
        for (group, &length) in self.groups.iter().zip(reached) {
            for &curve in &group.curves {
                lengths[curve] = length;
            }
        }
        lengths
    }

    /// `Σ weight · error` by the convex functions, where groups have these lengths.
    #[cfg(test)]
    pub(super) fn error(&self, reached: &[usize]) -> f64 {
        let errors = self.groups.iter().zip(reached);
        errors.map(|(group, &length)| hull::value(&group.vertices, length)).sum()
    }

    /// The lengths of the groups behind those of the curves.
    #[cfg(test)]
    pub(super) fn reached(&self, lengths: &[usize]) -> Vec<usize> {
        self.groups.iter().map(|group| lengths[group.curves[0]]).collect()
    }
}

impl Group {
    /// # Errors
    /// [`Error::Shape`] if the heads' caches differ in length.
    fn new(curves: &[Curve], weights: &[f64], members: Vec<usize>, page: usize) -> Result<Self> {
        let ends = members.iter().map(|&curve| curves[curve].ends()).collect::<Result<Vec<_>>>()?;
        let least = ends.iter().map(|end| end.0).max().unwrap_or(0);
        let whole = ends.iter().map(|end| end.1).min().unwrap_or(0);
        if let Some(at) = ends.iter().position(|end| end.1 != whole) {
            let curve = &curves[members[at]];
            return Err(Error::shape(
                format!("layer {} head {}", curve.layer, curve.head),
                format!(
                    "its cache of {} pairs cannot be of one length with one of {whole}; use --budget head",
                    ends[at].1
                ),
            ));
        }
        let functions = members.iter().map(|&curve| {
            let weighted = |point: Point| Point {
                error: weights[curve] * point.error,
                ..point
            };
            let points: Vec<Point> = curves[curve].points.iter().copied().map(weighted).collect();
            let start = Point {
                length: least,
                error: hull::value(&points, least),
            };
            let after = points.into_iter().filter(|point| point.length > least);
            std::iter::once(start).chain(after).collect::<Vec<_>>()
        });
        let below = hull::hull(&hull::sum(functions.collect()));
        Ok(Self {
            curves: members,
            vertices: hull::paged(&below, page),
        })
    }

    fn last(&self) -> Point {
        self.vertices[self.vertices.len() - 1]
    }

    fn stretches(&self, group: usize) -> impl Iterator<Item = Stretch> {
        let heads = self.curves.len();
        self.vertices.windows(2).map(move |ends| Stretch {
            group,
            heads,
            from: ends[0],
            to: ends[1],
            gain: hull::slope(ends[0], ends[1]) / heads as f64,
        })
    }
}

/// The curves of each group, groups in the order of their first curve.
fn grouped(curves: &[Curve], scope: Scope) -> Vec<Vec<usize>> {
    match scope {
        Scope::Uniform => vec![(0..curves.len()).collect()],
        Scope::Head => (0..curves.len()).map(|curve| vec![curve]).collect(),
        Scope::Layer => {
            let mut groups: Vec<Vec<usize>> = Vec::new();
            let mut of_layer = HashMap::new();
            for (index, curve) in curves.iter().enumerate() {
                let group = *of_layer.entry(curve.layer).or_insert(groups.len());
                match groups.get_mut(group) {
                    Some(members) => members.push(index),
                    None => groups.push(vec![index]),
                }
            }
            groups
        }
    }
}

/// Refuses what cannot be added up.
fn check(curves: &[Curve], weights: &[f64]) -> Result<()> {
    if curves.is_empty() {
        return Err(Error::shape("budgets", "there is no error curve to share pairs out by"));
    }
    if curves.len() != weights.len() {
        return Err(Error::shape(
            "budgets",
            format!("{} weights for {} error curves; one a curve is needed", weights.len(), curves.len()),
        ));
    }
    let (mut pairs, mut errors) = (0_usize, 0.0_f64);
    for (curve, &weight) in curves.iter().zip(weights) {
        let place = || format!("layer {} head {}", curve.layer, curve.head);
        let (_, whole) = curve.ends()?;
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(Error::shape(
                place(),
                format!("its weight is {weight}; weights must be finite and zero or more"),
            ));
        }
        pairs = pairs
            .checked_add(whole)
            .ok_or_else(|| Error::shape(place(), "the caches are too long to be counted"))?;
        errors += curve.points.iter().map(|point| weight * point.error).fold(0.0, f64::max);
        if !errors.is_finite() {
            return Err(Error::shape(place(), "its weighted errors are too large to be added up"));
        }
    }
    if weights.iter().all(|&weight| weight == 0.0) {
        return Err(Error::shape("budgets", "every weight is zero; at least one must be above"));
    }
    Ok(())
}
