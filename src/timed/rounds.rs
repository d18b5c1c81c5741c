//! What a round of key steps costs in traffic.

use std::fmt;

use serde::Serialize;

use crate::engine::Exchange;

/// What went to the machine and came back in the rounds of key steps: in one, every head of a batch that is not at rest takes a step and
/// is evaluated once. On a GPU it is counted where it happens, tables too.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.steps = 1;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::compress, timed::Timed};
///
/// let mut engine = CpuEngine::new();
/// let mut watched = Timed::new(&mut engine);
/// compress(&mut watched, &capture, &request, &mut ())?;
/// let rounds = watched.traffic().rounds;
/// assert!(rounds.count > 0 && rounds.most.reads == 1);
/// println!("{rounds}");
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Rounds {
    /// How many rounds there were, of all batches.
    pub count: u64,
    /// Of all rounds together.
    pub all: Exchange,
    /// Of each the most that a round took.
    pub most: Exchange,
}

impl Rounds {
    /// Counts one round.
    pub(super) fn push(&mut self, round: Exchange) {
        self.add(&Self {
            count: 1,
            all: round,
            most: round,
        });
    }

    /// Adds the rounds of another machine.
    pub(super) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.all = self.all.with(other.all, |one, other| one + other);
        self.most = self.most.with(other.most, u64::max);
    }
}

/// In words: how many rounds, and what one took on the mean and at most.
impl fmt::Display for Rounds {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, most) = (&self.all, &self.most);
        write!(text, "{} rounds of key steps; one took", self.count)?;
        for (number, (what, all, most)) in [
            ("submissions", all.submissions, most.submissions),
            ("reads", all.reads, most.reads),
            ("bytes read", all.bytes_read, most.bytes_read),
            ("writes", all.writes, most.writes),
            ("bytes written", all.bytes_written, most.bytes_written),
        ]
        .into_iter()
        .enumerate()
        {
            let mean = all as f64 / self.count.max(1) as f64;
            write!(text, "{} {mean:.1} {what} (at most {most})", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_told_by_their_mean_and_the_most() {
        let round = |submissions, bytes_read| Exchange {
            submissions,
            reads: 1,
            bytes_read,
            writes: 3,
            bytes_written: 40,
        };
        let (mut rounds, mut others) = (Rounds::default(), Rounds::default());
        rounds.push(round(1, 64));
        others.push(round(2, 192));
        rounds.add(&others);
        assert_eq!(
            rounds.to_string(),
            "2 rounds of key steps; one took 1.5 submissions (at most 2), 1.0 reads (at most 1), 128.0 bytes read (at most 192), \
             3.0 writes (at most 3), 40.0 bytes written (at most 40)"
        );
    }
}
