//! How long operations will take, foretold from how long they took, and how many heads one portion of work may hold.

use std::collections::BTreeMap;
use std::ops::Range;

/// Seconds that a portion takes however little it does.
const OVERHEAD: f64 = 20e-6;
/// Seconds a unit of work, a multiplication and an addition, where nothing is known yet: those of a slow machine.
const SLOW: f64 = 1e-9;
/// How far one measurement of several operations together may move what is known of each.
const MOST_CORRECTION: f64 = 2.0;

/// What each operation takes.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds a unit of work; none after the first call, in which a kernel may have been compiled.
    rates: BTreeMap<&'static str, Option<f64>>,
}

impl Pace {
    /// Seconds that an operation will take; `None`: it has to be measured first.
    pub(super) fn foretell(&self, operation: &'static str, work: f64) -> Option<f64> {
        Some(OVERHEAD + self.rate(operation)? * work)
    }

    fn rate(&self, operation: &'static str) -> Option<f64> {
        self.rates.get(operation).copied().flatten()
    }

    /// Takes note of an operation that ran alone.
    pub(super) fn measured(&mut self, operation: &'static str, work: f64, seconds: f64) {
        let found = (seconds - OVERHEAD).max(0.1 * seconds) / work.max(1.0);
        let rate = match self.rates.get(operation) {
            None => None,
            Some(None) => Some(found),
            // A busy machine makes single measurements jump.
            Some(Some(known)) => Some(0.5 * (known + found)),
        };
        self.rates.insert(operation, rate);
    }

    /// Takes note of operations that ran one behind the other in so many seconds, where so many were foretold.
    pub(super) fn corrected(&mut self, operations: &[&'static str], foretold: f64, seconds: f64) {
        let factor = (seconds / foretold).clamp(1.0 / MOST_CORRECTION, MOST_CORRECTION);
        for (operation, rate) in &mut self.rates {
            if operations.contains(operation) {
                *rate = rate.map(|rate| rate * factor);
            }
        }
    }

    /// Cuts heads of so much work into neighbours that take at most so many seconds together, or that are one head; `None`: no bound.
    ///
    /// Rates and bound count in powers of two, so that measurements that jump a little do not cut anew each time.
    pub(super) fn cut(&self, operation: &'static str, work: &[f64], most: Option<f64>) -> Vec<Range<usize>> {
        let Some(most) = most else {
            return std::iter::once(0..work.len()).collect();
        };
        let rate = self.rate(operation).unwrap_or(SLOW).log2().ceil().exp2();
        let most = most.max(OVERHEAD).log2().floor().exp2();
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut seconds = 0.0;
        for (head, work) in work.iter().enumerate() {
            seconds += rate * work;
            match ranges.last_mut() {
                Some(range) if seconds <= most => range.end = head + 1,
                _ => {
                    seconds = rate * work;
                    ranges.push(head..head + 1);
                }
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_hold_every_head_once_and_keep_the_bound() {
        let mut pace = Pace::default();
        let work: Vec<f64> = (0..50).map(|head| 1e6 * f64::from(1 + head % 7)).collect();
        assert_eq!(pace.cut("gram", &work, None).first(), Some(&(0..50)));
        for seconds in [None, Some(1e-3), Some(4e-3)] {
            if let Some(seconds) = seconds {
                // The first call counts for nothing.
                pace.measured("gram", 1e6, 5.0);
                pace.measured("gram", 1e6, seconds);
            }
            for most in [1e-9, 2e-3, 1e-2, 1.0, 1e9] {
                let cut = pace.cut("gram", &work, Some(most));
                assert_eq!(cut.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
                for range in cut {
                    let seconds: f64 = work[range.clone()]
                        .iter()
                        .map(|work| pace.rate("gram").unwrap_or(SLOW) * work)
                        .sum();
                    assert!(range.len() == 1 || seconds <= most, "{range:?} takes {seconds}, bound {most}");
                }
            }
            assert_eq!(pace.cut("gram", &work, Some(1e9)).len(), 1);
            assert_eq!(pace.cut("gram", &work, Some(1e-9)).len(), 50);
        }
    }

    #[test]
    fn what_is_foretold_follows_what_is_measured() {
        let mut pace = Pace::default();
        pace.measured("attention", 1e6, 3.0);
        assert_eq!(pace.foretell("attention", 1e6), None);
        pace.measured("attention", 1e6, 1e-2);
        let near = |found: f64, wanted: f64| (found - wanted).abs() <= 0.01 * wanted;
        assert!(near(pace.foretell("attention", 1e6).unwrap(), 1e-2));
        assert!(near(pace.foretell("attention", 4e6).unwrap(), 4e-2));
        pace.corrected(&["attention"], 1e-2, 1.5e-2);
        assert!(near(pace.foretell("attention", 4e6).unwrap(), 6e-2));
        // One hitch does not spoil it.
        pace.corrected(&["attention"], 1e-2, 10.0);
        assert!(near(pace.foretell("attention", 4e6).unwrap(), 12e-2));
    }
}
