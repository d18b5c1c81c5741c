// Moves each head to its accepted point:  origin ← origin + t d,  gradient ← g₊
//
// Grid: x: workgroups that stride over a head's elements, z: heads.  Twin: reference/lbfgs.rs, push

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> lengths: array<f32>;              // t, [heads]
@group(0) @binding(2) var<storage, read> direction: array<vec4<f32>>;      // d, [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> new_gradient: array<vec4<f32>>;   // g₊, [Σ pairs, DIM]
@group(0) @binding(4) var<storage, read_write> gradient: array<vec4<f32>>; // [Σ pairs, DIM]
@group(0) @binding(5) var<storage, read_write> origin: array<vec4<f32>>;   // [Σ pairs, DIM]

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
        origin[first + i] += length * direction[first + i];
        gradient[first + i] = new_gradient[first + i];
    }
}
