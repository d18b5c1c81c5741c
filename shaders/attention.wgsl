// Attention of each row over its head's pairs, merged with what is known of other pairs ("base"):
//   l = log(Σ_j e^{s q·k_j} + e^{l_base})      o = Σ_j e^{s q·k_j − l} v_j + e^{l_base − l} o_base
//
// An invocation owns a query and its output in registers; tiles of keys and values pass through workgroup memory,
// read by all lanes at the same index. One pass with an online softmax, which starts from the base. Where registers are too few for all
// channels, ATTENTION_SHARES neighbours own a query: of every ATTENTION_SHARES vec4 one each, so that they read neighbouring ones.
// Grid: x: blocks of ATTENTION_ROWS rows, z: heads.  Twin: reference/attention.rs

const ATTENTION_ROWS: u32 = ATTENTION_LANES / ATTENTION_SHARES;
const OWN_DIM4: u32 = DIM4 / ATTENTION_SHARES;
const OWN_VALUE4: u32 = VALUE4 / ATTENTION_SHARES;
const_assert OWN_DIM4 * ATTENTION_SHARES == DIM4 && OWN_VALUE4 * ATTENTION_SHARES == VALUE4;

struct Params {
    scale: f32,
    // 1 if there is a base; else the array bound in its place is not read.
    based: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> queries: array<vec4<f32>>;       // [Σ rows, DIM]
@group(0) @binding(2) var<storage, read> keys: array<vec4<KeyStore>>;     // [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> values: array<vec4<ValueStore>>; // [Σ pairs, VALUE_DIM]
@group(0) @binding(4) var<storage, read> base: array<vec4<f32>>;          // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(5) var<storage, read_write> state: array<vec4<f32>>;   // [Σ rows, VALUE_DIM + 4]

var<workgroup> key_tile: array<vec4<f32>, ATTENTION_TILE * DIM4>;
var<workgroup> value_tile: array<vec4<f32>, ATTENTION_TILE * VALUE4>;

var<private> query: array<vec4<f32>, OWN_DIM4>;

// An invocation's part of its query's dot with a key of the tile.
fn own_dot(j: u32, share: u32) -> f32 {
    var dot = vec4<f32>(0.0);
    for (var c = 0u; c < OWN_DIM4; c++) {
        dot += query[c] * key_tile[j * DIM4 + c * ATTENTION_SHARES + share];
    }
    return sum4(dot);
}

// The dot, in the same order for all that share the query.
fn whole_dot(j: u32, lane: u32, share: u32) -> f32 {
    if ATTENTION_SHARES == 1u {
        return own_dot(j, share);
    }
    var dot = 0.0;
    for (var s = 0u; s < ATTENTION_SHARES; s++) {
        dot += left_dot(j * ATTENTION_LANES + lane - share + s);
    }
    return dot;
}

@compute @workgroup_size(ATTENTION_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    if group.x * ATTENTION_ROWS >= head.rows {
        return;
    }
    let own = group.x * ATTENTION_ROWS + lane / ATTENTION_SHARES;
    let share = lane % ATTENTION_SHARES;
    // Lanes beyond the last row help to stage tiles and sit out the rest, so that whole subgroups of them cost nothing.
    let row = head.row + min(own, head.rows - 1u);

    for (var c = 0u; c < OWN_DIM4; c++) {
        query[c] = params.scale * queries[row * DIM4 + c * ATTENTION_SHARES + share];
    }
    var output: array<vec4<f32>, OWN_VALUE4>;
    var softmax = Softmax(NO_MASS, 0.0);
    if params.based == 1u {
        softmax = Softmax(base[row * STATE4 + VALUE4].x, 1.0);
        for (var c = 0u; c < OWN_VALUE4; c++) {
            output[c] = base[row * STATE4 + c * ATTENTION_SHARES + share];
        }
    } else {
        for (var c = 0u; c < OWN_VALUE4; c++) {
            output[c] = vec4<f32>(0.0);
        }
    }

    for (var start = 0u; start < head.pairs; start += ATTENTION_TILE) {
        let count = min(ATTENTION_TILE, head.pairs - start);
        let first = head.pair + start;
        workgroupBarrier();
        for (var i = lane; i < count * DIM4; i += ATTENTION_LANES) {
            key_tile[i] = vec4<f32>(keys[first * DIM4 + i]);
        }
        for (var i = lane; i < count * VALUE4; i += ATTENTION_LANES) {
            value_tile[i] = vec4<f32>(values[first * VALUE4 + i]);
        }
        workgroupBarrier();
        if ATTENTION_SHARES > 1u {
            for (var j = 0u; j < count; j++) {
                leave_dot(j * ATTENTION_LANES + lane, own_dot(j, share));
            }
            workgroupBarrier();
        }
        if own < head.rows {
            for (var j = 0u; j < count; j++) {
                let merged = merge(softmax, whole_dot(j, lane, share));
                softmax = merged.softmax;
                for (var c = 0u; c < OWN_VALUE4; c++) {
                    output[c] = output[c] * merged.keep + merged.weight * value_tile[j * VALUE4 + c * ATTENTION_SHARES + share];
                }
            }
        }
    }

    if own < head.rows {
        var mass = NO_MASS;
        var factor = 0.0;
        if softmax.sum > 0.0 || !is_finite(softmax.sum) {
            mass = softmax.most + logarithm(softmax.sum);
            factor = 1.0 / softmax.sum;
        }
        for (var c = 0u; c < OWN_VALUE4; c++) {
            state[row * STATE4 + c * ATTENTION_SHARES + share] = factor * output[c];
        }
        if share == 0u {
            state[row * STATE4 + VALUE4] = vec4<f32>(mass, 0.0, 0.0, 0.0);
        }
    }
}
