// The two-loop recursion of L-BFGS:  direction ← −H g
//   newest to oldest:  α_i = ρ_i (s_i·q),  q ← q − α_i y_i          (q starts as g)
//   r = γ q,  γ = s·y / y·y of the newest usable pair, or 1
//   oldest to newest:  r ← r + (α_i − ρ_i (y_i·r)) s_i              direction = −r
// Pairs with ρ = 0 are of no use and are passed over.
//
// A workgroup a head; a lane keeps to its own elements, so that only the sums need barriers. What a pair does to q or r is done on the
// way to the next pair's product: each pass reads and writes it once.
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

// q ← g, then s·q.
fn start(first: u32, count: u32, lane: u32, pair: u32) -> f32 {
    var sum = vec4<f32>(0.0);
    for (var i = lane; i < count; i += REDUCE_LANES) {
        let q = gradient[first + i];
        direction[first + i] = q;
        sum += steps[pair + i] * q;
    }
    return sum4(sum);
}

// q ← q − α y of the newer pair, then s·q of the next.
fn older(first: u32, count: u32, lane: u32, alpha: f32, newer: u32, pair: u32) -> f32 {
    var sum = vec4<f32>(0.0);
    for (var i = lane; i < count; i += REDUCE_LANES) {
        let q = direction[first + i] - alpha * changes[newer + i];
        direction[first + i] = q;
        sum += steps[pair + i] * q;
    }
    return sum4(sum);
}

// q ← q − α y of the oldest pair, r ← γ q, then y·r of the same.
fn turn(first: u32, count: u32, lane: u32, alpha: f32, scale: f32, pair: u32) -> f32 {
    var sum = vec4<f32>(0.0);
    for (var i = lane; i < count; i += REDUCE_LANES) {
        let change = changes[pair + i];
        let r = scale * (direction[first + i] - alpha * change);
        direction[first + i] = r;
        sum += change * r;
    }
    return sum4(sum);
}

// r ← r + factor · s of the older pair, then y·r of the next.
fn newer(first: u32, count: u32, lane: u32, factor: f32, older: u32, pair: u32) -> f32 {
    var sum = vec4<f32>(0.0);
    for (var i = lane; i < count; i += REDUCE_LANES) {
        let r = direction[first + i] + factor * steps[older + i];
        direction[first + i] = r;
        sum += changes[pair + i] * r;
    }
    return sum4(sum);
}

@compute @workgroup_size(REDUCE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let count = head.pairs * DIM4;
    let first = head.pair * DIM4;
    let history = params.capacity * first;
    let filled = min(u32(cursor[head.index].x), min(params.capacity, MOST_HISTORY));
    let newest = u32(cursor[head.index].y);

    // The pair last met, and what it does to q or r.
    var last = 0u;
    var factor = 0.0;
    var scale = 1.0;
    var met = 0u;
    for (var age = 0u; age < filled; age++) {
        let slot = (newest + params.capacity - age) % params.capacity;
        let pair = history + slot * count;
        let curvature = curvatures[head.index * params.capacity + slot];
        if curvature.x == 0.0 {
            continue;
        }
        var own = 0.0;
        if met == 0u {
            scale = curvature.y;
            own = start(first, count, lane.index, pair);
        } else {
            own = older(first, count, lane.index, factor, last, pair);
        }
        factor = curvature.x * workgroup_sum(lane, vec4<f32>(own, 0.0, 0.0, 0.0)).x;
        if lane.index == 0u {
            alphas[age] = factor;
        }
        last = pair;
        met++;
    }
    let usable = met > 0u;
    var turned = false;
    for (var turns = 0u; turns < filled; turns++) {
        let age = filled - 1u - turns;
        let slot = (newest + params.capacity - age) % params.capacity;
        let pair = history + slot * count;
        let curvature = curvatures[head.index * params.capacity + slot];
        if curvature.x == 0.0 {
            continue;
        }
        var own = 0.0;
        if turned {
            own = newer(first, count, lane.index, factor, last, pair);
        } else {
            own = turn(first, count, lane.index, factor, scale, pair);
        }
        let beta = curvature.x * workgroup_sum(lane, vec4<f32>(own, 0.0, 0.0, 0.0)).x;
        factor = alphas[age] - beta;
        last = pair;
        turned = true;
    }

    var slope = vec4<f32>(0.0);
    var most = 0u;
    for (var i = lane.index; i < count; i += REDUCE_LANES) {
        let g = gradient[first + i];
        var down = -g;
        if usable {
            down = -(direction[first + i] + factor * steps[last + i]);
        }
        direction[first + i] = down;
        slope += down * g;
        most = max(most, largest_magnitude(down));
    }
    let total = workgroup_sum(lane, vec4<f32>(sum4(slope), 0.0, 0.0, 0.0));
    let largest = workgroup_max(lane, most);
    if lane.index == 0u {
        scalars[head.index * SCALARS + DIRECTION_SLOPE] = total.x;
        scalars[head.index * SCALARS + DIRECTION_MAX] = bitcast<f32>(largest);
    }
}
