//! Which adapter: those that exist, in our order, and the choice among them.

use wgpu::{Adapter, Backend, Backends, DeviceType, Features};

use super::device::require;
use super::matrices::{Matrices, MatrixShape, shapes};
use crate::error::{Error, Result};

/// The native interfaces that compute well; the others are not asked for.
const BACKENDS: [(&str, Backend, Backends); 3] = [
    ("vulkan", Backend::Vulkan, Backends::VULKAN),
    ("metal", Backend::Metal, Backends::METAL),
    ("dx12", Backend::Dx12, Backends::DX12),
];

/// Where a software driver comes from, for a machine without any adapter.
const SOFTWARE_DRIVER: &str =
    "install the GPU's driver, or a software driver: the package mesa-vulkan-drivers on Debian, Ubuntu and Fedora, vulkan-swrast on Arch";

/// Which adapter is wanted; what is left open is taken from the environment, then chosen: a GPU before a software
/// driver, and what can be used before what cannot.
///
/// ```
/// use kvsculpt::gpu::Selection;
///
/// // A GPU of this name, never a software driver.
/// let selection = Selection { adapter: Some("radeon".into()), software_allowed: false, ..Selection::default() };
/// assert!(Selection::default().software_allowed && selection.backend.is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// `vulkan`, `metal` or `dx12`, or several with commas; else the variable `WGPU_BACKEND`; else all.
    pub backend: Option<String>,
    /// The adapter's number in [`adapters`] or a part of its name, in any case; else the variable `WGPU_ADAPTER_NAME`.
    pub adapter: Option<String>,
    /// Whether a driver that computes on the processor will do.
    pub software_allowed: bool,
    /// Whether products go by cooperative matrices (tensor cores); an adapter that has none which kernels can use is refused.
    ///
    /// `false` at first, because they are experimental in wgpu, which may have bugs there that even safe calls hit, and because no hardware
    /// has shown yet that they are faster. Factors are split into two of half precision, so results are as exact as without, and
    /// differ in their last bits.
    pub cooperative_matrices: bool,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            backend: None,
            adapter: None,
            software_allowed: true,
            cooperative_matrices: false,
        }
    }
}

/// One adapter in words and numbers.
///
/// ```
/// use kvsculpt::gpu::{AdapterSummary, adapters};
///
/// fn line(adapter: &AdapterSummary) -> String {
///     let state = adapter.lacks.as_deref().unwrap_or("can be used");
///     format!("{}: {} ({}), {state}", adapter.index, adapter.name, adapter.backend)
/// }
/// assert!(adapters().iter().map(line).all(|line| line.contains(": ")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct AdapterSummary {
    /// Its number, by which it can be chosen.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// The driver's name.
    pub driver: String,
    /// The driver's version.
    pub driver_info: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `other`.
    pub device_type: String,
    /// Whether it computes on the processor.
    pub is_software: bool,
    /// The largest single array, in bytes.
    pub max_array_bytes: u64,
    /// Memory that a workgroup's invocations share, in bytes.
    pub workgroup_bytes: u32,
    /// Invocations in a workgroup.
    pub workgroup_invocations: u32,
    /// Whether shaders can use half precision.
    pub half: bool,
    /// The smallest and the largest subgroup, where shaders can use them.
    pub subgroup: Option<(u32, u32)>,
    /// The cooperative matrices that shaders can use: all that wgpu tells of.
    pub matrix_shapes: Vec<MatrixShape>,
    /// Those of them that kernels can use, where [`Selection::cooperative_matrices`] asks for it.
    pub matrices: Option<Matrices>,
    /// Why it cannot be used, if it cannot.
    pub lacks: Option<String>,
}

impl AdapterSummary {
    fn new(index: usize, adapter: &Adapter) -> Self {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        Self {
            index,
            backend: backend_name(info.backend),
            is_software: info.device_type == DeviceType::Cpu,
            device_type: device_type_name(info.device_type).into(),
            max_array_bytes: limits.max_buffer_size.min(limits.max_storage_buffer_binding_size),
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            half: features.contains(Features::SHADER_F16),
            subgroup: features
                .contains(Features::SUBGROUP)
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            matrix_shapes: shapes(adapter),
            matrices: Matrices::of(adapter),
            lacks: require(features, &limits).err().map(|error| error.to_string()),
            name: info.name,
            driver: info.driver,
            driver_info: info.driver_info,
        }
    }

    /// A GPU of this name, of which nothing else is known, for tests.
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        Self {
            index: 0,
            name: name.into(),
            backend: "vulkan".into(),
            driver: String::new(),
            driver_info: String::new(),
            device_type: String::new(),
            is_software: false,
            max_array_bytes: 0,
            workgroup_bytes: 0,
            workgroup_invocations: 0,
            half: false,
            subgroup: None,
            matrix_shapes: Vec::new(),
            matrices: None,
            lacks: None,
        }
    }
}

/// Every adapter of the native interfaces: GPUs first, software drivers last, else in the system's order.
///
/// ```
/// use kvsculpt::gpu::adapters;
///
/// for (number, adapter) in adapters().iter().enumerate() {
///     println!("{number}: {} by {}", adapter.name, adapter.driver);
///     assert_eq!(adapter.index, number);
/// }
/// ```
#[must_use]
pub fn adapters() -> Vec<AdapterSummary> {
    let found = enumerate(Backends::VULKAN | Backends::METAL | Backends::DX12);
    found
        .iter()
        .enumerate()
        .map(|(index, adapter)| AdapterSummary::new(index, adapter))
        .collect()
}

fn backend_name(backend: Backend) -> String {
    BACKENDS
        .iter()
        .find(|known| known.1 == backend)
        .map_or_else(|| backend.to_string(), |known| known.0.to_owned())
}

fn device_type_name(kind: DeviceType) -> &'static str {
    match kind {
        DeviceType::DiscreteGpu => "discrete GPU",
        DeviceType::IntegratedGpu => "integrated GPU",
        DeviceType::VirtualGpu => "virtual GPU",
        DeviceType::Cpu => "software",
        DeviceType::Other => "other",
    }
}

fn enumerate(backends: Backends) -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    let mut found = pollster::block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
    found.sort_by_key(|adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    found
}

/// `words` as a set of backends, e.g. `vulkan,dx12`.
fn parse_backends(words: &str) -> Result<Backends> {
    let mut backends = Backends::empty();
    for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let known = BACKENDS.iter().find(|known| known.0.eq_ignore_ascii_case(word));
        let known = known.ok_or_else(|| Error::NoAdapter(format!("no interface is called `{word}`; there are vulkan, metal and dx12")))?;
        backends |= known.2;
    }
    if backends.is_empty() {
        backends = Backends::VULKAN | Backends::METAL | Backends::DX12;
    }
    Ok(backends)
}

fn list(summaries: &[AdapterSummary]) -> String {
    let lines: Vec<String> = summaries
        .iter()
        .map(|adapter| format!("{}: {} ({}, {})", adapter.index, adapter.name, adapter.backend, adapter.device_type))
        .collect();
    lines.join("; ")
}

/// The place in `all` of the adapter that `wanted` names, by number or by a part of its name; the first where nothing is wanted.
fn pick(all: &[AdapterSummary], wanted: Option<&str>, software_allowed: bool) -> Result<usize> {
    if all.is_empty() {
        return Err(Error::NoAdapter(format!("this machine shows none; {SOFTWARE_DRIVER}")));
    }
    let refuse = |reason: String| Error::NoAdapter(format!("{reason}; there is {}", list(all)));
    let allowed = |adapter: &AdapterSummary| software_allowed || !adapter.is_software;
    let Some(wanted) = wanted.map(str::trim).filter(|wanted| !wanted.is_empty()) else {
        let usable = all.iter().position(|adapter| allowed(adapter) && adapter.lacks.is_none());
        // Where none can be used, opening the first says why.
        let place = usable.or_else(|| all.iter().position(allowed));
        return place.ok_or_else(|| refuse("only software drivers".into()));
    };
    let place = if let Ok(index) = wanted.parse::<usize>() {
        all.iter().position(|adapter| adapter.index == index)
    } else {
        let part = wanted.to_lowercase();
        let matching = |adapter: &AdapterSummary| adapter.name.to_lowercase().contains(&part);
        all.iter().position(matching)
    };
    place.ok_or_else(|| refuse(format!("none matches `{wanted}`")))
}

/// The adapter that [`Gpu::open`](super::Gpu::open) would open for this selection; its `lacks` says whether that would succeed.
///
/// ```
/// use kvsculpt::{Error, gpu::{Selection, chosen}};
///
/// let selection = Selection { adapter: Some("no such adapter".into()), ..Selection::default() };
/// assert!(matches!(chosen(&selection), Err(Error::NoAdapter(_))));
/// ```
///
/// # Errors
/// [`Error::NoAdapter`] with those there are.
pub fn chosen(selection: &Selection) -> Result<AdapterSummary> {
    find(selection).map(|found| found.0)
}

/// The adapter that a selection means.
pub(super) fn choose(selection: &Selection) -> Result<Adapter> {
    find(selection).map(|found| found.1)
}

fn find(selection: &Selection) -> Result<(AdapterSummary, Adapter)> {
    let variable = |name: &str| std::env::var(name).ok();
    let backends = selection.backend.clone().or_else(|| variable("WGPU_BACKEND")).unwrap_or_default();
    let backends = parse_backends(&backends)?;
    let wanted = selection.adapter.clone().or_else(|| variable("WGPU_ADAPTER_NAME"));
    // Numbers are those of the whole list, so that they mean the same whatever the backend.
    let everything = enumerate(Backends::VULKAN | Backends::METAL | Backends::DX12);
    let summarise = |(index, adapter)| {
        let mut summary = AdapterSummary::new(index, adapter);
        if selection.cooperative_matrices && summary.lacks.is_none() {
            summary.lacks = Matrices::require(adapter).err().map(|error| error.to_string());
        }
        summary
    };
    let summaries: Vec<AdapterSummary> = everything.iter().enumerate().map(summarise).collect();
    let offered: Vec<AdapterSummary> = summaries
        .iter()
        .filter(|adapter| {
            BACKENDS
                .iter()
                .any(|known| known.0 == adapter.backend && backends.contains(known.2))
        })
        .cloned()
        .collect();
    if offered.is_empty() && !summaries.is_empty() {
        return Err(Error::NoAdapter(format!("none of that interface; there is {}", list(&summaries))));
    }
    let found = offered[pick(&offered, wanted.as_deref(), selection.software_allowed)?].clone();
    let adapter = everything.into_iter().nth(found.index);
    let adapter = adapter.ok_or_else(|| Error::NoAdapter("the adapter is gone".into()))?;
    Ok((found, adapter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(index: usize, name: &str, is_software: bool) -> AdapterSummary {
        AdapterSummary {
            index,
            is_software,
            ..AdapterSummary::named(name)
        }
    }

    #[test]
    fn an_adapter_is_found_by_number_and_by_part_of_its_name() {
        let all = [summary(0, "Real GPU 9000", false), summary(3, "llvmpipe", true)];
        assert_eq!(pick(&all, None, true).unwrap(), 0);
        assert_eq!(pick(&all, Some("3"), true).unwrap(), 1);
        assert_eq!(pick(&all, Some("LLVM"), true).unwrap(), 1);
        let message = pick(&all, Some("radeon"), true).unwrap_err().to_string();
        assert!(message.contains("Real GPU 9000") && message.contains("llvmpipe"), "{message}");
        assert!(pick(&all[1..], None, false).is_err());
        let mut old = all.clone();
        old[0].lacks = Some("something".into());
        assert_eq!(pick(&old, None, true).unwrap(), 1);
        assert_eq!(pick(&old, None, false).unwrap(), 0);
    }

    #[test]
    fn a_machine_without_adapters_is_told_which_package_helps() {
        let message = pick(&[], None, true).unwrap_err().to_string();
        assert!(
            message.contains("mesa-vulkan-drivers") && message.contains("vulkan-swrast"),
            "{message}"
        );
    }

    #[test]
    fn backends_are_named_in_any_case_and_unknown_ones_refused() {
        assert_eq!(parse_backends("Vulkan, dx12").unwrap(), Backends::VULKAN | Backends::DX12);
        assert!(parse_backends("gl").unwrap_err().to_string().contains("`gl`"));
    }
}
