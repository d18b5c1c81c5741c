//! The exponential and the loops around it, written so that the compiler turns them into vector code.
//!
//! Sums run in [`LANES`] lanes whatever the machine's own width, so every processor adds in the same order.
//! Multiplications and additions are kept apart: a fused one is slow where the processor has none.

use super::vectorised::vectorised;

/// Lanes a sum runs in.
const LANES: usize = 16;
/// Below this the exponential is taken as 0; the result would leave the range of normal numbers.
const LOWEST: f32 = -86.5;
/// Above this the exponential is taken as infinite.
const HIGHEST: f32 = 88.0;

/// `eˣ` within 2 units in the last place; 0 below −86.5, infinite above 88, NaN stays NaN.
#[inline(always)]
pub(super) fn exponential(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has so few bits that its product with a whole number is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let low = if x < LOWEST { LOWEST } else { x };
    let bounded = if low > HIGHEST { HIGHEST } else { low };
    let rounded = bounded * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let r = (bounded - whole * LN_2_HIGH) - whole * LN_2_LOW;
    // Taylor's series to the seventh order: the rest is below 5e-9 on |r| ≤ ln 2 / 2.
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = (p * r) * r + r + 1.0;
    let power = f32::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 23));
    let above = if x > HIGHEST { f32::INFINITY } else { power };
    if x < LOWEST { 0.0 } else { above }
}

/// The largest element, `floor` if none is larger; NaN is passed over.
#[inline(always)]
fn largest(row: &[f32], floor: f32) -> f32 {
    let mut lanes = [floor; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.iter().fold(floor, |a, &b| if b > a { b } else { a })
}

/// Replaces each x by `e^{x − shift}`.
#[inline(always)]
fn exponentials(row: &mut [f32], shift: f32) {
    for x in row {
        *x = exponential(*x - shift);
    }
}

/// The sum of a row.
#[inline(always)]
fn sum(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    total(lanes)
}

#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

vectorised! {
    /// Takes one tile of scores into a running softmax: replaces each row of scores by `e^{x − m}` with m the largest yet,
    /// and rescales what the state holds to that m.
    ///
    /// A row of the state is `[outputs: value_dim, sum, m, 0, 0]` while it runs.
    pub(super) fn absorb<'a>(scores: &'a mut [f32], columns: usize, state: &'a mut [f32], value_dim: usize) -> () {
        for (row, state) in scores.chunks_exact_mut(columns).zip(state.chunks_exact_mut(value_dim + 4)) {
            let (outputs, running) = state.split_at_mut(value_dim);
            let before = running[1];
            let shift = largest(row, before);
            exponentials(row, shift);
            if shift > before {
                let factor = exponential(before - shift);
                running[0] *= factor;
                running[1] = shift;
                for output in outputs {
                    *output *= factor;
                }
            }
            running[0] += sum(row);
        }
    }
}

vectorised! {
    /// Replaces each row of scores by `e^{x − shift}`; `shifts` holds one for each row, `stride` floats apart.
    pub(super) fn shifted<'a>(scores: &'a mut [f32], columns: usize, shifts: &'a [f32], stride: usize) -> () {
        for (row, shift) in scores.chunks_exact_mut(columns).zip(shifts.iter().step_by(stride)) {
            exponentials(row, *shift);
        }
    }
}

vectorised! {
    /// Adds the rows up: `totals_j ← totals_j + Σ_q e^{x_qj − shift_q}`.
    pub(super) fn add_columns<'a>(scores: &'a mut [f32], columns: usize, shifts: &'a [f32], stride: usize, totals: &'a mut [f32]) -> () {
        for (row, shift) in scores.chunks_exact_mut(columns).zip(shifts.iter().step_by(stride)) {
            exponentials(row, *shift);
            for (total, x) in totals.iter_mut().zip(row.iter()) {
                *total += *x;
            }
        }
    }
}

vectorised! {
    /// `m_qj ← p_qj (m_qj − r_q) c_q`, m holding `e·w_j`; `r` is one for each row, `stride` floats apart.
    pub(super) fn pull<'a>(m: &'a mut [f32], p: &'a [f32], columns: usize, r: &'a [f32], stride: usize, c: &'a [f32]) -> () {
        let rows = m.chunks_exact_mut(columns).zip(p.chunks_exact(columns));
        for ((m, p), (&r, &c)) in rows.zip(r.iter().step_by(stride).zip(c)) {
            for (m, p) in m.iter_mut().zip(p) {
                *m = *p * (*m - r) * c;
            }
        }
    }
}

vectorised! {
    /// Adds a block of rows to the effects of its columns' pairs. `scores` are logits, `products` are `−v·y` and `norms` `‖v‖²`; a row of
    /// the state is `[y: value_dim, l, …]`.
    pub(super) fn add_effects<'a>(
        scores: &'a [f32],
        products: &'a [f32],
        columns: usize,
        state: &'a [f32],
        value_dim: usize,
        norms: &'a [f32],
        effects: &'a mut [f32],
    ) -> () {
        let rows = scores.chunks_exact(columns).zip(products.chunks_exact(columns));
        for ((scores, products), state) in rows.zip(state.chunks_exact(value_dim + 4)) {
            let mut quarter = 0.0;
            for output in &state[..value_dim] {
                quarter += 0.25 * output * output;
            }
            let mass = state[value_dim];
            for (((effect, score), product), norm) in effects.iter_mut().zip(scores).zip(products).zip(norms) {
                let weight = exponential(score - mass);
                let distance = norm + product + quarter;
                let distance = if distance > 0.0 { distance } else { 0.0 };
                *effect += weight * weight * distance;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(x: f32) -> f64 {
        let got = f64::from(exponential(x));
        let exact = f64::from(x).exp();
        let unit = f64::exp2(exact.log2().floor() - 23.0);
        ((got - exact) / unit).abs()
    }

    #[test]
    fn exponential_is_within_two_units() {
        let mut worst = (0.0, 0.0);
        for i in 0..2_000_000 {
            let x = -86.5 + 174.0 * (i as f32) / 2_000_000.0;
            let error = ulps(x);
            if error > worst.0 {
                worst = (error, x);
            }
        }
        println!("worst {} ulp at {}", worst.0, worst.1);
        assert!(worst.0 < 2.0, "{} units at {}", worst.0, worst.1);
        assert_eq!(exponential(0.0), 1.0);
    }

    #[test]
    fn exponential_ends_well() {
        for x in [-86.6, -87.5, -104.0, -1e4, crate::engine::NO_MASS, f32::NEG_INFINITY] {
            assert_eq!(exponential(x), 0.0, "{x}");
        }
        assert!(exponential(-86.4) > 0.0);
        assert!(exponential(88.0).is_finite());
        assert_eq!(exponential(89.0), f32::INFINITY);
        assert_eq!(exponential(f32::INFINITY), f32::INFINITY);
        assert!(exponential(f32::NAN).is_nan());
    }

    #[test]
    fn rows_of_every_length_sum_their_exponentials() {
        for length in 1..70u16 {
            let mut row: Vec<f32> = (0..length).map(|i| f32::from(i * 37 % 23) - 9.5).collect();
            let exact: f64 = row.iter().map(|&x| f64::from(x - 13.0).exp()).sum();
            assert_eq!(largest(&row, -20.0), row.iter().copied().fold(-20.0, f32::max));
            exponentials(&mut row, 13.0);
            let sum = sum(&row);
            assert!((f64::from(sum) - exact).abs() < 1e-6 * exact, "{length}: {sum} {exact}");
            assert!(row.iter().all(|x| *x > 0.0));
        }
    }
}
