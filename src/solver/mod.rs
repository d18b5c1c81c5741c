//! Says in what order: teacher, seed, values ⇄ keys, line search, stop. Names no wgpu.

mod ahead;
mod allocation;
mod assembled;
mod batches;
mod bias;
mod bound;
mod candidates;
mod chunks;
mod coming;
mod compress;
mod crew;
mod curve_set;
mod curves;
mod descent;
mod estimate;
mod finished;
mod fit;
mod inputs;
mod jobs;
mod judge;
mod keys;
mod line_search;
mod plan;
mod problem;
mod recover;
mod rows;
mod rowset;
mod seed;
mod shards;
mod size;
mod slices;
mod supply;
mod team;
mod track;
mod values;
mod waves;

pub use compress::{check, compress, compress_from};
pub use curve_set::{CurveSet, allocate};
pub use estimate::{Estimate, estimate};
pub use finished::{Finished, FinishedHead, Lengths};
pub use judge::{Worth, judge};
pub use recover::compress_recovering;
pub use shards::{CompressedPart, compress_part, compress_part_from, measure_curves, plan_curves, plan_part};
pub(crate) use team::{Size, estimate_together};
pub use team::{Team, division};

use serde::{Deserialize, Deserializer, Serialize};

use crate::budget::Scope;
use crate::budget::{Budgets, Curve, Weights};
use crate::cache::{Compressed, Dtype};
use crate::error::{Error, Result};
use crate::formats;
use crate::options::{Allocator, Options, Split, Target};
use crate::reference;

/// What to do with a capture.
///
/// ```
/// use kvsculpt::options::{Scope, Target};
/// use kvsculpt::solver::Request;
///
/// let mut request = Request { layers: Some(vec![0, 7]), memory: Some(2 << 30), ..Request::default() };
/// request.options.target = Some(Target::Tokens(600));
/// request.options.budget = Scope::Uniform;
/// request.options.validate()?;
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// What decides the result.
    pub options: Options,
    /// Layers to compress; `None`: all that the capture holds.
    pub layers: Option<Vec<usize>>,
    /// How keys and values are to be stored; `None`: as in the capture.
    pub dtype: Option<Dtype>,
    /// What the result is to be written as, whose bytes [`Target::Bytes`] and estimates count; `None`: a compressed
    /// cache. No more than that: whether the target can hold the result, [`formats::Target::check`] says.
    pub written_as: Option<formats::Target>,
    /// The length of every head, in place of what the options say of it.
    pub budgets: Option<Budgets>,
    /// What each head's error weighs where lengths are decided by error curves; `None`: all the same.
    pub weights: Option<Weights>,
    /// Bytes that everything a compression works on may use together, on the host and on the device: the heads that are read, those that are
    /// read ahead meanwhile, the arrays of those worked on at once, and their results. On top come the capture, where it is in memory, the short cache, and some
    /// MiB for each thread that the CPU engine's matrix products keep.
    /// `None`: heads of 1 GiB are read at once, and the arrays of a batch may be as large as the machine's largest array, and at
    /// least 1 GiB.
    pub memory: Option<u64>,
    /// The most heads, or chunks of heads, that are worked on at once, in a batch; `None`: as many as memory allows. Heads are finished,
    /// and told of, batch by batch. Changes no result.
    pub at_once: Option<usize>,
}

/// By what every head's length is decided.
///
/// ```
/// use kvsculpt::{options::Scope, solver::{Decided, Request}};
///
/// let mut request = Request::default();
/// assert_eq!(request.decided(), Decided::Curves);
/// request.options.budget = Scope::Uniform;
/// assert_eq!(request.decided(), Decided::Beforehand);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decided {
    /// It is known before the work.
    Beforehand,
    /// Error curves.
    Curves,
    /// A pilot of the whole method.
    Pilot,
}

impl Request {
    /// By what lengths are decided.
    ///
    /// ```
    /// use kvsculpt::{budget::Budgets, options::Allocator, solver::{Decided, Request}};
    ///
    /// let mut request = Request::default();
    /// request.options.allocator = Allocator::Published;
    /// assert_eq!(request.decided(), Decided::Pilot);
    /// request.budgets = Some(Budgets::new(2048, [(0, vec![120, 640])].into())?);
    /// assert_eq!(request.decided(), Decided::Beforehand);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn decided(&self) -> Decided {
        let options = &self.options;
        match (options.target, options.budget, options.allocator) {
            _ if self.budgets.is_some() => Decided::Beforehand,
            (Some(Target::MaxError(_)), ..) => Decided::Curves,
            (_, Scope::Uniform, _) => Decided::Beforehand,
            (_, _, Allocator::Published) => Decided::Pilot,
            (_, _, Allocator::Curves) => Decided::Curves,
        }
    }
}

/// The part of the work that an [`Observer`] is told while [curves or a pilot](Decided) decide lengths.
pub const PLANNING: f64 = 0.15;

/// Seconds by stage.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::compress};
///
/// let timings = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?.timings;
/// println!("read {:.2} s, seed {:.2} s, judged {:.2} s", timings.read, timings.teacher, timings.judge);
/// assert!(timings.teacher > 0.0 && timings.keys == 0.0); // the method was `select`
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Waiting for heads to be read from the capture and their rows to be drawn. What is read while the machine works does not count.
    pub read: f64,
    /// Error curves and budgets.
    #[serde(default)]
    pub budgets: f64,
    /// Uploading, the teacher's answers, the seed.
    pub teacher: f64,
    /// Value solves.
    pub values: f64,
    /// Key steps.
    pub keys: f64,
    /// Judging candidates on training, validation and probe rows.
    pub judge: f64,
}

impl Timings {
    /// Adds those of another machine's work.
    fn add(&mut self, other: Self) {
        self.read += other.read;
        self.budgets += other.budgets;
        self.teacher += other.teacher;
        self.values += other.values;
        self.keys += other.keys;
        self.judge += other.judge;
    }
}

/// A finished compression.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::compress};
///
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
/// for head in &short.outcomes {
///     println!("layer {} head {}: {} of {} pairs", head.layer, head.head, head.kept, head.tokens);
/// }
/// let kept: usize = short.outcomes.iter().map(|head| head.kept).sum();
/// assert_eq!(short.budgets.total(), kept);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Compression {
    /// The short cache.
    pub compressed: Compressed,
    /// What became of each head, in the order of layers and heads.
    pub outcomes: Vec<Outcome>,
    /// How a head's pairs are divided: sinks and tail of every head, and the mean of the free pairs, rounded down.
    pub split: Split,
    /// The length of every head.
    pub budgets: Budgets,
    /// The error curves that lengths were decided by; none where they were decided otherwise.
    pub curves: Vec<Curve>,
    /// Bytes of the keys and values as the capture holds them.
    pub source_bytes: u64,
    /// Seconds by stage.
    pub timings: Timings,
}

impl Compression {
    /// Bytes of keys and values as the capture holds them, and as they are stored now.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use kvsculpt::{cpu::CpuEngine, solver::compress};
    ///
    /// let (before, after) = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?.bytes();
    /// assert!((after as f64 / before as f64 - request.options.keep).abs() < 0.01);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.source_bytes, compress::stored_bytes(&self.compressed.layers))
    }

    /// The mean merged error on validation rows, before pairs were rounded to the file's numbers: what [`Target::MaxError`] bounds.
    /// Heads weigh what `weights` says, those it does not name nothing, and the same each without; `None` where no head has
    /// validation rows.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// use kvsculpt::{cpu::CpuEngine, options::Target, solver::compress};
    ///
    /// request.options.target = Some(Target::MaxError(0.05));
    /// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
    /// assert!(short.validation_error(None).is_some_and(|error| error <= 0.05));
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn validation_error(&self, weights: Option<&Weights>) -> Option<f64> {
        let weight = |head: &Outcome| weights.map_or(1.0, |weights| weights.weight(head.layer, head.head).unwrap_or(0.0));
        let weights: Vec<f64> = self.outcomes.iter().map(weight).collect();
        bound::mean(&self.outcomes, &weights)
    }
}

/// Why a head's key optimisation ended.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::{Stop, compress}};
///
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
/// // The method was `select`.
/// assert!(short.outcomes.iter().all(|head| head.stop == Stop::NotOptimised));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Stop {
    /// The head's budget is its whole cache, which is returned untouched.
    Whole,
    /// The method does not optimise keys.
    NotOptimised,
    /// Every step that was asked for was taken.
    OutOfSteps,
    /// The gradient vanished.
    Converged,
    /// No step lowered the loss any more.
    Flat,
    /// No better on the validation rows for several refits.
    NoBetter,
    /// Its error on validation rows is below the tolerance.
    GoodEnough,
    /// A value that is not finite turned up; the last good iterate is returned.
    NotFinite,
}

/// A number that JSON has no way to write is `null` there: a head that says nothing has errors of none.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Errors over a set of rows.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::{Errors, compress}};
///
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
/// let errors: Vec<Errors> = short.outcomes.iter().filter_map(|head| head.result.validation).collect();
/// let mean = errors.iter().map(|errors| errors.merged).sum::<f64>() / errors.len() as f64;
/// assert!(mean > 0.0 && mean < 0.5, "{mean}");
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// `Σ‖ŷ − y‖² / Σ‖y‖²`.
    #[serde(deserialize_with = "number")]
    pub output: f64,
    /// Root mean square of `l̂ − l`.
    #[serde(deserialize_with = "number")]
    pub mass: f64,
    /// The error that counts: `Σ‖m̂ − m‖² / Σ‖m‖²`, where m merges the context with a block of new tokens that holds as
    /// much mass as the context has on average (see [`reference::merged`]).
    #[serde(deserialize_with = "number")]
    pub merged: f64,
}

/// What one candidate is worth: on the rows it was fitted to and on the capture's probe queries, where it has some.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, options::Method, solver::{Judged, compress}};
///
/// request.options.method = Method::SelectFit;
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
/// let (fitted, selected): (Judged, Judged) = (short.outcomes[0].result, short.outcomes[0].select);
/// assert!(fitted.output < selected.output);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The training loss `(Σ‖ŷ − y‖² + λ Σ(l̂ − l)²) / rows`.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// `Σ‖ŷ − y‖² / Σ‖y‖²` on training rows.
    #[serde(deserialize_with = "number")]
    pub output: f64,
    /// Root mean square of `l̂ − l` on training rows.
    #[serde(deserialize_with = "number")]
    pub mass: f64,
    /// On validation rows, where any are held out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation: Option<Errors>,
    /// On probe rows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probe: Option<Errors>,
}

/// What became of one head.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::compress};
///
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut ())?;
/// let worst = short.outcomes.iter().max_by(|a, b| a.result.output.total_cmp(&b.result.output));
/// assert!(worst.is_some_and(|head| head.layer == 20 && head.kept < head.tokens));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outcome {
    /// Layer.
    pub layer: usize,
    /// KV head.
    pub head: usize,
    /// Pairs in the cache.
    pub tokens: usize,
    /// Pairs stored.
    pub kept: usize,
    /// Free pairs among them.
    pub free: usize,
    /// What is returned.
    pub result: Judged,
    /// The seed's pairs as they are, at the same length.
    pub select: Judged,
    /// The seed's keys with solved values, at the same length; absent where the method is `random` or `select`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub select_fit: Option<Judged>,
    /// Chunks that its zone was cut into and compressed in; what is told of the head is of all of them together.
    #[serde(skip_serializing_if = "is_one", default = "one")]
    pub chunks: usize,
    /// L-BFGS iterations.
    pub iterations: u32,
    /// Evaluations of loss and gradient.
    pub evaluations: u32,
    /// Why key optimisation ended.
    pub stop: Stop,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_one(chunks: &usize) -> bool {
    *chunks == 1
}

fn one() -> usize {
    1
}

/// Follows a compression and may end it.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{Error, cpu::CpuEngine, options::Method, solver::{Observer, Request, compress}};
///
/// struct Until(f64);
///
/// impl Observer for Until {
///     fn progress(&mut self, _finished: usize, _heads: usize, fraction: f64) -> bool {
///         fraction < self.0
///     }
/// }
///
/// let mut request = Request::default();
/// request.options.method = Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// let ended = compress(&mut CpuEngine::new(), &capture, &request, &mut Until(0.1));
/// assert!(matches!(ended, Err(Error::Cancelled)));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
pub trait Observer {
    /// Called as work proceeds: heads finished, heads in all, and how far all are, in [0, 1]. `false` asks to stop. Under
    /// [`Target::MaxError`] heads are fitted several times, and how many are finished begins anew each time.
    ///
    /// ```
    /// use kvsculpt::solver::Observer;
    ///
    /// struct Bar;
    /// impl Observer for Bar {
    ///     fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
    ///         eprint!("\r{finished}/{heads} {:3.0} %", 100.0 * fraction);
    ///         true
    ///     }
    /// }
    /// assert!(Bar.progress(1, 4, 0.3));
    /// ```
    fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
        let _ = (finished, heads, fraction);
        true
    }

    /// Called once, when it is decided how long heads will be; not where nothing had to be measured for it, or it is in what was
    /// [finished](Finished) before.
    ///
    /// ```
    /// use kvsculpt::solver::{Lengths, Observer};
    ///
    /// #[derive(Default)]
    /// struct Plan(usize);
    /// impl Observer for Plan {
    ///     fn decided(&mut self, lengths: &Lengths) -> kvsculpt::Result<()> {
    ///         self.0 = lengths.free.iter().flatten().sum();
    ///         Ok(())
    ///     }
    /// }
    /// let mut plan = Plan::default();
    /// # let lengths: Lengths = serde_json::from_str(r#"{"free": [[10], [7, 12]], "curves": [], "parts": []}"#).unwrap();
    /// plan.decided(&lengths)?;
    /// assert_eq!(plan.0, 29);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// The observer's own: the work ends with it.
    fn decided(&mut self, lengths: &Lengths) -> Result<()> {
        let _ = lengths;
        Ok(())
    }

    /// Called where the machine failed and the work is tried again: on a fresh device, or with less memory (see [`compress_recovering`]).
    ///
    /// ```
    /// use kvsculpt::{Error, solver::Observer};
    ///
    /// #[derive(Default)]
    /// struct Log(Vec<String>);
    /// impl Observer for Log {
    ///     fn retried(&mut self, why: &Error) {
    ///         self.0.push(why.to_string());
    ///     }
    /// }
    /// let mut log = Log::default();
    /// log.retried(&Error::DeviceLost("driver reset".into()));
    /// assert_eq!(log.0, ["the GPU device was lost: driver reset"]);
    /// ```
    fn retried(&mut self, why: &Error) {
        let _ = why;
    }

    /// Called for each head as soon as it is finished, batch by batch. Under [`Target::MaxError`] a head may be finished several times,
    /// each time with other free pairs; the last counts.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let mut request = kvsculpt::solver::Request::default();
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// use kvsculpt::{cpu::CpuEngine, solver::{FinishedHead, Observer, compress}};
    ///
    /// #[derive(Default)]
    /// struct Sent(Vec<usize>);
    /// impl Observer for Sent {
    ///     fn finished(&mut self, head: &FinishedHead) -> kvsculpt::Result<()> {
    ///         self.0.push(head.outcome.head);
    ///         Ok(())
    ///     }
    /// }
    /// let mut sent = Sent::default();
    /// compress(&mut CpuEngine::new(), &capture, &request, &mut sent)?;
    /// sent.0.sort_unstable();
    /// assert_eq!(sent.0, [0, 1, 2]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// The observer's own: the work ends with it.
    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        let _ = head;
        Ok(())
    }
}

/// Watches nothing and never stops.
impl Observer for () {}

impl<O: Observer + ?Sized> Observer for Box<O> {
    fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
        (**self).progress(finished, heads, fraction)
    }

    fn decided(&mut self, lengths: &Lengths) -> Result<()> {
        (**self).decided(lengths)
    }

    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        (**self).finished(head)
    }

    fn retried(&mut self, why: &Error) {
        (**self).retried(why);
    }
}

/// Error sums of a student's state against its teacher's, `[rows, value_dim + 4]` both.
fn merged_sums(student: &[f32], teacher: &[f32], value_dim: usize) -> reference::merged::Sums {
    let state = |array| reference::State::from_array(array, value_dim);
    reference::merged::sums(&state(student), &state(teacher), value_dim)
}
