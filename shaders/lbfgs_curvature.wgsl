// The curvature of each head's newest pair:  ρ = 1 / s·y  and  γ = s·y / y·y,
// both 0 where the pair is of no use: s·y ≤ 1e-10 · y·y, or not finite.
//
// A workgroup a head.  Grid: z: heads.  Twin: reference/lbfgs.rs, curvature

struct Params {
    // Slots a head.
    capacity: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> cursor: array<vec2<f32>>;           // filled and newest, [heads]
@group(0) @binding(2) var<storage, read> steps: array<vec4<f32>>;            // s, [heads: capacity × pairs × DIM]
@group(0) @binding(3) var<storage, read> changes: array<vec4<f32>>;          // y, the same shape
@group(0) @binding(4) var<storage, read_write> curvatures: array<vec2<f32>>; // [heads, capacity]
@group(0) @binding(5) var<storage, read_write> scalars: array<f32>;          // [heads, SCALARS]

@compute @workgroup_size(REDUCE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let count = head.pairs * DIM4;
    let slot = u32(cursor[head.index].y);
    let pair = params.capacity * head.pair * DIM4 + slot * count;
    var along = vec4<f32>(0.0);
    var squares = vec4<f32>(0.0);
    for (var i = lane.index; i < count; i += REDUCE_LANES) {
        let change = changes[pair + i];
        along += steps[pair + i] * change;
        squares += change * change;
    }
    let total = workgroup_sum(lane, vec4<f32>(sum4(along), sum4(squares), 0.0, 0.0));
    if lane.index == 0u {
        var curvature = vec2<f32>(0.0);
        if is_finite(total.x) && is_finite(total.y) && total.x > 1.0e-10 * total.y && total.y > 0.0 {
            curvature = vec2<f32>(1.0 / total.x, total.x / total.y);
            if !is_finite(curvature.x) || !is_finite(curvature.y) {
                curvature = vec2<f32>(0.0);
            }
        }
        curvatures[head.index * params.capacity + slot] = curvature;
        scalars[head.index * SCALARS + CURVATURE] = total.x;
    }
}
