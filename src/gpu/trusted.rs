//! The one place with `unsafe`: what wgpu does only for those who vouch for it.

#![allow(
    unsafe_code,
    reason = "the one place: our own loops are compiled without a guard against running for ever, and an experimental feature is \
              turned on where the user asks for it"
)]

use wgpu::{Device, ExperimentalFeatures, ShaderModule, ShaderModuleDescriptor, ShaderRuntimeChecks, ShaderSource};

use super::source::Source;

/// The shader with every guard, but the one on loops where these are known to end.
pub(super) fn module(device: &Device, source: &Source) -> ShaderModule {
    let descriptor = ShaderModuleDescriptor {
        label: Some(source.kernel()),
        source: ShaderSource::Wgsl(source.text().into()),
    };
    let checks = ShaderRuntimeChecks {
        force_loop_bounding: !source.has_ending_loops(),
        ..ShaderRuntimeChecks::checked()
    };
    // SAFETY: without its guard a loop must end. Only this crate can vouch for that, and does so for its own
    // shaders: see `Source::loops_end`. All other guards, on bounds and division, stay.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}

/// Leave to use wgpu's experimental features, of which only cooperative matrices are ever asked for, and only by a
/// [`Selection`](super::Selection) that says so.
pub(super) fn experimental_features() -> ExperimentalFeatures {
    // SAFETY: what is asked for is to know that such a feature may have bugs of wgpu's own that safe calls can hit, and to report
    // them. The user has been told so where the option is described, it is off unless asked for, and only `matrices.wgsl`
    // uses it: it loads and stores matrices within its own workgroup memory, at places made of constants, a counter that stays below
    // one and the subgroup's number, which is compared with one before, and on ways that whole subgroups take, which
    // `uniformity` checks.
    unsafe { ExperimentalFeatures::enabled() }
}
