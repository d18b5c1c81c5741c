//! What a kernel's text says of itself, and whether it is sound; no device is needed.

use wgpu::naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use wgpu::naga::{self, AddressSpace, Module, ScalarKind, StorageAccess, TypeInner};

use super::array::Element;
use super::source::Source;
use super::uniformity;
use crate::error::{Error, Result};

/// One array that a kernel binds.
///
/// ```
/// use kvsculpt::gpu::{Binding, Element, Source, reflect};
///
/// let source = Source::new("double", "
///     @group(0) @binding(0) var<storage, read_write> numbers: array<f32>;
///     @compute @workgroup_size(1) fn main(@builtin(workgroup_id) id: vec3u) { numbers[id.x] *= 2.0; }
/// ");
/// let found = reflect(&source, "main")?.bindings;
/// assert_eq!(found, [Binding { name: "numbers".into(), read_only: false, element: Element::F32 }]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
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
///
/// ```
/// use kvsculpt::gpu::{Reflection, Source, reflect};
///
/// let source = Source::new("sum", "
///     var<workgroup> sums: array<f32, 64>;
///     @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) lane: u32) { sums[lane] = 0.0; }
/// ");
/// let found: Reflection = reflect(&source, "main")?;
/// assert_eq!((found.workgroup_size, found.workgroup_bytes, found.uses_half), ([64, 1, 1], 256, false));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reflection {
    /// The arrays in the order of their bindings.
    pub bindings: Vec<Binding>,
    /// Bytes of its parameters.
    pub immediate_bytes: u32,
    /// Invocations in a workgroup, in three dimensions.
    pub workgroup_size: [u32; 3],
    /// Bytes of memory that a workgroup of the entry point shares; wgpu does not check them.
    pub workgroup_bytes: u32,
    /// Whether it uses half precision.
    pub uses_half: bool,
    /// Whether it uses subgroup operations.
    pub uses_subgroups: bool,
    /// Whether it uses cooperative matrices.
    pub uses_matrices: bool,
}

/// Parses a kernel and checks it as far as that goes without a device: the language's rules with half precision,
/// subgroups and immediates as the only extensions (and cooperative matrices in the kernels made for them), bindings from 0 on in group 0, and that every barrier is
/// reached by all invocations of a workgroup or by none.
///
/// Bindings and parameters are those of the whole text, shared by its entry points; workgroup memory is what the
/// entry point uses.
///
/// ```
/// use kvsculpt::{Error, gpu::{Source, reflect}};
///
/// let source = Source::new("wrong", "@compute @workgroup_size(1)\nfn main() { let x: u32 = 1.0; }");
/// // The kernel's own line, not that of the whole text.
/// let refused = reflect(&source.constant("DIM", 64), "main");
/// assert!(matches!(refused, Err(Error::Shader { kernel: "wrong", line: 2, .. })), "{refused:?}");
/// ```
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
    let info = validate(source, &text, &module)?;
    let place = module.entry_points.iter().position(|entry| entry.name == entry_point);
    let place = place.ok_or_else(|| source.error(0, format!("has no entry point `{entry_point}`")))?;
    let (entry, info) = (&module.entry_points[place], info.get_entry_point(place));
    if let Some(fault) = uniformity::check(&module, entry).first() {
        return Err(source.error(fault.span.location(&text).line_number, fault.message.clone()));
    }
    let mut reflection = Reflection {
        bindings: bindings(source, &module)?,
        immediate_bytes: 0,
        workgroup_size: entry.workgroup_size,
        workgroup_bytes: 0,
        uses_half: module.types.iter().any(|(_, ty)| is_half(&ty.inner)),
        uses_subgroups: !is_valid(&module, capabilities(source).difference(Capabilities::SUBGROUP)),
        uses_matrices: source.has_matrices(),
    };
    for (handle, variable) in module.global_variables.iter() {
        let bytes = module.types[variable.ty].inner.size(module.to_ctx());
        match variable.space {
            AddressSpace::Immediate => reflection.immediate_bytes = bytes,
            // Drivers place each variable on a boundary of 16 bytes.
            AddressSpace::WorkGroup if !info[handle].is_empty() => reflection.workgroup_bytes += bytes.next_multiple_of(16),
            _ => {}
        }
    }
    Ok(reflection)
}

/// What a kernel may use: one of matrices rounds to half precision besides, as every device with them does.
fn capabilities(source: &Source) -> Capabilities {
    let usual = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    if source.has_matrices() {
        usual | Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16_IN_FLOAT32
    } else {
        usual
    }
}

fn is_valid(module: &Module, capabilities: Capabilities) -> bool {
    Validator::new(ValidationFlags::all(), capabilities).validate(module).is_ok()
}

fn validate(source: &Source, text: &str, module: &Module) -> Result<ModuleInfo> {
    let outcome = Validator::new(ValidationFlags::all(), capabilities(source)).validate(module);
    outcome.map_err(|error| {
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
            (
                "cooperative matrices",
                u32::from(self.uses_matrices),
                u32::from(features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)),
            ),
        ] {
            if need > have {
                return refuse(what, need, have);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn main(text: &'static str) -> Result<Reflection> {
        reflect(&Source::new("kernel", text), "main")
    }

    #[test]
    fn a_kernel_says_what_it_binds_and_needs() {
        let text = "struct Head { first: u32, scale: f32 }
struct Params { a: u32, b: vec2<f32> }
var<immediate> params: Params;
var<workgroup> tile: array<vec4<f32>, 32>;
var<workgroup> flag: u32;
var<workgroup> unused: array<f32, 1000>;
@group(0) @binding(1) var<storage, read> halves: array<vec4<Half>>;
@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@compute @workgroup_size(32, 2)
fn main(@builtin(local_invocation_id) id: vec3<u32>) {
    tile[id.x] = vec4<f32>(halves[id.x]) * params.b.x;
    flag = heads[0].first;
    out[id.x] = tile[0] * subgroupAdd(1.0) * f32(flag);
}
@compute @workgroup_size(1)
fn other() { unused[0] = 1.0; }
";
        let reflection = reflect(&Source::new("kernel", text).alias("Half", Element::F16), "main").unwrap();
        let binding = |name: &str, read_only, element| Binding {
            name: name.into(),
            read_only,
            element,
        };
        let expected = Reflection {
            bindings: vec![
                binding("heads", true, Element::Row),
                binding("halves", true, Element::F16),
                binding("out", false, Element::F32),
            ],
            immediate_bytes: 16,
            workgroup_size: [32, 2, 1],
            workgroup_bytes: 512 + 16,
            uses_half: true,
            uses_subgroups: true,
            uses_matrices: false,
        };
        assert_eq!(reflection, expected);
        let (mut limits, features) = (wgpu::Limits::default(), wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP);
        limits.max_immediate_size = 16;
        reflection.fits("kernel", &limits, features).unwrap();
        let lacking = reflection
            .fits("kernel", &limits, wgpu::Features::SUBGROUP)
            .unwrap_err()
            .to_string();
        assert!(lacking.contains("half precision of kernel.wgsl"), "{lacking}");
        assert!(reflection.fits("kernel", &limits, wgpu::Features::SHADER_F16).is_err());
        limits.max_compute_workgroup_storage_size = 512;
        assert!(reflection.fits("kernel", &limits, features).is_err());
    }

    #[test]
    fn a_plain_kernel_needs_nothing() {
        let reflection = main("@compute @workgroup_size(64) fn main() {}").unwrap();
        assert!(!reflection.uses_half && !reflection.uses_subgroups && reflection.bindings.is_empty());
    }

    #[test]
    fn what_does_not_run_everywhere_is_refused() {
        for text in [
            "@compute @workgroup_size(64) fn main() { let x = 1.0lf; }",
            "@group(0) @binding(1) var<storage, read> gap: array<f32>; @compute @workgroup_size(64) fn main() {}",
            "@group(1) @binding(0) var<storage, read> group: array<f32>; @compute @workgroup_size(64) fn main() {}",
            "@group(0) @binding(0) var<uniform> numbers: vec4<f32>; @compute @workgroup_size(64) fn main() {}",
            "const_assert 1 > 2; @compute @workgroup_size(64) fn main() {}",
            "enable f16; enable wgpu_cooperative_matrix; @compute @workgroup_size(64) fn main() { var sums: coop_mat8x8<f32, C>; }",
        ] {
            assert!(matches!(main(text), Err(Error::Shader { kernel: "kernel", .. })), "{text}");
        }
    }
}
