// The student's weights on the free pairs, as weights.wgsl does, by the tiles of tiles.wgsl:  A_qj = e^{s q·c_j − l̂_q}
//
// Grid: x: tiles of pairs, y: tiles of rows, z: heads.  Twin: reference/weights.rs

struct Params {
    scale: f32,
    // The rows [start, end) of each head.
    start: u32,
    end: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> queries: array<vec4<f32>>;  // [Σ rows, DIM]
@group(0) @binding(2) var<storage, read> keys: array<vec4<f32>>;     // [Σ pairs, DIM]
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;    // [Σ rows, VALUE_DIM + 4]
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;  // [heads: rows of the block × pairs]

@compute @workgroup_size(TILE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let rows = rows_in_block(head, params.start, params.end);
    let first_row = group.y * TILE;
    let first_pair = group.x * TILE;
    if first_pair >= head.pairs || first_row >= rows {
        return;
    }
    let sums = logits(head, params.start + first_row, first_pair, lane);
    let row = first_row + tile_row(lane);
    let pair = first_pair + tile_column(lane);
    write(head, rows, row, pair, sums.a);
    write(head, rows, row + 1u, pair, sums.b);
    write(head, rows, row + 2u, pair, sums.c);
    write(head, rows, row + 3u, pair, sums.d);
}

fn write(head: Head, rows: u32, row: u32, pair: u32, logits: vec4<f32>) {
    if row >= rows {
        return;
    }
    let mass = state[(head.row + params.start + row) * STATE4 + VALUE4].x;
    let place = head.weights + row * head.pairs + pair;
    for (var i = 0u; i < 4u; i++) {
        if pair + i < head.pairs {
            weights[place + i] = exponential(logits[i] - mass);
        }
    }
}
