// What attention would lose with each pair, were it dropped alone (reference/effects.rs derives it):
//   effect_j = Σ_q p_qj² ‖v_j − y_q / 2‖²      p_qj = e^{s q·k_j − l_q}
//
// An invocation owns a key and its value in registers; tiles of queries and states pass through workgroup memory. The rows of a head are
// cut into blocks (row_block in prelude.wgsl), a workgroup each, whose sums sum_blocks.wgsl adds in order.
// Grid: x: blocks of KEY_LANES pairs, y: row blocks, z: heads from params.first on.  Twin: reference/effects.rs

const_assert EFFECT_TILE * (DIM4 + STATE4) * 16u <= 16384u;

struct Params {
    scale: f32,
    // The first head of this dispatch in the table.
    first: u32,
    // Pairs of the dispatch's heads together: one row of `partial`.
    pairs: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> queries: array<vec4<f32>>;       // [Σ rows, DIM]
@group(0) @binding(2) var<storage, read> keys: array<vec4<KeyStore>>;     // [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> values: array<vec4<ValueStore>>; // [Σ pairs, VALUE_DIM]
@group(0) @binding(4) var<storage, read> state: array<vec4<f32>>;         // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(5) var<storage, read_write> partial: array<f32>;       // [row blocks, params.pairs]

var<workgroup> query_tile: array<vec4<f32>, EFFECT_TILE * DIM4>;
var<workgroup> state_tile: array<vec4<f32>, EFFECT_TILE * STATE4>;

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
    var value: array<vec4<f32>, VALUE4>;
    for (var c = 0u; c < VALUE4; c++) {
        value[c] = vec4<f32>(values[pair * VALUE4 + c]);
    }

    var effect = 0.0;
    for (var start = group.y * row_block(head.rows); start < block_end; start += EFFECT_TILE) {
        let count = min(EFFECT_TILE, block_end - start);
        let first = head.row + start;
        workgroupBarrier();
        for (var i = lane; i < count * DIM4; i += KEY_LANES) {
            query_tile[i] = queries[first * DIM4 + i];
        }
        for (var i = lane; i < count * STATE4; i += KEY_LANES) {
            state_tile[i] = state[first * STATE4 + i];
        }
        workgroupBarrier();
        if own < head.pairs {
            for (var q = 0u; q < count; q++) {
                var dot = vec4<f32>(0.0);
                for (var c = 0u; c < DIM4; c++) {
                    dot += key[c] * query_tile[q * DIM4 + c];
                }
                var distance = vec4<f32>(0.0);
                for (var c = 0u; c < VALUE4; c++) {
                    let apart = value[c] - 0.5 * state_tile[q * STATE4 + c];
                    distance += apart * apart;
                }
                let weight = exponential(sum4(dot) - state_tile[q * STATE4 + VALUE4].x);
                effect += weight * weight * sum4(distance);
            }
        }
    }
    if own < head.pairs {
        partial[group.y * params.pairs + head.place - heads[params.first].place + own] = effect;
    }
}
