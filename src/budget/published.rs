//! The paper's rule: shares by the square root of a pilot's errors.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Free pairs of each head by the two-level rule: a layer's share ∝ √(mean pilot error of its heads), a head's share of it ∝
/// √(its pilot error) (arXiv 2603.27819).
///
/// `layers` and `pilot` give each head's layer and pilot error; the result is in their order, sums to `total` exactly and keeps
/// every head between `least` and `most`. What these bounds move is shared out by the same shares among the other heads;
/// fractions are settled by the largest remainder, the first head winning ties. Where heads are left that have no share, or the
/// pilot found no error at all, they share evenly.
///
/// ```
/// use kvsculpt::budget::published;
///
/// // Two layers of two heads; √1 : √9 between the heads of each.
/// let free = published(&[0, 0, 1, 1], &[0.01, 0.09, 0.01, 0.09], 1, 500, 400)?;
/// assert_eq!(free, [50, 150, 50, 150]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Options`] if `total` lies outside `heads · least` to `heads · most`. [`Error::Shape`] for no heads, layers and errors of
/// different number, a `least` above `most`, and errors that are negative or not finite.
pub fn published(layers: &[usize], pilot: &[f64], least: usize, most: usize, total: usize) -> Result<Vec<usize>> {
    check(layers, pilot, least, most, total)?;
    let exact = bounded(&shares(layers, pilot), least as f64, most as f64, total as f64);
    Ok(rounded(&exact, least, most, total))
}

fn check(layers: &[usize], pilot: &[f64], least: usize, most: usize, total: usize) -> Result<()> {
    let heads = layers.len();
    if heads == 0 || pilot.len() != heads {
        return Err(Error::shape(
            "budgets",
            format!("{} pilot errors for {heads} heads; one a head is needed", pilot.len()),
        ));
    }
    if least > most {
        return Err(Error::shape(
            "budgets",
            format!("a head must get at least {least} free pairs and its zone holds {most}; use a smaller tail or fewer sinks"),
        ));
    }
    if let Some(at) = pilot.iter().position(|error| !(error.is_finite() && *error >= 0.0)) {
        return Err(Error::shape(
            format!("layer {}", layers[at]),
            format!("a pilot error is {}; errors must be finite and zero or more", pilot[at]),
        ));
    }
    let (low, high) = (heads.saturating_mul(least), heads.saturating_mul(most));
    if total < low {
        return Err(Error::option(
            "--allocator",
            format!("{total} free pairs are fewer than {least} for each of {heads} heads; the smallest number that serves is {low}"),
        ));
    }
    if total > high {
        return Err(Error::option(
            "--allocator",
            format!("{total} free pairs are more than the {high} pairs that the zones of {heads} heads hold; at most {high} can be kept"),
        ));
    }
    Ok(())
}

/// Each head's share, with any sum.
fn shares(layers: &[usize], pilot: &[f64]) -> Vec<f64> {
    // Errors of any size may be added up once the largest is 1.
    let largest = pilot.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 {
        return vec![1.0; pilot.len()];
    }
    /// Sums over the heads of a layer.
    #[derive(Default)]
    struct Sums {
        heads: usize,
        errors: f64,
        roots: f64,
    }
    let mut sums: BTreeMap<usize, Sums> = BTreeMap::new();
    for (&layer, error) in layers.iter().zip(pilot) {
        let sums = sums.entry(layer).or_default();
        sums.heads += 1;
        sums.errors += error / largest;
        sums.roots += (error / largest).sqrt();
    }
    let share = |(layer, error): (&usize, &f64)| match sums.get(layer) {
        Some(sums) if sums.roots > 0.0 => (sums.errors / sums.heads as f64).sqrt() * (error / largest).sqrt() / sums.roots,
        _ => 0.0,
    };
    layers.iter().zip(pilot).map(share).collect()
}

/// `clamp(μ · share)` with the μ at which the sum is `total`, which lies between the sums of the bounds.
fn bounded(shares: &[f64], least: f64, most: f64, total: f64) -> Vec<f64> {
    let mut exact = vec![0.0; shares.len()];
    let mut free: Vec<usize> = (0..shares.len()).collect();
    let mut left = total;
    while !free.is_empty() {
        let sum: f64 = free.iter().map(|&head| shares[head]).sum();
        for &head in &free {
            let share = if sum > 0.0 { shares[head] / sum } else { 1.0 / free.len() as f64 };
            exact[head] = left * share;
        }
        let lacking: f64 = free.iter().map(|&head| (least - exact[head]).max(0.0)).sum();
        let excess: f64 = free.iter().map(|&head| (exact[head] - most).max(0.0)).sum();
        // If more is lacking than in excess, μ must fall, and who is below the floor now stays below it; else who is above the
        // cap stays above. So one side may be settled for good, never both at once.
        let (bound, settled): (f64, fn(f64, f64) -> bool) = if lacking == 0.0 && excess == 0.0 {
            break;
        } else if lacking >= excess {
            (least, |value, bound| value < bound)
        } else {
            (most, |value, bound| value > bound)
        };
        free.retain(|&head| {
            let stays = !settled(exact[head], bound);
            if !stays {
                exact[head] = bound;
                left -= bound;
            }
            stays
        });
    }
    exact
}

/// Whole numbers of the same sum: down, then the largest remainders up.
fn rounded(exact: &[f64], least: usize, most: usize, total: usize) -> Vec<usize> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count, between the bounds"
    )]
    let mut pairs: Vec<usize> = exact.iter().map(|&value| (value.floor() as usize).clamp(least, most)).collect();
    let mut order: Vec<usize> = (0..exact.len()).collect();
    order.sort_by(|&one, &other| exact[other].fract().total_cmp(&exact[one].fract()));
    let mut sum: usize = pairs.iter().sum();
    // One round settles fractions; rounding in the shares themselves may need another, up or down.
    while sum != total {
        for &head in &order {
            if sum < total && pairs[head] < most {
                pairs[head] += 1;
                sum += 1;
            }
        }
        for &head in order.iter().rev() {
            if sum > total && pairs[head] > least {
                pairs[head] -= 1;
                sum -= 1;
            }
        }
    }
    pairs
}
