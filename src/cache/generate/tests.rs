use super::model::Kind;
use super::*;

fn small() -> Generator {
    Generator {
        layers: 2,
        kv_heads: 2,
        group: 2,
        dim: 8,
        tokens: 40,
        probes: 3,
        seed: 5,
        ..Generator::default()
    }
}

#[test]
fn a_file_is_what_the_capture_in_memory_would_be_written_as() {
    let folder = tempfile::tempdir().unwrap();
    let [streamed, whole] = ["streamed", "whole"].map(|name| folder.path().join(name));
    // More rows than are made at once.
    let generator = Generator { tokens: 300, ..small() };
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let mut told = Vec::new();
        let bytes = generator.write(&streamed, dtype, &mut |part| told.push(part)).unwrap();
        generator.capture(dtype).unwrap().write(&whole, dtype).unwrap();
        let read = std::fs::read(&streamed).unwrap();
        assert_eq!(bytes, read.len() as u64);
        assert!(read == std::fs::read(&whole).unwrap(), "{dtype:?}");
        assert!(told.is_sorted() && told.last() == Some(&1.0));
        let capture = Capture::open(&streamed).unwrap();
        assert_eq!((capture.layers.len(), capture.tokens, capture.next_position), (2, 300, 300));
        assert_eq!(capture.layer(1).unwrap().probe_query.unwrap().rows, 3);
        assert_eq!(capture.layer(1).unwrap(), generator.capture(dtype).unwrap().layer(1).unwrap());
    }
}

/// A change of these digests changes what every seed means: say so in the changelog.
#[test]
fn a_seed_gives_the_same_bytes_on_every_machine() {
    let digest = |generator: Generator| generator.capture(Dtype::F32).unwrap().digest().unwrap();
    assert_eq!(digest(small()), "9bc51a3b8d46d5d4f8d3b418c517dcd70ae4709be42c3ba7a6583f16eb4f80b8");
    assert_ne!(digest(small()), digest(Generator { seed: 6, ..small() }));
}

#[test]
fn nonsense_is_refused_by_the_name_of_its_flag() {
    for (generator, flag) in [
        (Generator { layers: 0, ..small() }, "--layers"),
        (Generator { dim: 6, ..small() }, "--dim"),
        (Generator { dim: 260, ..small() }, "--dim"),
        (Generator { tokens: 0, ..small() }, "--tokens"),
        (
            Generator {
                tokens: usize::MAX,
                ..small()
            },
            "--tokens",
        ),
        (Generator { layers: 4097, ..small() }, "--layers"),
        (
            Generator {
                layers: usize::MAX,
                ..small()
            },
            "--layers",
        ),
        (
            Generator {
                rope_theta: f64::NAN,
                ..small()
            },
            "--rope-theta",
        ),
    ] {
        match generator.capture(Dtype::F16) {
            Err(Error::Options { option, .. }) => assert_eq!(option, flag),
            other => panic!("{flag}: {other:?}"),
        }
    }
    let least = Generator {
        tokens: 1,
        probes: 0,
        group: 1,
        kv_heads: 1,
        layers: 1,
        dim: 4,
        ..small()
    };
    assert_eq!(least.capture(Dtype::F32).unwrap().layer(0).unwrap().probe_query, None);
}

/// What a query head's probes see: the share of the first token, that of the newest 64, and how much more weight a token of the
/// probe's own word has than others.
struct Seen {
    kind: Kind,
    first: f64,
    newest: f64,
    recall: f64,
}

fn seen(generator: &Generator) -> Vec<Seen> {
    let rotation = Rotation::new(generator.rope_theta, generator.dim);
    let (tokens, dim) = (generator.tokens, generator.dim);
    let scale = 1.0 / (dim as f64).sqrt();
    let mut all = Vec::new();
    for query_head in 0..generator.kv_heads * generator.group {
        let (mut keys, mut probes) = (Vec::new(), Vec::new());
        let key_rows = generator.made(0, Part::Key, query_head / generator.group, &rotation);
        fill(&key_rows, 0..tokens, dim, &mut keys);
        fill(
            &generator.made(0, Part::Probe, query_head, &rotation),
            0..generator.probes,
            dim,
            &mut probes,
        );
        let word = |token| key_rows.head.word(token);
        let (mut first, mut newest, mut same, mut count) = (0.0, 0.0, 0.0, 0.0);
        for (row, probe) in probes.chunks_exact(dim).enumerate() {
            let score = |key: &[f32]| scale * probe.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
            let weights: Vec<f64> = keys.chunks_exact(dim).map(|key| score(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            first += weights[0] / sum;
            newest += weights[tokens - 64..].iter().sum::<f64>() / sum;
            let rest = sum - weights[0];
            for (token, weight) in weights.iter().enumerate().skip(1) {
                if word(token) == word(tokens + row) {
                    same += weight / rest;
                    count += 1.0 / (tokens - 1) as f64;
                }
            }
        }
        let rows = generator.probes as f64;
        all.push(Seen {
            kind: key_rows.head.kind(query_head % generator.group),
            first: first / rows,
            newest: newest / rows,
            recall: same / count,
        });
    }
    all
}

#[test]
fn heads_attend_as_their_kind_says() {
    let generator = Generator {
        kv_heads: 4,
        group: 8,
        dim: 64,
        tokens: 2048,
        probes: 24,
        ..Generator::default()
    };
    let seen = seen(&generator);
    let median = |kind, pick: fn(&Seen) -> f64| {
        let mut numbers: Vec<f64> = seen.iter().filter(|seen| seen.kind == kind).map(pick).collect();
        assert!(numbers.len() >= 3, "{kind:?}");
        numbers.sort_by(f64::total_cmp);
        numbers[numbers.len() / 2]
    };
    let first = |kind| median(kind, |seen| seen.first);
    assert!(first(Kind::Sink) > 0.5, "{}", first(Kind::Sink));
    for kind in [Kind::Local, Kind::Retrieval, Kind::Diffuse] {
        assert!(first(kind) < 0.35, "{kind:?} {}", first(kind));
    }
    let newest = |kind| median(kind, |seen| seen.newest);
    // Evenly spread weights would give 1/32.
    assert!(newest(Kind::Local) > 3.0 / 32.0, "{}", newest(Kind::Local));
    assert!(newest(Kind::Local) > 1.5 * newest(Kind::Retrieval), "{}", newest(Kind::Retrieval));
    let recall = |kind| median(kind, |seen| seen.recall);
    assert!(
        recall(Kind::Retrieval) > 3.0 * recall(Kind::Diffuse),
        "{} {}",
        recall(Kind::Retrieval),
        recall(Kind::Diffuse)
    );
}

#[test]
fn keys_have_outlier_channels_and_the_first_token_is_small() {
    let generator = Generator {
        dim: 64,
        tokens: 512,
        ..Generator::default()
    };
    let layer = generator.capture(Dtype::F16).unwrap().layer(0).unwrap();
    for head in 0..2 {
        let keys = &layer.key[head * 512 * 64..][..512 * 64];
        let mut squares: Vec<f32> = (0..64)
            .map(|channel| keys.iter().skip(channel).step_by(64).map(|x| x * x).sum())
            .collect();
        squares.sort_by(f32::total_cmp);
        let ratio = (squares[63] / squares[32]).sqrt();
        assert!((3.0..12.0).contains(&ratio), "{ratio}");
        let norm = |rows: &[f32], token: usize| rows[token * 64..][..64].iter().map(|x| x * x).sum::<f32>().sqrt();
        let values = &layer.value[head * 512 * 64..][..512 * 64];
        assert!(norm(values, 0) < 0.4 * norm(values, 300));
        assert!(norm(keys, 0) < 0.5 * norm(keys, 300));
    }
}
