// What attention would lose with each pair, were it dropped alone (reference/effects.rs derives it):
//   effect_j = Σ_q p_qj² ‖v_j − y_q / 2‖²      p_qj = e^{s q·k_j − l_q}
//
// An invocation owns a key and its value in registers; tiles of queries and states pass through workgroup memory. The rows of a head are
// cut into blocks (row_block in prelude.wgsl), a workgroup each, whose sums sum_blocks.wgsl adds in order. Where registers are too few for
// all channels, EFFECT_SHARES neighbours own a key: of every EFFECT_SHARES vec4 one each.
// Grid: x: blocks of EFFECT_PAIRS pairs, y: row blocks, z: heads from params.first on.  Twin: reference/effects.rs

const EFFECT_PAIRS: u32 = EFFECT_LANES / EFFECT_SHARES;
const OWN_DIM4: u32 = DIM4 / EFFECT_SHARES;
const OWN_VALUE4: u32 = VALUE4 / EFFECT_SHARES;
const_assert OWN_DIM4 * EFFECT_SHARES == DIM4 && OWN_VALUE4 * EFFECT_SHARES == VALUE4;

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

var<private> key: array<vec4<f32>, OWN_DIM4>;
var<private> value: array<vec4<f32>, OWN_VALUE4>;

// An invocation's part of a row's dot with its key, and of the distance ‖v − y / 2‖².
fn own_dots(q: u32, share: u32) -> vec2<f32> {
    var dot = vec4<f32>(0.0);
    for (var c = 0u; c < OWN_DIM4; c++) {
        dot += key[c] * query_tile[q * DIM4 + c * EFFECT_SHARES + share];
    }
    var distance = vec4<f32>(0.0);
    for (var c = 0u; c < OWN_VALUE4; c++) {
        let apart = value[c] - 0.5 * state_tile[q * STATE4 + c * EFFECT_SHARES + share];
        distance += apart * apart;
    }
    return vec2<f32>(sum4(dot), sum4(distance));
}

// The same of all that share the key, in the same order for each.
fn whole_dots(q: u32, lane: u32, share: u32) -> vec2<f32> {
    if EFFECT_SHARES == 1u {
        return own_dots(q, share);
    }
    var sum = vec2<f32>(0.0);
    for (var s = 0u; s < EFFECT_SHARES; s++) {
        let place = 2u * q * EFFECT_LANES + lane - share + s;
        sum += vec2<f32>(left_dot(place), left_dot(place + EFFECT_LANES));
    }
    return sum;
}

@compute @workgroup_size(EFFECT_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[params.first + group.z];
    if group.x * EFFECT_PAIRS >= head.pairs || group.y * row_block(head.rows) >= head.rows {
        return;
    }
    // Lanes beyond the last pair help to stage tiles and sit out the rest, so that whole subgroups of them cost nothing.
    let own = group.x * EFFECT_PAIRS + lane / EFFECT_SHARES;
    let share = lane % EFFECT_SHARES;
    let pair = head.pair + min(own, head.pairs - 1u);
    let block_end = min((group.y + 1u) * row_block(head.rows), head.rows);

    for (var c = 0u; c < OWN_DIM4; c++) {
        key[c] = params.scale * vec4<f32>(keys[pair * DIM4 + c * EFFECT_SHARES + share]);
    }
    for (var c = 0u; c < OWN_VALUE4; c++) {
        value[c] = vec4<f32>(values[pair * VALUE4 + c * EFFECT_SHARES + share]);
    }

    var effect = 0.0;
    for (var start = group.y * row_block(head.rows); start < block_end; start += EFFECT_TILE) {
        let count = min(EFFECT_TILE, block_end - start);
        let first = head.row + start;
        workgroupBarrier();
        for (var i = lane; i < count * DIM4; i += EFFECT_LANES) {
            query_tile[i] = queries[first * DIM4 + i];
        }
        for (var i = lane; i < count * STATE4; i += EFFECT_LANES) {
            state_tile[i] = state[first * STATE4 + i];
        }
        workgroupBarrier();
        if EFFECT_SHARES > 1u {
            for (var q = 0u; q < count; q++) {
                let own_part = own_dots(q, share);
                leave_dot(2u * q * EFFECT_LANES + lane, own_part.x);
                leave_dot((2u * q + 1u) * EFFECT_LANES + lane, own_part.y);
            }
            workgroupBarrier();
        }
        if own < head.pairs {
            for (var q = 0u; q < count; q++) {
                let whole = whole_dots(q, lane, share);
                let weight = exponential(whole.x - state_tile[q * STATE4 + VALUE4].x);
                effect += weight * weight * whole.y;
            }
        }
    }
    if own < head.pairs && share == 0u {
        partial[group.y * params.pairs + head.place - heads[params.first].place + own] = effect;
    }
}
