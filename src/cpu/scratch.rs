//! Memory that a thread keeps from one task to the next.

use std::cell::Cell;

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with two areas of this thread's scratch, of the given lengths and with whatever lay there before.
pub(super) fn with_two<R>(first: usize, second: usize, work: impl FnOnce(&mut [f32], &mut [f32]) -> R) -> R {
    let mut memory = SCRATCH.take();
    if memory.len() < first + second {
        // No more than is asked for, and the old one gone before: what a batch takes is foretold.
        drop(memory);
        memory = vec![0.0; first + second];
    }
    let (one, rest) = memory.split_at_mut(first);
    let result = work(one, &mut rest[..second]);
    SCRATCH.set(memory);
    result
}
