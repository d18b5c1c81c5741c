//! The machines of a team at one job: each on a thread with heads of its own, all heard on the thread that asked.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, Scope, ScopedJoinHandle, panicking};

use super::curves::Grid;
use super::jobs::{Audience, Hands, Single, Task};
use super::recover::{Recovering, Recovery};
use super::supply::Supply;
use super::{FinishedHead, Timings};
use crate::batch::deal;
use crate::budget::Curve;
use crate::error::{Error, Result};
use crate::options::Options;

/// Machines that share every job.
pub(super) struct Crew<'a> {
    machines: Vec<(&'a mut (dyn Single + Send), Recovery)>,
    shares: Vec<NonZeroU32>,
}

impl<'a> Crew<'a> {
    /// Machines with a share each, in so much memory each.
    pub(super) fn new<'m: 'a>(
        machines: impl Iterator<Item = &'a mut (dyn Single + Send + 'm)>,
        shares: Vec<NonZeroU32>,
        memory: Option<u64>,
    ) -> Self {
        Self {
            machines: machines.map(|machine| (machine as _, Recovery::new(memory))).collect(),
            shares,
        }
    }

    /// Has every machine do a job on its heads; what each found, with its heads. The first failure ends the work of all.
    fn share<T: Send>(
        &mut self,
        task: Task<'_>,
        job: impl Fn(&mut dyn Hands, Task<'_>, &[usize]) -> Result<T> + Sync,
    ) -> Result<Vec<(Vec<usize>, T)>> {
        let parts: Vec<(Vec<usize>, Supply<'_>)> = deal(&task.supply.costs(), &self.shares)
            .into_iter()
            .map(|heads| (heads.clone(), task.supply.only(&heads)))
            .collect();
        let ended = AtomicBool::new(false);
        let (sender, receiver) = channel();
        let (at_once, scale, planning, job) = (task.at_once, task.scale, task.planning, &job);
        let found = std::thread::scope(|scope| {
            let alarm = Alarm(&ended);
            let mut workers = Vec::new();
            for (number, ((machine, recovery), (heads, supply))) in self.machines.iter_mut().zip(&parts).enumerate() {
                if heads.is_empty() {
                    continue;
                }
                let mut voice = Voice {
                    number,
                    sender: sender.clone(),
                    alarm: Alarm(&ended),
                };
                let worker = start(scope, number, move || {
                    let task = Task {
                        supply,
                        at_once,
                        scale,
                        stage: (0.0, 1.0),
                        planning,
                        audience: &mut voice,
                    };
                    let found = job(&mut Recovering::new(*machine, recovery), task, heads);
                    voice.alarm.ends(found.is_err());
                    found
                });
                alarm.ends(worker.is_err());
                workers.push(worker);
            }
            drop(sender);
            let weights = parts.iter().map(|(heads, _)| heads.len() as f64 / task.supply.places.len() as f64);
            let stopped = listen(&receiver, task.audience, task.stage, &weights.collect::<Vec<f64>>(), &alarm);
            let found = workers.into_iter().map(|worker| match worker?.join() {
                Ok(found) => found,
                Err(panicked) => std::panic::resume_unwind(panicked),
            });
            let found: Vec<Result<T>> = found.collect();
            stopped.map_or(Ok(found), Err)
        })?;
        let busy = parts.into_iter().map(|(heads, _)| heads).filter(|heads| !heads.is_empty());
        Ok(busy.zip(unanimous(found)?).collect())
    }
}

/// Starts a machine's thread.
fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    number: usize,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<T>>> {
    let started = Builder::new().name(format!("kvsculpt {number}")).spawn_scoped(scope, work);
    started.map_err(|error| Error::Unsupported {
        what: "several machines at once".into(),
        need: "a thread for each".into(),
        have: format!("none to give ({error})"),
        remedy: "end other threads or programs, or use one machine".into(),
    })
}

/// What all found, or why it is not all: a failure goes before those that were only stopped by it.
fn unanimous<T>(found: Vec<Result<T>>) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(found.len());
    let mut failed = None;
    for found in found {
        match found {
            Ok(found) => all.push(found),
            Err(error) if matches!(failed, None | Some(Error::Cancelled)) => failed = Some(error),
            Err(_) => {}
        }
    }
    failed.map_or(Ok(all), Err)
}

/// What a machine tells.
enum Message {
    Progress { number: usize, finished: usize, fraction: f64 },
    Finished(Box<FinishedHead>),
    Retried(Error),
}

/// Whether the work of all is to end before its end: it is in vain where one fails or panics, be it who listens.
struct Alarm<'a>(&'a AtomicBool);

impl Alarm<'_> {
    fn ends(&self, failed: bool) {
        if failed {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.ends(panicking());
    }
}

/// A machine's word to the thread that hears all of them.
struct Voice<'a> {
    number: usize,
    sender: Sender<Message>,
    alarm: Alarm<'a>,
}

impl Audience for Voice<'_> {
    fn progress(&mut self, finished: usize, fraction: f64) -> bool {
        let number = self.number;
        // Whoever listens stays until the last has spoken.
        let _ = self.sender.send(Message::Progress {
            number,
            finished,
            fraction,
        });
        !self.alarm.0.load(Ordering::Relaxed)
    }

    fn finished(&mut self, head: FinishedHead) -> Result<()> {
        let _ = self.sender.send(Message::Finished(Box::new(head)));
        Ok(())
    }

    fn retried(&mut self, why: Error) {
        let _ = self.sender.send(Message::Retried(why));
    }
}

/// Passes on what machines tell until all are silent; says why the work is to end before its end, if the audience wants it to.
/// `weights` are the machines' parts of all heads.
fn listen(
    receiver: &Receiver<Message>,
    audience: &mut dyn Audience,
    (begin, share): (f64, f64),
    weights: &[f64],
    alarm: &Alarm<'_>,
) -> Option<Error> {
    let mut far = vec![(0, 0.0); weights.len()];
    let mut stopped = None;
    for message in receiver {
        let heard = match message {
            Message::Progress {
                number,
                finished,
                fraction,
            } => {
                far[number] = (finished, fraction);
                let finished = far.iter().map(|far| far.0).sum();
                let fraction: f64 = far.iter().zip(weights).map(|(far, weight)| far.1 * weight).sum();
                let goes_on = stopped.is_some() || audience.progress(finished, begin + share * fraction);
                if goes_on { Ok(()) } else { Err(Error::Cancelled) }
            }
            // Heads that were under way when the work was stopped are finished for all that; one that the audience could not take ends it.
            Message::Finished(head) if matches!(stopped, None | Some(Error::Cancelled)) => audience.finished(*head),
            Message::Finished(_) => Ok(()),
            Message::Retried(why) => {
                audience.retried(why);
                Ok(())
            }
        };
        if let Err(error) = heard {
            alarm.ends(true);
            stopped.get_or_insert(error);
        }
    }
    stopped
}

/// Some elements, by their places.
pub(super) fn some<T: Clone>(all: &[T], places: &[usize]) -> Vec<T> {
    places.iter().map(|&place| all[place].clone()).collect()
}

/// What was found of heads by machines, so many things a head, in the order of heads.
fn in_order<T>(found: Vec<(Vec<usize>, Vec<T>)>) -> Vec<T> {
    let mut all: Vec<(usize, Vec<T>)> = Vec::new();
    for (heads, things) in found {
        let each = things.len() / heads.len();
        let mut things = things.into_iter();
        all.extend(heads.into_iter().map(|head| (head, things.by_ref().take(each).collect())));
    }
    all.sort_by_key(|(head, _)| *head);
    all.into_iter().flat_map(|(_, things)| things).collect()
}

impl Hands for Crew<'_> {
    fn curves(&mut self, task: Task<'_>, grid: &Grid, options: &Options) -> Result<Vec<Curve>> {
        let found = self.share(task, |hands, task, _| hands.curves(task, grid, options))?;
        Ok(in_order(found))
    }

    fn losses(&mut self, task: Task<'_>, free: &[Vec<usize>], options: &Options) -> Result<Vec<f64>> {
        let found = self.share(task, |hands, task, heads| hands.losses(task, &some(free, heads), options))?;
        Ok(in_order(found))
    }

    fn fit(&mut self, task: Task<'_>, free: &[Vec<usize>], done: &[bool], options: &Options, timings: &mut Timings) -> Result<()> {
        let found = self.share(task, |hands, task, heads| {
            let mut timings = Timings::default();
            hands.fit(task, &some(free, heads), &some(done, heads), options, &mut timings)?;
            Ok(timings)
        })?;
        for (_, found) in found {
            timings.add(found);
        }
        Ok(())
    }
}
