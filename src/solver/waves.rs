//! Batches in their order, and which of them leave room for what the next one begins with.

use super::batches::no_larger;
use crate::batch::{Budget, Shape, Workspace, need, schedule};
use crate::error::Result;

/// What a batch begins with, in bytes: what is uploaded for it before anything is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Beginning {
    /// Its arrays on the device, none of them in half precision.
    pub(super) device: u64,
    /// Of the largest of them two copies: as it was gathered, and as the device's queue holds it.
    pub(super) host: u64,
}

impl Beginning {
    /// That of heads of these shapes; of `chunks` also what they know of each other.
    pub(super) fn of(shapes: &[Shape], chunks: bool) -> Self {
        let sizes = Workspace::new(shapes, 0);
        let states: u64 = if chunks { sizes.states.iter().sum() } else { 0 };
        let cache = sizes.keys + sizes.values + sizes.fixed_keys + sizes.fixed_values;
        let arrays = [sizes.keys, sizes.values].into_iter().chain(sizes.queries);
        let largest = arrays.chain(sizes.states.into_iter().filter(|_| chunks)).max().unwrap_or(0);
        Self {
            device: 4 * (cache + sizes.queries.iter().sum::<u64>() + 2 * states),
            host: 8 * largest,
        }
    }

    pub(super) fn bytes(self) -> u64 {
        self.device + self.host
    }
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wave {
    pub(super) heads: Vec<usize>,
    /// What it takes.
    pub(super) bytes: u64,
    /// What the next begins with, where there is room for it beside this one; else nothing.
    pub(super) ahead: Beginning,
}

/// How heads are packed into batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    pub(super) history: u32,
    pub(super) budget: Budget,
    /// The most heads of a batch.
    pub(super) at_once: Option<usize>,
    /// Whether heads are cut.
    pub(super) chunks: bool,
    /// Whether the engine can be given arrays while it works.
    pub(super) uploads: bool,
}

impl Packing {
    /// Batches of these heads. Where they do not fit into one, each leaves room for what the next begins with, unless that makes more
    /// than a quarter more of them: what is uploaded ahead saves less than what smaller batches may cost.
    ///
    /// # Errors
    /// As [`schedule`].
    pub(super) fn waves(self, shapes: &[Shape], scratch: impl Fn(&[Shape]) -> u64) -> Result<Vec<Wave>> {
        let packed = |beside: &dyn Fn(&[Shape]) -> u64| {
            let batches = schedule(shapes, self.history, self.budget, |shapes| {
                scratch(shapes).saturating_add(beside(shapes))
            })?;
            Ok(no_larger(batches, self.at_once))
        };
        let mut batches = packed(&|_| 0)?;
        if self.uploads && batches.len() > 1 {
            // A head that fills the memory alone leaves no room at all.
            let smaller: Result<Vec<Vec<usize>>> = packed(&|shapes| Beginning::of(shapes, self.chunks).bytes());
            batches = smaller
                .ok()
                .filter(|smaller| 4 * smaller.len() <= 5 * batches.len())
                .unwrap_or(batches);
        }
        let sizes = |batch: &[usize]| batch.iter().map(|&head| shapes[head]).collect::<Vec<Shape>>();
        let mut waves: Vec<Wave> = Vec::with_capacity(batches.len());
        for heads in batches {
            let shapes = sizes(&heads);
            if let Some(before) = waves.last_mut().filter(|_| self.uploads) {
                before.ahead = self.beside(before.bytes, Beginning::of(&shapes, self.chunks)).unwrap_or_default();
            }
            waves.push(Wave {
                heads,
                bytes: need(&shapes, self.history, scratch(&shapes)),
                ahead: Beginning::default(),
            });
        }
        Ok(waves)
    }

    /// What a batch begins with, where that finds room beside one that takes so many bytes.
    pub(super) fn beside(self, bytes: u64, beginning: Beginning) -> Option<Beginning> {
        (bytes.saturating_add(beginning.bytes()) <= self.budget.total).then_some(beginning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Dims;

    fn shape(free: u32) -> Shape {
        Shape {
            dims: Dims { dim: 64, value_dim: 64 },
            tokens: 2048,
            fixed: 68,
            free,
            solved: free,
            training: 1000,
            validation: 10,
            probe: 10,
        }
    }

    fn packing(total: u64, uploads: bool) -> Packing {
        Packing {
            history: 10,
            budget: Budget { total, array: u64::MAX },
            at_once: None,
            chunks: false,
            uploads,
        }
    }

    /// Whatever the memory: every head once, what comes next counted, and never many more batches for it.
    #[test]
    fn batches_leave_room_for_what_the_next_begins_with() {
        let shapes: Vec<Shape> = (0..24).map(|head| shape(50 + 13 * (head % 7))).collect();
        let least = need(&[shape(128)], 10, 0);
        let (mut ahead, mut apart) = (0, 0);
        for twentieths in 20..400 {
            let total = least * twentieths / 20;
            let plain = packing(total, false).waves(&shapes, |_| 0).unwrap();
            assert!(plain.iter().all(|wave| wave.ahead == Beginning::default()));
            let waves = packing(total, true).waves(&shapes, |_| 0).unwrap();
            let mut heads: Vec<usize> = waves.iter().flat_map(|wave| wave.heads.clone()).collect();
            heads.sort_unstable();
            assert!(heads.into_iter().eq(0..24));
            assert!(4 * waves.len() <= 5 * plain.len());
            for (number, wave) in waves.iter().enumerate() {
                let members: Vec<Shape> = wave.heads.iter().map(|&head| shapes[head]).collect();
                assert_eq!(wave.bytes, need(&members, 10, 0));
                assert!(wave.bytes + wave.ahead.bytes() <= total);
                let Some(next) = waves.get(number + 1) else {
                    assert_eq!(wave.ahead, Beginning::default());
                    continue;
                };
                let next: Vec<Shape> = next.heads.iter().map(|&head| shapes[head]).collect();
                match packing(total, true).beside(wave.bytes, Beginning::of(&next, false)) {
                    Some(beginning) => {
                        assert_eq!(wave.ahead, beginning);
                        ahead += 1;
                    }
                    None => apart += 1,
                }
            }
        }
        assert!(ahead > 0 && apart > 0, "{ahead} {apart}");
    }

    #[test]
    fn a_beginning_is_what_is_uploaded() {
        let (shape, floats) = (shape(100), 64 * (2 * (2048 + 68) + 1020));
        let whole = Beginning::of(&[shape], false);
        assert_eq!((whole.device, whole.host), (4 * floats, 8 * 64 * 2048));
        let chunk = Beginning::of(&[shape], true);
        assert_eq!(chunk.device - whole.device, 4 * 2 * 68 * 1020);
        assert_eq!(Beginning::of(&[], true).bytes(), 0);
    }
}
