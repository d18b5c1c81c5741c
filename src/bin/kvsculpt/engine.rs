//! Which machine computes, and the choice between them.

use std::io::{self, Write as _};

use kvsculpt::cache::Capture;
use kvsculpt::cpu::CpuEngine;
use kvsculpt::engine::Engine as _;
use kvsculpt::gpu::{AdapterSummary, Gpu, Selection, adapters, chosen};
use kvsculpt::kernels::GpuEngine;
use kvsculpt::solver::{Compression, Observer, Request, compress};
use kvsculpt::{Error, Result};

use crate::Talk;
use crate::arguments::{EngineArguments, EngineKind};

/// An engine of either kind.
pub(crate) enum Machine {
    Gpu(Box<GpuEngine>),
    Cpu(CpuEngine),
}

impl Machine {
    /// Opens what the arguments mean; says on standard error where the CPU engine takes over unasked.
    pub(crate) fn open(arguments: &EngineArguments, talk: Talk) -> Result<Self> {
        let choice = Choice::new(arguments)?;
        if let (Some(notice), false) = (&choice.notice, talk.quiet) {
            // A closed standard error is no reason to stop.
            let _ = writeln!(io::stderr(), "note: {notice}");
        }
        match choice.adapter {
            // By its number, so that exactly what was chosen is opened.
            Some(adapter) => Ok(Self::Gpu(Box::new(GpuEngine::new(Gpu::open(&Selection {
                adapter: Some(adapter.index.to_string()),
                ..arguments.selection()
            })?)?))),
            None => Ok(Self::Cpu(CpuEngine::new())),
        }
    }

    /// `gpu` or `cpu`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Gpu(_) => "gpu",
            Self::Cpu(_) => "cpu",
        }
    }

    /// The machine in words.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Gpu(engine) => engine.name(),
            Self::Cpu(engine) => engine.name(),
        }
    }

    pub(crate) fn compress(&mut self, capture: &Capture, request: &Request, observer: &mut dyn Observer) -> Result<Compression> {
        match self {
            Self::Gpu(engine) => compress(engine.as_mut(), capture, request, observer),
            Self::Cpu(engine) => compress(engine, capture, request, observer),
        }
    }
}

/// The outcome of choosing, before anything is opened.
pub(crate) struct Choice {
    /// The adapter to open; `None`: the CPU engine.
    pub(crate) adapter: Option<AdapterSummary>,
    /// Why the CPU engine takes over, where nobody asked for it.
    pub(crate) notice: Option<String>,
}

impl Choice {
    pub(crate) fn new(arguments: &EngineArguments) -> Result<Self> {
        let selection = arguments.selection();
        match arguments.engine {
            EngineKind::Cpu if arguments.adapter.is_some() => Err(Error::Options {
                option: "--adapter",
                reason: "names an adapter, and `--engine cpu` uses none; leave out one of the two".into(),
            }),
            EngineKind::Cpu if arguments.backend.is_some() => Err(Error::Options {
                option: "--backend",
                reason: "names an interface to adapters, and `--engine cpu` uses none; leave out one of the two".into(),
            }),
            EngineKind::Cpu => Ok(Self::cpu(None)),
            EngineKind::Gpu => Ok(Self::gpu(chosen(&selection)?)),
            // Whoever names an adapter or an interface means it, software driver or not.
            EngineKind::Auto if names_adapter(arguments) => Ok(Self::gpu(chosen(&selection)?)),
            EngineKind::Auto => Self::automatic(selection),
        }
    }

    /// A GPU that can be used, else the CPU engine: it is faster than a software driver.
    fn automatic(selection: Selection) -> Result<Self> {
        let found = chosen(&Selection {
            software_allowed: false,
            ..selection
        });
        match found {
            Ok(AdapterSummary {
                name, lacks: Some(lacks), ..
            }) => Ok(Self::cpu(Some(format!(
                "{name} cannot be used ({lacks}); the CPU engine takes over"
            )))),
            Ok(adapter) => Ok(Self::gpu(adapter)),
            Err(Error::NoAdapter(_)) => {
                let software = adapters().into_iter().find(|adapter| adapter.is_software);
                Ok(Self::cpu(Some(match software {
                    Some(adapter) => format!(
                        "no GPU, only the software driver {}; the CPU engine takes over, which is faster",
                        adapter.name
                    ),
                    None => "no GPU found; the CPU engine takes over".to_owned(),
                })))
            }
            Err(error) => Err(error),
        }
    }

    fn gpu(adapter: AdapterSummary) -> Self {
        Self {
            adapter: Some(adapter),
            notice: None,
        }
    }

    fn cpu(notice: Option<String>) -> Self {
        Self { adapter: None, notice }
    }
}

/// Whether the arguments or the environment say more than to take what there is.
fn names_adapter(arguments: &EngineArguments) -> bool {
    arguments.adapter.is_some() || arguments.backend.is_some() || is_set("WGPU_ADAPTER_NAME") || is_set("WGPU_BACKEND")
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| !value.trim().is_empty())
}
