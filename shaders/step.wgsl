// A trial point of the line search:  trial ← origin + t · direction
//
// Grid: x: workgroups that stride over a head's elements, z: heads.  Twin: reference/step.rs

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> origin: array<vec4<f32>>;      // [Σ pairs, DIM]
@group(0) @binding(2) var<storage, read> direction: array<vec4<f32>>;   // [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> lengths: array<f32>;           // t, [heads]
@group(0) @binding(4) var<storage, read_write> trial: array<vec4<f32>>; // [Σ pairs, DIM]

@compute @workgroup_size(ELEMENT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let head = heads[group.z];
    let first = head.pair * DIM4;
    let length = lengths[head.index];
    for (var i = group.x * ELEMENT_LANES + lane; i < head.pairs * DIM4; i += groups.x * ELEMENT_LANES) {
        trial[first + i] = origin[first + i] + length * direction[first + i];
    }
}
