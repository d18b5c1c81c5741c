//! The quality table of `benches/QUALITY.md`: the merged probe error of each head by method, on captures given by path.
//!
//! `cargo run --release --example quality -- CAPTURE… [--keep 0.1,0.2,0.3,0.5] [--steps N] [--ours]`
//!
//! Runs on the CPU engine, where the numbers do not depend on a driver. `published` is the paper's recipe to the letter (absent
//! where its tail alone is too long), `default` is ours, with each head's length in brackets, `uniform` ours where all heads have the
//! same length; `select` and `select-fit` are its starts, `select-fit (published)` is the paper's. `--ours` leaves out the paper's two, which take
//! nearly all of the time.

use std::path::PathBuf;
use std::time::Instant;

use kvsculpt::cache::Capture;
use kvsculpt::cpu::CpuEngine;
use kvsculpt::options::{Method, Options, Scope};
use kvsculpt::solver::{Compression, Request, compress};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let (mut captures, mut keeps, mut steps, mut ours) = (Vec::new(), vec![0.1, 0.2, 0.3, 0.5], None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--keep" => keeps = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--steps" => steps = Some(value()?.parse()?),
            "--ours" => ours = true,
            _ => captures.push(PathBuf::from(argument)),
        }
    }
    if captures.is_empty() {
        return Err("give at least one capture".into());
    }
    for path in captures {
        let capture = Capture::open(&path)?;
        for &keep in &keeps {
            table(&capture, keep, steps, ours)?;
        }
    }
    Ok(())
}

/// One method of the table: its name and the merged probe error of every head.
struct Column {
    name: &'static str,
    merged: Vec<f64>,
    seconds: Option<f64>,
}

fn run(capture: &Capture, mut options: Options, keep: f64, steps: Option<u32>) -> Result<(Compression, f64), kvsculpt::Error> {
    options.keep = keep;
    options.steps = steps.unwrap_or(options.steps);
    let started = Instant::now();
    let request = Request {
        options,
        ..Request::default()
    };
    let compression = compress(&mut CpuEngine::new(), capture, &request, &mut ())?;
    Ok((compression, started.elapsed().as_secs_f64()))
}

fn table(capture: &Capture, keep: f64, steps: Option<u32>, only_ours: bool) -> Result<(), Failure> {
    let (ours, seconds) = run(capture, Options::default(), keep, steps)?;
    let mut options = Options::default();
    options.budget = Scope::Uniform;
    let (uniform, uniform_seconds) = run(capture, options, keep, steps)?;
    let column = |name, compression: &Compression, pick: fn(&kvsculpt::solver::Outcome) -> Option<kvsculpt::solver::Judged>, seconds| {
        let merged = compression
            .outcomes
            .iter()
            .map(|head| pick(head).and_then(|judged| judged.probe).map_or(f64::NAN, |probe| probe.merged));
        Column {
            name,
            merged: merged.collect(),
            seconds,
        }
    };
    let mut columns = vec![
        column("select", &uniform, |head| Some(head.select), None),
        column("select-fit", &uniform, |head| head.select_fit, None),
        column("uniform", &uniform, |head| Some(head.result), Some(uniform_seconds)),
        column("default", &ours, |head| Some(head.result), Some(seconds)),
    ];
    let published = Options::published();
    let mut start = published.clone();
    start.method = Method::SelectFit;
    let fit = if only_ours { None } else { run(capture, start, keep, None).ok() };
    if let Some((fit, _)) = fit {
        columns.insert(2, column("select-fit (published)", &fit, |head| Some(head.result), None));
        let (theirs, seconds) = run(capture, published, keep, steps)?;
        columns.insert(3, column("published", &theirs, |head| Some(head.result), Some(seconds)));
    }
    println!(
        "\n**{}**, keep {keep}: merged probe error\n",
        capture.metadata.get("model").map_or("capture", String::as_str)
    );
    println!(
        "| layer | head | {} |",
        columns.iter().map(|column| column.name).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|---|{}", "---|".repeat(columns.len()));
    for (number, head) in ours.outcomes.iter().enumerate() {
        let cells: Vec<String> = columns.iter().map(|column| format!("{:.2e}", column.merged[number])).collect();
        println!("| {} | {} | {} ({}) |", head.layer, head.head, cells.join(" | "), head.kept);
    }
    let means: Vec<String> = columns
        .iter()
        .map(|column| format!("**{:.2e}**", column.merged.iter().sum::<f64>() / column.merged.len() as f64))
        .collect();
    println!("| mean | | {} |", means.join(" | "));
    let seconds: Vec<String> = columns
        .iter()
        .map(|column| column.seconds.map_or(String::new(), |seconds| format!("{seconds:.1} s")))
        .collect();
    println!("| time | | {} |", seconds.join(" | "));
    Ok(())
}
