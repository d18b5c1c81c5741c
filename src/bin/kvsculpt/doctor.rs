//! `kvsculpt doctor`: what could compute here, how kernels would be cut for it, and whether it computes rightly.

use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::Dims;
use kvsculpt::gpu::{AdapterSummary, Matrices, MatrixShape, Selection, adapters};
use kvsculpt::kernels::{Machine as Kind, Spec};
use kvsculpt::machine::{Choice, Machine, Preference, choose};
use kvsculpt::self_test::{ALLOWED, Check};
use kvsculpt::{Error, Result};
use serde::Serialize;

use crate::arguments::EngineArguments;
use crate::report::size;
use crate::table::Body;
use crate::{Talk, engine, print, print_json};

/// Test the machine: adapters, their limits, and every operation against plain arithmetic.
///
/// Lists the adapters with what kernels need of them and how kernels would be cut for them, then tries every operation on the
/// machine that `compress` would use, on small numbers. Ends with code 5 where one is wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Test every adapter and the CPU engine
    #[arg(long, conflicts_with_all = ["engine", "backend", "adapter", "shares", "cooperative_matrices"])]
    all: bool,
    /// Channels of keys and values that are tried
    #[arg(long, value_name = "CHANNELS", value_delimiter = ',', default_value = "64,128", value_parser = channels)]
    dims: Vec<u32>,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Findings {
    adapters: Vec<Adapter>,
    /// What to do, where something is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    /// The largest relative error that passes.
    allowed: f64,
    tested: Vec<Tested>,
}

#[derive(Debug, Serialize)]
struct Adapter {
    #[serde(flatten)]
    summary: AdapterSummary,
    /// How kernels are cut, for each of the dims.
    specs: Vec<Spec>,
}

/// What became of one machine.
#[derive(Debug, Serialize)]
struct Tested {
    machine: String,
    passed: bool,
    checks: Vec<Check>,
    /// Why it could not be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, _talk: Talk) -> Result<()> {
    let found = adapters();
    let advice = advice(&found, arguments);
    let mut tested = Vec::new();
    if arguments.all {
        for adapter in &found {
            let selection = Selection {
                adapter: Some(adapter.index.to_string()),
                ..Selection::default()
            };
            tested.push(test(&adapter.name, choose(Preference::Gpu, &selection), &arguments.dims));
        }
        tested.push(tried(&mut Machine::Cpu(CpuEngine::new()), &arguments.dims));
    } else {
        for choice in engine::choices(&arguments.engine)? {
            tested.push(tried(&mut choice.open()?, &arguments.dims));
        }
    }
    let findings = Findings {
        adapters: found.into_iter().map(|summary| Adapter::new(summary, arguments)).collect(),
        advice,
        allowed: ALLOWED,
        tested,
    };
    if arguments.json {
        print_json(&findings)?;
    } else {
        print(&findings.text())?;
    }
    findings.verdict()
}

fn channels(text: &str) -> std::result::Result<u32, String> {
    let number: u32 = text.trim().parse().map_err(|_| "is no number of channels".to_owned())?;
    if number.is_multiple_of(4) && (4..=256).contains(&number) {
        Ok(number)
    } else {
        Err("kernels take multiples of 4 from 4 to 256".to_owned())
    }
}

/// What a user should do about the drivers, where there is anything.
fn advice(found: &[AdapterSummary], arguments: &Arguments) -> Option<String> {
    if found.is_empty() {
        // The error there is without adapters says which package helps.
        return choose(Preference::Gpu, &Selection::default()).err().map(|error| error.to_string());
    }
    let lacking = found
        .iter()
        .find_map(|adapter| Some(format!("{} cannot be used: {}", adapter.name, adapter.lacks.as_ref()?)));
    lacking.or_else(|| {
        engine::choices(&arguments.engine)
            .ok()?
            .into_iter()
            .find_map(|choice| choice.notice)
    })
}

fn test(name: &str, choice: Result<Choice>, dims: &[u32]) -> Tested {
    match choice.and_then(|choice| choice.open()) {
        Ok(mut machine) => tried(&mut machine, dims),
        Err(error) => Tested {
            machine: name.to_owned(),
            passed: false,
            checks: Vec::new(),
            failure: Some(error.to_string()),
        },
    }
}

fn tried(machine: &mut Machine, dims: &[u32]) -> Tested {
    let of = |&dim: &u32| Dims { dim, value_dim: dim };
    let checks: Vec<Check> = dims.iter().flat_map(|dim| machine.self_test(of(dim))).collect();
    Tested {
        machine: machine.name(),
        passed: checks.iter().all(Check::passed),
        checks,
        failure: None,
    }
}

impl Adapter {
    fn new(summary: AdapterSummary, arguments: &Arguments) -> Self {
        let kind = Kind {
            software: summary.is_software,
            subgroups: summary.subgroup.is_some(),
            matrices: summary.matrices.filter(|_| arguments.engine.cooperative_matrices),
        };
        let specs = arguments
            .dims
            .iter()
            .filter_map(|&dim| Spec::new(Dims { dim, value_dim: dim }, kind).ok());
        Self {
            specs: specs.collect(),
            summary,
        }
    }

    fn text(&self) -> String {
        let AdapterSummary {
            index,
            name,
            backend,
            driver,
            driver_info,
            device_type,
            max_array_bytes,
            workgroup_bytes,
            workgroup_invocations,
            half,
            subgroup,
            matrix_shapes,
            matrices,
            lacks,
            ..
        } = &self.summary;
        let yes = |is: bool| if is { "yes" } else { "no" };
        let subgroups = subgroup.map_or_else(|| "no".to_owned(), |(least, most)| format!("{least} to {most} lanes"));
        let mut text = format!(
            "adapter {index}: {name} ({device_type}, {backend}, {})\n  largest array {}, workgroup {} and {workgroup_invocations} invocations, f16 {}, subgroups {subgroups}\n",
            format!("{driver} {driver_info}").trim(),
            size(*max_array_bytes),
            size(u64::from(*workgroup_bytes)),
            yes(*half),
        );
        if !matrix_shapes.is_empty() {
            let use_of = match matrices {
                Some(Matrices { side, .. }) => format!("products can go by {side}×{side} (--cooperative-matrices)"),
                None => "none that products can go by".to_owned(),
            };
            let shapes: Vec<String> = matrix_shapes.iter().map(MatrixShape::to_string).collect();
            text += &format!("  cooperative matrices {}; {use_of}\n", shapes.join(", "));
        }
        if let Some(lacks) = lacks {
            return text + &format!("  cannot be used: {lacks}\n");
        }
        for spec in &self.specs {
            text += &format!(
                "  kernels for {} channels: attention {} rows × {} pairs, keys {} lanes, scores {} rows, gradient {} rows, sums {} lanes, gram {}\n",
                spec.dims.dim,
                spec.attention_lanes,
                spec.attention_tile,
                spec.key_lanes,
                spec.score_tile,
                spec.gradient_tile,
                spec.reduce_lanes,
                match spec.matrices {
                    Some(Matrices { side, .. }) => format!("{side}×{side} matrices"),
                    None => format!("{} lanes", spec.gram_lanes),
                }
            );
        }
        text
    }
}

impl Findings {
    fn text(&self) -> String {
        let mut text: String = self.adapters.iter().map(Adapter::text).collect();
        if self.adapters.is_empty() {
            text += "no adapter\n";
        }
        if let Some(advice) = &self.advice {
            text += &format!("advice: {advice}\n");
        }
        for tested in &self.tested {
            text += &format!("\n{}\n{}", tested.machine, tested.table());
        }
        text + &format!(
            "\nErrors are relative to the size of what is right; at most {:.0e} passes. Seconds count compiling in.\n",
            self.allowed
        )
    }

    /// # Errors
    /// [`Error::SelfTest`] with the first machine that failed.
    fn verdict(&self) -> Result<()> {
        let Some(tested) = self.tested.iter().find(|tested| !tested.passed) else {
            return Ok(());
        };
        let wrong: Vec<String> = tested
            .checks
            .iter()
            .filter(|check| !check.passed())
            .map(|check| format!("{} ({} channels)", check.operation, check.dims.0))
            .collect();
        Err(Error::SelfTest {
            machine: tested.machine.clone(),
            failed: tested.failure.clone().unwrap_or_else(|| wrong.join(", ")),
        })
    }
}

impl Tested {
    fn table(&self) -> String {
        if let Some(failure) = &self.failure {
            return format!("cannot be opened: {failure}\n");
        }
        let header = ["operation", "channels", "error", "seconds", ""];
        let mut table = Body::new(header.map(String::from).to_vec());
        for check in &self.checks {
            table.row(vec![
                check.operation.to_owned(),
                check.dims.0.to_string(),
                check.error.map_or_else(|| "not finite".to_owned(), |error| format!("{error:.1e}")),
                format!("{:.3}", check.seconds),
                match (&check.failure, check.passed()) {
                    (Some(failure), _) => format!("FAILED: {failure}"),
                    (None, true) => "pass".to_owned(),
                    (None, false) => "WRONG".to_owned(),
                },
            ]);
        }
        table.text(&[0, 4])
    }
}
