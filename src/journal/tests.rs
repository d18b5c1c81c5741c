//! What is written is read again, whatever ends the file.

use std::fs;

use super::*;
use crate::batch::Shard;
use crate::cache::{Capture, Dtype, Generator};
use crate::formats::Format;
use crate::solver::{Errors, Judged, Outcome, Request, Stop};

fn capture() -> Capture {
    let mut generator = Generator::default();
    (generator.dim, generator.tokens, generator.probes) = (8, 32, 4);
    generator.capture(Dtype::F32).unwrap()
}

fn origin(change: impl FnOnce(&mut Request)) -> Origin {
    let mut request = Request::default();
    change(&mut request);
    Origin::new(&capture(), &request, "a machine").unwrap()
}

/// A head whose numbers are of every kind.
fn head(number: usize) -> FinishedHead {
    let errors = Errors {
        output: f64::NAN,
        mass: f64::INFINITY,
        merged: 0.1 + number as f64,
    };
    let judged = Judged {
        loss: f64::MIN_POSITIVE / 8.0,
        output: -0.0,
        mass: 1.0 / 3.0,
        validation: Some(errors),
        probe: None,
    };
    FinishedHead {
        outcome: Outcome {
            layer: 7,
            head: number,
            tokens: 32,
            kept: 3,
            free: 2,
            result: judged,
            select: judged,
            select_fit: Some(judged),
            chunks: 2,
            iterations: 5,
            evaluations: 6,
            stop: Stop::NoBetter,
        },
        free: vec![1, number],
        key: vec![1.5, f32::MIN_POSITIVE / 2.0, -0.0, 3.25],
        value: vec![number as f32; 3],
        bias: (number % 2 == 1).then(|| vec![0.5, -1.0]),
    }
}

fn lengths() -> Lengths {
    Lengths {
        free: vec![vec![1, 0], vec![1, 1]],
        curves: Vec::new(),
        parts: Vec::new(),
    }
}

/// Numbers that are none are equal too.
fn same(one: &Finished, other: &Finished) -> bool {
    format!("{one:?}") == format!("{other:?}")
}

/// A journal of lengths and three heads.
fn written(path: &Path) -> Finished {
    let mut journal = Journal::open(path, &origin(|_| ()), Existing::Refuse).unwrap().journal;
    journal.decided(&lengths()).unwrap();
    let heads: Vec<FinishedHead> = (0..3).map(head).collect();
    for head in &heads {
        journal.finished(head).unwrap();
    }
    Finished {
        lengths: Some(lengths()),
        heads,
    }
}

#[test]
fn everything_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = Journal::path_of(&folder.path().join("short.safetensors"));
    assert!(path.ends_with("short.safetensors.partial"));
    let wanted = written(&path);
    let opened = Journal::open(&path, &origin(|_| ()), Existing::Resume).unwrap();
    assert!(same(&opened.finished, &wanted), "{:?}", opened.finished);
    assert_eq!(opened.dropped, 0);
    opened.journal.remove().unwrap();
    assert!(!path.exists());
}

/// Cut off at many places, and with a byte changed at many: what is whole before comes back, nothing else does, and what is added then is
/// there the next time.
#[test]
fn a_torn_or_damaged_end_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let wanted = written(&path);
    let mine = origin(|_| ());
    let whole = fs::read(&path).unwrap();
    let is_begin = |found: &Finished| {
        found
            .lengths
            .as_ref()
            .is_none_or(|lengths| Some(lengths) == wanted.lengths.as_ref())
            && found.heads.len() <= 3
            && found
                .heads
                .iter()
                .zip(&wanted.heads)
                .all(|(one, other)| format!("{one:?}") == format!("{other:?}"))
    };
    let mut counts = std::collections::BTreeSet::new();
    for cut in (0..whole.len()).step_by(5) {
        fs::write(&path, &whole[..cut]).unwrap();
        let mut opened = Journal::open(&path, &mine, Existing::Resume).unwrap();
        assert!(is_begin(&opened.finished), "cut at {cut}: {:?}", opened.finished);
        let count = opened.finished.heads.len();
        counts.insert(count);
        opened.journal.add_head(&head(9)).unwrap();
        drop(opened);
        let again = Journal::open(&path, &mine, Existing::Resume).unwrap();
        assert_eq!((again.finished.heads.len(), again.dropped), (count + 1, 0), "cut at {cut}");
    }
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    for place in (MAGIC.len()..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x20;
        fs::write(&path, &damaged).unwrap();
        let opened = Journal::open(&path, &mine, Existing::Resume).unwrap();
        assert!(
            is_begin(&opened.finished) && opened.finished.heads.len() < 3 && opened.dropped > 0,
            "changed at {place}: {:?}",
            opened.finished
        );
    }
}

#[test]
fn a_journal_of_something_else_is_refused_by_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    written(&path);
    let before = fs::read(&path).unwrap();
    let refused = |origin: &Origin, existing| Journal::open(&path, origin, existing).unwrap_err().to_string();
    let mine = origin(|_| ());
    for (origin, word) in [
        (origin(|request| request.options.steps = 77), "other options (steps)"),
        (origin(|request| request.dtype = Some(Dtype::F16)), "another dtype"),
        (origin(|request| request.layers = Some(vec![0])), "other layers"),
        (
            Origin {
                source: "0".into(),
                ..mine.clone()
            },
            "another capture",
        ),
        (
            Origin {
                machine: "b".into(),
                ..mine.clone()
            },
            "another machine (a machine), and this is b",
        ),
        (
            Origin {
                tool: "9.9".into(),
                ..mine.clone()
            },
            "and this is 9.9",
        ),
        (
            mine.clone().of_shard(Shard::new(1, 4).unwrap()),
            "all heads, and these are the heads of part 1/4",
        ),
    ] {
        let message = refused(&origin, Existing::Resume);
        assert!(message.contains(word) && message.contains("--restart"), "{message} lacks {word}");
    }
    let message = refused(&mine, Existing::Refuse);
    assert!(message.contains("3 heads") && message.contains("--resume"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), before, "who is refused changes nothing");
    // What is written decides lengths only where its bytes count.
    let of = |bytes: Option<u64>, format: Option<Format>| {
        origin(|request| {
            request.options.target = bytes.map(crate::options::Target::Bytes);
            request.written_as = format.map(crate::formats::Target::new);
        })
    };
    assert_eq!(of(None, Some(Format::HuggingFace)), mine);
    assert_ne!(of(Some(1 << 20), Some(Format::HuggingFace)), of(Some(1 << 20), None));
    // Memory decides no byte.
    let request = origin(|request| request.memory = Some(1 << 20));
    assert!(Journal::open(&path, &request, Existing::Resume).is_ok());
    assert_eq!(Journal::open(&path, &mine, Existing::Adopt).unwrap().finished.heads.len(), 3);
    let other = origin(|request| request.options.steps = 77);
    let opened = Journal::open(&path, &other, Existing::Adopt).unwrap();
    assert!(same(&opened.finished, &Finished::default()) && opened.dropped == 0);
    drop(opened);
    fs::write(&path, &before).unwrap();
    let opened = Journal::open(&path, &other, Existing::Restart).unwrap();
    assert!(same(&opened.finished, &Finished::default()));
    // Of what was begun and holds nothing there is nothing to lose.
    drop(opened);
    assert!(Journal::open(&path, &mine, Existing::Refuse).is_ok());
}

#[test]
fn two_cannot_write_one_journal_and_other_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let first = Journal::open(&path, &origin(|_| ()), Existing::Refuse).unwrap();
    for existing in [Existing::Refuse, Existing::Resume, Existing::Restart] {
        let message = Journal::open(&path, &origin(|_| ()), existing).unwrap_err().to_string();
        assert!(message.contains("another kvsculpt"), "{message}");
    }
    drop(first);
    for foreign in ["a letter", "kvsculpt journal 2\n", "kvsculpt"] {
        // The last is a journal that was hardly begun.
        let is_ours = foreign == "kvsculpt";
        for existing in [Existing::Refuse, Existing::Resume, Existing::Restart] {
            fs::write(&path, foreign).unwrap();
            let opened = Journal::open(&path, &origin(|_| ()), existing);
            assert_eq!(opened.is_ok(), is_ours, "{foreign} {existing:?}");
            if !is_ours {
                assert!(matches!(opened, Err(Error::File { .. })));
                assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
            }
        }
    }
}
