use super::super::plan::Plan;
use super::super::{Curve, Scope, allocate, least_total};
use super::{choices, convex, curve, noisy, weighted};

#[test]
fn no_smaller_total_is_good_enough() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..40 {
        let curves: Vec<Curve> = (0..3).map(|head| convex(&mut random, 0, head, 1, 7)).collect();
        let weights: Vec<f64> = curves.iter().map(|_| f64::from(random.u32(1..5))).collect();
        let sum: f64 = weights.iter().sum();
        let all = choices(&vec![(1..=7).collect(); 3]);
        for bound in 0..30 {
            // Between two whole numbers, where rounding cannot decide; and zero itself.
            let bound = if bound == 0 { 0.0 } else { f64::from(bound) * 4.0 + 0.5 };
            let found = least_total(&curves, &weights, Scope::Head, 1, bound / sum).unwrap();
            let good = |lengths: &[usize]| weighted(&curves, &weights, lengths) <= bound;
            let least = all
                .iter()
                .filter(|lengths| good(lengths))
                .map(|lengths| lengths.iter().sum::<usize>())
                .min();
            assert!(good(&found), "{found:?} at {bound}");
            assert_eq!(Some(found.iter().sum()), least, "{found:?} at {bound}");
        }
    }
}

#[test]
fn the_lengths_are_those_of_the_total() {
    let mut random = fastrand::Rng::with_seed(12);
    for case in 0..300 {
        let scope = [Scope::Uniform, Scope::Layer, Scope::Head][case % 3];
        // Whole caches of no multiple of the page end in a shorter step.
        let (page, whole) = [(1, 250), (16, 250), (16, 256)][case / 3 % 3];
        let curves: Vec<Curve> = (0..8).map(|at| noisy(&mut random, at / 2, at % 2, whole)).collect();
        let weights: Vec<f64> = curves.iter().map(|_| random.f64()).collect();
        let plan = Plan::new(&curves, &weights, scope, page).unwrap();
        let sum: f64 = weights.iter().sum();
        let bound = plan.error(&plan.start()) / sum * random.f64();
        let found = least_total(&curves, &weights, scope, page, bound).unwrap();
        let total = found.iter().sum();
        assert_eq!(found, allocate(&curves, &weights, scope, page, total).unwrap());
        assert!(plan.error(&plan.reached(&found)) <= bound * sum * (1.0 + 1e-9));
        // Where all steps cost the same one pair fewer no longer serves, unless the least lengths do.
        if total > plan.total(&plan.start()) && whole % page == 0 {
            let fewer = allocate(&curves, &weights, scope, page, total - 1).unwrap();
            assert!(
                plan.error(&plan.reached(&fewer)) > bound * sum * (1.0 - 1e-9),
                "{scope:?}, page {page}"
            );
        }
    }
}

#[test]
fn no_error_needs_no_more_than_the_curves_say() {
    let curves = [
        curve(0, 0, &[(10, 0.3), (20, 0.1), (40, 0.0), (100, 0.0)]),
        curve(0, 1, &[(10, 0.0), (100, 0.0)]),
        curve(1, 0, &[(10, 0.7), (100, 0.0)]),
    ];
    let found = |max_error| least_total(&curves, &[0.1, 1.0, 0.3], Scope::Head, 1, max_error).unwrap();
    assert_eq!(found(0.0), [40, 10, 100]);
    assert_eq!(found(1e6), [10, 10, 10]);
    // Where noise makes the whole cache look worse than a shorter one, the shorter one is enough.
    let odd = [curve(0, 0, &[(10, 1.0), (20, 0.25), (30, 0.5)])];
    assert_eq!(least_total(&odd, &[1.0], Scope::Head, 1, 0.25).unwrap(), [20]);
}

#[test]
fn a_bound_out_of_reach_is_refused_in_words() {
    let curves = [curve(0, 0, &[(10, 1.0), (50, 0.25)]), curve(0, 1, &[(10, 0.5), (50, 0.25)])];
    for (max_error, words) in [
        (-0.1, "-0.1 is not"),
        (f64::NAN, "NaN is not"),
        (f64::INFINITY, "inf is not"),
        (0.2, "is 2.5e-1"),
    ] {
        let text = least_total(&curves, &[1.0, 3.0], Scope::Head, 1, max_error)
            .unwrap_err()
            .to_string();
        assert!(text.contains("--max-error") && text.contains(words), "{text}");
    }
    assert_eq!(least_total(&curves, &[1.0, 3.0], Scope::Head, 1, 0.25).unwrap(), [50, 50]);
    assert!(least_total(&curves, &[1.0], Scope::Head, 1, 0.25).is_err());
}
