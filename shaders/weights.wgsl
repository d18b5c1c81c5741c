// The student's weights on the free pairs, for the rows [start, end) of each head:  A_qj = e^{s q·c_j − l̂_q}
//
// An invocation owns a key; tiles of queries pass through workgroup memory.
// Grid: x: blocks of KEY_LANES pairs, y: tiles of SCORE_TILE rows, z: heads.  Twin: reference/weights.rs

const_assert SCORE_TILE * (DIM4 * 16u + 4u) <= 16384u;

struct Params {
    scale: f32,
    start: u32,
    end: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> queries: array<vec4<f32>>;  // [Σ rows, DIM]
@group(0) @binding(2) var<storage, read> keys: array<vec4<f32>>;     // [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;    // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;  // [heads: rows of the block × pairs]

var<workgroup> query_tile: array<vec4<f32>, SCORE_TILE * DIM4>;
var<workgroup> mass_tile: array<f32, SCORE_TILE>;

@compute @workgroup_size(KEY_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let rows = rows_in_block(head, params.start, params.end);
    let tile = group.y * SCORE_TILE;
    if group.x * KEY_LANES >= head.pairs || tile >= rows {
        return;
    }
    // Lanes beyond the last pair help to stage tiles and sit out the rest, so that whole subgroups of them cost nothing.
    let own = group.x * KEY_LANES + lane;
    let pair = head.pair + min(own, head.pairs - 1u);
    let count = min(SCORE_TILE, rows - tile);
    let first = head.row + params.start + tile;

    for (var i = lane; i < count * DIM4; i += KEY_LANES) {
        query_tile[i] = queries[first * DIM4 + i];
    }
    for (var i = lane; i < count; i += KEY_LANES) {
        mass_tile[i] = state[(first + i) * STATE4 + VALUE4].x;
    }
    var key: array<vec4<f32>, DIM4>;
    for (var c = 0u; c < DIM4; c++) {
        key[c] = params.scale * keys[pair * DIM4 + c];
    }
    workgroupBarrier();
    if own >= head.pairs {
        return;
    }
    for (var q = 0u; q < count; q++) {
        var dot = vec4<f32>(0.0);
        for (var c = 0u; c < DIM4; c++) {
            dot += key[c] * query_tile[q * DIM4 + c];
        }
        weights[head.weights + (tile + q) * head.pairs + own] = exponential(sum4(dot) - mass_tile[q]);
    }
}
