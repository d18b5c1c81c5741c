// The summed weight of each key, as scores.wgsl does, by the tiles of tiles.wgsl:  score_j = Σ_q e^{s q·k_j − l_q}
//
// The rows of a head are cut into blocks (row_block in prelude.wgsl), a workgroup each, whose sums sum_blocks.wgsl adds in order. An
// invocation sums its four rows of every tile; the workgroup adds those sums in order at the end.
// Grid: x: tiles of pairs, y: row blocks, z: heads from params.first on.  Twin: reference/scores.rs

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

@compute @workgroup_size(TILE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[params.first + group.z];
    let first_pair = group.x * TILE;
    if first_pair >= head.pairs || group.y * row_block(head.rows) >= head.rows {
        return;
    }
    let block_end = min((group.y + 1u) * row_block(head.rows), head.rows);
    var score = vec4<f32>(0.0);
    for (var first_row = group.y * row_block(head.rows); first_row < block_end; first_row += TILE) {
        let sums = logits(head, first_row, first_pair, lane);
        let row = first_row + tile_row(lane);
        score += row_weights(head, block_end, row, sums.a) + row_weights(head, block_end, row + 1u, sums.b);
        score += row_weights(head, block_end, row + 2u, sums.c) + row_weights(head, block_end, row + 3u, sums.d);
    }
    // Of all 16 invocations that own the same columns, in order.
    workgroupBarrier();
    left[lane] = score;
    workgroupBarrier();
    let own = first_pair + 4u * lane;
    if lane < TILE4 && own < head.pairs {
        var total = left[lane];
        for (var i = 1u; i < TILE4; i++) {
            total += left[i * TILE4 + lane];
        }
        let place = group.y * params.pairs + head.place - heads[params.first].place + own;
        for (var i = 0u; i < 4u; i++) {
            if own + i < head.pairs {
                partial[place + i] = total[i];
            }
        }
    }
}

fn row_weights(head: Head, end: u32, row: u32, logits: vec4<f32>) -> vec4<f32> {
    if row >= end {
        return vec4<f32>(0.0);
    }
    let mass = state[(head.row + row) * STATE4 + VALUE4].x;
    return vec4<f32>(
        exponential(logits.x - mass),
        exponential(logits.y - mass),
        exponential(logits.z - mass),
        exponential(logits.w - mass),
    );
}
