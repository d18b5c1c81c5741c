//! What a compression cost on a machine.

use serde::Serialize;

use crate::Result;
use crate::cache::Capture;
use crate::engine::Engine;
use crate::gpu::Timing;
use crate::solver::{Compression, Finished, Observer, Request, compress_recovering};
use crate::timed::{Cost, Timed, Traffic, dearest_first};

/// What a compression cost, finer than by stage.
///
/// ```
/// use kvsculpt::machine::Measured;
///
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
/// let measured: Measured = machine.compress_measured(&capture, &request, &mut ())?.1;
/// let dearest = measured.costs.first().map(|cost| cost.name);
/// assert!(dearest.is_some() && measured.traffic.reads > 0);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Measured {
    /// Whether `costs` are of kernels by the device's clock; else they are of operations by the host's, and where a GPU defers work,
    /// the time of a read holds that of the work before it.
    pub kernels: bool,
    /// The dearest first.
    pub costs: Vec<Cost>,
    /// What went to the machine and back.
    pub traffic: Traffic,
    /// The most bytes that the engine's arrays took on the device at one time, of several devices that of the fullest; `None` where the engine has
    /// no memory but the host's.
    pub device_bytes: Option<u64>,
}

impl<E: Engine> Timed<'_, E> {
    /// What it has seen so far.
    pub(super) fn measured(&mut self) -> Measured {
        Measured {
            kernels: false,
            costs: self.costs(),
            traffic: self.traffic(),
            device_bytes: self.take_peak_bytes(),
        }
    }
}

pub(super) fn watch<E: Engine>(
    engine: &mut E,
    capture: &Capture,
    request: &Request,
    finished: &mut Finished,
    observer: &mut dyn Observer,
) -> Result<(Compression, Measured)> {
    let mut timed = Timed::new(engine);
    // From here on.
    timed.take_peak_bytes();
    let compression = compress_recovering(&mut timed, capture, request, finished, observer)?;
    Ok((compression, timed.measured()))
}

/// A device's own measurements, up to some moment.
#[derive(Debug, Default)]
pub(super) struct Clock {
    pub(super) kernels: Vec<Timing>,
    pub(super) submissions: u64,
}

/// What kernels cost beyond what they had cost before; all of it where they ran on another device before.
pub(super) fn since(earlier: &[Timing], now: &[Timing]) -> Vec<Cost> {
    let find = |all: &'_ [Timing], kernel| all.iter().find(|timing| timing.kernel == kernel).map(|timing| timing.dispatches);
    let is_same = earlier.iter().all(|timing| find(now, timing.kernel) >= Some(timing.dispatches));
    let before = |kernel| earlier.iter().find(|timing| is_same && timing.kernel == kernel);
    dearest_first(now.iter().map(|timing| {
        let (calls, seconds) = before(timing.kernel).map_or((0, 0.0), |before| (before.dispatches, before.seconds));
        Cost {
            name: timing.kernel,
            calls: timing.dispatches - calls,
            seconds: timing.seconds - seconds,
        }
    }))
}
