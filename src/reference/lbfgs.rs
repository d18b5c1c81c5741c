//! L-BFGS: Nocedal and Wright, Numerical Optimization, algorithm 7.4.

use super::dot;

/// `[1 / s·y, s·y / y·y]` of a curvature pair, or `None` where it is of no use: `s·y ≤ 1e-10 · y·y`, or not finite.
///
/// ```
/// use kvsculpt::reference::curvature;
///
/// // s·y = 2, y·y = 4.
/// assert_eq!(curvature(&[1.0, 0.0], &[2.0, 0.0]), Some([0.5, 0.5]));
/// // Bent the wrong way: of no use.
/// assert_eq!(curvature(&[1.0, 0.0], &[-2.0, 0.0]), None);
/// ```
#[must_use]
pub fn curvature(step: &[f64], change: &[f64]) -> Option<[f64; 2]> {
    let (step_change, change_change) = (dot(step, change), dot(change, change));
    let usable = step_change.is_finite() && change_change.is_finite() && step_change > 1e-10 * change_change;
    usable.then(|| [step_change.recip(), step_change / change_change])
}

/// The two-loop recursion, `−H g`, over the curvature pairs `(s, y)`, oldest first; pairs of no use are passed over.
///
/// `H₀ = (s·y / y·y) I` of the newest usable pair, I where there is none.
///
/// ```
/// use kvsculpt::reference::direction;
///
/// // Without a pair steepest descent; one of curvature 2 divides by it.
/// assert_eq!(direction(&[4.0, 6.0], &[]), [-4.0, -6.0]);
/// assert_eq!(direction(&[4.0, 6.0], &[(vec![1.0, 0.0], vec![2.0, 0.0])]), [-2.0, -3.0]);
/// ```
#[must_use]
pub fn direction(gradient: &[f64], pairs: &[(Vec<f64>, Vec<f64>)]) -> Vec<f64> {
    let usable: Vec<_> = pairs
        .iter()
        .filter_map(|(step, change)| curvature(step, change).map(|curvature| (step, change, curvature)))
        .collect();
    let mut direction = gradient.to_vec();
    let mut shares = Vec::new();
    for (step, change, [inverse, _]) in usable.iter().rev() {
        let share = inverse * dot(step, &direction);
        add(&mut direction, -share, change);
        shares.push(share);
    }
    let start = usable.last().map_or(1.0, |(_, _, [_, start])| *start);
    direction.iter_mut().for_each(|d| *d *= start);
    for ((step, change, [inverse, _]), share) in usable.iter().zip(shares.iter().rev()) {
        let other = inverse * dot(change, &direction);
        add(&mut direction, share - other, step);
    }
    direction.iter_mut().for_each(|d| *d = -*d);
    direction
}

fn add(target: &mut [f64], factor: f64, source: &[f64]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target += factor * source;
    }
}

/// Where a head stands after an accepted step, and what the step taught.
///
/// ```
/// use kvsculpt::reference::{Pushed, push};
///
/// let Pushed { step, change, step_change, .. } = push(0.5, &[-2.0], &[1.0], &[3.0], &[5.0]);
/// assert_eq!((step, change, step_change), (vec![-1.0], vec![-2.0], 2.0));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    /// `s = t d`.
    pub step: Vec<f64>,
    /// `y = g₊ − g`.
    pub change: Vec<f64>,
    /// The new origin, `x + s`.
    pub origin: Vec<f64>,
    /// `s·y`.
    pub step_change: f64,
    /// As [`curvature`].
    pub curvature: Option<[f64; 2]>,
}

/// Moves to the accepted point: `s = t d`, `y = g₊ − g`, `x ← x + s`.
///
/// ```
/// use kvsculpt::reference::push;
///
/// let pushed = push(0.5, &[-2.0], &[1.0], &[3.0], &[5.0]);
/// assert_eq!((pushed.origin, pushed.curvature), (vec![4.0], Some([0.5, 0.5])));
/// ```
#[must_use]
pub fn push(length: f64, direction: &[f64], new_gradient: &[f64], gradient: &[f64], origin: &[f64]) -> Pushed {
    let step: Vec<f64> = direction.iter().map(|direction| length * direction).collect();
    let change: Vec<f64> = new_gradient.iter().zip(gradient).map(|(new, old)| new - old).collect();
    Pushed {
        origin: origin.iter().zip(&step).map(|(origin, step)| origin + step).collect(),
        step_change: dot(&step, &change),
        curvature: curvature(&step, &change),
        step,
        change,
    }
}
