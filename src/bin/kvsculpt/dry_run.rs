//! `kvsculpt compress --dry-run`: what a compression would need and how long it would take, by a short probe.

use std::time::Instant;

use kvsculpt::Result;
use kvsculpt::cache::Capture;
use kvsculpt::machine::Machine;
use kvsculpt::options::Target;
use kvsculpt::solver::{Estimate, Request, Timings, check};
use serde::Serialize;

use crate::progress::{Progress, duration};
use crate::report::size;
use crate::{Talk, print, print_json};

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct DryRun {
    dry_run: bool,
    engine: &'static str,
    machine: String,
    /// How the heads are divided, where several machines share them.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    machines: Vec<Share>,
    #[serde(flatten)]
    estimate: Estimate,
    /// Whether lengths were decided before; else figures are for heads that are all of the mean length.
    lengths_known: bool,
    /// Whether an error is the target, so that not even the size is known.
    by_error: bool,
    /// Seconds that the whole is expected to take; a head that stops early takes less.
    seconds: f64,
    probe: Probe,
}

/// One of several machines, and how many heads it works on.
#[derive(Debug, Serialize)]
struct Share {
    machine: String,
    heads: usize,
}

/// What the time is judged by.
#[derive(Debug, Serialize)]
struct Probe {
    layer: usize,
    /// Outer steps that were taken, and how many there will be at most.
    steps: (u32, u32),
    seconds: f64,
}

/// Tells what the request would need on this machine; writes nothing.
pub(crate) fn run(machine: &mut Machine, capture: &Capture, request: &Request, json: bool, talk: Talk) -> Result<()> {
    let estimate = machine.estimate(capture, request)?;
    let layers = request.layers.as_ref().unwrap_or(&capture.layers);
    // The middle one: first and last layers are the unusual ones.
    let layer = layers[layers.len() / 2];
    let steps = request.options.steps.min(request.options.refit_every);
    let short = probe_of(capture, request, layer, steps)?;
    let started = Instant::now();
    let mut progress = Progress::new(talk, short.decided());
    let compression = machine.compress(capture, &short, &mut progress)?;
    progress.finish();
    let probe = Probe {
        layer,
        steps: (steps, request.options.steps),
        seconds: started.elapsed().as_secs_f64(),
    };
    let machines = shares(machine, capture, request)?;
    let found = DryRun {
        dry_run: true,
        engine: machine.kind(),
        machine: machine.name(),
        lengths_known: request.decided() == kvsculpt::solver::Decided::Beforehand,
        by_error: matches!(request.options.target, Some(Target::MaxError(_))),
        seconds: expected(
            compression.timings,
            work(capture, layers)? / work(capture, &[layer])?,
            request,
            steps,
        ) / at_once(&machines),
        machines,
        probe,
        estimate,
    };
    if json { print_json(&found) } else { print(&found.text()) }
}

/// How the heads are divided among several machines; none where there is one.
fn shares(machine: &Machine, capture: &Capture, request: &Request) -> Result<Vec<Share>> {
    let parts = machine.division(capture, request)?;
    let parts = if parts.len() > 1 { parts } else { Vec::new() };
    let share = |(machine, heads)| Share { machine, heads };
    Ok(parts.into_iter().map(share).collect())
}

/// How many machines' seconds pass in one, which the probe's stages count machine by machine: the longest part decides.
fn at_once(machines: &[Share]) -> f64 {
    let all: usize = machines.iter().map(|share| share.heads).sum();
    let most = machines.iter().map(|share| share.heads).max();
    most.map_or(1.0, |most| all as f64 / most.max(1) as f64)
}

/// The request for one layer and a round of steps, lengths decided as in the whole.
fn probe_of(capture: &Capture, request: &Request, layer: usize, steps: u32) -> Result<Request> {
    let mut short = Request {
        layers: Some(vec![layer]),
        // Some formats hold all layers or none.
        written_as: None,
        // They cost nothing, and may weigh this layer at zero.
        weights: None,
        ..request.clone()
    };
    // A size is of the whole file.
    if let Some(Target::Bytes(_)) = request.options.target {
        short.options.target = Some(Target::Tokens(check(capture, request)?.kept()));
    }
    short.options.steps = steps;
    Ok(short)
}

/// Multiplications of these layers, up to a factor: heads times channels.
fn work(capture: &Capture, layers: &[usize]) -> Result<f64> {
    let shapes = layers.iter().map(|&layer| {
        let shape = capture.shape(layer)?;
        Ok((shape.query_heads * (shape.dim + shape.value_dim)) as f64)
    });
    shapes.sum()
}

/// The probe's seconds, stage by stage, times what the whole has more of.
fn expected(probe: Timings, layers: f64, request: &Request, steps: u32) -> f64 {
    let options = &request.options;
    // Values are solved for the seed, and after every so many steps.
    let solves = |steps: u32| 1.0 + f64::from(steps / options.refit_every);
    let refits = solves(options.steps) / solves(steps);
    let rounds = if steps == 0 {
        1.0
    } else {
        f64::from(options.steps) / f64::from(steps)
    };
    layers * (probe.read + probe.budgets + probe.teacher + refits * (probe.values + probe.judge) + rounds * probe.keys)
}

impl DryRun {
    fn text(&self) -> String {
        let Estimate {
            heads,
            pairs,
            file_bytes,
            host_bytes,
            device_bytes,
            batches,
            ..
        } = self.estimate;
        let near = match (self.lengths_known, self.by_error) {
            (true, _) => "",
            (_, true) => ", as if every head kept the least it could: how much an error needs is known only when it is measured",
            (_, false) => ", as if all heads were of the mean length",
        };
        let shares = self
            .machines
            .iter()
            .map(|share| format!("{} heads on {}", share.heads, share.machine));
        let divided = match self.machines.as_slice() {
            [] => String::new(),
            _ => format!("shares   {}\n", shares.collect::<Vec<_>>().join(", ")),
        };
        let most = if self.by_error { "at least" } else { "at most about" };
        format!(
            "machine  {}\n\
             {divided}heads    {heads}, {} pairs, of which {} stay\n\
             file     {most} {}\n\
             memory   {} on the host; {} for the largest of {batches} {}{near}\n\
             time     about {}: an estimate, by {} that {} of layer {}'s steps took; heads that stop early take less\n\
             Nothing was written.\n",
            self.machine,
            pairs.0,
            pairs.1,
            size(file_bytes),
            size(host_bytes),
            size(device_bytes),
            if batches == 1 { "batch" } else { "batches" },
            duration(self.seconds),
            duration(self.probe.seconds),
            format_args!("{} of {}", self.probe.steps.0, self.probe.steps.1),
            self.probe.layer,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_part_of_several_decides() {
        let share = |heads| Share {
            machine: String::new(),
            heads,
        };
        assert_eq!(at_once(&[]), 1.0);
        assert_eq!(at_once(&[share(6), share(3), share(3)]), 2.0);
    }

    #[test]
    fn time_grows_with_layers_and_steps() {
        let mut request = Request::default();
        (request.options.steps, request.options.refit_every) = (6, 2);
        let probe = Timings {
            read: 1.0,
            budgets: 2.0,
            teacher: 3.0,
            values: 4.0,
            keys: 5.0,
            judge: 6.0,
        };
        // Two of six steps: three times the keys, four solves in place of two.
        assert_eq!(expected(probe, 10.0, &request, 2), 10.0 * (6.0 + 2.0 * 10.0 + 3.0 * 5.0));
        request.options.steps = 0;
        assert_eq!(expected(probe, 1.0, &request, 0), 21.0);
    }
}
