//! What the program has allocated.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The most that is allocated from some moment on. One at a time: a later one moves the moment.
#[derive(Debug)]
pub(crate) struct Peak {
    before: usize,
}

impl Peak {
    pub(crate) fn from_here() -> Self {
        ALLOCATOR.reset_peak_usage();
        Self {
            before: ALLOCATOR.current_usage(),
        }
    }

    /// Bytes beside what there was at that moment.
    pub(crate) fn bytes(&self) -> u64 {
        ALLOCATOR.peak_usage().saturating_sub(self.before) as u64
    }
}
