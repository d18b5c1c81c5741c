// The right-hand side of the value solve over a block of rows, added to what the blocks before it gave:  R −= Aᵀ e
//
// An invocation owns a key and RHS_CHANNELS of its value channels; tiles of error rows pass through workgroup memory.
// Grid: x: blocks of KEY_LANES pairs, y: groups of RHS_CHANNELS channels, z: heads.  Twin: reference/rhs.rs

const CHANNELS4: u32 = RHS_CHANNELS / 4u;
const RHS_TILE: u32 = 32u;
const_assert RHS_CHANNELS % 4u == 0u && VALUE_DIM % RHS_CHANNELS == 0u;
const_assert RHS_TILE * CHANNELS4 * 16u <= 16384u;

struct Params {
    // The rows of A are the rows [start, end) of each head; the first block overwrites R.
    start: u32,
    end: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;         // A, [heads: rows of the block × pairs]
@group(0) @binding(2) var<storage, read> error: array<vec4<f32>>;     // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(3) var<storage, read_write> rhs: array<vec4<f32>>; // R, [Σ pairs, VALUE_DIM]

var<workgroup> error_tile: array<vec4<f32>, RHS_TILE * CHANNELS4>;

@compute @workgroup_size(KEY_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let rows = rows_in_block(head, params.start, params.end);
    if group.x * KEY_LANES >= head.pairs || rows == 0u {
        return;
    }
    // Lanes beyond the last pair help to stage tiles and sit out the rest, so that whole subgroups of them cost nothing.
    let own = group.x * KEY_LANES + lane;
    let read = head.weights + min(own, head.pairs - 1u);
    let channel = group.y * CHANNELS4;
    let first = head.row + params.start;

    var sum: array<vec4<f32>, CHANNELS4>;
    for (var c = 0u; c < CHANNELS4; c++) {
        sum[c] = vec4<f32>(0.0);
    }
    for (var start = 0u; start < rows; start += RHS_TILE) {
        let count = min(RHS_TILE, rows - start);
        workgroupBarrier();
        for (var i = lane; i < count * CHANNELS4; i += KEY_LANES) {
            error_tile[i] = error[(first + start + i / CHANNELS4) * STATE4 + channel + i % CHANNELS4];
        }
        workgroupBarrier();
        if own < head.pairs {
            for (var q = 0u; q < count; q++) {
                let weight = weights[read + (start + q) * head.pairs];
                for (var c = 0u; c < CHANNELS4; c++) {
                    sum[c] += weight * error_tile[q * CHANNELS4 + c];
                }
            }
        }
    }
    if own < head.pairs {
        let place = (head.pair + own) * VALUE4 + channel;
        for (var c = 0u; c < CHANNELS4; c++) {
            if params.start == 0u {
                rhs[place + c] = -sum[c];
            } else {
                rhs[place + c] -= sum[c];
            }
        }
    }
}
