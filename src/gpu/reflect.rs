//! What a kernel's text says of itself, and whether it is sound; no device is needed.

use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
use wgpu::naga::{self, AddressSpace, Module, ScalarKind, StorageAccess, TypeInner};

use super::array::Element;
use super::source::Source;
use super::uniformity;
use crate::error::{Error, Result};

/// One array that a kernel binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its name in the shader.
    pub name: String,
    /// Whether the kernel only reads it.
    pub read_only: bool,
    /// What its elements are.
    pub element: Element,
}

/// A kernel's interface and its needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reflection {
    /// The arrays in the order of their bindings.
    pub bindings: Vec<Binding>,
    /// Bytes of its parameters.
    pub immediate_bytes: u32,
    /// Invocations in a workgroup, in three dimensions.
    pub workgroup_size: [u32; 3],
    /// Memory that a workgroup shares; wgpu does not check it.
    pub workgroup_bytes: u32,
    /// Whether it uses half precision.
    pub uses_half: bool,
    /// Whether it uses subgroup operations.
    pub uses_subgroups: bool,
}

/// Parses a kernel and checks it as far as that goes without a device: the language's rules with half precision,
/// subgroups and immediates as the only extensions, bindings from 0 on in group 0, and that every barrier is
/// reached by all invocations of a workgroup or by none.
///
/// # Errors
/// [`Error::Shader`] with the file and line.
pub fn reflect(source: &Source, entry_point: &str) -> Result<Reflection> {
    let text = source.text();
    let module = naga::front::wgsl::parse_str(&text).map_err(|error| {
        // Some mistakes come with a first place that is nowhere.
        let place = error.labels().find(|(span, _)| span.is_defined());
        let line = place.map_or(0, |(span, _)| span.location(&text).line_number);
        source.error(line, error.message())
    })?;
    validate(source, &text, &module)?;
    let entry = module.entry_points.iter().find(|entry| entry.name == entry_point);
    let entry = entry.ok_or_else(|| source.error(0, format!("has no entry point `{entry_point}`")))?;
    if let Some(fault) = uniformity::check(&module, entry).first() {
        return Err(source.error(fault.span.location(&text).line_number, fault.message.clone()));
    }
    let mut reflection = Reflection {
        bindings: bindings(source, &module)?,
        immediate_bytes: 0,
        workgroup_size: entry.workgroup_size,
        workgroup_bytes: 0,
        uses_half: module.types.iter().any(|(_, ty)| is_half(&ty.inner)),
        uses_subgroups: !is_valid(&module, Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16),
    };
    for (_, variable) in module.global_variables.iter() {
        let bytes = module.types[variable.ty].inner.size(module.to_ctx());
        match variable.space {
            AddressSpace::Immediate => reflection.immediate_bytes = bytes,
            // Drivers place each variable on a boundary of 16 bytes.
            AddressSpace::WorkGroup => reflection.workgroup_bytes += bytes.next_multiple_of(16),
            _ => {}
        }
    }
    Ok(reflection)
}

fn is_valid(module: &Module, capabilities: Capabilities) -> bool {
    Validator::new(ValidationFlags::all(), capabilities).validate(module).is_ok()
}

fn validate(source: &Source, text: &str, module: &Module) -> Result<()> {
    let capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    let outcome = Validator::new(ValidationFlags::all(), capabilities).validate(module);
    outcome.map(|_| ()).map_err(|error| {
        // From the function to the expression: the last known place tells most.
        let place = error.spans().filter(|(span, _)| span.is_defined()).last();
        let line = place.map_or(0, |(span, _)| span.location(text).line_number);
        let mut message = error.as_inner().to_string();
        let mut cause = std::error::Error::source(error.as_inner());
        while let Some(inner) = cause {
            message = format!("{message}: {inner}");
            cause = inner.source();
        }
        source.error(line, message)
    })
}

fn is_half(inner: &TypeInner) -> bool {
    inner
        .scalar()
        .is_some_and(|scalar| scalar.kind == ScalarKind::Float && scalar.width == 2)
}

fn bindings(source: &Source, module: &Module) -> Result<Vec<Binding>> {
    let mut found = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(place) = variable.binding else { continue };
        let name = variable.name.clone().unwrap_or_default();
        let AddressSpace::Storage { access } = variable.space else {
            return Err(source.error(0, format!("`{name}` is not a storage array")));
        };
        if place.group != 0 {
            return Err(source.error(0, format!("`{name}` is in group {}, not 0", place.group)));
        }
        let binding = Binding {
            name,
            read_only: !access.contains(StorageAccess::STORE),
            element: element(module, variable.ty),
        };
        found.push((place.binding, binding));
    }
    found.sort_by_key(|(place, _)| *place);
    for (expected, (place, binding)) in (0..).zip(&found) {
        if *place != expected {
            return Err(source.error(0, format!("`{}` has binding {place} where {expected} comes next", binding.name)));
        }
    }
    Ok(found.into_iter().map(|(_, binding)| binding).collect())
}

fn element(module: &Module, ty: naga::Handle<naga::Type>) -> Element {
    let base = match module.types[ty].inner {
        TypeInner::Array { base, .. } => base,
        _ => ty,
    };
    match module.types[base].inner.scalar() {
        Some(naga::Scalar {
            kind: ScalarKind::Float,
            width: 2,
        }) => Element::F16,
        Some(naga::Scalar {
            kind: ScalarKind::Float, ..
        }) => Element::F32,
        _ => Element::Row,
    }
}

impl Reflection {
    /// Checks the needs that wgpu leaves unchecked against a device's limits.
    pub(super) fn fits(&self, kernel: &str, limits: &wgpu::Limits, features: wgpu::Features) -> Result<()> {
        let refuse = |what: &str, need: u32, have: u32| {
            Err(Error::Unsupported {
                what: format!("{what} of {kernel}.wgsl"),
                need: need.to_string(),
                have: have.to_string(),
                remedy: "choose another adapter, or `--engine cpu`".into(),
            })
        };
        let [x, y, z] = self.workgroup_size;
        for (what, need, have) in [
            ("workgroup memory", self.workgroup_bytes, limits.max_compute_workgroup_storage_size),
            ("invocations", x * y * z, limits.max_compute_invocations_per_workgroup),
            ("workgroup size x", x, limits.max_compute_workgroup_size_x),
            ("workgroup size y", y, limits.max_compute_workgroup_size_y),
            ("workgroup size z", z, limits.max_compute_workgroup_size_z),
            (
                "arrays",
                u32::try_from(self.bindings.len()).unwrap_or(u32::MAX),
                limits.max_storage_buffers_per_shader_stage,
            ),
            ("parameter bytes", self.immediate_bytes, limits.max_immediate_size),
            (
                "half precision",
                u32::from(self.uses_half),
                u32::from(features.contains(wgpu::Features::SHADER_F16)),
            ),
            (
                "subgroup operations",
                u32::from(self.uses_subgroups),
                u32::from(features.contains(wgpu::Features::SUBGROUP)),
            ),
        ] {
            if need > have {
                return refuse(what, need, have);
            }
        }
        Ok(())
    }
}
