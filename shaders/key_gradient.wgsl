// The gradient of the loss in the keys:
//   ∂loss/∂c_j = (2 s / rows) Σ_q p_qj (e·w_j − (e·ŷ − λδ)) q      p_qj = e^{s q·c_j − l̂}
//
// An invocation owns a key, its value and its gradient in registers; tiles of queries and error rows pass through
// workgroup memory. The rows of a head are cut into blocks (row_block in prelude.wgsl), a workgroup each, whose sums sum_blocks.wgsl
// adds in order. Where registers are too few for all channels, GRADIENT_SHARES neighbours own a key: of every GRADIENT_SHARES vec4 one each.
// Grid: x: blocks of GRADIENT_PAIRS pairs, y: row blocks, z: heads from params.first on.  Twin: reference/key_gradient.rs

const GRADIENT_PAIRS: u32 = GRADIENT_LANES / GRADIENT_SHARES;
const OWN_DIM4: u32 = DIM4 / GRADIENT_SHARES;
const OWN_VALUE4: u32 = VALUE4 / GRADIENT_SHARES;
const_assert OWN_DIM4 * GRADIENT_SHARES == DIM4 && OWN_VALUE4 * GRADIENT_SHARES == VALUE4;

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

var<private> key: array<vec4<f32>, OWN_DIM4>;
var<private> value: array<vec4<f32>, OWN_VALUE4>;

// An invocation's part of a row's dots with its key and its value.
fn own_dots(q: u32, share: u32) -> vec2<f32> {
    var logit = vec4<f32>(0.0);
    for (var c = 0u; c < OWN_DIM4; c++) {
        logit += key[c] * query_tile[q * DIM4 + c * GRADIENT_SHARES + share];
    }
    var along = vec4<f32>(0.0);
    for (var c = 0u; c < OWN_VALUE4; c++) {
        along += value[c] * error_tile[q * STATE4 + c * GRADIENT_SHARES + share];
    }
    return vec2<f32>(sum4(logit), sum4(along));
}

// The dots, in the same order for all that share the key.
fn whole_dots(q: u32, lane: u32, share: u32) -> vec2<f32> {
    if GRADIENT_SHARES == 1u {
        return own_dots(q, share);
    }
    var sum = vec2<f32>(0.0);
    for (var s = 0u; s < GRADIENT_SHARES; s++) {
        let place = 2u * q * GRADIENT_LANES + lane - share + s;
        sum += vec2<f32>(left_dot(place), left_dot(place + GRADIENT_LANES));
    }
    return sum;
}

@compute @workgroup_size(GRADIENT_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[params.first + group.z];
    if group.x * GRADIENT_PAIRS >= head.pairs || group.y * row_block(head.rows) >= head.rows {
        return;
    }
    // Lanes beyond the last pair help to stage tiles and sit out the rest, so that whole subgroups of them cost nothing.
    let own = group.x * GRADIENT_PAIRS + lane / GRADIENT_SHARES;
    let share = lane % GRADIENT_SHARES;
    let pair = head.pair + min(own, head.pairs - 1u);
    let block_end = min((group.y + 1u) * row_block(head.rows), head.rows);

    var gradient: array<vec4<f32>, OWN_DIM4>;
    for (var c = 0u; c < OWN_DIM4; c++) {
        key[c] = params.scale * keys[pair * DIM4 + c * GRADIENT_SHARES + share];
        gradient[c] = vec4<f32>(0.0);
    }
    for (var c = 0u; c < OWN_VALUE4; c++) {
        value[c] = values[pair * VALUE4 + c * GRADIENT_SHARES + share];
    }

    for (var start = group.y * row_block(head.rows); start < block_end; start += GRADIENT_TILE) {
        let count = min(GRADIENT_TILE, block_end - start);
        let first = head.row + start;
        workgroupBarrier();
        for (var i = lane; i < count * DIM4; i += GRADIENT_LANES) {
            query_tile[i] = queries[first * DIM4 + i];
        }
        for (var i = lane; i < count * STATE4; i += GRADIENT_LANES) {
            error_tile[i] = error[first * STATE4 + i];
        }
        workgroupBarrier();
        if GRADIENT_SHARES > 1u {
            for (var q = 0u; q < count; q++) {
                let own_part = own_dots(q, share);
                leave_dot(2u * q * GRADIENT_LANES + lane, own_part.x);
                leave_dot((2u * q + 1u) * GRADIENT_LANES + lane, own_part.y);
            }
            workgroupBarrier();
        }
        if own < head.pairs {
            for (var q = 0u; q < count; q++) {
                let whole = whole_dots(q, lane, share);
                // e·ŷ − λδ, then l̂.
                let of_row = error_tile[q * STATE4 + VALUE4];
                let slope = exponential(whole.x - of_row.y) * (whole.y - of_row.x);
                for (var c = 0u; c < OWN_DIM4; c++) {
                    gradient[c] += slope * query_tile[q * DIM4 + c * GRADIENT_SHARES + share];
                }
            }
        }
    }
    if own < head.pairs {
        let factor = 2.0 * params.scale / f32(head.rows);
        let place = group.y * params.pairs + head.place - heads[params.first].place + own;
        for (var c = 0u; c < OWN_DIM4; c++) {
            partial[place * DIM4 + c * GRADIENT_SHARES + share] = factor * gradient[c];
        }
    }
}
