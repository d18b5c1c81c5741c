//! Several machines that share the heads: the bytes of one, whatever happens to each.

use std::num::NonZeroU32;

use kvsculpt::Error;
use kvsculpt::batch::Shard;
use kvsculpt::cpu::CpuEngine;
use kvsculpt::solver::{Finished, Observer, Request, Team, compress, compress_part, estimate, measure_curves};

use crate::faulty::Faulty;
use crate::problem::{Watch, assert_same, capture, requests};

/// A team of these engines.
fn team<E: kvsculpt::engine::Engine + Send>(engines: &mut [E]) -> Team<'_> {
    engines.iter_mut().fold(Team::new(), Team::with)
}

/// The same request with the memory that one machine has for each of so many.
fn for_each(request: &Request, machines: u64) -> Request {
    Request {
        memory: request.memory.map(|memory| machines * memory),
        ..request.clone()
    }
}

#[test]
fn equal_machines_give_the_bytes_of_one() {
    let capture = capture();
    for (what, request) in requests() {
        let whole = compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap();
        for machines in 1..=3_usize {
            let mut engines: Vec<CpuEngine> = (0..machines).map(|_| CpuEngine::new()).collect();
            let request = for_each(&request, machines as u64);
            let mut watch = Watch::default();
            let found = team(&mut engines).compress(&capture, &request, &mut Finished::default(), &mut watch);
            assert_same(&format!("{what} on {machines}"), &found.unwrap(), &whole);
            assert!(
                watch.told.lengths.is_some() && watch.told.heads.len() >= whole.outcomes.len(),
                "{what}"
            );
        }
        // More machines than heads, and shares that differ.
        let mut engines: Vec<CpuEngine> = (0..9).map(|_| CpuEngine::new()).collect();
        let shares = engines.iter_mut().zip(1..);
        let mut team = shares.fold(Team::new(), |team, (engine, share)| {
            team.with_share(engine, NonZeroU32::new(share).unwrap())
        });
        let found = team.compress(&capture, &for_each(&request, 9), &mut Finished::default(), &mut ());
        assert_same(what, &found.unwrap(), &whole);
    }
}

#[test]
fn parts_and_curves_of_several_machines_are_those_of_one() {
    let capture = capture();
    let mut request = requests().remove(1).1;
    let shard = Shard::new(1, 2).unwrap();
    let mut engines = [CpuEngine::new(), CpuEngine::new()];
    let curves = measure_curves(&mut CpuEngine::new(), &capture, &request, shard, &mut ()).unwrap();
    assert_eq!(
        team(&mut engines).measure_curves(&capture, &request, shard, &mut ()).unwrap(),
        curves
    );
    request.options.budget = kvsculpt::options::Scope::Uniform;
    let part = compress_part(&mut CpuEngine::new(), &capture, &request, shard, &mut ()).unwrap();
    let found = team(&mut engines)
        .compress_part(&capture, &request, shard, &mut Finished::default(), &mut ())
        .unwrap();
    assert_eq!((found.part, found.outcomes), (part.part, part.outcomes));
}

#[test]
fn a_stopped_team_goes_on_from_what_is_finished_and_progress_goes_forward() {
    struct Forward(f64, Watch);
    impl Observer for Forward {
        fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
            assert!(
                (0.0..=1.0).contains(&fraction) && fraction >= self.0 && finished <= heads,
                "{fraction} after {}",
                self.0
            );
            self.0 = fraction;
            self.1.progress(finished, heads, fraction)
        }

        fn finished(&mut self, head: &kvsculpt::solver::FinishedHead) -> kvsculpt::Result<()> {
            self.1.finished(head)
        }
    }
    let capture = capture();
    for (what, request) in requests() {
        let whole = compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap();
        let request = for_each(&request, 2);
        let mut engines = [CpuEngine::new(), CpuEngine::new()];
        let mut finished = Finished::default();
        let mut first = Forward(0.0, Watch::stopping_after(2));
        match team(&mut engines).compress(&capture, &request, &mut finished, &mut first) {
            Err(Error::Cancelled) => {}
            // All heads at once: whoever is done is done.
            Ok(found) => {
                assert!(request.memory.is_none(), "{what}: not stopped");
                assert_same(what, &found, &whole);
                continue;
            }
            Err(error) => panic!("{what}: {error}"),
        }
        assert_eq!(finished.heads, first.1.told.heads, "{what}: all that was told is there");
        assert!(finished.heads.len() >= 2, "{what}");
        let mut second = Watch::default();
        let again = team(&mut engines).compress(&capture, &request, &mut finished, &mut second).unwrap();
        assert_same(what, &again, &whole);
        assert!(second.told.lengths.is_none(), "{what}: lengths are decided once");
        if what != "an error" {
            let all = first.1.told.heads.len() + second.told.heads.len();
            assert_eq!(all, whole.outcomes.len(), "{what}: every head is fitted once");
        }
    }
}

/// What an observer cannot take ends the work with its error.
#[test]
fn an_observer_that_fails_ends_the_work_of_all() {
    struct Full(usize);
    impl Observer for Full {
        fn finished(&mut self, _: &kvsculpt::solver::FinishedHead) -> kvsculpt::Result<()> {
            self.0 += 1;
            Err(Error::Gpu("no room for it".into()))
        }
    }
    let capture = capture();
    let (_, request) = requests().remove(0);
    let mut engines = [CpuEngine::new(), CpuEngine::new()];
    let (mut full, mut finished) = (Full(0), Finished::default());
    let failed = team(&mut engines).compress(&capture, &for_each(&request, 2), &mut finished, &mut full);
    assert!(
        matches!(&failed, Err(Error::Gpu(reason)) if reason == "no room for it"),
        "{failed:?}"
    );
    assert_eq!((full.0, finished.heads.len()), (1, 0));
}

#[test]
fn a_device_lost_once_on_one_of_them_changes_no_byte() {
    let capture = capture();
    for (what, request) in requests() {
        // One that is told of head by head, and one that is fitted several times.
        if !matches!(what, "chunks" | "an error") {
            continue;
        }
        let whole = compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap();
        let request = for_each(&request, 2);
        let mut engines = [Faulty::new(CpuEngine::new()), Faulty::new(CpuEngine::new())];
        team(&mut engines)
            .compress(&capture, &request, &mut Finished::default(), &mut ())
            .unwrap();
        let all = engines[1].operations;
        for part in [1, 5] {
            let mut engines = [Faulty::new(CpuEngine::new()), Faulty::new(CpuEngine::new())];
            engines[1].lost_at = vec![part * (all - 1) / 6];
            let mut told = crate::recovering::Told::default();
            let found = team(&mut engines)
                .compress(&capture, &request, &mut Finished::default(), &mut told)
                .unwrap();
            assert_same(what, &found, &whole);
            assert_eq!((engines[0].reopened, engines[1].reopened, told.retried.len()), (0, 1, 1), "{what}");
            if what != "an error" {
                assert_eq!(told.finished, whole.outcomes.len(), "{what}: no head is finished twice");
            }
        }
    }
}

#[test]
fn a_machine_that_fails_for_good_leaves_what_all_have_finished() {
    let capture = capture();
    let (what, request) = requests().remove(0);
    let whole = compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap();
    let request = for_each(&request, 2);
    let mut engines = [Faulty::new(CpuEngine::new()), Faulty::new(CpuEngine::new())];
    team(&mut engines)
        .compress(&capture, &request, &mut Finished::default(), &mut ())
        .unwrap();
    let all = engines[1].operations;
    let mut engines = [Faulty::new(CpuEngine::new()), Faulty::new(CpuEngine::new())];
    engines[1].lost_at = vec![all / 2, all - 1];
    let mut finished = Finished::default();
    match team(&mut engines).compress(&capture, &request, &mut finished, &mut ()) {
        Err(Error::DeviceLost(reason)) => assert!(reason.contains("second time"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(finished.lengths.is_some() && finished.heads.len() < whole.outcomes.len());
    let again = team(&mut engines).compress(&capture, &request, &mut finished, &mut ());
    // The last loss is behind it.
    assert_same(what, &again.unwrap(), &whole);
}

#[test]
fn memory_is_told_for_all_of_them_and_refusals_are_done_without() {
    let capture = capture();
    let (what, request) = requests().remove(0);
    let whole = compress(&mut CpuEngine::new(), &capture, &request, &mut ()).unwrap();
    let mut engines = [CpuEngine::new(), CpuEngine::new()];
    let refused = team(&mut engines).compress(&capture, &request, &mut Finished::default(), &mut ());
    match refused {
        Err(Error::OutOfMemory { label, bytes, available }) => {
            assert!(label.contains("each of 2 machines"), "{label}");
            assert_eq!(Some(available), request.memory);
            assert!(bytes > available);
            let enough = Request {
                memory: Some(2 * request.memory.unwrap()),
                ..request.clone()
            };
            assert!(bytes <= enough.memory.unwrap());
            let estimate = team(&mut engines).estimate(&capture, &enough).unwrap();
            assert!(estimate.host_bytes <= enough.memory.unwrap() + 4 * estimate.pairs.1 * 32);
        }
        other => panic!("{other:?}"),
    }
    let free = Request { memory: None, ..request };
    let mut engines = [Faulty::new(CpuEngine::new()), Faulty::new(CpuEngine::new())];
    team(&mut engines)
        .compress(&capture, &free, &mut Finished::default(), &mut ())
        .unwrap();
    // Too little for what it asks for at most, enough for a head alone.
    engines[0].room = engines[0].largest * 2 / 3;
    let mut told = crate::recovering::Told::default();
    let found = team(&mut engines)
        .compress(&capture, &free, &mut Finished::default(), &mut told)
        .unwrap();
    assert_same(what, &found, &whole);
    assert!(!told.retried.is_empty() && engines[0].refused > 0 && engines[1].refused == 0);
}

#[test]
fn a_team_divides_heads_by_the_header_alone() {
    let capture = capture();
    let (_, request) = requests().remove(1);
    let mut engines = [CpuEngine::new(), CpuEngine::new(), CpuEngine::new()];
    let (one, others) = engines.split_first_mut().unwrap();
    let mut pair = team(others).with_share(one, NonZeroU32::new(4).unwrap());
    let division = pair.division(&capture, &request).unwrap();
    assert_eq!(division, [vec![(1, 1)], vec![(2, 0)], vec![(0, 0), (0, 1), (1, 0), (2, 1)]]);
    let (found, whole) = (
        pair.estimate(&capture, &request).unwrap(),
        estimate(&CpuEngine::new(), &capture, &request).unwrap(),
    );
    assert_eq!(
        (found.heads, found.pairs, found.file_bytes),
        (whole.heads, whole.pairs, whole.file_bytes)
    );
    assert!(found.device_bytes < whole.device_bytes && found.batches == 3);
    let nobody = Team::new().compress(&capture, &request, &mut Finished::default(), &mut ());
    assert!(matches!(nobody, Err(Error::Shape { .. })), "{nobody:?}");
    assert!(format!("{:?}", pair).contains("CPU"));
    pair.compress(&capture, &request, &mut Finished::default(), &mut ()).unwrap();
}
