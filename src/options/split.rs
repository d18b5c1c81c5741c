//! How the pairs of a head are divided.

use serde::{Deserialize, Serialize};

use super::{Options, Tail, Target};
use crate::error::{Error, Result};

/// How the pairs of a head are divided: sinks, free pairs that stand for the zone, tail.
///
/// ```
/// use kvsculpt::{Options, options::Split};
///
/// let mut options = Options::default();
/// options.keep = 0.25;
/// let split = Split::uniform(2048, &options)?;
/// assert_eq!((split.kept(), split.sinks, split.tail), (512, 4, 128));
/// // The free pairs stand for all that is neither sink nor tail.
/// assert_eq!((split.free, split.zone()), (512 - 132, 2048 - 132));
/// assert_eq!(Split::of(2048, 512, &options)?, split);
/// assert_eq!(Split::least(2048, &options)?.free, 1);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Pairs in the cache, N.
    pub tokens: usize,
    /// First pairs, kept.
    pub sinks: usize,
    /// Free pairs, k.
    pub free: usize,
    /// Newest pairs, kept.
    pub tail: usize,
}

/// The tail where `kept` pairs of a head are stored.
fn tail_of(kept: usize, options: &Options) -> usize {
    match options.tail {
        Tail::Pairs(pairs) => pairs,
        Tail::Auto => (kept / 4).min(256),
    }
}

/// The same with the sinks.
fn fixed_of(kept: usize, options: &Options) -> usize {
    options.sinks.saturating_add(tail_of(kept, options))
}

impl Split {
    /// The split of a cache of `tokens` pairs where all lengths are the same: `⌊keep · tokens⌋` pairs are stored in all, or what the
    /// target says in tokens; other targets are known only once heads are.
    ///
    /// # Errors
    /// [`Error::Options`] if no free pair is left, saying the smallest keep that leaves one, or if more is to be kept than there is.
    pub fn uniform(tokens: usize, options: &Options) -> Result<Self> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a token count")]
        let kept = match options.target {
            Some(Target::Tokens(kept)) => kept,
            _ => ((options.keep * tokens as f64) + 1e-9).floor() as usize,
        };
        Self::of(tokens, kept, options)
    }

    /// The split of a cache of `tokens` pairs of which `kept` are stored.
    ///
    /// # Errors
    /// As [`uniform`](Self::uniform).
    pub fn of(tokens: usize, kept: usize, options: &Options) -> Result<Self> {
        let (option, fraction) = match options.target {
            Some(Target::Tokens(_)) => ("--tokens", false),
            Some(Target::Bytes(_)) => ("--bytes", false),
            _ => ("--keep", true),
        };
        if kept > tokens {
            return Err(Error::option(
                option,
                format!("{kept} pairs a head are more than the {tokens} of the cache"),
            ));
        }
        let (tail, fixed) = (tail_of(kept, options), fixed_of(kept, options));
        if fixed >= kept {
            return Err(Error::option(
                option,
                match Self::fewest(tokens, options) {
                    None => format!(
                        "a cache of {tokens} pairs leaves no zone between {} sinks and a tail of {tail}; use a smaller --tail or --sinks",
                        options.sinks
                    ),
                    Some(least) if !fraction => format!(
                        "{kept} pairs a head are used up by {} sinks and a tail of {tail}; at least {least} are needed (or a smaller --tail or --sinks)",
                        options.sinks
                    ),
                    Some(least) => format!(
                        "{:?} of {tokens} pairs is {kept}, which {} sinks and a tail of {tail} use up; the smallest keep that leaves a free pair is {:.4} (or use a smaller --tail or --sinks)",
                        options.keep,
                        options.sinks,
                        (least as f64 / tokens as f64 * 1e4).ceil() / 1e4
                    ),
                },
            ));
        }
        Ok(Self {
            tokens,
            sinks: options.sinks,
            free: kept - fixed,
            tail,
        })
    }

    /// The fewest pairs a head that leave a free one; `None` where sinks and tail leave no zone.
    pub(crate) fn fewest(tokens: usize, options: &Options) -> Option<usize> {
        (1..tokens).find(|&kept| fixed_of(kept, options) < kept)
    }

    /// The split that a target in errors begins with: sinks, tail, and one free pair; how many there will be errors decide.
    ///
    /// # Errors
    /// [`Error::Options`] if sinks and tail leave no pair.
    pub fn least(tokens: usize, options: &Options) -> Result<Self> {
        let tail = match options.tail {
            Tail::Pairs(pairs) => pairs,
            Tail::Auto => (tokens / 8).min(64),
        };
        if options.sinks.saturating_add(tail) >= tokens {
            return Err(Error::option(
                "--tail",
                format!(
                    "a cache of {tokens} pairs leaves no zone between {} sinks and a tail of {tail}; use a smaller --tail or --sinks",
                    options.sinks
                ),
            ));
        }
        Ok(Self {
            tokens,
            sinks: options.sinks,
            free: 1,
            tail,
        })
    }

    /// Pairs stored: sinks, free pairs and tail.
    #[must_use]
    pub fn kept(self) -> usize {
        self.sinks + self.free + self.tail
    }

    /// Pairs of the zone that the free pairs stand for.
    #[must_use]
    pub fn zone(self) -> usize {
        self.tokens - self.sinks - self.tail
    }
}
