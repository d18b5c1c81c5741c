//! Which heads go to which of several machines.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use super::deal;
use crate::error::{Error, Result};

/// One of so many parts of all heads, counted from 0 as Slurm's array tasks and Kubernetes' indexed jobs are.
///
/// ```
/// use kvsculpt::batch::Shard;
///
/// let shard: Shard = "1/3".parse()?;
/// assert_eq!(shard, Shard::new(1, 3)?);
/// assert_eq!((shard.index(), shard.count(), shard.to_string()), (1, 3, "1/3".to_owned()));
/// // Heads of these costs: the dearest, number 2, is alone in the first part.
/// let costs = [1, 1, 9, 1];
/// assert_eq!(Shard::new(0, 2)?.members(&costs), [2]);
/// assert_eq!(Shard::new(1, 2)?.members(&costs), [0, 1, 3]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// All heads.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Part `index` of `count`.
    ///
    /// # Errors
    /// [`Error::Options`] unless `index < count`.
    pub fn new(index: usize, count: usize) -> Result<Self> {
        if index < count {
            return Ok(Self { index, count });
        }
        Err(Error::option(
            "--shard",
            match count.checked_sub(1) {
                None => "0 parts hold nothing; write the part and how many there are, as 0/4".to_owned(),
                Some(last) => format!("there is no part {index} of {count}; parts are counted from 0, so give 0/{count} to {last}/{count}"),
            },
        ))
    }

    /// The part's number, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.index
    }

    /// How many parts there are.
    #[must_use]
    pub fn count(self) -> usize {
        self.count
    }

    /// Which of the heads of these costs are in this part, ascending: a pure function of the costs. The dearest heads are dealt out
    /// first, each to the part that has least so far, so that no part has more than the mean and one head. Heads of one cost are dealt out
    /// in turn, so that every part gets some of early and of late layers. Every head is in exactly one part; a part may have none.
    #[must_use]
    pub fn members(self, costs: &[u64]) -> Vec<usize> {
        // Parts beyond the number of heads get none.
        let parts = self.count.min(costs.len());
        let dealt = deal(costs, &vec![NonZeroU32::MIN; parts]);
        dealt.into_iter().nth(self.index).unwrap_or_default()
    }
}

/// As it is written: `0/4`.
impl fmt::Display for Shard {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(text, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        match text.split_once('/').map(|(index, count)| (number(index), number(count))) {
            Some((Some(index), Some(count))) => Self::new(index, count),
            _ => Err(Error::option(
                "--shard",
                format!("`{text}` is no part; write its number from 0 and how many there are, as 0/4"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(costs: &[u64], count: usize) -> Vec<Vec<usize>> {
        (0..count).map(|index| Shard::new(index, count).unwrap().members(costs)).collect()
    }

    #[test]
    fn every_head_is_in_one_part_and_parts_are_even() {
        let mut random = fastrand::Rng::with_seed(3);
        for count in [1, 2, 3, 7, 40] {
            let costs: Vec<u64> = (0..30).map(|_| random.u64(0..1000)).collect();
            let parts = parts(&costs, count);
            let mut all: Vec<usize> = parts.concat();
            all.sort_unstable();
            assert_eq!(all, (0..30).collect::<Vec<_>>());
            let load = |part: &Vec<usize>| part.iter().map(|&head| costs[head].max(1)).sum::<u64>();
            let (mean, dearest) = (costs.iter().sum::<u64>() / count as u64, costs.iter().max().unwrap());
            assert!(parts.iter().all(|part| load(part) <= mean + dearest + 30));
            assert_eq!(parts.iter().filter(|part| part.is_empty()).count(), count.saturating_sub(30));
        }
    }

    #[test]
    fn equal_heads_are_dealt_out_in_turn() {
        assert_eq!(parts(&[5; 7], 3), [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
        assert_eq!(parts(&[1, 9, 1, 1], 2), [vec![1], vec![0, 2, 3]]);
        assert_eq!(parts(&[], 2), [vec![], vec![]] as [Vec<usize>; 2]);
    }

    #[test]
    fn parts_are_written_from_zero() {
        assert_eq!("2/7".parse::<Shard>().unwrap(), Shard::new(2, 7).unwrap());
        assert_eq!(Shard::new(2, 7).unwrap().to_string(), "2/7");
        for (text, words) in [
            ("7/7", "0/7 to 6/7"),
            ("0/0", "as 0/4"),
            ("1", "as 0/4"),
            ("+1/2", "`+1/2`"),
            ("-1/2", "`-1/2`"),
            ("a/b", "`a/b`"),
            ("1/99999999999999999999", "as 0/4"),
        ] {
            let refused = text.parse::<Shard>().unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
