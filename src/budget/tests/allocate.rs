use super::super::plan::Plan;
use super::super::{Curve, Scope, allocate};
use super::{choices, convex, curve, noisy, weighted};

const SCOPES: [Scope; 3] = [Scope::Uniform, Scope::Layer, Scope::Head];

/// What a head of this curve may get.
fn allowed(curve: &Curve, page: usize) -> Vec<usize> {
    let (least, whole) = curve.ends().unwrap();
    (least..=whole).filter(|length| length % page == 0 || *length == whole).collect()
}

fn least(curves: &[Curve], page: usize) -> usize {
    curves.iter().map(|curve| allowed(curve, page)[0]).sum()
}

fn whole(curves: &[Curve]) -> usize {
    curves.iter().map(|curve| curve.ends().unwrap().1).sum()
}

#[test]
fn no_other_lengths_of_the_sum_are_better() {
    let mut random = fastrand::Rng::with_seed(1);
    for case in 0..60 {
        // Whole caches of a multiple of the page, or a page of 1: every step costs the same.
        let page = [1, 2, 4][case % 3];
        let curves: Vec<Curve> = (0..3)
            .map(|head| {
                let least = random.usize(1..3);
                let whole = 4 * random.usize(1..4);
                convex(&mut random, 0, head, least, whole)
            })
            .collect();
        let weights: Vec<f64> = curves.iter().map(|_| f64::from(random.u32(1..5))).collect();
        let lists: Vec<Vec<usize>> = curves.iter().map(|curve| allowed(curve, page)).collect();
        let all = choices(&lists);
        for total in least(&curves, page)..=whole(&curves) {
            let found = allocate(&curves, &weights, Scope::Head, page, total).unwrap();
            assert!(all.contains(&found), "{found:?}");
            let sum: usize = found.iter().sum();
            let best = all.iter().filter(|lengths| lengths.iter().sum::<usize>() == sum);
            let best = best
                .map(|lengths| weighted(&curves, &weights, lengths))
                .fold(f64::INFINITY, f64::min);
            // Whole numbers: equal to the last bit.
            assert_eq!(weighted(&curves, &weights, &found), best, "page {page}, total {total}: {found:?}");
            let largest = all
                .iter()
                .map(|lengths| lengths.iter().sum())
                .filter(|&sum: &usize| sum <= total)
                .max();
            assert_eq!(Some(sum), largest, "page {page}, total {total}");
        }
    }
}

#[test]
fn no_other_length_a_layer_is_better() {
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..40 {
        let curves: Vec<Curve> = (0..6).map(|at| convex(&mut random, at / 2, at % 2, 1, 8)).collect();
        let weights: Vec<f64> = curves.iter().map(|_| f64::from(random.u32(0..4) + 1)).collect();
        let twice = |lengths: &[usize]| lengths.iter().flat_map(|&length| [length, length]).collect::<Vec<_>>();
        let all: Vec<Vec<usize>> = choices(&vec![(1..=8).collect(); 3]).iter().map(|lengths| twice(lengths)).collect();
        for total in 6..=48 {
            let found = allocate(&curves, &weights, Scope::Layer, 1, total).unwrap();
            let best = all.iter().filter(|lengths| lengths.iter().sum::<usize>() == total / 2 * 2);
            let best = best
                .map(|lengths| weighted(&curves, &weights, lengths))
                .fold(f64::INFINITY, f64::min);
            assert!(all.contains(&found) && found.iter().sum::<usize>() == total / 2 * 2, "{found:?}");
            assert_eq!(weighted(&curves, &weights, &found), best, "total {total}: {found:?}");
        }
    }
}

/// Curves of some layers with some heads each, and weights.
fn model(random: &mut fastrand::Rng, scope: Scope) -> (Vec<Curve>, Vec<f64>) {
    let same = random.usize(20..300);
    let mut curves = Vec::new();
    for layer in 0..random.usize(1..6) {
        for head in 0..random.usize(1..4) {
            let whole = if scope == Scope::Head { random.usize(1..300) } else { same };
            curves.push(noisy(random, layer, head, whole));
        }
    }
    let weights = curves.iter().map(|_| random.f64() + 0.01).collect();
    (curves, weights)
}

#[test]
fn totals_pages_and_bounds_hold_for_any_curves() {
    let mut random = fastrand::Rng::with_seed(3);
    for case in 0..600 {
        let (scope, page) = (SCOPES[case % 3], [1, 3, 16, 500][case / 3 % 4]);
        let (curves, weights) = model(&mut random, scope);
        let plan = Plan::new(&curves, &weights, scope, page).unwrap();
        let (least, whole) = (plan.total(&plan.start()), whole(&curves));
        let total = random.usize(least..=whole);
        let lengths = allocate(&curves, &weights, scope, page, total).unwrap();
        assert_eq!(lengths, allocate(&curves, &weights, scope, page, total).unwrap());
        for (curve, &length) in curves.iter().zip(&lengths) {
            let (low, high) = curve.ends().unwrap();
            assert!(
                low <= length && length <= high && (length % page == 0 || length == high),
                "{length} of {low}..{high}"
            );
        }
        let sum: usize = lengths.iter().sum();
        assert!(sum <= total, "{sum} of {total}");
        // No group that is not whole can take its next step.
        for group in 0..curves.len() {
            let bound: Vec<usize> = (0..curves.len())
                .filter(|&other| match scope {
                    Scope::Uniform => true,
                    Scope::Layer => curves[other].layer == curves[group].layer,
                    Scope::Head => other == group,
                })
                .collect();
            assert!(bound.iter().all(|&other| lengths[other] == lengths[group]));
            let (_, high) = curves[group].ends().unwrap();
            let step = page.min(high - lengths[group]) * bound.len();
            assert!(
                step == 0 || total - sum < step,
                "{scope:?}, page {page}: {} left, a step of {step}",
                total - sum
            );
        }
        if scope == Scope::Head && page == 1 {
            assert_eq!(sum, total);
        }
    }
}

#[test]
fn a_larger_total_is_never_worse() {
    let mut random = fastrand::Rng::with_seed(4);
    for case in 0..90 {
        let (scope, page) = (SCOPES[case % 3], [1, 8, 16][case / 3 % 3]);
        let (curves, weights) = model(&mut random, scope);
        let plan = Plan::new(&curves, &weights, scope, page).unwrap();
        let start = plan.start();
        let mut before = plan.error(&start);
        assert!(before.is_finite());
        for total in plan.total(&start)..=plan.whole() {
            let lengths = allocate(&curves, &weights, scope, page, total).unwrap();
            let error = plan.error(&plan.reached(&lengths));
            assert!(
                error <= before * (1.0 + 1e-12) + 1e-18,
                "{scope:?}, page {page}, {total}: {before} then {error}"
            );
            before = error;
        }
        assert_eq!(before, 0.0);
    }
}

#[test]
fn weights_and_errors_draw_pairs() {
    let points = [(10, 1.0), (20, 0.4), (100, 0.0)];
    let curves = [curve(0, 0, &points), curve(0, 1, &points)];
    assert_eq!(allocate(&curves, &[1.0, 1.0], Scope::Head, 1, 35).unwrap(), [20, 15]);
    assert_eq!(allocate(&curves, &[1.0, 2.0], Scope::Head, 1, 35).unwrap(), [15, 20]);
    // Twenty times the weight: even the flat part of one is worth more than the steep part of the other.
    assert_eq!(allocate(&curves, &[1.0, 20.0], Scope::Head, 1, 105).unwrap(), [10, 95]);
}

#[test]
fn a_point_that_noise_lifted_is_passed_over() {
    let lifted = curve(0, 0, &[(10, 1.0), (20, 3.0), (30, 0.2), (40, 0.5), (50, 0.0)]);
    let plain = curve(0, 1, &[(10, 1.0), (50, 0.0)]);
    // The hull of the first falls by 0.04 a pair until 30, then by 0.01; the other's by 0.025.
    let curves = [lifted, plain];
    for (total, lengths) in [
        (21, [11, 10]),
        (40, [30, 10]),
        (41, [30, 11]),
        (80, [30, 50]),
        (81, [31, 50]),
        (100, [50, 50]),
    ] {
        assert_eq!(allocate(&curves, &[1.0, 1.0], Scope::Head, 1, total).unwrap(), lengths);
    }
}

#[test]
fn layers_add_their_heads_up_by_weight() {
    let steep = |layer, head, error| curve(layer, head, &[(10, error), (30, 0.0)]);
    let curves = [steep(0, 0, 1.0), steep(0, 1, 0.0), steep(1, 0, 0.6), steep(1, 1, 0.6)];
    assert_eq!(allocate(&curves, &[1.0; 4], Scope::Layer, 1, 61).unwrap(), [10, 10, 20, 20]);
    assert_eq!(
        allocate(&curves, &[2.0, 1.0, 1.0, 1.0], Scope::Layer, 1, 61).unwrap(),
        [20, 20, 10, 10]
    );
    assert_eq!(allocate(&curves, &[1.0; 4], Scope::Uniform, 1, 63).unwrap(), [15, 15, 15, 15]);
    assert_eq!(allocate(&curves, &[1.0; 4], Scope::Uniform, 4, 63).unwrap(), [12, 12, 12, 12]);
}

#[test]
fn everything_is_kept_where_the_total_is_everything() {
    let mut random = fastrand::Rng::with_seed(5);
    for scope in SCOPES {
        let (curves, weights) = model(&mut random, scope);
        let ends: Vec<usize> = curves.iter().map(|curve| curve.ends().unwrap().1).collect();
        for page in [1, 16, 1 << 40] {
            assert_eq!(allocate(&curves, &weights, scope, page, ends.iter().sum()).unwrap(), ends);
        }
    }
}

#[test]
fn long_caches_of_many_heads_take_no_longer() {
    let mut random = fastrand::Rng::with_seed(6);
    let curves: Vec<Curve> = (0..4096).map(|at| noisy(&mut random, at / 8, at % 8, 131_072)).collect();
    let weights = vec![1.0; curves.len()];
    let total = 4096 * 131_072 / 3;
    assert_eq!(
        allocate(&curves, &weights, Scope::Head, 1, total).unwrap().iter().sum::<usize>(),
        total
    );
    for (scope, step) in [(Scope::Head, 16), (Scope::Layer, 16 * 8), (Scope::Uniform, 16 * 4096)] {
        let sum: usize = allocate(&curves, &weights, scope, 16, total).unwrap().iter().sum();
        assert!(sum <= total && total - sum < step, "{scope:?}: {sum} of {total}");
    }
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let good = || [curve(3, 0, &[(10, 1.0), (50, 0.0)]), curve(3, 1, &[(10, 0.5), (50, 0.0)])];
    let told = |curves: &[Curve], weights: &[f64], scope, page, total, words: &[&str]| {
        let text = allocate(curves, weights, scope, page, total).unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    told(
        &good(),
        &[1.0; 2],
        Scope::Head,
        1,
        19,
        &["--budget", "19 pairs", "smallest total that serves is 20,", "keep of 0.2000"],
    );
    told(&good(), &[1.0; 2], Scope::Head, 16, 31, &["pages of 16", "serves is 32,"]);
    told(&good(), &[1.0; 2], Scope::Head, 1, 101, &["101 pairs", "at most 100"]);
    told(&good(), &[1.0; 2], Scope::Head, 0, 50, &["--page", "at least 1"]);
    told(&good(), &[1.0; 3], Scope::Head, 1, 50, &["3 weights for 2"]);
    told(&[], &[], Scope::Uniform, 1, 0, &["no error curve"]);
    told(&good(), &[0.0; 2], Scope::Head, 1, 50, &["every weight is zero"]);
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        told(&good(), &[1.0, weight], Scope::Layer, 1, 50, &["layer 3 head 1", "weight is"]);
    }
    for (points, words) in [
        (&[][..], "no points"),
        (&[(10, 1.0), (10, 0.0)], "must ascend"),
        (&[(10, 1.0), (9, 0.0)], "must ascend"),
        (&[(10, f64::NAN), (50, 0.0)], "at 10 pairs is NaN"),
        (&[(10, 1.0), (20, -0.5), (50, 0.0)], "at 20 pairs is -0.5"),
        (&[(10, f64::INFINITY), (50, 0.0)], "must be finite"),
        (&[(10, f64::MAX), (50, 0.0)], "too large to be added"),
        (&[(10, 1.0), (usize::MAX, 0.0)], "too long to be counted"),
    ] {
        let curves = [curve(3, 0, &[(10, 1.0), (50, 0.0)]), curve(4, 7, points)];
        told(&curves, &[1.0, 2.0], Scope::Head, 1, 50, &["layer 4 head 7", words]);
    }
    let unequal = [curve(3, 0, &[(10, 1.0), (50, 0.0)]), curve(3, 1, &[(10, 0.5), (60, 0.0)])];
    told(
        &unequal,
        &[1.0; 2],
        Scope::Layer,
        1,
        50,
        &["layer 3 head 1", "60 pairs", "one of 50", "--budget head"],
    );
    assert!(allocate(&unequal, &[1.0; 2], Scope::Head, 1, 50).is_ok());
}
