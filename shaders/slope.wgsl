// What the line search asks of the gradient at a trial point:  gradient · direction,  max |gradient|,  Σ |gradient|
//
// A workgroup a head, its lanes stride over the head's elements.
// Grid: z: heads.  Twin: reference/slope.rs

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> gradient: array<vec4<f32>>;  // [Σ pairs, DIM]
@group(0) @binding(2) var<storage, read> direction: array<vec4<f32>>; // [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read_write> scalars: array<f32>;   // [heads, SCALARS]

@compute @workgroup_size(REDUCE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let first = head.pair * DIM4;
    var slope = vec4<f32>(0.0);
    var size = vec4<f32>(0.0);
    var most = 0u;
    for (var i = lane.index; i < head.pairs * DIM4; i += REDUCE_LANES) {
        let g = gradient[first + i];
        slope += g * direction[first + i];
        size += abs(g);
        most = max(most, largest_magnitude(g));
    }
    let total = workgroup_sum(lane, vec4<f32>(sum4(slope), sum4(size), 0.0, 0.0));
    let largest = workgroup_max(lane, most);
    if lane.index == 0u {
        let place = head.index * SCALARS;
        scalars[place + SLOPE] = total.x;
        scalars[place + GRADIENT_MAX] = bitcast<f32>(largest);
        scalars[place + GRADIENT_SUM] = total.y;
    }
}
