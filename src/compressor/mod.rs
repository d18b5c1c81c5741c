//! A compression that an application drives in bounded slices, beside its own frames or requests.
//!
//! ```
//! # #[cfg(feature = "cpu")]
//! # fn main() -> kvsculpt::Result<()> {
//! use std::time::Duration;
//! use kvsculpt::compressor::{Compressor, Step};
//! use kvsculpt::cpu::CpuEngine;
//! use kvsculpt::solver::Request;
//!
//! # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
//! # let mut request = Request::default();
//! # request.options.method = kvsculpt::options::Method::SelectFit;
//! # request.options.budget = kvsculpt::options::Scope::Uniform;
//! let mut compressor = Compressor::new(CpuEngine::new(), capture, request)?;
//! // Once a frame: at most 4 ms, then the frame itself.
//! while let Step::Working(progress) = compressor.step(Duration::from_millis(4)) {
//!     let _bar = progress.fraction;
//! }
//! let short = compressor.finish()?;
//! assert_eq!(short.outcomes.len(), 3);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "cpu"))]
//! # fn main() {}
//! ```
//!
//! # How the time is kept
//!
//! The method is a straight loop over operations of an [`Engine`], and stays one: it runs on a thread of the compressor's own. There
//! every operation is cut by heads into portions, and a portion begins only with leave, which [`step`](Compressor::step) gives for as
//! long as it is told. How long a portion will take is foretold from how long those before it took; one that would not end in time
//! waits for the next step, and before the thread waits it has the device finish all it was given. So a step hands a GPU no more
//! than fits into it, and an application's own work on the same queue finds the device free. Portions do not change the result: the
//! bytes are those of [`compress`](crate::solver::compress).
//!
//! A thread that waits costs nothing. A `step` returns when its time is up, even where a portion takes longer than foretold; that one
//! ends on the compressor's thread, and [`settle`](Compressor::settle) waits for it. What cannot be cut is one operation on one head (or
//! [chunk](crate::Options::chunk)), the upload of one array (of a batch that [`Request::memory`] or [`Request::at_once`] keeps
//! small), and the compiling of a kernel where a GPU needs it first.
//! Work between two operations that is the host's alone, such as reading a head from the capture, may go on after a step.
//!
//! # A device that is shared
//!
//! A device that the engine opened itself is opened again where it is lost; an application's own is not.
//! [`Gpu::from_device`](crate::gpu::Gpu::from_device) takes an application's own device and queue. The example `frame_loop` compresses
//! beside frames of 60 Hz on one device and tells what becomes of them.

mod gate;
mod pace;
mod portions;
mod table;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use self::gate::Gate;
use self::portions::Portions;
use crate::cache::Capture;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::solver::{Compression, Finished, FinishedHead, Lengths, Observer, Request, check, compress_recovering};

/// How far a compression is; what an [`Observer`] is told.
///
/// ```
/// use kvsculpt::compressor::Progress;
///
/// fn bar(progress: Progress) -> String {
///     format!("{} of {} heads, {:.0} %", progress.finished, progress.heads, 100.0 * progress.fraction)
/// }
/// assert_eq!(bar(Progress::default()), "0 of 0 heads, 0 %");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Heads finished.
    pub finished: usize,
    /// Heads in all; 0 until the work has begun.
    pub heads: usize,
    /// How far all are, in [0, 1].
    pub fraction: f64,
}

/// Where a compression stands after a [`step`](Compressor::step).
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// # let mut compressor = kvsculpt::compressor::Compressor::new(kvsculpt::cpu::CpuEngine::new(), capture, request)?;
/// use std::time::Duration;
/// use kvsculpt::compressor::Step;
///
/// // Once a frame:
/// match compressor.step(Duration::from_secs(60)) {
///     Step::Working(progress) => println!("{:.0} %", 100.0 * progress.fraction),
///     Step::Ended => assert_eq!(compressor.finish()?.outcomes.len(), 3),
/// }
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub enum Step {
    /// There is more to do.
    Working(Progress),
    /// It is over, well or not: [`finish`](Compressor::finish) has what came of it at once.
    Ended,
}

/// What a compressor leaves behind.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// # let mut compressor = kvsculpt::compressor::Compressor::new(kvsculpt::cpu::CpuEngine::new(), capture, request)?;
/// use kvsculpt::Error;
///
/// let ended = compressor.end();
/// assert!(matches!(ended.result, Err(Error::Cancelled)));
/// // Nothing was begun; the engine is there for the next compression.
/// assert!(ended.finished.heads.is_empty() && ended.machine.is_some());
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Ended<M> {
    /// The engine, for the next compression: its kernels are compiled. `None` after a panic, which may have left it in any state.
    pub machine: Option<M>,
    /// The short cache; [`Error::Cancelled`] where the work was ended before; whatever else went wrong.
    pub result: Result<Compression>,
    /// What was finished of it where there is no short cache: heads with their pairs and outcomes, and every head's length. Given to
    /// [`Compressor::resume`] it is not worked on again.
    pub finished: Finished,
}

/// What a compressor works on: every [`Engine`] that may move to another thread, and a [`Machine`].
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cache::Capture, compressor::{Compressor, Driven}, cpu::CpuEngine, solver::{Compression, Request}};
///
/// // On whatever machine the application has, a `Machine` or an engine of its own.
/// fn shorten(machine: impl Driven, capture: Capture, request: Request) -> kvsculpt::Result<Compression> {
///     Compressor::new(machine, capture, request)?.finish()
/// }
/// assert_eq!(shorten(CpuEngine::new(), capture, request)?.outcomes.len(), 3);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
pub trait Driven: Send + 'static {
    /// Compresses with leave for each portion.
    #[doc(hidden)]
    fn work(&mut self, job: Job<'_>) -> Result<Compression>;
}

/// What the thread is to do.
#[doc(hidden)]
#[derive(Debug)]
pub struct Job<'a> {
    gate: &'a Arc<Gate>,
    capture: &'a Capture,
    request: &'a Request,
    finished: &'a mut Finished,
    watcher: &'a mut Watcher,
}

impl<E: Engine + Send + 'static> Driven for E {
    fn work(&mut self, job: Job<'_>) -> Result<Compression> {
        let mut engine = Portions::new(self, Arc::clone(job.gate));
        compress_recovering(&mut engine, job.capture, job.request, job.finished, job.watcher)
    }
}

impl Driven for Machine {
    fn work(&mut self, job: Job<'_>) -> Result<Compression> {
        match self {
            Self::Gpu(engine) => engine.as_mut().work(job),
            #[cfg(feature = "cpu")]
            Self::Cpu(engine) => engine.work(job),
            Self::Several(several) => Err(Error::Unsupported {
                what: "a compressor".into(),
                need: "one machine".into(),
                have: several.name(),
                remedy: "give it one of them, or call `compress`".into(),
            }),
        }
    }
}

/// Keeps the progress at the gate, and tells the application's observer.
struct Watcher {
    gate: Arc<Gate>,
    observer: Box<dyn Observer + Send>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Watcher").finish_non_exhaustive()
    }
}

impl Observer for Watcher {
    fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
        let progress = Progress { finished, heads, fraction };
        self.gate.note(progress) && self.observer.progress(finished, heads, fraction)
    }

    fn decided(&mut self, lengths: &Lengths) -> Result<()> {
        self.observer.decided(lengths)
    }

    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        self.observer.finished(head)
    }

    fn retried(&mut self, error: &Error) {
        self.observer.retried(error);
    }
}

/// Tells the gate that the thread is done, however it is.
struct Ending(Arc<Gate>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A compression under way, on a thread of its own that works when it is told to.
///
/// It may be moved to another thread. Dropped, it ends the work, waiting for the portion under way.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{compressor::Compressor, cpu::CpuEngine};
///
/// // On a thread of the application's, which has nothing else to do.
/// let compressor = Compressor::new(CpuEngine::new(), capture, request)?;
/// let short = std::thread::spawn(move || compressor.finish()).join().unwrap()?;
/// assert_eq!(short.outcomes.len(), 3);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Compressor<M> {
    gate: Arc<Gate>,
    /// There until the end.
    thread: Option<JoinHandle<Ended<M>>>,
}

impl<M: Driven> Compressor<M> {
    /// Prepares the compression of a capture; no portion begins before the first [`step`](Self::step); reading the
    /// first heads may.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// use kvsculpt::{Error, compressor::Compressor, cpu::CpuEngine, solver::Request};
    ///
    /// let mut request = Request::default();
    /// request.options.keep = 1.5;
    /// // Refused at once, before any thread.
    /// let refused = Compressor::new(CpuEngine::new(), capture, request);
    /// assert!(matches!(refused, Err(Error::Options { option: "--keep", .. })));
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`check`]; [`Error::Unsupported`] where the system gives no thread.
    pub fn new(machine: M, capture: impl Into<Arc<Capture>>, request: Request) -> Result<Self> {
        Self::resume(machine, capture, request, Finished::default(), ())
    }

    /// Prepares a compression that goes on from what [another](Ended::finished) of the same capture and request finished, with an
    /// observer, which is called on the compressor's thread.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let capture = std::sync::Arc::new(capture);
    /// use std::{sync::Arc, time::Duration};
    /// use kvsculpt::{compressor::Compressor, cpu::CpuEngine, options::Method, solver::Request};
    ///
    /// let mut request = Request { at_once: Some(1), ..Request::default() };
    /// request.options.method = Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// let mut compressor = Compressor::new(CpuEngine::new(), Arc::clone(&capture), request.clone())?;
    /// while compressor.progress().finished == 0 {
    ///     let _ = compressor.step(Duration::from_millis(1));
    /// }
    /// // The user has closed the window; what is finished is kept, and may be written to a file with serde.
    /// let ended = compressor.end();
    /// assert_eq!(ended.finished.heads.len(), 1);
    /// # let Some(engine) = ended.machine else { return Ok(()) };
    /// let again = Compressor::resume(engine, capture, request, ended.finished, ())?;
    /// assert_eq!(again.finish()?.outcomes.len(), 3);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn resume(
        mut machine: M,
        capture: impl Into<Arc<Capture>>,
        request: Request,
        mut finished: Finished,
        observer: impl Observer + Send + 'static,
    ) -> Result<Self> {
        let capture = capture.into();
        check(&capture, &request)?;
        let gate = Arc::new(Gate::new());
        let mut watcher = Watcher {
            gate: Arc::clone(&gate),
            observer: Box::new(observer),
        };
        let ending = Ending(Arc::clone(&gate));
        let work = move || {
            let ending = ending;
            let job = Job {
                gate: &ending.0,
                capture: &capture,
                request: &request,
                finished: &mut finished,
                watcher: &mut watcher,
            };
            // What a panic may leave half done is the engine alone, which is not given back then.
            let (machine, result) = match catch_unwind(AssertUnwindSafe(|| machine.work(job))) {
                Ok(result) => (Some(machine), result),
                Err(panic) => (None, Err(Error::Panicked(said(panic.as_ref())))),
            };
            Ended { machine, result, finished }
        };
        let thread = Builder::new().name("kvsculpt".to_owned()).spawn(work);
        let thread = thread.map_err(|error| Error::Unsupported {
            what: "a compressor".into(),
            need: "a thread of its own".into(),
            have: format!("none to give ({error})"),
            remedy: "end other threads or programs, or call `compress` on a thread at hand".into(),
        })?;
        Ok(Self {
            gate,
            thread: Some(thread),
        })
    }

    /// Lets the work go on for at most so long, and returns when that is used up or nothing more fits into it. At least one portion is
    /// begun, unless one of an earlier step, or work of the host's alone, is still under way.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut compressor = kvsculpt::compressor::Compressor::new(kvsculpt::cpu::CpuEngine::new(), capture, request)?;
    /// use std::time::Duration;
    /// use kvsculpt::compressor::Step;
    ///
    /// let mut frames = 0;
    /// while compressor.step(Duration::from_millis(20)) != Step::Ended {
    ///     frames += 1; // here the application draws
    /// }
    /// assert_eq!(compressor.progress().fraction, 1.0);
    /// # let _ = frames;
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn step(&mut self, at_most: Duration) -> Step {
        if self.gate.give(at_most) {
            Step::Ended
        } else {
            Step::Working(self.gate.progress())
        }
    }

    /// Waits until what was begun is done, here and on the device, and nothing is under way.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut compressor = kvsculpt::compressor::Compressor::new(kvsculpt::cpu::CpuEngine::new(), capture, request)?;
    /// use std::time::Duration;
    ///
    /// let _ = compressor.step(Duration::from_millis(1));
    /// // Before the application measures its own work: nothing of ours runs beside it.
    /// compressor.settle();
    /// let portions = compressor.portions();
    /// std::thread::sleep(Duration::from_millis(5));
    /// assert_eq!(compressor.portions(), portions);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    pub fn settle(&mut self) {
        self.gate.settle();
    }

    /// How far it is.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut compressor = kvsculpt::compressor::Compressor::new(kvsculpt::cpu::CpuEngine::new(), capture, request)?;
    /// use std::time::Duration;
    ///
    /// let before = compressor.progress().fraction;
    /// let _ = compressor.step(Duration::from_millis(50));
    /// assert!(before == 0.0 && compressor.progress().fraction >= before);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.gate.progress()
    }

    /// Portions begun so far.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut compressor = kvsculpt::compressor::Compressor::new(kvsculpt::cpu::CpuEngine::new(), capture, request)?;
    /// use std::time::Duration;
    ///
    /// compressor.settle();
    /// assert_eq!(compressor.portions(), 0);
    /// let _ = compressor.step(Duration::ZERO);
    /// compressor.settle();
    /// // However short a step is, one portion is begun.
    /// assert_eq!(compressor.portions(), 1);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn portions(&self) -> u64 {
        self.gate.portions()
    }

    /// Lets the work go on without pause and waits for its end.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut compressor = kvsculpt::compressor::Compressor::new(kvsculpt::cpu::CpuEngine::new(), capture, request)?;
    /// use std::time::Duration;
    ///
    /// // The user waits now, so there are no frames to keep.
    /// let _ = compressor.step(Duration::from_millis(4));
    /// let short = compressor.finish()?;
    /// assert!(short.outcomes.iter().all(|head| head.kept < head.tokens));
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`compress`](crate::solver::compress); [`Error::Panicked`].
    pub fn finish(self) -> Result<Compression> {
        self.gate.give_all();
        self.end().result
    }

    /// Ends the work where it stands, waiting for the portion under way, and gives back what there is.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let mut compressor = kvsculpt::compressor::Compressor::new(kvsculpt::cpu::CpuEngine::new(), capture, request)?;
    /// use std::time::Duration;
    ///
    /// let _ = compressor.step(Duration::from_secs(60));
    /// // Where the work is done already, this is its result.
    /// let ended = compressor.end();
    /// assert_eq!(ended.result?.outcomes.len(), 3);
    /// assert!(ended.machine.is_some());
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn end(mut self) -> Ended<M> {
        self.join().unwrap_or_else(|| Ended {
            machine: None,
            result: Err(Error::Cancelled),
            finished: Finished::default(),
        })
    }

    /// What the thread leaves behind, once.
    fn join(&mut self) -> Option<Ended<M>> {
        self.gate.cancel();
        let joined = self.thread.take()?.join();
        Some(joined.unwrap_or_else(|panic| Ended {
            machine: None,
            result: Err(Error::Panicked(said(panic.as_ref()))),
            finished: Finished::default(),
        }))
    }
}

impl<M> Drop for Compressor<M> {
    fn drop(&mut self) {
        self.gate.cancel();
        if let Some(thread) = self.thread.take() {
            // Whatever came of it, nobody asks.
            let _ = thread.join();
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it did not say why".to_owned())
}
