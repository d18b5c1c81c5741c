use std::collections::BTreeMap;
use std::fs;

use super::super::Budgets;
use super::curve;

/// What reading a file of these bytes gives.
fn read(bytes: impl AsRef<[u8]>) -> Result<Budgets, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets.json");
    fs::write(&path, bytes).unwrap();
    Budgets::read(&path).map_err(|error| error.to_string())
}

fn some() -> Budgets {
    let layers = BTreeMap::from([(0, vec![120, 2048]), (2, vec![96, 310]), (10, vec![1, 2])]);
    Budgets::new(2048, layers).unwrap()
}

#[test]
fn a_file_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets.json");
    some().write(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(
        text,
        "{\n  \"format\": \"kv-budgets\",\n  \"version\": 1,\n  \"tokens\": 2048,\n  \"layers\": {\n    \"0\": [120, 2048],\n    \"2\": [96, 310],\n    \"10\": [1, 2]\n  }\n}\n"
    );
    assert_eq!(Budgets::read(&path).unwrap(), some());
    some().write(&path).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(some().write(&folder.path().join("missing/budgets.json")).is_err());
}

#[test]
fn lengths_are_found_by_layer_and_head() {
    let budgets = some();
    assert_eq!(
        (budgets.length(2, 1), budgets.length(2, 2), budgets.length(1, 0)),
        (Some(310), None, None)
    );
    assert_eq!((budgets.tokens(), budgets.total()), (2048, 120 + 2048 + 96 + 310 + 3));
    let layers: Vec<usize> = budgets.layers().map(|(layer, _)| layer).collect();
    assert_eq!(layers, [0, 2, 10]);
    assert_eq!(budgets.shares()[&0][1], Some(1.0));
}

#[test]
fn what_a_hand_may_write_is_read() {
    let by_hand = "\u{feff}{ \"version\": 1, \"layers\": {\"2\": [96,310], \"010\": [1,\n2], \"0\": [120, 2048]}, \"tokens\": 2048, \"format\": \"kv-budgets\" }";
    assert_eq!(read(by_hand).unwrap(), some());
}

#[test]
fn a_bad_file_is_refused_in_words() {
    let text = some().to_string();
    for (old, new, words) in [
        (
            "kv-budgets",
            "kv-capture",
            &["`format` is \"kv-capture\"", "`kv-budgets` is needed"][..],
        ),
        ("  \"format\": \"kv-budgets\",\n", "", &["`format` is not given"]),
        ("\"version\": 1", "\"version\": 2", &["`version` is 2", "reads version 1"]),
        ("\"version\": 1,", "", &["`version` is not given"]),
        ("\"0\":", "\"first\":", &["named \"first\"", "by their index"]),
        ("\"0\":", "\"+0\":", &["named \"+0\""]),
        ("\"0\":", "\"99999999999999999999999\":", &["by their index"]),
        ("\"0\":", "\"02\":", &["layer 2 is named twice"]),
        ("[120, 2048]", "[0, 2048]", &["layer 0 head 0", "a length of 0", "give 1 to 2048"]),
        (
            "[120, 2048]",
            "[120, 2049]",
            &["layer 0 head 1", "a length of 2049", "give 1 to 2048"],
        ),
        ("[120, 2048]", "[]", &["layer 0", "no head"]),
        ("[120, 2048]", "[120, -1]", &["cannot be understood", "line 6 column"]),
        ("[120, 2048]", "[120, 1.5]", &["cannot be understood", "line 6 column"]),
        ("[120, 2048]", "120", &["cannot be understood", "line 6 column"]),
        ("[120, 2048],", "[120, 2048]", &["line 7"]),
        ("\"tokens\": 2048,", "", &["missing field `tokens`"]),
        ("\"tokens\": 2048,", "\"tokens\": 0,", &["give 1 to 0"]),
        ("\"tokens\"", "\"keep\": 1, \"tokens\"", &["unknown field `keep`"]),
        ("\"2\": [96, 310],\n    \"10\": [1, 2]", "\"2\": {}, \"3\": [1]", &["line 7"]),
    ] {
        assert!(text.contains(old), "{old}");
        let told = read(text.replacen(old, new, 1)).unwrap_err();
        assert!(
            told.contains("budgets.json: ") && words.iter().all(|word| told.contains(word)),
            "{new}: {told}"
        );
    }
    let none = "{\"format\": \"kv-budgets\", \"version\": 1, \"tokens\": 5, \"layers\": {}}";
    assert!(read(none).unwrap_err().contains("no layer is named"));
    for bytes in [&b""[..], b"\xff\xfe", b"[]", b"{", b"\x00", &[b'['; 100_000]] {
        let told = read(bytes).unwrap_err();
        assert!(told.contains("is not a file of the format `kv-budgets`"), "{told}");
    }
    let folder = tempfile::tempdir().unwrap();
    let told = |path| Budgets::read(path).unwrap_err().to_string();
    assert!(told(folder.path()).contains("is a folder"));
    assert!(told(&folder.path().join("none.json")).contains("there is no such file"));
}

#[test]
fn a_file_too_large_is_refused_before_it_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets.json");
    let file = fs::File::create(&path).unwrap();
    // A hole: no disk is used.
    file.set_len((64 << 20) + 1).unwrap();
    assert!(Budgets::read(&path).unwrap_err().to_string().contains("64 MiB"));
}

#[test]
fn curves_and_their_lengths_make_budgets() {
    let points = [(1, 1.0), (9, 0.0)];
    let curves = [curve(4, 1, &points), curve(4, 0, &points), curve(2, 0, &points)];
    let budgets = Budgets::from_curves(9, &curves, &[3, 5, 7]).unwrap();
    assert_eq!(budgets, Budgets::new(9, BTreeMap::from([(2, vec![7]), (4, vec![5, 3])])).unwrap());
    let told = |curves: &[_], lengths: &[usize]| Budgets::from_curves(9, curves, lengths).unwrap_err().to_string();
    assert!(told(&curves, &[3, 5]).contains("2 lengths for 3"));
    assert!(told(&curves, &[3, 5, 10]).contains("layer 2 head 0: a length of 10"));
    assert!(told(&[curve(1, 0, &points), curve(1, 0, &points)], &[3, 5]).contains("layer 1 head 0: it has two"));
    assert!(told(&[curve(1, 0, &points), curve(1, 2, &points)], &[3, 5]).contains("layer 1 head 1: it has no"));
}

#[test]
fn sinks_and_tail_are_kept_and_must_leave_every_head_a_pair() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets.json");
    let plain = Budgets::new(100, [(0, vec![20, 100]), (3, vec![15, 40])].into()).unwrap();
    assert_eq!(plain.fixed(), None);
    let budgets = plain.clone().with_fixed(4, 10).unwrap();
    budgets.write(&path).unwrap();
    assert_eq!(Budgets::read(&path).unwrap(), budgets);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"sinks\": 4,\n  \"tail\": 10,\n"), "{text}");
    std::fs::write(&path, text.replace("\"sinks\": 4,", "")).unwrap();
    assert!(Budgets::read(&path).unwrap_err().to_string().contains("both or neither"));
    std::fs::write(&path, text.replace("\"tail\": 10", "\"tail\": 11")).unwrap();
    let told = Budgets::read(&path).unwrap_err().to_string();
    assert!(told.contains("layer 3 head 0") && told.contains("at least 16"), "{told}");
    assert!(plain.with_fixed(50, 50).unwrap_err().to_string().contains("no zone"));
}
