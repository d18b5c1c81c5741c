//! Rotary embedding: hand values, group laws, scalings.

use std::f64::consts::{FRAC_PI_2, PI};

use kvsculpt::Error;
use kvsculpt::cache::{Pairing, Rope};

fn close(found: &[f32], expected: &[f32]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
    }
}

#[test]
fn quarter_turns_by_hand() {
    // Frequencies 1 and 1/100: at position 50π the first pair has made 25 whole turns, the second a quarter turn.
    let position = 100.0 * FRAC_PI_2;
    let mut row = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let half = Rope::new(10_000.0, 4, Pairing::Half, None).expect("a rope");
    half.rotate(&mut row, position);
    close(&row, &[1.0, -4.0, 3.0, 2.0, 5.0, 6.0]);
    let mut row = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let interleaved = Rope::new(10_000.0, 4, Pairing::Interleaved, None).expect("a rope");
    interleaved.rotate(&mut row, position);
    close(&row, &[1.0, 2.0, -4.0, 3.0, 5.0, 6.0]);
    // And a quarter turn of the first pair alone, the second by π/200.
    let mut row = [1.0, 2.0, 3.0, 4.0];
    half.rotate(&mut row, FRAC_PI_2);
    let (sine, cosine) = ((PI / 200.0).sin() as f32, (PI / 200.0).cos() as f32);
    close(&row, &[-3.0, 2.0 * cosine - 4.0 * sine, 1.0, 4.0 * cosine + 2.0 * sine]);
}

#[test]
fn turning_twice_is_turning_by_the_sum() {
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        let rope = Rope::new(1e6, 64, pairing, None).expect("a rope");
        let row: Vec<f32> = (0..80).map(|i| (i as f32 * 0.7).sin()).collect();
        let (mut twice, mut once, mut back) = (row.clone(), row.clone(), row.clone());
        rope.rotate(&mut twice, 1800.0);
        rope.rotate(&mut twice, 247.0);
        rope.rotate(&mut once, 2047.0);
        close(&twice, &once);
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        assert!((norm(&once) - norm(&row)).abs() < 1e-5 * norm(&row));
        assert_ne!(once[..64], row[..64]);
        assert_eq!(once[64..], row[64..], "channels from rope_dim on stay");
        rope.rotate(&mut back, 31.0);
        rope.rotate(&mut back, -31.0);
        close(&back, &row);
    }
}

#[test]
fn scalings() {
    let plain = Rope::new(10_000.0, 8, Pairing::Half, None).expect("a rope");
    for same in ["null", r#"{"rope_type":"default"}"#, r#"{"type":"default"}"#] {
        assert_eq!(Rope::new(10_000.0, 8, Pairing::Half, Some(same)).expect("a rope"), plain);
    }
    let linear = Rope::new(10_000.0, 8, Pairing::Half, Some(r#"{"type":"linear","factor":4.0}"#)).expect("a rope");
    for (scaled, frequency) in linear.frequencies.iter().zip(&plain.frequencies) {
        assert!((scaled * 4.0 - frequency).abs() < 1e-15);
    }
}

/// Llama 3.1's own numbers; the expected frequencies were computed apart from this crate, by wavelength.
#[test]
fn llama3_scaling() {
    let scaling =
        r#"{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192}"#;
    let rope = Rope::new(500_000.0, 128, Pairing::Half, Some(scaling)).expect("a rope");
    for (pair, expected) in LLAMA3 {
        let found = rope.frequencies[pair];
        assert!(
            (found - expected).abs() < 1e-12 * expected,
            "pair {pair}: {found} instead of {expected}"
        );
    }
}

/// As GGUF files give a model's own slowing of each frequency.
#[test]
fn factors_divide_one_by_one() {
    let plain = Rope::new(10_000.0, 6, Pairing::Half, None).expect("a rope");
    let scaling = r#"{"rope_type":"factors","factors":[1,2.5,32.0]}"#;
    let rope = Rope::new(10_000.0, 6, Pairing::Half, Some(scaling)).expect("a rope");
    assert!(rope.unsupported.is_none());
    for (i, factor) in [1.0, 2.5, 32.0].into_iter().enumerate() {
        assert_eq!(rope.frequencies[i], plain.frequencies[i] / factor);
    }
    // Llama 3's scaling told factor by factor is the same scaling.
    let scaling =
        r#"{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192}"#;
    let plain = Rope::new(500_000.0, 128, Pairing::Half, None).expect("a rope");
    let known = Rope::new(500_000.0, 128, Pairing::Half, Some(scaling)).expect("a rope");
    let factors: Vec<f64> = plain
        .frequencies
        .iter()
        .zip(&known.frequencies)
        .map(|(plain, known)| plain / known)
        .collect();
    let scaling = serde_json::json!({"rope_type": "factors", "factors": factors}).to_string();
    let told = Rope::new(500_000.0, 128, Pairing::Half, Some(&scaling)).expect("a rope");
    for (found, expected) in told.frequencies.iter().zip(&known.frequencies) {
        assert!((found - expected).abs() < 1e-14 * expected, "{found} instead of {expected}");
    }
}

#[test]
fn an_unknown_scaling_never_gives_a_number() {
    for scaling in [
        r#"{"rope_type":"yarn","factor":4.0}"#,
        r#"{"rope_type":"dynamic","factor":2.0}"#,
        r#"{"type":"default","mrope_section":[16,24,24]}"#,
    ] {
        let rope = Rope::new(10_000.0, 4, Pairing::Half, Some(scaling)).expect("a rope");
        assert!(rope.unsupported.is_some(), "{scaling}");
        let mut row = [1.0; 4];
        rope.rotate(&mut row, 1.0);
        assert!(row.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn refused() {
    let refused = |theta, dim, scaling: Option<&str>| match Rope::new(theta, dim, Pairing::Half, scaling) {
        Err(Error::Shape { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(0.0, 4, None).contains("rope_theta"));
    assert!(refused(f64::NAN, 4, None).contains("rope_theta"));
    assert!(refused(1e4, 3, None).contains("rope_dim"));
    assert!(refused(1e4, 0, None).contains("rope_dim"));
    assert!(refused(1e4, 4, Some("{")).contains("rope_scaling"));
    assert!(refused(1e4, 4, Some("7")).contains("rope_scaling"));
    assert!(refused(1e4, 4, Some("{}")).contains("rope_type"));
    assert!(refused(1e4, 4, Some(r#"{"type":"linear"}"#)).contains("factor"));
    assert!(refused(1e4, 4, Some(r#"{"type":"linear","factor":0}"#)).contains("factor"));
    for (factors, word) in [
        ("null", "lacks the list"),
        ("[]", "has 0"),
        ("[1,2,3]", "write 2"),
        ("[1,0]", "number 1"),
        ("[-1,1]", "number 0"),
        ("[1,\"2\"]", "number 1"),
    ] {
        let scaling = format!(r#"{{"rope_type":"factors","factors":{factors}}}"#);
        assert!(refused(1e4, 4, Some(&scaling)).contains(word), "{factors}");
    }
    assert!(refused(1e4, 4, Some(r#"{"rope_type":"factors"}"#)).contains("factors"));
    assert!(refused(1e4, 4, Some(r#"{"rope_type":"factors","factors":[1,1e-320]}"#)).contains("frequency"));
    let inverted = r#"{"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4,"original_max_position_embeddings":8192}"#;
    assert!(refused(1e4, 4, Some(inverted)).contains("high_freq_factor"));
}

/// Kept (0, 28), blended (29, 32, 34), slowed eight times (35, 63).
const LLAMA3: [(usize, f64); 7] = [
    (0, 1.0),
    (28, 0.003_211_445_994_752_591),
    (29, 0.002_166_570_763_503_359),
    (32, 0.000_524_846_160_992_954_7),
    (34, 0.000_178_507_812_767_996_4),
    (35, 9.556_212_353_964_683e-5),
    (63, 3.068_925_988_914_511e-7),
];
