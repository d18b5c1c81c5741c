//! `kvsculpt devices`: what could compute here, and what would.

use comfy_table::{ContentArrangement, Table, presets};
use kvsculpt::Result;
use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::Engine as _;
use kvsculpt::gpu::{AdapterSummary, adapters};
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
    engine: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, _talk: Talk) -> Result<()> {
    let choice = engine::choice(&arguments.engine)?;
    let devices = Devices {
        adapters: adapters(),
        cpu: Processor {
            name: CpuEngine::new().name(),
        },
        chosen: Chosen {
            engine: if choice.adapter.is_some() { "gpu" } else { "cpu" },
            adapter: choice.adapter.map(|adapter| adapter.index),
            notice: choice.notice,
        },
    };
    if arguments.json {
        return print_json(&devices);
    }
    let notice = devices.chosen.notice.as_ref().map(|notice| format!("\n{notice}.\n"));
    print(&format!("{}\n* would be used\n{}", table(&devices), notice.unwrap_or_default()))
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
        "largest array",
    ]);
    for adapter in &devices.adapters {
        table.add_row([
            mark(devices.chosen.adapter == Some(adapter.index)).to_owned(),
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
            size(adapter.max_array_bytes),
        ]);
    }
    let processor = ["cpu", devices.cpu.name.as_str(), "CPU engine"];
    table.add_row(
        [mark(devices.chosen.engine == "cpu")]
            .into_iter()
            .chain(processor)
            .collect::<Vec<_>>(),
    );
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
