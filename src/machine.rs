//! Which machine computes: a GPU, or the CPU engine in its stead, chosen while the program runs.
//!
//! ```no_run
//! use kvsculpt::{gpu::Selection, machine::{Preference, choose}, solver::Request};
//!
//! # fn main() -> kvsculpt::Result<()> {
//! # let capture = kvsculpt::cache::Capture::open(std::path::Path::new("cache.safetensors"))?;
//! let choice = choose(Preference::Auto, &Selection::default())?;
//! if let Some(notice) = &choice.notice {
//!     eprintln!("note: {notice}");
//! }
//! let mut machine = choice.open()?;
//! println!("computing on {}", machine.name());
//! let short = machine.compress(&capture, &Request::default(), &mut ())?;
//! # Ok(())
//! # }
//! ```

mod choice;
mod measured;
mod several;

use crate::batch::Shard;
use crate::cache::{Capture, Compressed};
#[cfg(feature = "cpu")]
use crate::cpu::CpuEngine;
use crate::engine::{Dims, Engine};
use crate::kernels::GpuEngine;
use crate::self_test::{Check, self_test};
use crate::solver::{
    CompressedPart, Compression, CurveSet, Estimate, Finished, Observer, Request, Worth, compress_part_from, estimate, judge,
    measure_curves,
};
use crate::{Options, Result};

pub use choice::{Choice, Preference, choose};
pub use measured::Measured;
pub use several::{Several, choose_several};

use measured::{Clock, since, watch};

/// An engine of either kind.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, machine::Machine};
///
/// // As `Choice::open` makes it, or around an engine that is there already.
/// let mut machine = Machine::Cpu(CpuEngine::new());
/// assert_eq!(machine.compress(&capture, &request, &mut ())?.outcomes.len(), 3);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Machine {
    /// On a GPU.
    Gpu(Box<GpuEngine>),
    /// On the processor.
    #[cfg(feature = "cpu")]
    Cpu(CpuEngine),
    /// Several, of either kind, that share the heads.
    Several(Several),
}

impl Machine {
    /// `gpu` or `cpu`; `mixed` where several machines share the work and are not all of one kind.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, machine::Machine};
    ///
    /// assert_eq!(Machine::Cpu(CpuEngine::new()).kind(), "cpu");
    /// # }
    /// ```
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Gpu(_) => "gpu",
            #[cfg(feature = "cpu")]
            Self::Cpu(_) => "cpu",
            Self::Several(several) => several.kind(),
        }
    }

    /// The machine in words: adapter and driver, or the processor and its threads.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::Engine, machine::Machine};
    ///
    /// // What a journal keeps, because another machine rounds otherwise.
    /// assert_eq!(Machine::Cpu(CpuEngine::new()).name(), CpuEngine::new().name());
    /// # }
    /// ```
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Gpu(engine) => engine.name(),
            #[cfg(feature = "cpu")]
            Self::Cpu(engine) => engine.name(),
            Self::Several(several) => several.name(),
        }
    }

    /// [`compress`](crate::solver::compress) on this machine, tried again where it fails: [`compress_recovering`](crate::solver::compress_recovering).
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// let short = machine.compress(&capture, &request, &mut ())?;
    /// assert_eq!(short.compressed.layers[0].lengths, [short.split.kept(); 3]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`compress_recovering`](crate::solver::compress_recovering).
    pub fn compress(&mut self, capture: &Capture, request: &Request, observer: &mut dyn Observer) -> Result<Compression> {
        Ok(self.compress_measured(capture, request, observer)?.0)
    }

    /// Times every kernel by the device's clock from here on, which makes work on a GPU a little slower. `false` where the device
    /// has no clock for it; the CPU engine's operations are always timed.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// // The CPU engine's operations are always timed; a device without a clock for it says `false`.
    /// assert!(machine.enable_timings());
    /// # }
    /// ```
    pub fn enable_timings(&mut self) -> bool {
        match self {
            Self::Gpu(engine) => engine.gpu().enable_timings(),
            #[cfg(feature = "cpu")]
            Self::Cpu(_) => true,
            Self::Several(several) => several.enable_timings(),
        }
    }

    /// [`compress`](Self::compress), and what it cost.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// let (short, measured) = machine.compress_measured(&capture, &request, &mut ())?;
    /// for cost in &measured.costs {
    ///     println!("{:>16} {:>6} calls {:>9.3} s", cost.name, cost.calls, cost.seconds);
    /// }
    /// assert!(!measured.kernels && measured.traffic.bytes_written > short.source_bytes);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`compress_recovering`](crate::solver::compress_recovering).
    pub fn compress_measured(
        &mut self,
        capture: &Capture,
        request: &Request,
        observer: &mut dyn Observer,
    ) -> Result<(Compression, Measured)> {
        self.compress_from(capture, request, &mut Finished::default(), observer)
    }

    /// [`compress_measured`](Self::compress_measured), going on from what is finished, and leaving there what is where it fails or is
    /// cancelled. Where the device was lost in between, what is measured is of the fresh one.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request { at_once: Some(1), ..kvsculpt::solver::Request::default() };
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// use kvsculpt::solver::{Finished, Observer};
    ///
    /// struct UntilOne;
    /// impl Observer for UntilOne {
    ///     fn progress(&mut self, finished: usize, _heads: usize, _fraction: f64) -> bool {
    ///         finished == 0
    ///     }
    /// }
    /// let mut finished = Finished::default();
    /// assert!(machine.compress_from(&capture, &request, &mut finished, &mut UntilOne).is_err());
    /// assert_eq!(finished.heads.len(), 1);
    /// let (short, _) = machine.compress_from(&capture, &request, &mut finished, &mut ())?;
    /// assert_eq!(short.outcomes.len(), 3);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`compress_recovering`](crate::solver::compress_recovering).
    pub fn compress_from(
        &mut self,
        capture: &Capture,
        request: &Request,
        finished: &mut Finished,
        observer: &mut dyn Observer,
    ) -> Result<(Compression, Measured)> {
        // A device that is lost already is opened afresh by the work itself.
        let before = self.clock();
        let (compression, mut measured) = match self {
            Self::Gpu(engine) => watch(engine.as_mut(), capture, request, finished, observer)?,
            #[cfg(feature = "cpu")]
            Self::Cpu(engine) => watch(engine, capture, request, finished, observer)?,
            Self::Several(several) => several.compress_from(capture, request, finished, observer)?,
        };
        self.complete(&before, &mut measured);
        let traffic = measured.traffic;
        tracing::debug!(
            submissions = traffic.submissions,
            evaluations = traffic.evaluations,
            reads = traffic.reads,
            bytes_read = traffic.bytes_read,
            writes = traffic.writes,
            bytes_written = traffic.bytes_written,
            writes_ahead = traffic.writes_ahead,
            bytes_ahead = traffic.bytes_ahead,
            device_bytes = measured.device_bytes,
            "traffic"
        );
        if traffic.rounds.count > 0 {
            tracing::debug!("{}", traffic.rounds);
        }
        Ok((compression, measured))
    }

    /// What the device has measured of its own so far.
    fn clock(&mut self) -> Clock {
        match self {
            Self::Gpu(engine) => Clock {
                kernels: engine.gpu().timings().unwrap_or_default(),
                submissions: engine.gpu().submissions(),
            },
            _ => Clock::default(),
        }
    }

    /// Puts what the device has measured since then in the place of what the host did.
    fn complete(&mut self, before: &Clock, measured: &mut Measured) {
        let Self::Gpu(_) = self else { return };
        // The short cache is whole, whatever has become of the clock.
        let now = self.clock();
        if !now.kernels.is_empty() {
            measured.kernels = true;
            measured.costs = since(&before.kernels, &now.kernels);
        }
        measured.traffic.submissions = now.submissions.checked_sub(before.submissions).unwrap_or(now.submissions);
    }

    /// [`self_test`] of this machine; of several, the checks of all, one machine after the other.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// use kvsculpt::engine::Dims;
    ///
    /// let checks = machine.self_test(Dims { dim: 8, value_dim: 8 });
    /// assert!(checks.iter().any(|check| check.operation == "attention" && check.passed()));
    /// # }
    /// ```
    pub fn self_test(&mut self, dims: Dims) -> Vec<Check> {
        match self {
            Self::Gpu(engine) => self_test(engine.as_mut(), dims),
            #[cfg(feature = "cpu")]
            Self::Cpu(engine) => self_test(engine, dims),
            Self::Several(several) => several.each().flat_map(|machine| machine.self_test(dims)).collect(),
        }
    }

    /// [`measure_curves`] on this machine.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// use kvsculpt::{batch::Shard, solver::Request};
    ///
    /// let mut request = Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// // The first third of the heads: here one of three.
    /// let curves = machine.measure_curves(&capture, &request, Shard::new(0, 3)?, &mut ())?;
    /// assert_eq!(curves.heads().len(), 1);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`measure_curves`].
    pub fn measure_curves(&mut self, capture: &Capture, request: &Request, shard: Shard, observer: &mut dyn Observer) -> Result<CurveSet> {
        match self {
            Self::Gpu(engine) => measure_curves(engine.as_mut(), capture, request, shard, observer),
            #[cfg(feature = "cpu")]
            Self::Cpu(engine) => measure_curves(engine, capture, request, shard, observer),
            Self::Several(several) => several.together(|mut team| team.measure_curves(capture, request, shard, observer)),
        }
    }

    /// [`compress_part`](crate::solver::compress_part) on this machine.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// use kvsculpt::batch::Shard;
    ///
    /// let found = machine.compress_part(&capture, &request, Shard::new(1, 3)?, &mut ())?;
    /// assert_eq!(found.outcomes.len(), found.part.heads().count());
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`compress_part_from`].
    pub fn compress_part(
        &mut self,
        capture: &Capture,
        request: &Request,
        shard: Shard,
        observer: &mut dyn Observer,
    ) -> Result<CompressedPart> {
        self.compress_part_from(capture, request, shard, &mut Finished::default(), observer)
    }

    /// [`compress_part_from`] on this machine.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// use kvsculpt::{batch::Shard, solver::Finished};
    ///
    /// // What a journal of the same shard gives where it was interrupted; here nothing.
    /// let mut finished = Finished::default();
    /// let found = machine.compress_part_from(&capture, &request, Shard::new(1, 3)?, &mut finished, &mut ())?;
    /// assert_eq!(found.outcomes.len(), 1);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`compress_part_from`].
    pub fn compress_part_from(
        &mut self,
        capture: &Capture,
        request: &Request,
        shard: Shard,
        finished: &mut Finished,
        observer: &mut dyn Observer,
    ) -> Result<CompressedPart> {
        match self {
            Self::Gpu(engine) => compress_part_from(engine.as_mut(), capture, request, shard, finished, observer),
            #[cfg(feature = "cpu")]
            Self::Cpu(engine) => compress_part_from(engine, capture, request, shard, finished, observer),
            Self::Several(several) => several.together(|mut team| team.compress_part(capture, request, shard, finished, observer)),
        }
    }

    /// [`estimate`] for this machine.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// use kvsculpt::solver::Request;
    ///
    /// let estimate = machine.estimate(&capture, &Request::default())?;
    /// assert!(estimate.heads == 3 && estimate.pairs.1 < estimate.pairs.0);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`estimate`].
    pub fn estimate(&self, capture: &Capture, request: &Request) -> Result<Estimate> {
        match self {
            Self::Gpu(engine) => estimate(engine.as_ref(), capture, request),
            #[cfg(feature = "cpu")]
            Self::Cpu(engine) => estimate(engine, capture, request),
            Self::Several(several) => several.estimate(capture, request),
        }
    }

    /// [`judge`] on this machine; of several, on the first.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut machine = kvsculpt::machine::Machine::Cpu(kvsculpt::cpu::CpuEngine::new());
    /// let short = machine.compress(&capture, &request, &mut ())?.compressed;
    /// let worth = machine.judge(&capture, &[&short], &request.options, &mut ())?;
    /// assert!(worth[0].iter().all(|head| head.validation.is_some_and(|errors| errors.merged < 1.0)));
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`judge`].
    pub fn judge(
        &mut self,
        capture: &Capture,
        caches: &[&Compressed],
        options: &Options,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Vec<Worth>>> {
        match self {
            Self::Gpu(engine) => judge(engine.as_mut(), capture, caches, options, observer),
            #[cfg(feature = "cpu")]
            Self::Cpu(engine) => judge(engine, capture, caches, options, observer),
            Self::Several(several) => several.first().judge(capture, caches, options, observer),
        }
    }
}
