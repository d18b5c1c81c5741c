// The summed weight of each key:  score_j = Σ_q e^{s q·k_j − l_q}
//
// An invocation owns a key; tiles of queries pass through workgroup memory. The rows of a head are cut into blocks
// (row_block in prelude.wgsl), a workgroup each, whose sums sum_blocks.wgsl adds in order.
// Grid: x: blocks of KEY_LANES pairs, y: row blocks, z: heads from params.first on.  Twin: reference/scores.rs

const_assert SCORE_TILE * (DIM4 * 16u + 4u) <= 16384u;

struct Params {
    scale: f32,
    // The first head of this dispatch in the table.
    first: u32,
    // Pairs of the dispatch's heads together: one row of `partial`.
    pairs: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> queries: array<vec4<f32>>;     // [Σ rows, DIM]
@group(0) @binding(2) var<storage, read> keys: array<vec4<KeyStore>>;   // [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;       // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(4) var<storage, read_write> partial: array<f32>;     // [row blocks, params.pairs]

var<workgroup> query_tile: array<vec4<f32>, SCORE_TILE * DIM4>;
var<workgroup> mass_tile: array<f32, SCORE_TILE>;

@compute @workgroup_size(KEY_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[params.first + group.z];
    if group.x * KEY_LANES >= head.pairs || group.y * row_block(head.rows) >= head.rows {
        return;
    }
    // Lanes beyond the last pair help to stage tiles and sit out the rest, so that whole subgroups of them cost nothing.
    let own = group.x * KEY_LANES + lane;
    let pair = head.pair + min(own, head.pairs - 1u);
    let block_end = min((group.y + 1u) * row_block(head.rows), head.rows);

    var key: array<vec4<f32>, DIM4>;
    for (var c = 0u; c < DIM4; c++) {
        key[c] = params.scale * vec4<f32>(keys[pair * DIM4 + c]);
    }
    var score = 0.0;
    for (var start = group.y * row_block(head.rows); start < block_end; start += SCORE_TILE) {
        let count = min(SCORE_TILE, block_end - start);
        let first = head.row + start;
        workgroupBarrier();
        for (var i = lane; i < count * DIM4; i += KEY_LANES) {
            query_tile[i] = queries[first * DIM4 + i];
        }
        for (var i = lane; i < count; i += KEY_LANES) {
            mass_tile[i] = state[(first + i) * STATE4 + VALUE4].x;
        }
        workgroupBarrier();
        if own < head.pairs {
            for (var q = 0u; q < count; q++) {
                var dot = vec4<f32>(0.0);
                for (var c = 0u; c < DIM4; c++) {
                    dot += key[c] * query_tile[q * DIM4 + c];
                }
                score += exponential(sum4(dot) - mass_tile[q]);
            }
        }
    }
    if own < head.pairs {
        partial[group.y * params.pairs + head.place - heads[params.first].place + own] = score;
    }
}
