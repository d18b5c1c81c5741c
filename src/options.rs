//! What may be chosen, and the two presets.

mod split;

use serde::{Deserialize, Serialize};

pub use crate::budget::Scope;
use crate::error::{Error, Result};
pub use split::Split;

/// How a head's short cache is made.
///
/// ```
/// use kvsculpt::{Options, options::Method};
///
/// // Milliseconds in place of seconds, where the last bit of quality does not matter.
/// let mut quick = Options::default();
/// assert_eq!(quick.method, Method::Kvsculpt);
/// quick.method = Method::SelectFit;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Method {
    /// Pairs drawn at random from the zone, kept as they are: the floor every method must beat.
    Random,
    /// The zone's pairs that rank highest, kept as they are.
    Select,
    /// The same keys with values solved by least squares.
    SelectFit,
    /// Keys by L-BFGS, values by least squares, in turn.
    Kvsculpt,
}

/// By what the zone's pairs are ranked, from which the seed takes the first.
///
/// ```
/// use kvsculpt::{Options, options::Ranking};
///
/// assert_eq!(Options::default().ranking, Ranking::Effect);
/// assert_eq!(Options::published().ranking, Ranking::Attention);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ranking {
    /// The attention a pair gets, summed over the training rows, as published.
    Attention,
    /// What the output of attention would lose with the pair, squared and summed over the training rows: a pair counts for nothing whose
    /// value says what the others say ([`reference::effects`](crate::reference::effects)).
    Effect,
}

/// How many of the newest pairs stay as they are.
///
/// ```
/// use kvsculpt::{Options, options::{Split, Tail}};
///
/// let mut options = Options::default();
/// options.keep = 0.4;
/// assert_eq!(Split::uniform(1000, &options)?.tail, 100); // a quarter of 400
/// options.tail = Tail::Pairs(32);
/// assert_eq!(Split::uniform(1000, &options)?.tail, 32);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    /// Exactly so many.
    Pairs(usize),
    /// A quarter of the kept pairs, at most 256.
    Auto,
}

/// What the value solve's ridge pulls toward.
///
/// ```
/// use kvsculpt::{Options, options::Anchor};
///
/// assert_eq!(Options::default().anchor, Anchor::Seed);
/// assert_eq!(Options::published().anchor, Anchor::Zero);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    /// Zero, as published.
    Zero,
    /// The values the seed's pairs had in the cache: where the rows say nothing, nothing changes.
    Seed,
}

/// The strength of a penalty, alike for every head or in each head's own units.
///
/// ```
/// use kvsculpt::{Options, options::Strength};
///
/// // As published, whatever the size of a head's numbers; and a hundredth of the Gram's mean diagonal.
/// let mut options = Options::default();
/// for ridge in [Strength::Absolute(1e-3), Strength::Relative(1e-2)] {
///     options.ridge = ridge;
///     options.validate()?;
/// }
/// options.ridge = Strength::Absolute(0.0);
/// assert!(options.validate().is_err());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// The number itself, as published.
    Absolute(f64),
    /// The number times the head's own scale: the Gram's mean diagonal for the ridge, the teacher's mean
    /// squared output for the mass weight.
    Relative(f64),
}

/// What decides a result, beside the budgets and weights of a request. The same request, capture and machine give the same bytes.
///
/// ```
/// use kvsculpt::{Options, options::Scope};
///
/// // For an engine that needs all heads of a layer to be of one length.
/// let mut options = Options::default();
/// (options.keep, options.budget) = (0.25, Scope::Layer);
/// options.validate()?;
/// // The text that files keep; what it does not name is as by default.
/// let read: Options = serde_json::from_str(r#"{"keep": 0.25, "budget": "layer"}"#).unwrap();
/// assert_eq!(read, options);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Options {
    /// How a head's short cache is made.
    pub method: Method,
    /// The fraction of the pairs that is kept, sinks and tail counted; in (0, 1).
    pub keep: f64,
    /// How large the short cache is to be, in place of `keep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// By what the zone's pairs are ranked.
    pub ranking: Ranking,
    /// How many of the first pairs stay as they are.
    pub sinks: usize,
    /// How many of the newest pairs stay as they are.
    pub tail: Tail,
    /// Outer steps of key optimisation.
    pub steps: u32,
    /// L-BFGS iterations in an outer step; no new search begins once a quarter more evaluations are spent.
    pub iterations: u32,
    /// Values are solved again after so many outer steps.
    pub refit_every: u32,
    /// First trial length of a line search.
    pub learning_rate: f64,
    /// Curvature pairs L-BFGS remembers.
    pub history: u32,
    /// Training rows a query head at the newest positions, unchanged; `None`: as many as the tail is long, as published.
    pub recent_rows: Option<usize>,
    /// Training rows a query head drawn uniformly from the whole context and turned to the positions that follow.
    pub context_rows: usize,
    /// Over how many of the positions that follow they are spread, the newest soonest: about as many as tokens will be made with the
    /// short cache. Beyond them errors grow. `None`: each has a position of its own, the oldest soonest, as published.
    pub horizon: Option<usize>,
    /// Rows a query head, of the same two kinds and in the same proportion, that are held out of every fit; of a capture's own training
    /// rows an eighth, one at least where there are two, and no more than this. By them the
    /// best of select, select-fit and every refit is returned by the method `kvsculpt`. 0: the last iterate is returned, as published.
    pub validation_rows: usize,
    /// A head whose merged error on validation rows is below this is left alone: its key steps would fit rounding. Has no effect
    /// without validation rows.
    pub tolerance: f64,
    /// λ, what an error in the mass costs beside one in the output.
    pub mass_weight: Strength,
    /// The value solve's ridge.
    pub ridge: Strength,
    /// Whether each head takes the best of several ridges around this one, by its validation rows.
    pub ridge_search: bool,
    /// What the ridge pulls toward.
    pub anchor: Anchor,
    /// About how many tokens of the zone are compressed at once: a zone longer than one and a half times this is cut into chunks of
    /// this size, each of which stands for its own part of the head's attention. What a head costs then grows with its cache, not with
    /// its square. 0: the zone is never cut.
    pub chunk: usize,
    /// Which heads share a length.
    pub budget: Scope,
    /// By what lengths are decided, where not all are the same.
    pub allocator: Allocator,
    /// Lengths are whole pages of so many pairs, as far as a head has them.
    pub page: usize,
    /// Training rows of a head, of all its query heads together, from which its error curve is made. Without validation rows a quarter
    /// of them is held out to judge by.
    pub curve_rows: usize,
    /// Whether free pairs get a bias on their logit, β: for users of the cache that can add one. Pairs that are kept as they are by the
    /// methods `select` and `random` have none.
    pub bias: bool,
    /// The ridge of the mass fit that biases start from: times the mean diagonal of its Gram, toward no bias.
    pub bias_ridge: f64,
    /// Seeds the method `random`; the program, also queries that are drawn or guessed.
    pub seed: u64,
}

/// How large the short cache is to be, where [`Options::keep`] does not say it.
///
/// ```
/// use kvsculpt::{Options, options::{Split, Target}};
///
/// let mut options = Options::default();
/// options.target = Some(Target::Tokens(600));
/// assert_eq!(Split::uniform(2048, &options)?.kept(), 600);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Target {
    /// So many pairs a head on the mean, sinks and tail counted.
    Tokens(usize),
    /// A file of at most so many bytes, of the format that [`Request::written_as`](crate::solver::Request::written_as) says. What its header may
    /// need is set aside, so the file is a little smaller.
    Bytes(u64),
    /// The smallest cache found whose mean merged error on validation rows is at most this, before it is rounded to the file's numbers;
    /// heads weigh what the request's weights say. It is fitted until the error is within the bound and above nine tenths of it, at most
    /// five times once one was within it; by the curves alone where there are no validation rows. Of `Tail::Auto` the tail is an eighth of
    /// the cache then, at most 64 pairs.
    MaxError(f64),
}

/// By what lengths are decided.
///
/// ```
/// use kvsculpt::{Options, options::{Allocator, Target}};
///
/// // The published rule makes no error curves, by which an error could be aimed at.
/// let mut options = Options::default();
/// options.target = Some(Target::MaxError(0.01));
/// options.validate()?;
/// options.allocator = Allocator::Published;
/// assert!(options.validate().is_err());
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Allocator {
    /// The error of each head over its length, on validation rows.
    Curves,
    /// The paper's rule: by the square root of each layer's and head's error in a pilot of the method `kvsculpt` at the uniform length.
    Published,
}

/// The smallest chunk that is of use, in tokens.
const LEAST_CHUNK: usize = 16;

/// More positions than any model has.
const MOST_HORIZON: usize = 1 << 24;

impl Options {
    /// Whether free pairs have a bias: where it is asked for and the method fits anything.
    ///
    /// ```
    /// use kvsculpt::{Options, options::Method};
    ///
    /// let mut options = Options::default();
    /// options.bias = true;
    /// assert!(options.has_bias());
    /// // Pairs that are kept as they are need none.
    /// options.method = Method::Select;
    /// assert!(!options.has_bias());
    /// ```
    #[must_use]
    pub fn has_bias(&self) -> bool {
        self.bias && matches!(self.method, Method::SelectFit | Method::Kvsculpt)
    }

    /// The paper's recipe to the letter (arXiv 2603.27819, section 3 and appendix): tail 256, no sinks, 384 rows a query
    /// head, 100 steps of 10 iterations at learning rate 0.5, values every 5 steps with ridge 1e-3 toward zero, λ = 1.
    /// Where the paper is silent: history 100, the default of the optimiser it names.
    ///
    /// ```
    /// use kvsculpt::{Options, options::Tail};
    ///
    /// let mut published = Options::published();
    /// published.keep = 0.2;
    /// assert_eq!((published.steps, published.tail), (100, Tail::Pairs(256)));
    /// ```
    #[must_use]
    pub fn published() -> Self {
        Self {
            method: Method::Kvsculpt,
            keep: 0.3,
            target: None,
            ranking: Ranking::Attention,
            sinks: 0,
            tail: Tail::Pairs(256),
            steps: 100,
            iterations: 10,
            refit_every: 5,
            learning_rate: 0.5,
            history: 100,
            recent_rows: None,
            context_rows: 128,
            horizon: None,
            validation_rows: 0,
            tolerance: 0.0,
            mass_weight: Strength::Absolute(1.0),
            ridge: Strength::Absolute(1e-3),
            anchor: Anchor::Zero,
            ridge_search: false,
            chunk: 0,
            budget: Scope::Uniform,
            allocator: Allocator::Published,
            page: 1,
            curve_rows: 512,
            bias: false,
            bias_ridge: 0.1,
            seed: 0,
        }
    }

    /// Refuses values without meaning, naming the option as the program spells it.
    ///
    /// ```
    /// use kvsculpt::{Error, Options};
    ///
    /// let mut wrong = Options::default();
    /// wrong.keep = 2.0;
    /// assert!(matches!(wrong.validate(), Err(Error::Options { option: "--keep", .. })));
    /// ```
    ///
    /// # Errors
    /// [`Error::Options`].
    pub fn validate(&self) -> Result<()> {
        let positive = |option, value: f64| {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "asks whether it survives the single precision of the engines"
            )]
            let single = value as f32;
            if single.is_finite() && single > 0.0 {
                Ok(())
            } else {
                Err(Error::option(option, format!("{value} is not a positive number of ordinary size")))
            }
        };
        match self.target {
            None if !(self.keep > 0.0 && self.keep < 1.0) => {
                return Err(Error::option("--keep", format!("{} is not a fraction between 0 and 1", self.keep)));
            }
            Some(Target::MaxError(error)) if !(error.is_finite() && error >= 0.0) => {
                return Err(Error::option("--max-error", format!("{error} is not zero or more")));
            }
            Some(Target::MaxError(_)) if self.allocator == Allocator::Published => {
                return Err(Error::option(
                    "--max-error",
                    "needs error curves, which the allocator `published` does not make; use --allocator curves",
                ));
            }
            Some(Target::MaxError(_)) if self.method == Method::Random => {
                return Err(Error::option(
                    "--max-error",
                    "a random draw has no error curve; use another --method",
                ));
            }
            _ => {}
        }
        if self.page > 1 && self.budget != Scope::Uniform && self.allocator == Allocator::Published {
            return Err(Error::option(
                "--page",
                "the allocator `published` knows no pages; use --allocator curves, or --budget uniform",
            ));
        }
        positive("--bias-ridge", self.bias_ridge)?;
        positive("--learning-rate", self.learning_rate)?;
        let (Strength::Absolute(ridge) | Strength::Relative(ridge)) = self.ridge;
        positive("--ridge", ridge)?;
        let (Strength::Absolute(mass) | Strength::Relative(mass)) = self.mass_weight;
        positive("--mass-weight", mass)?;
        if self.history > 256 {
            return Err(Error::option(
                "--history",
                format!("{} pairs are more than the 256 a GPU keeps", self.history),
            ));
        }
        if !(self.tolerance.is_finite() && self.tolerance >= 0.0) {
            return Err(Error::option("--tolerance", format!("{} is not zero or more", self.tolerance)));
        }
        if let Some(horizon) = self.horizon
            && !(1..=MOST_HORIZON).contains(&horizon)
        {
            return Err(Error::option(
                "--horizon",
                format!(
                    "{horizon} positions are not from 1 to {MOST_HORIZON}; give about as many as tokens will be made with the short cache"
                ),
            ));
        }
        if (1..LEAST_CHUNK).contains(&self.chunk) {
            return Err(Error::option(
                "--chunk",
                format!(
                    "chunks of {} tokens hold too little; give at least {LEAST_CHUNK}, or 0 for none",
                    self.chunk
                ),
            ));
        }
        for (option, value) in [
            ("--iterations", self.iterations),
            ("--refit-every", self.refit_every),
            ("--history", self.history),
            ("--page", u32::from(self.page > 0)),
            ("--curve-rows", u32::from(self.curve_rows > 0)),
        ] {
            if value == 0 {
                return Err(Error::option(option, "must be at least 1"));
            }
        }
        Ok(())
    }
}

impl Default for Options {
    /// What measurements on probe rows favour (`benches/QUALITY.md`): a strong ridge toward the seed's values, four times the
    /// published context rows, spread over the next 256 positions, and half its newest ones, few steps, and validation rows that decide.
    fn default() -> Self {
        Self {
            ranking: Ranking::Effect,
            sinks: 4,
            tail: Tail::Auto,
            steps: 6,
            refit_every: 2,
            history: 10,
            recent_rows: Some(128),
            context_rows: 512,
            horizon: Some(256),
            validation_rows: 64,
            tolerance: 1e-3,
            mass_weight: Strength::Relative(0.25),
            ridge: Strength::Relative(0.1),
            ridge_search: true,
            anchor: Anchor::Seed,
            chunk: 2048,
            budget: Scope::Head,
            allocator: Allocator::Curves,
            ..Self::published()
        }
    }
}
