//! What there is to compute on, and which of it is chosen.

use super::Machine;
#[cfg(feature = "cpu")]
use crate::cpu::CpuEngine;
#[cfg(feature = "cpu")]
use crate::gpu::adapters;
use crate::gpu::{AdapterSummary, Gpu, Selection, chosen};
use crate::kernels::GpuEngine;
use crate::{Error, Result};

/// What is to compute.
///
/// ```
/// use kvsculpt::machine::Preference;
///
/// // A GPU where there is one that is faster than the processor.
/// assert_eq!(Preference::default(), Preference::Auto);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preference {
    /// A GPU that can be used, else the CPU engine, which is faster than a software driver. Where an adapter or an interface
    /// is named, by the [`Selection`] or by the variables it falls back to, that is meant, software driver or not; so is an adapter where
    /// cooperative matrices are asked for.
    /// Without feature `cpu` the same as [`Gpu`](Self::Gpu).
    #[default]
    Auto,
    /// A GPU, or the software driver that stands in for one where the [`Selection`] allows it.
    Gpu,
    /// The CPU engine.
    Cpu,
}

/// What was chosen; nothing is opened yet.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{gpu::Selection, machine::{Preference, choose}};
///
/// let choice = choose(Preference::Cpu, &Selection::default())?;
/// // Asked for, so there is nothing to notice; with `Auto` it says why no GPU is used.
/// assert!(choice.adapter.is_none() && choice.notice.is_none());
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// The adapter that will be opened; `None`: the CPU engine.
    pub adapter: Option<AdapterSummary>,
    /// Why the CPU engine takes over, where nobody asked for it: a sentence for the user without its full stop.
    pub notice: Option<String>,
    /// What the adapter was chosen by.
    selection: Selection,
}

/// Chooses a machine. Nothing is printed: [`Choice::notice`] says what the user should know.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{Error, gpu::Selection, machine::{Preference, choose}};
///
/// let named = Selection { adapter: Some("Radeon".into()), ..Selection::default() };
/// assert!(matches!(choose(Preference::Cpu, &named), Err(Error::Options { .. })));
/// assert!(choose(Preference::Cpu, &Selection::default())?.adapter.is_none());
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::NoAdapter`] with those there are, where a GPU is needed; [`Error::Options`] where the CPU engine is asked for
/// together with an adapter, an interface or cooperative matrices; [`Error::Unsupported`] where it is asked for and feature `cpu` is off.
pub fn choose(preference: Preference, selection: &Selection) -> Result<Choice> {
    match preference {
        Preference::Cpu if selection.adapter.is_some() => Err(Error::option(
            "--adapter",
            "names an adapter, and `--engine cpu` uses none; leave out one of the two",
        )),
        Preference::Cpu if selection.backend.is_some() => Err(Error::option(
            "--backend",
            "names an interface to adapters, and `--engine cpu` uses none; leave out one of the two",
        )),
        Preference::Cpu if selection.cooperative_matrices => Err(Error::option(
            "--cooperative-matrices",
            "is for adapters, and `--engine cpu` uses none; leave out one of the two",
        )),
        Preference::Cpu if !cfg!(feature = "cpu") => Err(no_cpu_engine()),
        Preference::Cpu => Ok(Choice {
            adapter: None,
            notice: None,
            selection: selection.clone(),
        }),
        #[cfg(feature = "cpu")]
        Preference::Auto if !means_adapter(selection) => automatic(selection),
        Preference::Auto | Preference::Gpu => Ok(Choice {
            adapter: Some(chosen(selection)?),
            notice: None,
            selection: selection.clone(),
        }),
    }
}

/// A GPU that can be used, else the CPU engine.
#[cfg(feature = "cpu")]
fn automatic(selection: &Selection) -> Result<Choice> {
    let hardware = chosen(&Selection {
        software_allowed: false,
        ..selection.clone()
    });
    let software = || adapters().into_iter().find(|adapter| adapter.is_software);
    let (adapter, notice) = gpu_or_notice(hardware, software)?;
    Ok(Choice {
        adapter,
        notice,
        selection: selection.clone(),
    })
}

/// The hardware that was found, or why the CPU engine takes over from it.
#[cfg(feature = "cpu")]
fn gpu_or_notice(
    hardware: Result<AdapterSummary>,
    software: impl FnOnce() -> Option<AdapterSummary>,
) -> Result<(Option<AdapterSummary>, Option<String>)> {
    let notice = match hardware {
        Ok(AdapterSummary {
            name, lacks: Some(lacks), ..
        }) => format!("{name} cannot be used ({lacks}); the CPU engine takes over"),
        Ok(adapter) => return Ok((Some(adapter), None)),
        Err(Error::NoAdapter(_)) => match software() {
            Some(adapter) => format!(
                "no GPU, only the software driver {}; the CPU engine takes over, which is faster",
                adapter.name
            ),
            None => "no GPU found; the CPU engine takes over".to_owned(),
        },
        Err(error) => return Err(error),
    };
    Ok((None, Some(notice)))
}

/// Whether the selection or the environment says more than to take what there is.
#[cfg(feature = "cpu")]
fn means_adapter(selection: &Selection) -> bool {
    let is_set = |variable: &str| std::env::var(variable).is_ok_and(|value| !value.trim().is_empty());
    let named = selection.adapter.is_some() || selection.backend.is_some();
    named || selection.cooperative_matrices || is_set("WGPU_ADAPTER_NAME") || is_set("WGPU_BACKEND")
}

fn no_cpu_engine() -> Error {
    Error::Unsupported {
        what: "the CPU engine".into(),
        need: "feature `cpu`".into(),
        have: "a kvsculpt built without it".into(),
        remedy: "build with it, or use a GPU".into(),
    }
}

impl Choice {
    /// Opens what was chosen.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{gpu::Selection, machine::{Preference, choose}};
    ///
    /// let machine = choose(Preference::Cpu, &Selection::default())?.open()?;
    /// assert_eq!(machine.kind(), "cpu");
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Gpu::open`] and [`GpuEngine::new`].
    pub fn open(&self) -> Result<Machine> {
        match &self.adapter {
            // By its number, so that exactly what was chosen is opened.
            Some(adapter) => {
                let gpu = Gpu::open(&Selection {
                    adapter: Some(adapter.index.to_string()),
                    ..self.selection.clone()
                })?;
                Ok(Machine::Gpu(Box::new(GpuEngine::new(gpu)?)))
            }
            #[cfg(feature = "cpu")]
            None => Ok(Machine::Cpu(CpuEngine::new())),
            #[cfg(not(feature = "cpu"))]
            None => Err(no_cpu_engine()),
        }
    }
}

#[cfg(test)]
mod tests;
