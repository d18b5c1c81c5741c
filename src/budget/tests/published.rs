use super::super::published;

#[test]
fn shares_go_by_roots_of_layers_and_then_of_heads() {
    // Layers of mean 4 and 1: 2 to 1. Heads of 6.4 and 1.6: 2 to 1; of 1 and 1: even.
    let pilot = [6.4, 1.6, 1.0, 1.0];
    assert_eq!(published(&[0, 0, 1, 1], &pilot, 1, 1000, 900).unwrap(), [400, 200, 150, 150]);
    // In any order of heads.
    assert_eq!(
        published(&[1, 0, 1, 0], &[1.0, 6.4, 1.0, 1.6], 1, 1000, 900).unwrap(),
        [150, 400, 150, 200]
    );
}

#[test]
fn fractions_go_to_the_largest_remainder() {
    // 10/3 each, and then 7/6, 14/6, 21/6 by shares of 1 : 2 : 3.
    assert_eq!(published(&[0, 1, 2], &[1.0; 3], 0, 100, 10).unwrap(), [4, 3, 3]);
    assert_eq!(published(&[0, 1, 2], &[1.0, 4.0, 9.0], 0, 100, 7).unwrap(), [1, 2, 4]);
}

#[test]
fn what_floor_and_cap_move_is_shared_by_the_others() {
    // Shares 1 : 2 : 3 : 14 of 200 are 10, 20, 30, 140. The cap frees 60, shared 1 : 2 : 3.
    let pilot = [1.0, 4.0, 9.0, 196.0];
    assert_eq!(published(&[0, 1, 2, 3], &pilot, 0, 80, 200).unwrap(), [20, 40, 60, 80]);
    // 206 leave 190 beside a floor of 16, shared 2 : 3 : 14.
    assert_eq!(published(&[0, 1, 2, 3], &pilot, 16, 1000, 206).unwrap(), [16, 20, 30, 140]);
    // A floor that seems to bind only until the cap frees what it takes: 10 rises to 20.
    assert_eq!(published(&[0, 1, 2, 3], &pilot, 16, 80, 200).unwrap(), [20, 40, 60, 80]);
}

#[test]
fn without_errors_all_share_evenly() {
    assert_eq!(published(&[0, 0, 1], &[0.0; 3], 16, 100, 200).unwrap(), [67, 67, 66]);
    // One has all the error and takes its cap; the rest is for heads without a share.
    assert_eq!(published(&[0, 0, 1], &[0.0, 5.0, 0.0], 16, 100, 200).unwrap(), [50, 100, 50]);
    assert_eq!(published(&[0, 0, 1], &[0.0, 5.0, 0.0], 16, 200, 200).unwrap(), [16, 168, 16]);
}

#[test]
fn sums_and_bounds_hold_for_any_errors() {
    let mut random = fastrand::Rng::with_seed(21);
    for _ in 0..2000 {
        let heads = random.usize(1..40);
        let layers: Vec<usize> = (0..heads).map(|_| random.usize(0..5)).collect();
        let pilot: Vec<f64> = (0..heads)
            .map(|_| {
                if random.u8(0..4) == 0 {
                    0.0
                } else {
                    10f64.powf(random.f64() * 300.0 - 150.0)
                }
            })
            .collect();
        let least = random.usize(0..20);
        let most = least + random.usize(0..200);
        let total = random.usize(heads * least..=heads * most);
        let pairs = published(&layers, &pilot, least, most, total).unwrap();
        assert_eq!(pairs.iter().sum::<usize>(), total);
        assert!(
            pairs.iter().all(|&pairs| (least..=most).contains(&pairs)),
            "{pairs:?} in {least}..{most}"
        );
        // In a layer, more error never gets fewer pairs, but for the one that a remainder gives.
        for (one, other) in (0..heads).flat_map(|one| (0..heads).map(move |other| (one, other))) {
            if layers[one] == layers[other] && pilot[one] > pilot[other] {
                assert!(pairs[one] + 1 >= pairs[other], "{pilot:?} {pairs:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let told = |pilot: &[f64], least, most, total, words: &str| {
        let text = published(&[0, 0, 7], pilot, least, most, total).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    };
    told(&[1.0; 3], 16, 100, 47, "smallest number that serves is 48");
    told(&[1.0; 3], 16, 100, 301, "at most 300");
    told(&[1.0; 3], 16, 10, 40, "at least 16 free pairs and its zone holds 10");
    told(&[1.0; 2], 16, 100, 60, "2 pilot errors for 3 heads");
    told(&[1.0, 1.0, f64::NAN], 16, 100, 60, "layer 7: a pilot error is NaN");
    told(&[1.0, 1.0, -1.0], 16, 100, 60, "layer 7: a pilot error is -1");
    assert!(published(&[], &[], 16, 100, 0).is_err());
}
