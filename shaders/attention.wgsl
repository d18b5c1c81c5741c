// Attention of each row over its head's pairs, merged with what is known of other pairs ("base"):
//   l = log(Σ_j e^{s q·k_j} + e^{l_base})      o = Σ_j e^{s q·k_j − l} v_j + e^{l_base − l} o_base
//
// An invocation owns a query and its output in registers; tiles of keys and values pass through workgroup memory,
// read by all lanes at the same index. One pass with an online softmax, which starts from the base.
// Grid: x: blocks of ATTENTION_LANES rows, z: heads.  Twin: reference/attention.rs

const_assert ATTENTION_TILE * (DIM4 + VALUE4) * 16u <= 16384u;

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

@compute @workgroup_size(ATTENTION_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    if group.x * ATTENTION_LANES >= head.rows {
        return;
    }
    let own = group.x * ATTENTION_LANES + lane;
    // Lanes beyond the last row help to stage tiles and sit out the rest, so that whole subgroups of them cost nothing.
    let row = head.row + min(own, head.rows - 1u);

    var query: array<vec4<f32>, DIM4>;
    for (var c = 0u; c < DIM4; c++) {
        query[c] = params.scale * queries[row * DIM4 + c];
    }
    var output: array<vec4<f32>, VALUE4>;
    var softmax = Softmax(NO_MASS, 0.0);
    if params.based == 1u {
        softmax = Softmax(base[row * STATE4 + VALUE4].x, 1.0);
        for (var c = 0u; c < VALUE4; c++) {
            output[c] = base[row * STATE4 + c];
        }
    } else {
        for (var c = 0u; c < VALUE4; c++) {
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
        if own < head.rows {
            for (var j = 0u; j < count; j++) {
                var dot = vec4<f32>(0.0);
                for (var c = 0u; c < DIM4; c++) {
                    dot += query[c] * key_tile[j * DIM4 + c];
                }
                let merged = merge(softmax, sum4(dot));
                softmax = merged.softmax;
                for (var c = 0u; c < VALUE4; c++) {
                    output[c] = output[c] * merged.keep + merged.weight * value_tile[j * VALUE4 + c];
                }
            }
        }
    }

    if own < head.rows {
        var mass = NO_MASS;
        var share = 0.0;
        if softmax.sum > 0.0 || !is_finite(softmax.sum) {
            mass = softmax.most + logarithm(softmax.sum);
            share = 1.0 / softmax.sum;
        }
        for (var c = 0u; c < VALUE4; c++) {
            state[row * STATE4 + c] = share * output[c];
        }
        state[row * STATE4 + VALUE4] = vec4<f32>(mass, 0.0, 0.0, 0.0);
    }
}
