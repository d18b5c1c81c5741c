use super::super::{Curve, Scope, allocate, hull, joined};
use super::{choices, convex, curve, noisy, weighted};

/// Parts differ in their least and whole lengths, as chunks with sinks or a tail do.
#[test]
fn the_joined_error_is_the_least_that_parts_reach_for_every_sum() {
    let mut random = fastrand::Rng::with_seed(31);
    for _ in 0..40 {
        let ends = [(1, 6), (2, 7), (1, 5)];
        let parts = ends.map(|(least, whole)| convex(&mut random, 3, 1, least, whole));
        let head = joined(&parts).unwrap();
        assert_eq!((head.layer, head.head), (3, 1));
        assert_eq!((head.points[0].length, head.points[head.points.len() - 1].length), (4, 18));
        let all = choices(&ends.map(|(least, whole)| (least..=whole).collect::<Vec<_>>()));
        for total in 4..=18 {
            let of_total = all.iter().filter(|lengths| lengths.iter().sum::<usize>() == total);
            let least = of_total
                .map(|lengths| weighted(&parts, &[1.0; 3], lengths))
                .fold(f64::INFINITY, f64::min);
            let found = head.error(total);
            assert!((found - least).abs() <= 1e-9, "{found} for {total}, {least} is possible");
        }
    }
}

/// What a head's length promises is what its parts get of it.
#[test]
fn shares_of_a_length_reach_the_joined_error() {
    let mut random = fastrand::Rng::with_seed(32);
    for _ in 0..200 {
        let parts: Vec<Curve> = (0..5).map(|_| noisy(&mut random, 0, 0, 120)).collect();
        let head = joined(&parts).unwrap();
        let (least, whole) = (head.points[0].length, 5 * 120);
        assert!(
            head.points
                .windows(2)
                .all(|pair| pair[0].length < pair[1].length && pair[0].error >= pair[1].error)
        );
        for _ in 0..10 {
            let total = random.usize(least..=whole);
            let shares = allocate(&parts, &[1.0; 5], Scope::Head, 1, total).unwrap();
            assert_eq!(shares.iter().sum::<usize>(), total);
            let errors = parts
                .iter()
                .zip(shares)
                .map(|(part, share)| hull::value(&hull::hull(&part.points), share));
            let (found, wanted) = (errors.sum::<f64>(), head.error(total));
            assert!((found - wanted).abs() <= 1e-9 * (1.0 + wanted), "{found} {wanted}");
        }
        assert_eq!(head.error(whole), 0.0);
    }
}

#[test]
fn one_part_keeps_its_curve_as_it_was_measured() {
    let rising = curve(2, 0, &[(4, 0.5), (8, 0.6), (20, 0.0)]);
    assert_eq!(joined(std::slice::from_ref(&rising)).unwrap(), rising);
    assert!(joined(&[]).is_err());
}
