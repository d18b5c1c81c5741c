//! How far a result may be from the reference.

use kvsculpt::engine::{Head, SCALARS};

use crate::batch::of_head;

/// The f32 ε.
pub const EPSILON: f64 = f32::EPSILON as f64;

/// How many times the modelled error is allowed: models count typical roundings, not worst cases.
pub const SLACK: f64 = 4.0;

/// Below this an f32 may be flushed to 0, and sums of such numbers are noise.
const UNDERFLOW: f64 = 1e-33;

/// Numbers that any forgotten output would show.
pub fn poison(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

pub fn wide(array: &[f32]) -> Vec<f64> {
    array.iter().copied().map(f64::from).collect()
}

#[allow(clippy::cast_possible_truncation, reason = "inputs are rounded to the engine's precision")]
pub fn narrow(array: &[f64]) -> Vec<f32> {
    array.iter().map(|&x| x as f32).collect()
}

/// The largest magnitude.
pub fn largest(array: &[f64]) -> f64 {
    array.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

pub fn norm(array: &[f64]) -> f64 {
    array.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Every element within `bound` of the reference's.
#[track_caller]
pub fn close(what: &str, head: &Head, actual: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    assert!(bound.is_finite(), "{what}: the bound is {bound}");
    for (place, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(
            error <= bound + UNDERFLOW,
            "{what} of {head:?} at {place}: {actual:e} is {error:e} from {expected:e}; {bound:e} is allowed"
        );
    }
}

/// Still poisoned: nothing was written here.
#[track_caller]
pub fn untouched(what: &str, head: &Head, actual: &[f32]) {
    let place = actual.iter().position(|x| !x.is_nan());
    assert!(place.is_none(), "{what} of {head:?} was written at {place:?}, where it must not be");
}

/// One scalar of a head.
#[track_caller]
pub fn scalar_close(what: &str, head: &Head, scalars: &[f32], place: usize, expected: f64, bound: f64) {
    close(what, head, &of_head(head, scalars, SCALARS)[place..=place], &[expected], bound);
}

/// Every scalar of a head but those named is still poisoned.
#[track_caller]
pub fn other_scalars_untouched(head: &Head, scalars: &[f32], set: &[usize]) {
    for (place, scalar) in of_head(head, scalars, SCALARS).iter().enumerate() {
        assert!(set.contains(&place) || scalar.is_nan(), "scalar {place} of {head:?} was written");
    }
}

/// The bits, so that NaN equals NaN and 0 is not −0.
pub fn bits(array: &[f32]) -> Vec<u32> {
    array.iter().map(|x| x.to_bits()).collect()
}
