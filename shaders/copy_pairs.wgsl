// target ← source for the pairs of the table's heads.
//
// Grid: x: workgroups that stride over a head's elements, z: heads.  Twin: none, a copy

struct Params {
    // Floats a pair.
    width: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> source: array<f32>;             // [Σ pairs, params.width]
@group(0) @binding(2) var<storage, read_write> destination: array<f32>; // [Σ pairs, params.width]

@compute @workgroup_size(ELEMENT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let head = heads[group.z];
    let first = head.pair * params.width;
    for (var i = group.x * ELEMENT_LANES + lane; i < head.pairs * params.width; i += groups.x * ELEMENT_LANES) {
        destination[first + i] = source[first + i];
    }
}
