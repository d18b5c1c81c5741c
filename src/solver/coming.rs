//! The heads of the next slice: read while this one is worked on, and what their first batch begins with uploaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use super::inputs::Inputs;
use super::problem::Problem;
use crate::engine::Uploader;
use crate::error::{Error, Result};

/// How long one thread waits for another before it looks whether it is still wanted.
const PAUSE: Duration = Duration::from_millis(20);

/// What makes arrays while the engine works.
pub(super) type ByAnother<A> = Box<dyn Uploader<A> + Send>;

/// Set when it is dropped: whoever works for its owner may stop.
#[derive(Debug, Default)]
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a batch begins with, being uploaded.
#[derive(Debug)]
pub(super) struct Uploading<'scope, A> {
    thread: ScopedJoinHandle<'scope, Option<Inputs<A>>>,
    wanted: Wanted,
}

impl<'scope, A: Send + 'scope> Uploading<'scope, A> {
    /// Begins; `None` where the system has no thread to give.
    pub(super) fn start(scope: &'scope Scope<'scope, '_>, mut by: ByAnother<A>, problems: Vec<&'scope Problem>) -> Option<Self>
    where
        A: 'static,
    {
        let wanted = Wanted::default();
        let stop = Arc::clone(&wanted.0);
        let upload = move || uploaded(by.as_mut(), &problems, &stop);
        let thread = Builder::new()
            .name("kvsculpt uploads".to_owned())
            .spawn_scoped(scope, upload)
            .ok()?;
        Some(Self { thread, wanted })
    }

    /// Waits for it; `None` where it could not be done, and is to be done now.
    pub(super) fn finish(self) -> Option<Inputs<A>> {
        let started = Instant::now();
        let found = self.thread.join();
        drop(self.wanted);
        tracing::debug!(seconds = started.elapsed().as_secs_f64(), "waited for what is uploaded ahead");
        found.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    }
}

/// Uploads ahead. What fails is left for when it is needed: then there may be room, and else whoever needs it says what is wrong.
fn uploaded<A>(by: &mut dyn Uploader<A>, problems: &[&Problem], stop: &AtomicBool) -> Option<Inputs<A>> {
    let started = Instant::now();
    match Inputs::upload(by, problems, &|| stop.load(Ordering::Relaxed)) {
        Ok(inputs) => {
            let (heads, seconds) = (problems.len(), started.elapsed().as_secs_f64());
            tracing::debug!(heads, seconds, "uploaded ahead");
            inputs
        }
        Err(error) => {
            tracing::debug!(%error, "nothing is uploaded ahead");
            None
        }
    }
}

/// The first batch of the next slice.
pub(super) struct First<A> {
    pub(super) by: ByAnother<A>,
    /// Its places among the problems that are worked on.
    pub(super) members: Vec<usize>,
    /// Which problems these are.
    pub(super) is_open: fn(&Problem) -> bool,
}

/// Heads that have arrived, and what their first batch begins with, if that was uploaded.
pub(super) type Arrived<A> = (Vec<Vec<Problem>>, Option<Inputs<A>>);

/// The heads of a slice that is still to come.
#[derive(Debug)]
pub(super) struct Coming<A> {
    arrived: Receiver<Result<Arrived<A>>>,
    _wanted: Wanted,
}

impl<A: Send + 'static> Coming<A> {
    /// Waits for heads that are being read, and uploads what their first batch begins with as soon as there is room, which is when the
    /// sender that is returned goes. `None` where the system has no thread to give.
    pub(super) fn start<'scope, R>(
        scope: &'scope Scope<'scope, '_>,
        reading: Ahead<Vec<Problem>, R>,
        mut first: First<A>,
    ) -> Option<(Self, Sender<()>)>
    where
        R: Fn(usize) -> Result<Vec<Problem>> + Copy + Send + 'scope,
    {
        let wanted = Wanted::default();
        let stop = Arc::clone(&wanted.0);
        let (room, has_room) = channel();
        let (sender, arrived) = channel();
        let follow = move || {
            let is_wanted = || {
                if stop.load(Ordering::Relaxed) {
                    Err(Error::Cancelled)
                } else {
                    Ok(())
                }
            };
            let found = reading.all(is_wanted).map(|heads| {
                while has_room.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) && is_wanted().is_ok() {}
                let open: Vec<&Problem> = heads.iter().flatten().filter(|problem| (first.is_open)(problem)).collect();
                let problems: Vec<&Problem> = first.members.iter().filter_map(|&member| open.get(member).copied()).collect();
                let inputs = uploaded(first.by.as_mut(), &problems, &stop);
                (heads, inputs)
            });
            // Whoever waits may be gone.
            let _ = sender.send(found);
        };
        Builder::new()
            .name("kvsculpt follows".to_owned())
            .spawn_scoped(scope, follow)
            .ok()?;
        Some((Self { arrived, _wanted: wanted }, room))
    }

    /// Waits for them; `wait` is called now and then, and its error ends it.
    ///
    /// # Errors
    /// That of the first head that could not be read.
    pub(super) fn all(self, mut wait: impl FnMut() -> Result<()>) -> Result<Arrived<A>> {
        loop {
            wait()?;
            match self.arrived.recv_timeout(PAUSE) {
                Ok(arrived) => return arrived,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Panicked("a slice's reader ended before its end".into())),
            }
        }
    }
}
