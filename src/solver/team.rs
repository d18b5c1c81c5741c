//! Several machines in one process that share the heads of a compression.
//!
//! Heads are independent, so a head has the same bits whoever works on it, as long as it is a machine of the same kind. Machines that
//! differ (two makes of GPU, a GPU and the CPU engine) round differently. So which machine a head goes to is decided by the capture's
//! header, the request and the list of machines alone, never by who is free first: the same input gives the same output on the same list.

use std::num::NonZeroU32;

use super::compress::{chosen_layers, run};
use super::crew::{Crew, some};
use super::estimate::{Needs, estimate_by, needs};
use super::jobs::{Alone, Single};
use super::shards::{curves_by, part_by};
use super::supply::Supply;
use super::{CompressedPart, Compression, CurveSet, Estimate, Finished, Observer, Request, check};
use crate::batch::{Shard, deal};
use crate::cache::Capture;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Machines that share the heads of a compression, each on a thread of its own.
///
/// A head that one of them works on has the bits that the machine would give it alone: the result of equal machines is that of one. The
/// heads are [dealt out](deal) by what the capture's header says of them and by each machine's share. Each machine recovers from failures
/// as in [`compress_recovering`](super::compress_recovering): what is left of its heads is tried again on a fresh device. One that fails for
/// good ends the work of all, and what is finished can be given again.
///
/// The request's memory is divided evenly among the machines; without a bound each takes what it would take alone. Seconds by stage are
/// added up over machines, so that together they are more than the clock shows.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{cpu::CpuEngine, solver::{Finished, Request, Team, compress}};
///
/// let mut request = Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// let (mut one, mut other) = (CpuEngine::new(), CpuEngine::new());
/// let alone = compress(&mut one, &capture, &request, &mut ())?;
/// let mut team = Team::new().with(&mut one).with(&mut other);
/// let together = team.compress(&capture, &request, &mut Finished::default(), &mut ())?;
/// assert_eq!(together.compressed, alone.compressed);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Default)]
pub struct Team<'a> {
    members: Vec<Member<'a>>,
}

/// One of the machines.
struct Member<'a> {
    name: String,
    share: NonZeroU32,
    machine: Box<dyn Single + Send + 'a>,
}

impl std::fmt::Debug for Team<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members = self.members.iter().map(|member| (&member.name, member.share));
        formatter.debug_map().entries(members).finish()
    }
}

impl<'a> Team<'a> {
    /// Nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one machine more, which gets as many heads as any other.
    #[must_use]
    pub fn with<E: Engine + Send>(self, engine: &'a mut E) -> Self {
        self.with_share(engine, NonZeroU32::MIN)
    }

    /// With one machine more, whose part of the heads is as this share to all shares. For machines of different speeds; the shares are
    /// among what decides which machine a head goes to, and so the last bits where machines differ in kind.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use std::num::NonZeroU32;
    /// use kvsculpt::{cpu::CpuEngine, solver::Team};
    ///
    /// let (mut one, mut other) = (CpuEngine::new(), CpuEngine::new());
    /// let twice = NonZeroU32::MIN.saturating_add(1);
    /// let team = Team::new().with_share(&mut one, twice).with(&mut other);
    /// assert_eq!(team.division(&capture, &request)?[0].len(), 2);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn with_share<E: Engine + Send>(mut self, engine: &'a mut E, share: NonZeroU32) -> Self {
        self.members.push(Member {
            name: engine.name(),
            share,
            machine: Box::new(Alone(engine)),
        });
        self
    }

    /// [`compress_recovering`](super::compress_recovering) by all of them.
    ///
    /// # Errors
    /// As [`compress_recovering`](super::compress_recovering); [`Error::Shape`] where there is no machine; [`Error::Unsupported`] where the system has no
    /// thread to give.
    pub fn compress(
        &mut self,
        capture: &Capture,
        request: &Request,
        finished: &mut Finished,
        observer: &mut dyn Observer,
    ) -> Result<Compression> {
        self.at_work(request, |crew| run(crew, capture, request, finished, observer))
    }

    /// [`measure_curves`](super::measure_curves) by all of them.
    ///
    /// # Errors
    /// As [`measure_curves`](super::measure_curves) and [`Team::compress`].
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// use kvsculpt::{batch::Shard, cpu::CpuEngine, solver::{Team, measure_curves}};
    ///
    /// let (mut one, mut other) = (CpuEngine::new(), CpuEngine::new());
    /// let alone = measure_curves(&mut one, &capture, &request, Shard::new(0, 1)?, &mut ())?;
    /// let mut team = Team::new().with(&mut one).with(&mut other);
    /// assert_eq!(team.measure_curves(&capture, &request, Shard::new(0, 1)?, &mut ())?, alone);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn measure_curves(&mut self, capture: &Capture, request: &Request, shard: Shard, observer: &mut dyn Observer) -> Result<CurveSet> {
        self.at_work(request, |crew| curves_by(crew, capture, request, shard, observer))
    }

    /// [`compress_part_from`](super::compress_part_from) by all of them.
    ///
    /// # Errors
    /// As [`compress_part_from`](super::compress_part_from) and [`Team::compress`].
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use kvsculpt::{batch::Shard, cpu::CpuEngine, solver::{Finished, Team}};
    ///
    /// let (mut one, mut other) = (CpuEngine::new(), CpuEngine::new());
    /// let mut team = Team::new().with(&mut one).with(&mut other);
    /// let found = team.compress_part(&capture, &request, Shard::new(0, 2)?, &mut Finished::default(), &mut ())?;
    /// assert_eq!(found.outcomes.len(), 2);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn compress_part(
        &mut self,
        capture: &Capture,
        request: &Request,
        shard: Shard,
        finished: &mut Finished,
        observer: &mut dyn Observer,
    ) -> Result<CompressedPart> {
        self.at_work(request, |crew| part_by(crew, capture, request, shard, finished, observer))
    }

    /// [`estimate`](super::estimate) for all of them: bytes of the host together, of the device the most that one of them needs.
    ///
    /// # Errors
    /// As [`estimate`](super::estimate).
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use kvsculpt::{cpu::CpuEngine, solver::{Team, estimate}};
    ///
    /// let (mut one, mut other) = (CpuEngine::new(), CpuEngine::new());
    /// let alone = estimate(&one, &capture, &request)?;
    /// let together = Team::new().with(&mut one).with(&mut other).estimate(&capture, &request)?;
    /// assert!(together.batches >= alone.batches);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn estimate(&self, capture: &Capture, request: &Request) -> Result<Estimate> {
        let sizes = self
            .members
            .iter()
            .map(|member| Size::new(|supply, free| member.machine.needs(supply, free)));
        estimate_together(&sizes.collect::<Vec<_>>(), &self.shares(), capture, request)
    }

    /// Layer and head of what each machine would work on, by the order in which they came; see [`division`].
    ///
    /// # Errors
    /// As [`check`].
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use kvsculpt::{cpu::CpuEngine, solver::Team};
    ///
    /// let (mut one, mut other) = (CpuEngine::new(), CpuEngine::new());
    /// let team = Team::new().with(&mut one).with(&mut other);
    /// assert_eq!(team.division(&capture, &request)?, [vec![(20, 0), (20, 2)], vec![(20, 1)]]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn division(&self, capture: &Capture, request: &Request) -> Result<Vec<Vec<(usize, usize)>>> {
        division(capture, request, &self.shares())
    }

    fn shares(&self) -> Vec<NonZeroU32> {
        self.members.iter().map(|member| member.share).collect()
    }

    fn at_work<T>(&mut self, request: &Request, work: impl FnOnce(&mut Crew<'_>) -> Result<T>) -> Result<T> {
        if self.members.is_empty() {
            return Err(Error::shape("team", "has no machine; give it one with `with`"));
        }
        let shares = self.shares();
        let count = shares.len();
        let memory = memory_of_one(request, count);
        let machines = self.members.iter_mut().map(|member| member.machine.as_mut());
        let done = work(&mut Crew::new(machines, shares, memory));
        done.map_err(|error| of_all(request, count, error))
    }
}

/// Layer and head of what each of several machines with these shares works on: a pure function of the capture's header, the request and
/// the shares.
///
/// # Errors
/// As [`check`].
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use std::num::NonZeroU32;
/// use kvsculpt::solver::{Request, division};
///
/// let parts = division(&capture, &Request::default(), &[NonZeroU32::MIN; 3])?;
/// assert_eq!(parts, [[(20, 0)], [(20, 1)], [(20, 2)]]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
pub fn division(capture: &Capture, request: &Request, shares: &[NonZeroU32]) -> Result<Vec<Vec<(usize, usize)>>> {
    let split = check(capture, request)?;
    let supply = Supply::new(capture, request, &chosen_layers(capture, request)?, split)?;
    let dealt = deal(&supply.costs(), shares);
    Ok(dealt.iter().map(|heads| supply.only(heads).heads()).collect())
}

/// The part of the memory that each of so many machines has.
fn memory_of_one(request: &Request, machines: usize) -> Option<u64> {
    request.memory.map(|memory| memory / (machines as u64).max(1))
}

/// Memory that one machine's part of it does not do for, told as that of all.
fn of_all(request: &Request, machines: usize, error: Error) -> Error {
    match error {
        Error::OutOfMemory { label, bytes, available } if machines > 1 && Some(available) == memory_of_one(request, machines) => {
            Error::OutOfMemory {
                label: format!("{label} on each of {machines} machines"),
                bytes: bytes.saturating_mul(machines as u64),
                available: request.memory.unwrap_or(available),
            }
        }
        other => other,
    }
}

/// How a machine says what some heads take of it.
pub(crate) struct Size<'a>(Box<Sizing<'a>>);

/// What heads take whose chunks have these free pairs.
type Sizing<'a> = dyn Fn(&Supply<'_>, &[Vec<usize>]) -> Result<Needs> + 'a;

impl<'a> Size<'a> {
    fn new(size: impl Fn(&Supply<'_>, &[Vec<usize>]) -> Result<Needs> + 'a) -> Self {
        Self(Box::new(size))
    }

    /// That of an engine.
    pub(crate) fn of<E: Engine>(engine: &'a E) -> Self {
        Self::new(|supply, free| needs(engine, supply, free))
    }
}

/// [`Team::estimate`] for machines of these sizes and shares.
pub(crate) fn estimate_together(sizes: &[Size<'_>], shares: &[NonZeroU32], capture: &Capture, request: &Request) -> Result<Estimate> {
    let memory = memory_of_one(request, shares.len());
    let needs = |supply: &Supply<'_>, free: &[Vec<usize>]| {
        let mut all = Needs::default();
        for (size, heads) in sizes.iter().zip(deal(&supply.costs(), shares)) {
            if !heads.is_empty() {
                let found = size.0(&supply.only(&heads).within(memory), &some(free, &heads))?;
                all.host_bytes += found.host_bytes;
                all.device_bytes = all.device_bytes.max(found.device_bytes);
                all.batches += found.batches;
            }
        }
        Ok(all)
    };
    estimate_by(capture, request, needs).map_err(|error| of_all(request, shares.len(), error))
}
