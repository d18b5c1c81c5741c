//! What is chosen, and what is said of it.

use super::*;

fn named(adapter: Option<&str>, backend: Option<&str>) -> Selection {
    Selection {
        adapter: adapter.map(str::to_owned),
        backend: backend.map(str::to_owned),
        ..Selection::default()
    }
}

#[test]
fn the_cpu_engine_takes_no_adapter() {
    let with_matrices = Selection {
        cooperative_matrices: true,
        ..Selection::default()
    };
    for (selection, named) in [
        (named(Some("0"), None), "--adapter"),
        (named(None, Some("vulkan")), "--backend"),
        (named(Some("0"), Some("vulkan")), "--adapter"),
        (with_matrices, "--cooperative-matrices"),
    ] {
        match choose(Preference::Cpu, &selection) {
            Err(Error::Options { option, reason }) => {
                assert_eq!(option, named);
                assert!(reason.contains("--engine cpu"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Whoever names an adapter means it: nothing takes over in its stead.
#[test]
fn a_named_adapter_that_is_absent_is_refused() {
    for preference in [Preference::Auto, Preference::Gpu] {
        let refused = choose(preference, &named(Some("no such thing"), None));
        assert!(matches!(refused, Err(Error::NoAdapter(_))), "{refused:?}");
        let refused = choose(preference, &named(None, Some("no such thing")));
        assert!(matches!(refused, Err(Error::NoAdapter(_))), "{refused:?}");
    }
}

#[cfg(not(feature = "cpu"))]
#[test]
fn without_its_feature_the_cpu_engine_is_refused() {
    let refused = choose(Preference::Cpu, &Selection::default()).unwrap_err().to_string();
    assert!(refused.contains("feature `cpu`"), "{refused}");
    // Automatic is a GPU or the error there is without one.
    let all = Selection::default();
    match (choose(Preference::Auto, &all), chosen(&all)) {
        (Ok(choice), Ok(adapter)) => assert_eq!((choice.adapter, choice.notice), (Some(adapter), None)),
        (Err(Error::NoAdapter(found)), Err(Error::NoAdapter(wanted))) => assert_eq!(found, wanted),
        other => panic!("{other:?}"),
    }
}

#[cfg(feature = "cpu")]
mod cpu {
    use super::*;

    fn adapter(name: &str, lacks: Option<&str>) -> AdapterSummary {
        AdapterSummary {
            lacks: lacks.map(str::to_owned),
            ..AdapterSummary::named(name)
        }
    }

    #[test]
    fn a_gpu_that_can_be_used_goes_first() {
        let good = adapter("Real GPU", None);
        let found = gpu_or_notice(Ok(good.clone()), || panic!("no need to look further")).unwrap();
        assert_eq!(found, (Some(good), None));
    }

    #[test]
    fn the_notice_says_why_the_cpu_engine_takes_over() {
        let none = || Err(Error::NoAdapter("none".into()));
        let notice = |hardware, software: Option<AdapterSummary>| match gpu_or_notice(hardware, || software).unwrap() {
            (None, Some(notice)) => notice,
            other => panic!("{other:?}"),
        };
        let old = notice(Ok(adapter("Old GPU", Some("immediates"))), None);
        assert!(old.contains("Old GPU") && old.contains("immediates"), "{old}");
        let software = notice(none(), Some(adapter("llvmpipe", None)));
        assert!(software.contains("software driver llvmpipe"), "{software}");
        assert_eq!(notice(none(), None), "no GPU found; the CPU engine takes over");
    }

    /// What is no lack of a GPU is not passed over.
    #[test]
    fn other_errors_stay_errors() {
        let found = gpu_or_notice(Err(Error::DeviceLost("gone".into())), || None);
        assert!(matches!(found, Err(Error::DeviceLost(_))), "{found:?}");
    }

    #[test]
    fn the_cpu_engine_is_opened_as_asked() {
        let choice = choose(Preference::Cpu, &Selection::default()).unwrap();
        assert_eq!((&choice.adapter, &choice.notice), (&None, &None));
        let machine = choice.open().unwrap();
        assert!(matches!(machine, Machine::Cpu(_)));
        assert_eq!(machine.kind(), "cpu");
        assert!(machine.name().starts_with("CPU, "), "{}", machine.name());
    }
}
