// Remembers the newest curvature pair of each head:  s = t d,  y = g₊ − g, into the cursor's newest slot.
// lbfgs_curvature.wgsl then measures it, lbfgs_move.wgsl moves the head.
//
// Grid: x: workgroups that stride over a head's elements, z: heads.  Twin: reference/lbfgs.rs, push

struct Params {
    // Slots a head.
    capacity: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> lengths: array<f32>;             // t, [heads]
@group(0) @binding(2) var<storage, read> direction: array<vec4<f32>>;     // d, [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> new_gradient: array<vec4<f32>>;  // g₊, [Σ pairs, DIM]
@group(0) @binding(4) var<storage, read> gradient: array<vec4<f32>>;      // g, [Σ pairs, DIM]
@group(0) @binding(5) var<storage, read> cursor: array<vec2<f32>>;        // filled and newest, [heads]
@group(0) @binding(6) var<storage, read_write> steps: array<vec4<f32>>;   // [heads: capacity × pairs × DIM]
@group(0) @binding(7) var<storage, read_write> changes: array<vec4<f32>>; // the same shape

@compute @workgroup_size(ELEMENT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let head = heads[group.z];
    let count = head.pairs * DIM4;
    let first = head.pair * DIM4;
    let slot = params.capacity * first + u32(cursor[head.index].y) * count;
    let length = lengths[head.index];
    for (var i = group.x * ELEMENT_LANES + lane; i < count; i += groups.x * ELEMENT_LANES) {
        steps[slot + i] = length * direction[first + i];
        changes[slot + i] = new_gradient[first + i] - gradient[first + i];
    }
}
