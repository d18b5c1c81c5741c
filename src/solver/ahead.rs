//! Heads read on threads of their own, while the machine works on others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{Builder, Scope};

use crate::error::{Error, Result};

/// Heads that are being read. Dropped, no more of them are begun.
pub(super) struct Ahead<T, R> {
    heads: Arc<[usize]>,
    read: R,
    /// Absent where nobody reads but the caller.
    receiver: Option<Receiver<(usize, Result<T>)>>,
    stop: Arc<AtomicBool>,
}

impl<T, R> Drop for Ahead<T, R> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl<T: Send, R: Fn(usize) -> Result<T> + Copy> Ahead<T, R> {
    /// Begins to read these heads on at most so many threads; on none, they are read when they are asked for.
    pub(super) fn start<'scope>(scope: &'scope Scope<'scope, '_>, heads: Vec<usize>, threads: usize, read: R) -> Self
    where
        T: 'scope,
        R: Send + 'scope,
    {
        let heads: Arc<[usize]> = heads.into();
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = channel();
        let mut has_any = false;
        for _ in 0..threads.min(heads.len()) {
            let (heads, stop, next, sender) = (Arc::clone(&heads), Arc::clone(&stop), Arc::clone(&next), sender.clone());
            let reader = move || {
                while !stop.load(Ordering::Relaxed) {
                    // In order, so that of several errors the first is always found.
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&head) = heads.get(place) else { break };
                    let found = read(head);
                    if found.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if sender.send((place, found)).is_err() {
                        break;
                    }
                }
            };
            // Where the system gives no thread, there are fewer, or the caller reads.
            has_any |= Builder::new().name("kvsculpt reads".to_owned()).spawn_scoped(scope, reader).is_ok();
        }
        Self {
            heads,
            read,
            receiver: has_any.then_some(receiver),
            stop,
        }
    }

    /// All of them, in order. `wait` is called before each that is waited for; its error ends the reading.
    ///
    /// # Errors
    /// That of the first head that could not be read.
    pub(super) fn all(self, mut wait: impl FnMut() -> Result<()>) -> Result<Vec<T>> {
        let Some(receiver) = &self.receiver else {
            let read = |&head: &usize| {
                wait()?;
                (self.read)(head)
            };
            return self.heads.iter().map(read).collect();
        };
        let mut found: Vec<Option<Result<T>>> = self.heads.iter().map(|_| None).collect();
        for _ in 0..self.heads.len() {
            wait()?;
            // Silent before the last: one of them failed, and the others stopped.
            let Ok((place, read)) = receiver.recv() else { break };
            found[place] = Some(read);
        }
        let broken = || Err(Error::Panicked("a head's reader ended before its end".into()));
        found.into_iter().map(|read| read.unwrap_or_else(broken)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_in_their_order_from_any_number_of_threads() {
        for threads in [0, 1, 3, 9] {
            let waited = AtomicUsize::new(0);
            let found = std::thread::scope(|scope| {
                let ahead = Ahead::start(scope, vec![4, 2, 7, 1, 0], threads, |head| Ok(10 * head));
                ahead.all(|| {
                    waited.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
            });
            assert_eq!((found.unwrap(), waited.into_inner()), (vec![40, 20, 70, 10, 0], 5));
        }
    }

    #[test]
    fn the_first_error_is_told_and_nothing_more_is_read() {
        for threads in [0, 1, 4] {
            let begun = &AtomicUsize::new(0);
            let read = |head: usize| {
                begun.fetch_add(1, Ordering::Relaxed);
                // The later failure comes first.
                std::thread::sleep(std::time::Duration::from_millis(if head == 2 { 30 } else { 1 }));
                if head >= 2 { Err(Error::Gpu(head.to_string())) } else { Ok(head) }
            };
            let found = std::thread::scope(|scope| Ahead::start(scope, (0..100).collect(), threads, read).all(|| Ok(())));
            assert!(matches!(&found, Err(Error::Gpu(head)) if head == "2"), "{found:?}");
            assert!(begun.load(Ordering::Relaxed) <= 3 + 4);
        }
    }

    #[test]
    fn reading_goes_on_while_nobody_waits_and_stops_when_nobody_wants_it() {
        let begun = &AtomicUsize::new(0);
        let (told, heard) = channel();
        let told = &told;
        std::thread::scope(|scope| {
            let read = move |head: usize| {
                begun.fetch_add(1, Ordering::Relaxed);
                told.send(head).map_err(|_| Error::Cancelled)?;
                Ok(head)
            };
            let ahead = Ahead::start(scope, (0..1000).collect(), 1, move |head| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                read(head)
            });
            // Two heads are read before anyone asks for one.
            assert_eq!([heard.recv(), heard.recv()], [Ok(0), Ok(1)]);
            drop(ahead);
        });
        assert!(begun.load(Ordering::Relaxed) < 1000);
        for threads in [0, 1] {
            let cancelled = std::thread::scope(|scope| Ahead::start(scope, vec![0, 1], threads, Ok).all(|| Err(Error::Cancelled)));
            assert!(matches!(cancelled, Err(Error::Cancelled)));
        }
    }
}
