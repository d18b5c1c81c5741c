// The gradient of the loss in the keys:
//   ∂loss/∂c_j = (2 s / rows) Σ_q p_qj (e·w_j − (e·ŷ − λδ)) q      p_qj = e^{s q·c_j − l̂}
//
// An invocation owns a key, its value and its gradient in registers; tiles of queries and error rows pass through
// workgroup memory. The rows of a head are cut into blocks (row_block in prelude.wgsl), a workgroup each, whose sums sum_blocks.wgsl
// adds in order.
// Grid: x: blocks of KEY_LANES pairs, y: row blocks, z: heads from params.first on.  Twin: reference/key_gradient.rs

const_assert GRADIENT_TILE * (DIM4 + STATE4) * 16u <= 16384u;

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
@group(0) @binding(2) var<storage, read> keys: array<vec4<f32>>;          // [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> values: array<vec4<f32>>;        // [Σ pairs, VALUE_DIM]
@group(0) @binding(4) var<storage, read> error: array<vec4<f32>>;         // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(5) var<storage, read_write> partial: array<vec4<f32>>; // [row blocks, params.pairs, DIM]

var<workgroup> query_tile: array<vec4<f32>, GRADIENT_TILE * DIM4>;
var<workgroup> error_tile: array<vec4<f32>, GRADIENT_TILE * STATE4>;

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
    var gradient: array<vec4<f32>, DIM4>;
    for (var c = 0u; c < DIM4; c++) {
        key[c] = params.scale * keys[pair * DIM4 + c];
        gradient[c] = vec4<f32>(0.0);
    }
    var value: array<vec4<f32>, VALUE4>;
    for (var c = 0u; c < VALUE4; c++) {
        value[c] = values[pair * VALUE4 + c];
    }

    for (var start = group.y * row_block(head.rows); start < block_end; start += GRADIENT_TILE) {
        let count = min(GRADIENT_TILE, block_end - start);
        let first = head.row + start;
        workgroupBarrier();
        for (var i = lane; i < count * DIM4; i += KEY_LANES) {
            query_tile[i] = queries[first * DIM4 + i];
        }
        for (var i = lane; i < count * STATE4; i += KEY_LANES) {
            error_tile[i] = error[first * STATE4 + i];
        }
        workgroupBarrier();
        if own < head.pairs {
            for (var q = 0u; q < count; q++) {
                var logit = vec4<f32>(0.0);
                for (var c = 0u; c < DIM4; c++) {
                    logit += key[c] * query_tile[q * DIM4 + c];
                }
                var along = vec4<f32>(0.0);
                for (var c = 0u; c < VALUE4; c++) {
                    along += value[c] * error_tile[q * STATE4 + c];
                }
                // e·ŷ − λδ, then l̂.
                let of_row = error_tile[q * STATE4 + VALUE4];
                let slope = exponential(sum4(logit) - of_row.y) * (sum4(along) - of_row.x);
                for (var c = 0u; c < DIM4; c++) {
                    gradient[c] += slope * query_tile[q * DIM4 + c];
                }
            }
        }
    }
    if own < head.pairs {
        let factor = 2.0 * params.scale / f32(head.rows);
        let place = group.y * params.pairs + head.place - heads[params.first].place + own;
        for (var c = 0u; c < DIM4; c++) {
            partial[place * DIM4 + c] = factor * gradient[c];
        }
    }
}
