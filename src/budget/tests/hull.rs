use super::super::hull::{hull, paged, slope, sum, value};
use super::{curve, noisy};

#[test]
fn a_hull_is_convex_never_rises_and_lies_nowhere_above() {
    let mut random = fastrand::Rng::with_seed(31);
    for _ in 0..300 {
        let mut points = noisy(&mut random, 0, 0, 200).points;
        // The whole cache need not be the best of what noise measured.
        if let Some(last) = points.last_mut() {
            last.error = random.f64() * 1e-3;
        }
        let vertices = hull(&points);
        assert!(vertices.windows(2).all(|ends| ends[0].error >= ends[1].error), "{vertices:?}");
        let slopes: Vec<f64> = vertices.windows(2).map(|ends| slope(ends[0], ends[1])).collect();
        assert!(slopes.windows(2).all(|ends| ends[0] > ends[1]), "{slopes:?}");
        for point in &points {
            assert!(
                value(&vertices, point.length) <= point.error * (1.0 + 1e-12),
                "{point:?} {vertices:?}"
            );
        }
        // No lower than it must be: every vertex is at a point, or level with an earlier one.
        for vertex in &vertices {
            let earlier = points.iter().filter(|point| point.length <= vertex.length);
            assert_eq!(vertex.error, earlier.map(|point| point.error).fold(f64::INFINITY, f64::min));
        }
    }
}

#[test]
fn pages_lose_nothing_of_the_hull_at_the_lengths_they_allow() {
    let mut random = fastrand::Rng::with_seed(32);
    for page in [1, 2, 7, 16, 64, 1000] {
        for _ in 0..50 {
            let whole = random.usize(1..400);
            let vertices = hull(&noisy(&mut random, 0, 0, whole).points);
            let pages = paged(&vertices, page);
            let allowed = (vertices[0].length..=whole).filter(|length| length % page == 0 || *length == whole);
            for (at, length) in allowed.enumerate() {
                assert!(at > 0 || pages[0].length == length, "{pages:?}");
                let (found, right) = (value(&pages, length), value(&vertices, length));
                assert!(
                    (found - right).abs() <= 1e-12 * vertices[0].error,
                    "{found} for {right} at {length}"
                );
            }
            assert!(
                pages.iter().all(|point| point.length % page == 0 || point.length == whole),
                "{pages:?}"
            );
        }
    }
}

#[test]
fn sums_stand_on_every_length() {
    let functions = [
        &[(10, 4.0), (30, 0.0)][..],
        &[(10, 1.0), (20, 0.5), (30, 0.0)],
        &[(10, 2.0), (25, 0.5), (30, 0.0)],
    ];
    let functions = functions.map(|points| curve(0, 0, points).points);
    let total = sum(functions.to_vec());
    let right = curve(0, 0, &[(10, 7.0), (20, 3.5), (25, 1.75), (30, 0.0)]).points;
    assert_eq!(total, right);
}
