//! Several machines that share the heads: which they are, and what they measure together.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::{Choice, Clock, Machine, Measured, Preference, choose};
use crate::cache::Capture;
#[cfg(feature = "cpu")]
use crate::cpu::CpuEngine;
use crate::engine::Engine as _;
use crate::gpu::{Selection, chosen};
use crate::kernels::GpuEngine;
use crate::solver::{Compression, Estimate, Finished, Observer, Request, Size, Team, division, estimate_together};
use crate::timed::{Cost, Timed, Traffic, dearest_first};
use crate::{Error, Result};

/// The name of the CPU engine in a list of adapters.
const CPU: &str = "cpu";

/// [`choose`] for each of a list: the selection's adapter may be several with commas, numbers or parts of names, and `cpu`, which is the CPU
/// engine. One that is named twice is opened twice. A text with commas that is a part of an adapter's name means that adapter.
///
/// # Errors
/// As [`choose`]; [`Error::Options`] where nothing is between two commas, or `cpu` is named and the preference is for a GPU.
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{gpu::Selection, machine::{Preference, choose_several}};
///
/// let twice = Selection { adapter: Some("cpu,cpu".to_owned()), ..Selection::default() };
/// let choices = choose_several(Preference::Auto, &twice)?;
/// assert!(choices.len() == 2 && choices.iter().all(|choice| choice.adapter.is_none()));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
pub fn choose_several(preference: Preference, selection: &Selection) -> Result<Vec<Choice>> {
    let list = selection.adapter.as_deref().unwrap_or_default();
    let is_cpu = |name: &str| name.eq_ignore_ascii_case(CPU);
    let is_list = is_cpu(list.trim()) || list.contains(',') && chosen(selection).is_err();
    if !is_list || preference == Preference::Cpu {
        return Ok(vec![choose(preference, selection)?]);
    }
    let names = list.split(',').map(str::trim);
    if selection.cooperative_matrices && names.clone().all(is_cpu) {
        return Err(Error::option(
            "--cooperative-matrices",
            "is for adapters, and `--adapter` names only the CPU engine; leave it out, or name an adapter",
        ));
    }
    let one = |name: &str| match name {
        "" => Err(Error::option(
            "--adapter",
            format!("`{list}` has nothing beside a comma; write numbers or parts of names with commas between, as 0,1"),
        )),
        name if is_cpu(name) && preference == Preference::Gpu => Err(Error::option(
            "--adapter",
            "names `cpu`, which is the CPU engine, and `--engine gpu` leaves that out; leave out one of the two",
        )),
        name if is_cpu(name) => choose(Preference::Cpu, &Selection::default()),
        name => choose(
            preference,
            &Selection {
                adapter: Some(name.to_owned()),
                ..selection.clone()
            },
        ),
    };
    names.map(one).collect()
}

/// Machines that share the heads of a compression; see [`Team`].
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use std::num::NonZeroU32;
/// use kvsculpt::{cpu::CpuEngine, machine::Machine};
///
/// let one = || (Machine::Cpu(CpuEngine::new()), NonZeroU32::MIN);
/// let mut machine = Machine::several(vec![one(), one()])?;
/// let short = machine.compress(&capture, &request, &mut ())?;
/// assert_eq!(short.outcomes.len(), 3);
/// assert!(matches!(machine, Machine::Several(_)));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Several {
    machines: Vec<(Machine, NonZeroU32)>,
}

impl Machine {
    /// Several machines that share the heads by these shares; see [`Team`]. One alone is itself.
    ///
    /// # Errors
    /// [`Error::Options`] where there is no machine, or one is several itself.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use std::num::NonZeroU32;
    /// use kvsculpt::{cpu::CpuEngine, machine::Machine};
    ///
    /// let one = || (Machine::Cpu(CpuEngine::new()), NonZeroU32::MIN);
    /// assert!(matches!(Machine::several(vec![one()])?, Machine::Cpu(_)));
    /// assert!(matches!(Machine::several(vec![one(), one()])?, Machine::Several(_)));
    /// assert!(Machine::several(Vec::new()).is_err());
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn several(mut machines: Vec<(Self, NonZeroU32)>) -> Result<Self> {
        if machines.iter().any(|(machine, _)| matches!(machine, Self::Several(_))) {
            return Err(Error::option(
                "--adapter",
                "names several machines as one of several; name each by itself",
            ));
        }
        match machines.pop() {
            None => Err(Error::option("--adapter", "names no machine; name at least one")),
            Some((machine, _)) if machines.is_empty() => Ok(machine),
            Some(last) => {
                machines.push(last);
                Ok(Self::Several(Several { machines }))
            }
        }
    }

    /// The machines that share the heads of this request, each with how many it works on; one alone works on all.
    ///
    /// # Errors
    /// As [`division`].
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use std::num::NonZeroU32;
    /// use kvsculpt::{cpu::CpuEngine, machine::Machine};
    ///
    /// let one = || (Machine::Cpu(CpuEngine::new()), NonZeroU32::MIN);
    /// let machine = Machine::several(vec![one(), one()])?;
    /// let heads: Vec<usize> = machine.division(&capture, &request)?.into_iter().map(|(_, heads)| heads).collect();
    /// assert_eq!(heads, [2, 1]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn division(&self, capture: &Capture, request: &Request) -> Result<Vec<(String, usize)>> {
        let machines: Vec<(&Self, NonZeroU32)> = match self {
            Self::Several(several) => several.machines.iter().map(|(machine, share)| (machine, *share)).collect(),
            alone => vec![(alone, NonZeroU32::MIN)],
        };
        let shares: Vec<NonZeroU32> = machines.iter().map(|machine| machine.1).collect();
        let parts = division(capture, request, &shares)?;
        let names = machines.iter().map(|(machine, _)| machine.name());
        Ok(names.zip(parts.iter().map(Vec::len)).collect())
    }
}

/// An engine of either kind that is watched.
enum Watched<'a> {
    Gpu(Timed<'a, GpuEngine>),
    #[cfg(feature = "cpu")]
    Cpu(Timed<'a, CpuEngine>),
}

impl<'a> Watched<'a> {
    /// None of several, which are never one of several.
    fn new(machine: &'a mut Machine) -> Option<Self> {
        match machine {
            Machine::Gpu(engine) => {
                // From here on.
                engine.take_peak_bytes();
                Some(Self::Gpu(Timed::new(engine.as_mut())))
            }
            #[cfg(feature = "cpu")]
            Machine::Cpu(engine) => Some(Self::Cpu(Timed::new(engine))),
            Machine::Several(_) => None,
        }
    }

    fn measured(&mut self) -> Measured {
        match self {
            Self::Gpu(timed) => timed.measured(),
            #[cfg(feature = "cpu")]
            Self::Cpu(timed) => timed.measured(),
        }
    }
}

impl Several {
    /// The kind of all, or `mixed`.
    pub(super) fn kind(&self) -> &'static str {
        let mut kinds = self.machines.iter().map(|(machine, _)| machine.kind());
        let first = kinds.next().unwrap_or_default();
        if kinds.all(|kind| kind == first) { first } else { "mixed" }
    }

    /// The names of all.
    pub(crate) fn name(&self) -> String {
        let name = |(machine, share): &(Machine, NonZeroU32)| match share.get() {
            1 => machine.name(),
            share => format!("{} × {share}", machine.name()),
        };
        self.machines.iter().map(name).collect::<Vec<_>>().join(" + ")
    }

    pub(super) fn each(&mut self) -> impl Iterator<Item = &mut Machine> {
        self.machines.iter_mut().map(|(machine, _)| machine)
    }

    /// There are at least two.
    pub(super) fn first(&mut self) -> &mut Machine {
        &mut self.machines[0].0
    }

    /// Whether the devices of all have clocks.
    pub(super) fn enable_timings(&mut self) -> bool {
        // Every one of them, also where an earlier one has none.
        let clocks: Vec<bool> = self.each().map(Machine::enable_timings).collect();
        clocks.into_iter().all(|has_clock| has_clock)
    }

    /// Has something done by all of them.
    pub(super) fn together<T>(&mut self, work: impl FnOnce(Team<'_>) -> T) -> T {
        let team = self.machines.iter_mut().fold(Team::new(), |team, (machine, share)| match machine {
            Machine::Gpu(engine) => team.with_share(engine.as_mut(), *share),
            #[cfg(feature = "cpu")]
            Machine::Cpu(engine) => team.with_share(engine, *share),
            Machine::Several(_) => team,
        });
        work(team)
    }

    pub(super) fn estimate(&self, capture: &Capture, request: &Request) -> Result<Estimate> {
        let sizes = self.machines.iter().filter_map(|(machine, _)| match machine {
            Machine::Gpu(engine) => Some(Size::of(engine.as_ref())),
            #[cfg(feature = "cpu")]
            Machine::Cpu(engine) => Some(Size::of(engine)),
            Machine::Several(_) => None,
        });
        let sizes: Vec<Size<'_>> = sizes.collect();
        let shares: Vec<NonZeroU32> = self.machines.iter().map(|machine| machine.1).collect();
        estimate_together(&sizes, &shares, capture, request)
    }

    /// [`Machine::compress_from`].
    pub(super) fn compress_from(
        &mut self,
        capture: &Capture,
        request: &Request,
        finished: &mut Finished,
        observer: &mut dyn Observer,
    ) -> Result<(Compression, Measured)> {
        let before: Vec<Clock> = self.each().map(Machine::clock).collect();
        let shares: Vec<NonZeroU32> = self.machines.iter().map(|machine| machine.1).collect();
        let mut watched: Vec<Watched<'_>> = self.each().filter_map(Watched::new).collect();
        let mut team = watched
            .iter_mut()
            .zip(shares)
            .fold(Team::new(), |team, (watched, share)| match watched {
                Watched::Gpu(timed) => team.with_share(timed, share),
                #[cfg(feature = "cpu")]
                Watched::Cpu(timed) => team.with_share(timed, share),
            });
        let compression = team.compress(capture, request, finished, observer)?;
        drop(team);
        let mut found: Vec<Measured> = watched.iter_mut().map(Watched::measured).collect();
        drop(watched);
        for ((machine, before), measured) in self.each().zip(&before).zip(&mut found) {
            machine.complete(before, measured);
        }
        Ok((compression, joined(&found)))
    }
}

/// What all have measured together.
fn joined(all: &[Measured]) -> Measured {
    let mut sums: BTreeMap<&'static str, (u64, f64)> = BTreeMap::new();
    for cost in all.iter().flat_map(|measured| &measured.costs) {
        let sum = sums.entry(cost.name).or_default();
        *sum = (sum.0 + cost.calls, sum.1 + cost.seconds);
    }
    let mut traffic = Traffic::default();
    for measured in all {
        traffic.add(&measured.traffic);
    }
    Measured {
        kernels: all.iter().all(|measured| measured.kernels),
        costs: dearest_first(sums.into_iter().map(|(name, (calls, seconds))| Cost { name, calls, seconds })),
        traffic,
        device_bytes: all.iter().filter_map(|measured| measured.device_bytes).max(),
    }
}
