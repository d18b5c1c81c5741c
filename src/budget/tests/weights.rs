use std::fs;

use super::super::Weights;

/// What reading a file of these layers gives; the rest is as the program writes it.
fn read(layers: &str) -> Result<Weights, String> {
    let text = format!(
        "{{\"format\": \"kv-sensitivity\", \"version\": 1, \"model\": \"m.gguf\", \"options\": {{}}, \"passages\": [], \"noise\": 1e-9, \"layers\": [{layers}]}}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sensitivity.json");
    fs::write(&path, text).unwrap();
    Weights::read(&path).map_err(|error| error.to_string())
}

fn layer(layer: usize, sensitivity: &str, heads: &[&str]) -> String {
    let head = |(head, sensitivity)| format!("{{\"head\": {head}, \"kl\": 0.1, \"error\": 0.1, \"sensitivity\": {sensitivity}}}");
    let heads: Vec<String> = heads.iter().enumerate().map(head).collect();
    let heads = heads.join(", ");
    format!("{{\"layer\": {layer}, \"kl\": 0.1, \"error\": 0.1, \"sensitivity\": {sensitivity}, \"share\": 0.5, \"heads\": [{heads}]}}")
}

#[test]
fn heads_count_where_they_were_measured_and_else_their_layer() {
    let weights = read(&[layer(0, "9.0", &["4.0", "1.0"]), layer(3, "2.0", &[])].join(",")).unwrap();
    let of = |layer, head| weights.weight(layer, head);
    assert_eq!(
        [of(0, 0), of(0, 1), of(0, 2), of(3, 0), of(3, 7), of(1, 0)],
        [Some(4.0), Some(1.0), None, Some(2.0), Some(2.0), None]
    );
}

#[test]
fn what_was_too_small_to_measure_is_the_smallest_measured() {
    let heads = read(&[layer(0, "0.01", &["4.0", "null"]), layer(1, "null", &["null", "0.5"])].join(",")).unwrap();
    assert_eq!([heads.weight(0, 1), heads.weight(1, 0), heads.weight(1, 1)], [Some(0.5); 3]);
    let layers = read(&[layer(0, "3.0", &[]), layer(1, "null", &[]), layer(2, "0.25", &[])].join(",")).unwrap();
    assert_eq!(layers.weight(1, 0), Some(0.25));
}

#[test]
fn powers_have_a_mean_of_one() {
    let weights = read(&[layer(0, "null", &["4.0", "1.0"]), layer(3, "9.0", &[])].join(",")).unwrap();
    let of = |exponent: f64| {
        let powered = weights.powered(exponent).unwrap();
        [(0, 0), (0, 1), (3, 0)].map(|(layer, head)| powered.weight(layer, head).unwrap())
    };
    assert_eq!(of(0.0), [1.0; 3]);
    // 2, 1 and 3, whose mean is 2.
    for (found, right) in of(0.5).into_iter().zip([1.0, 0.5, 1.5]) {
        assert!((found - right).abs() < 1e-12, "{found} for {right}");
    }
    for (found, right) in of(1.0).into_iter().zip([12.0, 3.0, 27.0]) {
        assert!((found - right / 14.0).abs() < 1e-12, "{found} for {right} / 14");
    }
    for exponent in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(weights.powered(exponent).unwrap_err().to_string().contains("exponent"));
    }
    assert!(read(&layer(0, "0.0", &[])).unwrap().powered(1.0).is_err());
}

#[test]
fn a_bad_file_is_refused_in_words() {
    let twice = [layer(0, "1.0", &[]), layer(0, "1.0", &[])].join(",");
    for (layers, words) in [
        (layer(0, "null", &["null"]), "no sensitivity that could be measured"),
        (layer(5, "-1.0", &[]), "sensitivity of layer 5 is -1"),
        (layer(5, "1.0", &["1.0", "-2.0"]), "sensitivity of layer 5 head 1 is -2"),
        (layer(5, "\"high\"", &[]), "cannot be understood"),
        (twice, "layer 0 stands there twice"),
        (
            layer(0, "1.0", &["1.0", "2.0"]).replace("\"head\": 1", "\"head\": 0"),
            "layer 0 head 0 stands there twice",
        ),
        (String::new(), "names no layer"),
    ] {
        let told = read(&layers).unwrap_err();
        assert!(told.contains("sensitivity.json: ") && told.contains(words), "{told}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.json");
    fs::write(&path, "{\"format\": \"kv-budgets\", \"version\": 1}").unwrap();
    let told = Weights::read(&path).unwrap_err().to_string();
    assert!(
        told.contains("`kv-sensitivity` is needed") && told.contains("kvsculpt-llm sensitivity"),
        "{told}"
    );
}
