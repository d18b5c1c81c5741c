//! `kvsculpt devices`: what could compute here, and what would.

use comfy_table::{ContentArrangement, Table, presets};
use kvsculpt::Result;
use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::Engine as _;
use kvsculpt::gpu::{AdapterSummary, Matrices, adapters};
use serde::Serialize;

use crate::arguments::EngineArguments;
use crate::report::size;
use crate::{Talk, engine, print, print_json};

/// List the adapters and the CPU engine, and say which would be used.
///
/// The options of `compress` that choose a machine may be tried here.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

/// The object of `--json`.
#[derive(Serialize)]
struct Devices {
    adapters: Vec<AdapterSummary>,
    cpu: Processor,
    chosen: Chosen,
}

#[derive(Serialize)]
struct Processor {
    name: String,
}

#[derive(Serialize)]
struct Chosen {
    /// As in the report of `compress`: `mixed` where adapters and the CPU engine are named together.
    engine: &'static str,
    /// The first.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<usize>,
    /// All, where they are several; the CPU engine has no number.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    adapters: Vec<Option<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, _talk: Talk) -> Result<()> {
    let choices = engine::choices(&arguments.engine)?;
    let adapters_chosen: Vec<Option<usize>> = choices
        .iter()
        .map(|choice| choice.adapter.as_ref().map(|adapter| adapter.index))
        .collect();
    let any = |is_cpu: bool| adapters_chosen.iter().any(|adapter| adapter.is_none() == is_cpu);
    let devices = Devices {
        adapters: adapters(),
        cpu: Processor {
            name: CpuEngine::new().name(),
        },
        chosen: Chosen {
            engine: match (any(false), any(true)) {
                (true, true) => "mixed",
                (true, false) => "gpu",
                _ => "cpu",
            },
            adapter: adapters_chosen.iter().copied().flatten().next(),
            adapters: if choices.len() > 1 { adapters_chosen } else { Vec::new() },
            notice: choices.into_iter().find_map(|choice| choice.notice),
        },
    };
    if arguments.json {
        return print_json(&devices);
    }
    let notice = devices.chosen.notice.as_ref().map(|notice| format!("\n{notice}.\n"));
    print(&format!("{}\n* would be used\n{}", table(&devices), notice.unwrap_or_default()))
}

impl Chosen {
    /// Whether this adapter would be used; `None`: the CPU engine.
    fn is(&self, adapter: Option<usize>) -> bool {
        if self.adapters.is_empty() {
            self.adapter == adapter
        } else {
            self.adapters.contains(&adapter)
        }
    }
}

fn table(devices: &Devices) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "",
        "index",
        "name",
        "type",
        "backend",
        "driver",
        "f16",
        "subgroups",
        "matrices",
        "largest array",
    ]);
    for adapter in &devices.adapters {
        table.add_row([
            mark(devices.chosen.is(Some(adapter.index))).to_owned(),
            adapter.index.to_string(),
            adapter.lacks.as_ref().map_or_else(
                || adapter.name.clone(),
                |lacks| format!("{}\ncannot be used: {lacks}", adapter.name),
            ),
            adapter.device_type.clone(),
            adapter.backend.clone(),
            format!("{} {}", adapter.driver, adapter.driver_info).trim().to_owned(),
            if adapter.half { "yes" } else { "no" }.to_owned(),
            subgroups(adapter.subgroup),
            matrices(adapter),
            size(adapter.max_array_bytes),
        ]);
    }
    let processor = ["cpu", devices.cpu.name.as_str(), "CPU engine"];
    table.add_row([mark(devices.chosen.is(None))].into_iter().chain(processor).collect::<Vec<_>>());
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

fn mark(chosen: bool) -> &'static str {
    if chosen { "*" } else { "" }
}

fn subgroups(sizes: Option<(u32, u32)>) -> String {
    match sizes {
        None => "no".to_owned(),
        Some((least, most)) if least == most => least.to_string(),
        Some((least, most)) => format!("{least}–{most}"),
    }
}

/// The cooperative matrices that products can go by; `doctor` and --json tell of all.
fn matrices(adapter: &AdapterSummary) -> String {
    match adapter.matrices {
        Some(Matrices { side, .. }) => format!("{side}×{side}"),
        None if adapter.matrix_shapes.is_empty() => "no".to_owned(),
        None => "others".to_owned(),
    }
}
