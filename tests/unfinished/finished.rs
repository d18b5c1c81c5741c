//! What is finished is told of as it comes, and taken up again.

use kvsculpt::Error;
use kvsculpt::cpu::CpuEngine;
use kvsculpt::solver::{Finished, compress, compress_from};

use crate::problem::{Watch, assert_same, capture, requests};

#[test]
fn heads_are_told_of_as_they_finish_and_are_those_of_the_result() {
    let capture = capture();
    for (what, request) in requests() {
        let mut watch = Watch::default();
        let short = compress(&mut CpuEngine::new(), &capture, &request, &mut watch).unwrap();
        assert!(watch.told.lengths.is_some(), "{what}");
        assert!(watch.told.heads.len() >= short.outcomes.len(), "{what}");
        for layer in &short.compressed.layers {
            for (number, stored) in layer.heads().enumerate() {
                // Under an error as the target the last counts.
                let mut told = watch.told.heads.iter().rev();
                let told = told
                    .find(|told| (told.outcome.layer, told.outcome.head) == (layer.index, number))
                    .unwrap();
                assert_eq!(told.outcome.kept, stored.length, "{what}");
                assert!(
                    told.key == stored.key && told.value == stored.value && told.bias.as_deref() == stored.bias,
                    "{what}"
                );
                assert!(short.outcomes.contains(&told.outcome), "{what}");
            }
        }
    }
}

#[test]
fn an_interrupted_compression_goes_on_from_its_finished_heads() {
    let capture = capture();
    for (what, request) in requests() {
        let whole = compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap();
        for heads in [0, 1, 4, 7] {
            let mut finished = Finished::default();
            let mut first = Watch::stopping_after(heads);
            let stopped = compress_from(&mut CpuEngine::new(), &capture, &request, &mut finished, &mut first);
            let mut second = Watch::default();
            match stopped {
                Err(Error::Cancelled) => {
                    assert!(heads == 0 || finished.heads == first.told.heads || what == "an error", "{what}");
                    let again = compress_from(&mut CpuEngine::new(), &capture, &request, &mut finished, &mut second).unwrap();
                    assert_same(what, &again, &whole);
                    assert_eq!(finished, Finished::default(), "{what}: moved into the result");
                }
                // All heads at once, or fewer than it was to stop after.
                Ok(found) => {
                    assert!(request.memory.is_none() || heads == 7, "{what}: not stopped after {heads}");
                    assert_same(what, &found, &whole);
                    continue;
                }
                Err(error) => panic!("{what}: {error}"),
            }
            if what != "an error" {
                let all = first.told.heads.len() + second.told.heads.len();
                assert_eq!(all, whole.outcomes.len(), "{what}: every head is fitted once");
            }
            assert_eq!(
                first.told.lengths.is_some(),
                second.told.lengths.is_none(),
                "{what}: lengths are decided once"
            );
            // What the observer kept does as well.
            let mut kept = first.told;
            let mut third = Watch::default();
            let again = compress_from(&mut CpuEngine::new(), &capture, &request, &mut kept, &mut third).unwrap();
            assert_same(what, &again, &whole);
        }
    }
}

#[test]
fn what_is_finished_of_another_request_is_refused() {
    let capture = capture();
    let requests = requests();
    let (request, chunks) = (&requests[0].1, &requests[2].1);
    let mut watch = Watch::stopping_after(2);
    let mut finished = Finished::default();
    let stopped = compress_from(&mut CpuEngine::new(), &capture, request, &mut finished, &mut watch);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let refused = compress_from(&mut CpuEngine::new(), &capture, chunks, &mut finished.clone(), &mut ());
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    finished.heads[0].key.pop();
    let refused = compress_from(&mut CpuEngine::new(), &capture, request, &mut finished, &mut ());
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
}
