//! Which heads are in memory together, and which are read meanwhile.

use std::num::NonZeroUsize;
use std::ops::Range;

use super::supply::{Need, Stage, Supply, USUAL_SLICE};
use crate::batch::Shape;
use crate::error::{Error, Result};

/// More threads than this wait for memory and the disk rather than read.
const MOST_READERS: usize = 4;

/// Consecutive heads that are in memory together, and what they take there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) heads: Range<usize>,
    pub(super) bytes: u64,
    /// What reading one of its heads takes beside that, at most.
    reading: u64,
    /// What the next slice and reading it take, where it is read while this one is worked on; else 0.
    pub(super) ahead: u64,
}

impl Slice {
    /// No heads.
    pub(super) const NONE: Self = Self {
        heads: 0..0,
        bytes: 0,
        reading: 0,
        ahead: 0,
    };
}

impl Supply<'_> {
    /// Heads in their order, in slices that leave as much of the memory to the engine as they take; a head that needs more gets more.
    /// Where all heads do not fit, slices are half as large, and each is read while the one before it is worked on, if there is room
    /// for both.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where a head alone takes more than there is, with the least that would do for all.
    pub(super) fn slices(&self, stage: Stage<'_>, scratch: impl Fn(&[Shape]) -> u64) -> Result<Vec<Slice>> {
        let needs = (0..self.places.len())
            .map(|head| self.need(head, stage, &scratch))
            .collect::<Result<Vec<Need>>>()?;
        let (usual, most) = match self.memory {
            Some(memory) => (memory / 2, memory),
            None => (USUAL_SLICE, u64::MAX),
        };
        let least = needs.iter().map(|need| need.host.saturating_add(need.beside)).max().unwrap_or(0);
        if least > most {
            return Err(Error::OutOfMemory {
                label: "everything of one head".to_owned(),
                bytes: least,
                available: most,
            });
        }
        let together = packed(&needs, usual, most);
        if together.len() < 2 {
            return Ok(together);
        }
        let mut slices = packed(&needs, usual / 2, most);
        for number in 1..slices.len() {
            let ahead = slices[number].bytes.saturating_add(slices[number].reading);
            let slice = &mut slices[number - 1];
            let beside = needs[slice.heads.clone()].iter().map(|need| need.beside).max().unwrap_or(0);
            if slice.bytes.saturating_add(beside).saturating_add(ahead) <= most {
                slice.ahead = ahead;
            }
        }
        // Smaller slices are worth it only where something is read ahead.
        let reads_ahead = slices.iter().any(|slice| slice.ahead > 0);
        Ok(if reads_ahead { slices } else { together })
    }

    /// How many threads read a slice: none beside the caller's where memory is short.
    pub(super) fn readers(&self, slice: &Slice, is_ahead: bool) -> usize {
        let most = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_READERS);
        match self.memory {
            None => most,
            // Its one reader is all that was reckoned with.
            Some(_) if is_ahead => 1,
            Some(memory) => {
                let room = memory.saturating_sub(slice.bytes) / slice.reading.max(1);
                usize::try_from(room).map_or(most, |room| if room < 2 { 0 } else { room.min(most) })
            }
        }
    }
}

/// Consecutive heads together, up to `usual` bytes and where what they take beside that is within `most`.
fn packed(needs: &[Need], usual: u64, most: u64) -> Vec<Slice> {
    let mut slices: Vec<Slice> = Vec::new();
    let mut beside = 0;
    for (head, need) in needs.iter().enumerate() {
        if let Some(slice) = slices.last_mut() {
            let bytes = slice.bytes + need.host;
            let largest = need.beside.max(beside);
            if bytes <= usual && bytes.saturating_add(largest) <= most {
                (slice.heads.end, slice.bytes, beside) = (head + 1, bytes, largest);
                slice.reading = slice.reading.max(need.reading);
                continue;
            }
        }
        beside = need.beside;
        slices.push(Slice {
            heads: head..head + 1,
            bytes: need.host,
            reading: need.reading,
            ahead: 0,
        });
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::*;
    use crate::cache::{Dtype, Generator};
    use crate::options::Split;

    /// The next slice is read ahead where both find room, and nowhere else.
    #[test]
    fn slices_and_what_is_read_ahead_stay_within_memory() {
        let mut generator = Generator::default();
        (generator.layers, generator.kv_heads, generator.group) = (6, 2, 2);
        (generator.dim, generator.tokens, generator.probes) = (16, 256, 0);
        let capture = generator.capture(Dtype::F32).unwrap();
        let request = Request::default();
        let split = Split::uniform(capture.tokens, &request.options).unwrap();
        let supply = Supply::new(&capture, &request, &capture.layers, split).unwrap();
        let free = vec![vec![50]; 12];
        let stage = Stage::Fit { free: &free, history: 10 };
        let slices = |memory| supply.within(memory).slices(stage, |_| 0);
        let all = slices(None).unwrap();
        assert_eq!((all.len(), all[0].ahead), (1, 0));
        let Err(Error::OutOfMemory { bytes: least, .. }) = slices(Some(1)) else {
            panic!("one byte is enough");
        };
        let (mut ahead, mut apart) = (0, 0);
        for tenths in 10..60 {
            let memory = least * tenths / 10;
            let slices = slices(Some(memory)).unwrap();
            assert!(slices.iter().flat_map(|slice| slice.heads.clone()).eq(0..12));
            assert_eq!(slices.last().map(|slice| slice.ahead), Some(0));
            for (number, slice) in slices.iter().enumerate() {
                assert!(slice.bytes + slice.ahead <= memory);
                // What one head alone takes is left beside it.
                let need = supply.need(slice.heads.start, stage, &|_: &[Shape]| 0).unwrap();
                assert!(slice.bytes + slice.ahead + need.beside <= memory);
                match slices.get(number + 1) {
                    Some(next) if slice.ahead > 0 => {
                        ahead += 1;
                        assert!(slice.ahead > next.bytes + need.reading / 2);
                        assert_eq!(supply.within(Some(memory)).readers(next, true), 1);
                    }
                    Some(_) => apart += 1,
                    None => {}
                }
            }
        }
        assert!(ahead > 0 && apart > 0, "{ahead} {apart}");
        // A slice that nothing goes on beside is read by as many as find room.
        let slice = &slices(Some(least)).unwrap()[0];
        let readers = supply.within(Some(least)).readers(slice, false);
        assert!(slice.bytes + readers.max(1) as u64 * slice.reading <= least);
        assert!(supply.within(Some(u64::MAX)).readers(slice, false) >= readers);
    }
}
