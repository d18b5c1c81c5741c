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
/// # let capture = kvsculpt::cache::Capture::from_bytes("the bundled cache", include_bytes!("../../tests/data/smollm2-layer20.safetensors"))?;
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
    pub fn measure_curves(&mut self, capture: &Capture, request: &Request, shard: Shard, observer: &mut dyn Observer) -> Result<CurveSet> {
        self.at_work(request, |crew| curves_by(crew, capture, request, shard, observer))
    }

    /// [`compress_part_from`](super::compress_part_from) by all of them.
    ///
    /// # Errors
    /// As [`compress_part_from`](super::compress_part_from) and [`Team::compress`].
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
