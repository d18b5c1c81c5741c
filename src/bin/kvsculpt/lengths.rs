//! Arguments that say how many pairs each head keeps, and the files they name.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use kvsculpt::budget::{Budgets, Scope, Weights};
use kvsculpt::options::{Allocator, Tail, Target};
use kvsculpt::solver::{Decided, Request};
use kvsculpt::{Error, Options, Result};

use crate::arguments::{bytes, replace, with_presets};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScopeKind {
    /// All heads of all layers have the same
    Uniform,
    /// Every layer has its own, for users of the cache that need one length in a layer
    Layer,
    /// Every head has its own
    Head,
}

impl From<ScopeKind> for Scope {
    fn from(kind: ScopeKind) -> Self {
        match kind {
            ScopeKind::Uniform => Self::Uniform,
            ScopeKind::Layer => Self::Layer,
            ScopeKind::Head => Self::Head,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AllocatorKind {
    /// Each head's error over its length, on queries held out
    Curves,
    /// The paper's rule, by the errors of a pilot at the uniform length
    Published,
}

/// How large the short cache is, and who gets how much of it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Lengths")]
pub(crate) struct LengthArguments {
    #[command(flatten)]
    pub(crate) target: TargetArguments,
    #[arg(long, value_enum, value_name = "SCOPE", conflicts_with = "budgets", help = with_presets(
        "Which heads share a length",
        |options| written(options.budget),
    ))]
    budget: Option<ScopeKind>,
    #[arg(long, value_enum, value_name = "ALLOCATOR", conflicts_with = "budgets", help = with_presets(
        "By what lengths are decided, where not all are the same",
        |options| match options.allocator {
            Allocator::Published => "published".into(),
            _ => "curves".into(),
        },
    ))]
    allocator: Option<AllocatorKind>,
    #[arg(long, value_name = "PAIRS", conflicts_with = "budgets", help = with_presets(
        "Lengths are whole pages of so many pairs, as far as a head has them",
        |options| options.page.to_string(),
    ))]
    page: Option<usize>,
    /// Take every head's length from this file, which --save-budgets wrote and you may have edited; sinks and tail too, where it names
    /// them. One that `kvsculpt allocate` made names the options too; what is given here wins
    #[arg(long, value_name = "FILE", conflicts_with_all = ["TargetArguments", "sensitivities"])]
    pub(crate) budgets: Option<PathBuf>,
    /// Also write every head's length to this file
    #[arg(long, value_name = "FILE")]
    save_budgets: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) weights: WeightArguments,
}

/// What each head's error weighs.
#[derive(Clone, Debug, Args)]
pub(crate) struct WeightArguments {
    /// Let each head's error weigh as much as this file says of it, which `kvsculpt-llm sensitivity` wrote
    #[arg(long, value_name = "FILE")]
    pub(crate) sensitivities: Option<PathBuf>,
    /// Sensitivities count to this power: 1 as they are, 0 not at all
    #[arg(long, value_name = "POWER", default_value_t = 0.5, requires = "sensitivities")]
    sensitivity_power: f64,
}

impl WeightArguments {
    /// The weights of the file named, if any.
    ///
    /// # Errors
    /// A file that cannot be read, or a power without meaning.
    pub(crate) fn read(&self) -> Result<Option<Weights>> {
        let Some(path) = &self.sensitivities else { return Ok(None) };
        let weights = Weights::read(path)?.powered(self.sensitivity_power).map_err(|error| match error {
            Error::Shape { reason, .. } => Error::Options {
                option: "--sensitivity-power",
                reason,
            },
            other => other,
        })?;
        Ok(Some(weights))
    }
}

/// One of these at most.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
pub(crate) struct TargetArguments {
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, help = with_presets("Fraction of the pairs that is kept, sinks and tail counted", |options| options.keep.to_string()))]
    keep: Option<f64>,
    /// Keep so many pairs a head on the mean, sinks and tail counted
    #[arg(long, value_name = "PAIRS")]
    tokens: Option<usize>,
    /// Write a file of at most this size, whatever its format, e.g. 2MiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    bytes: Option<u64>,
    /// Keep as little as has at most this mean merged error on the rows held out, e.g. 0.01; `compress` fits several times for it
    #[arg(long, value_name = "ERROR", allow_negative_numbers = true)]
    max_error: Option<f64>,
}

impl TargetArguments {
    fn is_given(self) -> bool {
        self.keep.is_some() || self.target().is_some()
    }

    fn target(self) -> Option<Target> {
        let tokens = self.tokens.map(Target::Tokens);
        tokens.or(self.bytes.map(Target::Bytes)).or(self.max_error.map(Target::MaxError))
    }

    pub(crate) fn put_over(self, options: &mut Options) {
        replace(&mut options.keep, self.keep);
        // Any of the four decides alone.
        if let (target, true) = (self.target(), self.is_given()) {
            options.target = target;
        }
    }
}

impl LengthArguments {
    pub(crate) fn put_over(&self, options: &mut Options) {
        self.target.put_over(options);
        replace(&mut options.budget, self.budget.map(Into::into));
        replace(
            &mut options.allocator,
            self.allocator.map(|allocator| match allocator {
                AllocatorKind::Curves => Allocator::Curves,
                AllocatorKind::Published => Allocator::Published,
            }),
        );
        replace(&mut options.page, self.page);
    }

    /// The file of budgets, where one is named.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn read_budgets(&self) -> Result<Option<Budgets>> {
        self.budgets.as_deref().map(Budgets::read).transpose()
    }

    /// Puts what the files named say into the request, whose layers are those of the capture where it names none; `says_ends` where
    /// sinks or tail were asked for by name.
    ///
    /// # Errors
    /// A file that cannot be read or has other sinks or another tail than were asked for, or sensitivities where nothing is decided by
    /// error curves.
    pub(crate) fn complete(&self, request: &mut Request, budgets: Option<Budgets>, layers: &[usize], says_ends: bool) -> Result<()> {
        if let Some(budgets) = budgets {
            let wanted = request.layers.as_deref().unwrap_or(layers);
            let options = &mut request.options;
            let asked = (options.sinks, options.tail);
            if let Some((sinks, tail)) = budgets.fixed()
                && says_ends
                && asked != (sinks, Tail::Pairs(tail))
            {
                return Err(Error::Options {
                    option: "--budgets",
                    reason: format!(
                        "names the ends its lengths were decided with, {sinks} sinks and a tail of {tail}; leave --sinks and --tail out, or take both out of the file"
                    ),
                });
            }
            let says = |decided: &Options| decided.keep.to_bits() == options.keep.to_bits() && decided.target == options.target;
            if !budgets.options().is_some_and(says) {
                keep_of(&budgets, wanted, options);
            }
            request.budgets = Some(budgets);
        }
        if self.weights.sensitivities.is_some() && request.decided() != Decided::Curves {
            return Err(Error::Options {
                option: "--sensitivities",
                reason: "weighs error curves, and by none are these lengths decided; use --budget head or layer, and --allocator curves"
                    .into(),
            });
        }
        request.weights = self.weights.read()?;
        Ok(())
    }

    /// Whether it is said which heads share a length.
    pub(crate) fn says_budget(&self) -> bool {
        self.budget.is_some()
    }

    /// Files that are read beside the capture.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Path> {
        self.budgets.iter().chain(&self.weights.sensitivities).map(PathBuf::as_path)
    }

    /// Where lengths are to be written, if anywhere.
    pub(crate) fn destination(&self) -> Option<&Path> {
        self.save_budgets.as_deref()
    }
}

/// Lets `keep` say what the file's lengths are of these layers: by it go the tail and what is told of the result.
fn keep_of(budgets: &Budgets, layers: &[usize], options: &mut Options) {
    let wanted = budgets.layers().filter(|(layer, _)| layers.contains(layer));
    let (mut pairs, mut heads) = (0_usize, 0);
    for (_, lengths) in wanted {
        pairs = lengths.iter().fold(pairs, |sum, &length| sum.saturating_add(length));
        heads += lengths.len();
    }
    // A file that names none of the layers is refused later, in words.
    let whole = heads.saturating_mul(budgets.tokens());
    if pairs < whole {
        options.keep = pairs as f64 / whole as f64;
    } else if heads > 0 {
        // Nothing is dropped, which no fraction below 1 says.
        options.target = Some(Target::Tokens(budgets.tokens()));
    }
}

/// A scope as it is written on the command line.
fn written(scope: Scope) -> String {
    match scope {
        Scope::Uniform => "uniform",
        Scope::Layer => "layer",
        Scope::Head => "head",
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets(layers: &[(usize, &[usize])]) -> Budgets {
        let layers = layers.iter().map(|(layer, lengths)| (*layer, lengths.to_vec())).collect();
        Budgets::new(100, layers).unwrap()
    }

    #[test]
    fn lengths_from_a_file_say_what_is_kept_of_the_layers_wanted() {
        let budgets = budgets(&[(0, &[10, 30]), (1, &[100, 100])]);
        let of = |layers: &[usize]| {
            let mut options = Options::default();
            keep_of(&budgets, layers, &mut options);
            (options.keep, options.target)
        };
        assert_eq!(of(&[0]), (0.2, None));
        assert_eq!(of(&[0, 1, 2]), (0.6, None));
        assert_eq!(of(&[1]).1, Some(Target::Tokens(100)));
        assert_eq!(of(&[7]), (Options::default().keep, None));
    }
}
