// Error rows and the sums of the loss:
//   e = ŷ − y,  δ = l̂ − l,  Σ‖e‖²,  Σδ²,  Σ‖y‖²,  rows that are not finite;  loss = (Σ‖e‖² + λ Σδ²) / rows
//
// rows:   an invocation owns a row, a workgroup REDUCE_LANES of them, and leaves its four sums in `sums`.
//         Grid: x: blocks of REDUCE_LANES rows, z: heads.
// finish: a workgroup a head adds them.  Grid: z: heads.
// Twin: reference/loss.rs

struct Params {
    // Blocks of the head with most rows: a head's share of `sums`.
    blocks: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> state: array<vec4<f32>>;       // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(2) var<storage, read> teacher: array<vec4<f32>>;     // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(3) var<storage, read> mass_weight: array<f32>;       // λ, [heads]
@group(0) @binding(4) var<storage, read_write> error: array<vec4<f32>>; // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(5) var<storage, read_write> sums: array<vec4<f32>>;  // [heads of the table, params.blocks]
@group(0) @binding(6) var<storage, read_write> scalars: array<f32>;     // [heads, SCALARS]

@compute @workgroup_size(REDUCE_LANES)
fn rows(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    if group.x * REDUCE_LANES >= head.rows {
        return;
    }
    let own = group.x * REDUCE_LANES + lane.index;
    var sum = vec4<f32>(0.0);
    if own < head.rows {
        let row = (head.row + own) * STATE4;
        var squares = vec4<f32>(0.0);
        var scale = vec4<f32>(0.0);
        var along = vec4<f32>(0.0);
        for (var c = 0u; c < VALUE4; c++) {
            let student = state[row + c];
            let wanted = teacher[row + c];
            let difference = student - wanted;
            squares += difference * difference;
            scale += wanted * wanted;
            along += difference * student;
            error[row + c] = difference;
        }
        let mass = state[row + VALUE4].x;
        let delta = mass - teacher[row + VALUE4].x;
        error[row + VALUE4] = vec4<f32>(sum4(along) - mass_weight[head.index] * delta, mass, delta, 0.0);
        let finite = is_finite(sum4(squares)) && is_finite(delta);
        sum = vec4<f32>(sum4(squares), delta * delta, sum4(scale), select(1.0, 0.0, finite));
    }
    let total = workgroup_sum(lane, sum);
    if lane.index == 0u {
        sums[group.z * params.blocks + group.x] = total;
    }
}

@compute @workgroup_size(REDUCE_LANES)
fn finish(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    let blocks = (head.rows + REDUCE_LANES - 1u) / REDUCE_LANES;
    var sum = vec4<f32>(0.0);
    for (var block = lane.index; block < blocks; block += REDUCE_LANES) {
        sum += sums[group.z * params.blocks + block];
    }
    let total = workgroup_sum(lane, sum);
    if lane.index == 0u {
        let place = head.index * SCALARS;
        scalars[place + OUTPUT] = total.x;
        scalars[place + MASS] = total.y;
        scalars[place + SCALE] = total.z;
        scalars[place + NOT_FINITE] = total.w;
    }
}
