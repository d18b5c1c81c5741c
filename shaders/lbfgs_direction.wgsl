// The two-loop recursion of L-BFGS:  direction ← −H g
//   newest to oldest:  α_i = ρ_i (s_i·q),  q ← q − α_i y_i          (q starts as g)
//   r = γ q,  γ = s·y / y·y of the newest usable pair, or 1
//   oldest to newest:  r ← r + (α_i − ρ_i (y_i·r)) s_i              direction = −r
// Pairs with ρ = 0 are of no use and are passed over.
//
// A workgroup a head; a lane keeps to its own elements, so that only the sums need barriers.
// Grid: z: heads.  Twin: reference/lbfgs.rs, direction

struct Params {
    // Slots a head.
    capacity: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> gradient: array<vec4<f32>>;        // [Σ pairs, DIM]
@group(0) @binding(2) var<storage, read> steps: array<vec4<f32>>;           // s, [heads: capacity × pairs × DIM]
@group(0) @binding(3) var<storage, read> changes: array<vec4<f32>>;         // y, the same shape
@group(0) @binding(4) var<storage, read> curvatures: array<vec2<f32>>;      // ρ and γ, [heads, capacity]
@group(0) @binding(5) var<storage, read> cursor: array<vec2<f32>>;          // filled and newest, [heads]
@group(0) @binding(6) var<storage, read_write> direction: array<vec4<f32>>; // [Σ pairs, DIM]
@group(0) @binding(7) var<storage, read_write> scalars: array<f32>;         // [heads, SCALARS]

var<workgroup> alphas: array<f32, MOST_HISTORY>;

@compute @workgroup_size(REDUCE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let count = head.pairs * DIM4;
    let first = head.pair * DIM4;
    let history = params.capacity * first;
    let filled = min(u32(cursor[head.index].x), min(params.capacity, MOST_HISTORY));
    let newest = u32(cursor[head.index].y);

    for (var i = lane.index; i < count; i += REDUCE_LANES) {
        direction[first + i] = gradient[first + i];
    }
    var scale = 1.0;
    var scaled = false;
    for (var age = 0u; age < filled; age++) {
        let slot = (newest + params.capacity - age) % params.capacity;
        let pair = history + slot * count;
        let curvature = curvatures[head.index * params.capacity + slot];
        let usable = curvature.x != 0.0;
        var sum = vec4<f32>(0.0);
        if usable {
            for (var i = lane.index; i < count; i += REDUCE_LANES) {
                sum += steps[pair + i] * direction[first + i];
            }
        }
        let alpha = curvature.x * workgroup_sum(lane, vec4<f32>(sum4(sum), 0.0, 0.0, 0.0)).x;
        if lane.index == 0u {
            alphas[age] = alpha;
        }
        if usable {
            for (var i = lane.index; i < count; i += REDUCE_LANES) {
                direction[first + i] -= alpha * changes[pair + i];
            }
            if !scaled {
                scale = curvature.y;
                scaled = true;
            }
        }
    }
    for (var i = lane.index; i < count; i += REDUCE_LANES) {
        direction[first + i] *= scale;
    }
    for (var turn = 0u; turn < filled; turn++) {
        let age = filled - 1u - turn;
        let slot = (newest + params.capacity - age) % params.capacity;
        let pair = history + slot * count;
        let curvature = curvatures[head.index * params.capacity + slot];
        let usable = curvature.x != 0.0;
        var sum = vec4<f32>(0.0);
        if usable {
            for (var i = lane.index; i < count; i += REDUCE_LANES) {
                sum += changes[pair + i] * direction[first + i];
            }
        }
        let beta = curvature.x * workgroup_sum(lane, vec4<f32>(sum4(sum), 0.0, 0.0, 0.0)).x;
        if usable {
            let factor = alphas[age] - beta;
            for (var i = lane.index; i < count; i += REDUCE_LANES) {
                direction[first + i] += factor * steps[pair + i];
            }
        }
    }
    var slope = vec4<f32>(0.0);
    var most = 0u;
    for (var i = lane.index; i < count; i += REDUCE_LANES) {
        let down = -direction[first + i];
        direction[first + i] = down;
        slope += down * gradient[first + i];
        most = max(most, largest_magnitude(down));
    }
    let total = workgroup_sum(lane, vec4<f32>(sum4(slope), 0.0, 0.0, 0.0));
    let largest = workgroup_max(lane, most);
    if lane.index == 0u {
        scalars[head.index * SCALARS + DIRECTION_SLOPE] = total.x;
        scalars[head.index * SCALARS + DIRECTION_MAX] = bitcast<f32>(largest);
    }
}
