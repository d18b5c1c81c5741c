//! Small captures and requests that every test here uses.

use kvsculpt::Options;
use kvsculpt::cache::{Capture, Dtype, Generator};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::options::{Tail, Target};
use kvsculpt::solver::{Compression, Finished, FinishedHead, Lengths, Observer, Request, compress};
use kvsculpt::{Error, Result};

/// Three layers of two heads.
pub(crate) fn capture() -> Capture {
    let mut generator = Generator::default();
    (generator.layers, generator.kv_heads, generator.group) = (3, 2, 2);
    (generator.dim, generator.tokens, generator.probes, generator.seed) = (16, 256, 16, 3);
    generator.capture(Dtype::F32).unwrap()
}

/// Few steps, with little memory where it says so: then heads are worked on one at a time.
fn request(memory: Option<u64>, change: impl FnOnce(&mut Options)) -> Request {
    let mut options = Options::default();
    (options.keep, options.steps, options.iterations, options.tail) = (0.3, 2, 3, Tail::Pairs(16));
    change(&mut options);
    Request {
        options,
        memory,
        ..Request::default()
    }
}

/// Requests of every kind that goes another way through the program, in so little memory that heads finish one after the other.
pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let one_head = |change: fn(&mut Options)| {
        let capture = capture();
        let memory = match compress(&mut CpuEngine::new(), &capture, &request(Some(1), change), &mut ()) {
            Err(Error::OutOfMemory { bytes, .. }) => bytes,
            other => panic!("one byte is enough: {other:?}"),
        };
        // Curves need less than the fit that follows.
        let mut request = request(Some(memory), change);
        loop {
            match compress(&mut CpuEngine::new(), &capture, &request, &mut ()) {
                Ok(_) => break request,
                Err(Error::OutOfMemory { bytes, .. }) => request.memory = Some(bytes),
                Err(error) => panic!("{error}"),
            }
        }
    };
    vec![
        ("curves", one_head(|_| ())),
        ("all at once", request(None, |_| ())),
        ("chunks", one_head(|options| options.chunk = 64)),
        ("bias", one_head(|options| options.bias = true)),
        ("an error", one_head(|options| options.target = Some(Target::MaxError(0.02)))),
        (
            "the paper",
            one_head(|options| {
                let bias = options.bias;
                *options = Options {
                    keep: options.keep,
                    steps: 2,
                    tail: options.tail,
                    ..Options::published()
                };
                options.bias = bias;
            }),
        ),
    ]
}

/// Keeps all it is told, and stops once so many heads are finished.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) told: Finished,
    pub(crate) most: Option<usize>,
}

impl Watch {
    pub(crate) fn stopping_after(heads: usize) -> Self {
        Self {
            most: Some(heads),
            ..Self::default()
        }
    }
}

impl Observer for Watch {
    fn progress(&mut self, _: usize, _: usize, _: f64) -> bool {
        self.most.is_none_or(|most| self.told.heads.len() < most)
    }

    fn decided(&mut self, lengths: &Lengths) -> Result<()> {
        assert!(self.told.lengths.is_none(), "lengths are decided once");
        self.told.lengths = Some(lengths.clone());
        Ok(())
    }

    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        self.told.heads.push(head.clone());
        Ok(())
    }
}

/// Everything but how long it took.
pub(crate) fn assert_same(what: &str, found: &Compression, wanted: &Compression) {
    let timeless = |short: &Compression| Compression {
        timings: kvsculpt::solver::Timings::default(),
        ..short.clone()
    };
    let (found, wanted) = (timeless(found), timeless(wanted));
    // First what says more when it fails.
    assert_eq!(found.outcomes, wanted.outcomes, "{what}");
    assert!(found == wanted, "{what}");
    let bytes = |short: &Compression| {
        let file = tempfile::NamedTempFile::new().unwrap();
        short.compressed.write(file.path()).unwrap();
        std::fs::read(file.path()).unwrap()
    };
    assert!(bytes(&found) == bytes(&wanted), "{what}: the files differ");
}
