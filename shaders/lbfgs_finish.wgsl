// What the line search asks of a new direction, from the parts that lbfgs_parts.wgsl left:  gradient · direction,  max |direction|
//
// A workgroup a head.  Grid: z: heads.  Twin: reference/lbfgs.rs, direction

struct Params {
    // Slots a head.
    capacity: u32,
    // Parts of the largest head.
    parts: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> sums: array<f32>;          // [heads of the table, 2 capacity + 2, parts]
@group(0) @binding(2) var<storage, read_write> scalars: array<f32>; // [heads, SCALARS]

@compute @workgroup_size(REDUCE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let parts = (head.pairs * DIM4 + DIRECTION_PART - 1u) / DIRECTION_PART;
    let slopes = (group.z * (2u * params.capacity + 2u) + 2u * params.capacity) * params.parts;
    var slope = 0.0;
    var most = 0u;
    for (var part = lane.index; part < parts; part += REDUCE_LANES) {
        slope += sums[slopes + part];
        most = max(most, magnitude(sums[slopes + params.parts + part]));
    }
    let total = workgroup_sum(lane, vec4<f32>(slope, 0.0, 0.0, 0.0));
    let largest = workgroup_max(lane, most);
    if lane.index == 0u {
        scalars[head.index * SCALARS + DIRECTION_SLOPE] = total.x;
        scalars[head.index * SCALARS + DIRECTION_MAX] = bitcast<f32>(largest);
    }
}
