// The two-loop recursion of L-BFGS, as lbfgs_direction.wgsl does, by many workgroups a head:  direction ← −H g
//   newest to oldest:  α_i = ρ_i (s_i·q),  q ← q − α_i y_i          (q starts as g)
//   r = γ q,  γ = s·y / y·y of the newest usable pair, or 1
//   oldest to newest:  r ← r + (α_i − ρ_i (y_i·r)) s_i              direction = −r
// Pairs with ρ = 0 are of no use and are passed over.
//
// A head's elements are cut into parts of DIRECTION_PART vec4, a workgroup each; a dispatch leaves the sums of all parts of one dot, which
// the dispatches after it add in order. What a pair does to q or r is done on the way to the next pair's dot: each pass reads and writes
// it once. The host calls older for every age from 0 on, newer for every age down to 0, then last.
// older: q ← q − α y of the next newer usable pair, and the parts of s·q.
// newer: r ← r + (α − β) s of the next older usable pair, β = ρ (y·r), and the parts of y·r.
// last:  the newest pair's share, the sign, and the parts of what lbfgs_finish.wgsl adds.
// Grid: x: parts, z: heads.  Twin: reference/lbfgs.rs, direction

struct Params {
    // Slots a head.
    capacity: u32,
    // The pair's age: 0 is the newest.
    age: u32,
    // Parts of the largest head.
    parts: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> gradient: array<vec4<f32>>;        // [Σ pairs, DIM]
@group(0) @binding(2) var<storage, read> steps: array<vec4<f32>>;           // s, [heads: capacity × pairs × DIM]
@group(0) @binding(3) var<storage, read> changes: array<vec4<f32>>;         // y, the same shape
@group(0) @binding(4) var<storage, read> curvatures: array<vec2<f32>>;      // ρ and γ, [heads, capacity]
@group(0) @binding(5) var<storage, read> cursor: array<vec2<f32>>;          // filled and newest, [heads]
@group(0) @binding(6) var<storage, read_write> direction: array<vec4<f32>>; // [Σ pairs, DIM]
// [heads of the table, 2 capacity + 2, parts]: of each s·q by age, of each y·r by age, of the slope, of the maximum.
@group(0) @binding(7) var<storage, read_write> sums: array<f32>;

// No age.
const NONE: u32 = 0xffffffffu;

fn filled(head: Head) -> u32 {
    return min(u32(cursor[head.index].x), params.capacity);
}

fn slot(head: Head, age: u32) -> u32 {
    return (u32(cursor[head.index].y) + params.capacity - age) % params.capacity;
}

// ρ and γ.
fn curvature(head: Head, age: u32) -> vec2<f32> {
    return curvatures[head.index * params.capacity + slot(head, age)];
}

// Where the pair's elements begin in `steps` and `changes`.
fn pair(head: Head, age: u32) -> u32 {
    return (params.capacity * head.pair + slot(head, age) * head.pairs) * DIM4;
}

fn usable(head: Head, age: u32) -> bool {
    return age < filled(head) && curvature(head, age).x != 0.0;
}

// The next usable pair newer than `age`, the oldest of them; NONE if there is none.
fn next_newer(head: Head, age: u32) -> u32 {
    var found = NONE;
    for (var other = 0u; other < age; other++) {
        if usable(head, other) {
            found = other;
        }
    }
    return found;
}

// The first usable pair from `age` on; NONE if there is none.
fn from_age(head: Head, age: u32) -> u32 {
    var found = NONE;
    for (var other = filled(head); other > age; other--) {
        if usable(head, other - 1u) {
            found = other - 1u;
        }
    }
    return found;
}

fn place(row: u32, part: u32, z: u32) -> u32 {
    return (z * (2u * params.capacity + 2u) + row) * params.parts + part;
}

// α of a pair, and β if it is known already.
fn factors(head: Head, age: u32, both: bool, z: u32, lane: Lane) -> vec2<f32> {
    var sum = vec4<f32>(0.0);
    let parts = (head.pairs * DIM4 + DIRECTION_PART - 1u) / DIRECTION_PART;
    for (var part = lane.index; part < parts; part += REDUCE_LANES) {
        sum.x += sums[place(age, part, z)];
        if both {
            sum.y += sums[place(params.capacity + age, part, z)];
        }
    }
    return curvature(head, age).x * workgroup_sum(lane, sum).xy;
}

@compute @workgroup_size(REDUCE_LANES)
fn older(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let count = head.pairs * DIM4;
    let start = group.x * DIRECTION_PART;
    if start >= count || !usable(head, params.age) {
        return;
    }
    let own = pair(head, params.age);
    let newer_age = next_newer(head, params.age);
    let first = head.pair * DIM4;
    let end = min(start + DIRECTION_PART, count);
    var dot = vec4<f32>(0.0);
    if newer_age == NONE {
        for (var i = start + lane.index; i < end; i += REDUCE_LANES) {
            let q = gradient[first + i];
            direction[first + i] = q;
            dot += steps[own + i] * q;
        }
    } else {
        let alpha = factors(head, newer_age, false, group.z, lane).x;
        let other = pair(head, newer_age);
        for (var i = start + lane.index; i < end; i += REDUCE_LANES) {
            let q = direction[first + i] - alpha * changes[other + i];
            direction[first + i] = q;
            dot += steps[own + i] * q;
        }
    }
    let sum = workgroup_sum(lane, vec4<f32>(sum4(dot), 0.0, 0.0, 0.0)).x;
    if lane.index == 0u {
        sums[place(params.age, group.x, group.z)] = sum;
    }
}

@compute @workgroup_size(REDUCE_LANES)
fn newer(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let count = head.pairs * DIM4;
    let start = group.x * DIRECTION_PART;
    if start >= count || !usable(head, params.age) {
        return;
    }
    let own = pair(head, params.age);
    let older_age = from_age(head, params.age + 1u);
    let first = head.pair * DIM4;
    let end = min(start + DIRECTION_PART, count);
    var dot = vec4<f32>(0.0);
    if older_age == NONE {
        // The oldest: what it does to q is still to be done, and r = γ q.
        let alpha = factors(head, params.age, false, group.z, lane).x;
        let scale = curvature(head, from_age(head, 0u)).y;
        for (var i = start + lane.index; i < end; i += REDUCE_LANES) {
            let change = changes[own + i];
            let r = scale * (direction[first + i] - alpha * change);
            direction[first + i] = r;
            dot += change * r;
        }
    } else {
        let alpha_beta = factors(head, older_age, true, group.z, lane);
        let other = pair(head, older_age);
        for (var i = start + lane.index; i < end; i += REDUCE_LANES) {
            let r = direction[first + i] + (alpha_beta.x - alpha_beta.y) * steps[other + i];
            direction[first + i] = r;
            dot += changes[own + i] * r;
        }
    }
    let sum = workgroup_sum(lane, vec4<f32>(sum4(dot), 0.0, 0.0, 0.0)).x;
    if lane.index == 0u {
        sums[place(params.capacity + params.age, group.x, group.z)] = sum;
    }
}

@compute @workgroup_size(REDUCE_LANES)
fn last(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let count = head.pairs * DIM4;
    let start = group.x * DIRECTION_PART;
    if start >= count {
        return;
    }
    let newest = from_age(head, 0u);
    let first = head.pair * DIM4;
    let end = min(start + DIRECTION_PART, count);
    var slope = vec4<f32>(0.0);
    var most = 0u;
    if newest == NONE {
        for (var i = start + lane.index; i < end; i += REDUCE_LANES) {
            let g = gradient[first + i];
            direction[first + i] = -g;
            slope -= g * g;
            most = max(most, largest_magnitude(g));
        }
    } else {
        let alpha_beta = factors(head, newest, true, group.z, lane);
        let other = pair(head, newest);
        for (var i = start + lane.index; i < end; i += REDUCE_LANES) {
            let down = -(direction[first + i] + (alpha_beta.x - alpha_beta.y) * steps[other + i]);
            direction[first + i] = down;
            slope += down * gradient[first + i];
            most = max(most, largest_magnitude(down));
        }
    }
    let total = workgroup_sum(lane, vec4<f32>(sum4(slope), 0.0, 0.0, 0.0));
    let largest = workgroup_max(lane, most);
    if lane.index == 0u {
        sums[place(2u * params.capacity, group.x, group.z)] = total.x;
        sums[place(2u * params.capacity + 1u, group.x, group.z)] = bitcast<f32>(largest);
    }
}
