// The Gram matrix of the weights of a block of rows, added to what the blocks before it gave:  G += AᵀA
//
// Lower triangle only, by tiles of GRAM_ROWS × 2 GRAM_LANES: an invocation owns two columns of a tile in registers and
// reads them from A side by side with its neighbours; the tile's rows pass through workgroup memory.
// Grid: x: blocks of 2 GRAM_LANES columns, y: blocks of GRAM_ROWS rows of G, z: heads.  Twin: reference/gram.rs

const GRAM_ROWS: u32 = 16u;
const ROWS4: u32 = GRAM_ROWS / 4u;
// Rows of A staged at a time.
const GRAM_TILE: u32 = 64u;
const_assert GRAM_TILE * GRAM_ROWS * 4u <= 16384u;

struct Params {
    // The rows of A are the rows [start, end) of each head; the first block overwrites G.
    start: u32,
    end: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;    // A, [heads: rows of the block × pairs]
@group(0) @binding(2) var<storage, read_write> gram: array<f32>; // G, [heads: pairs × pairs]

var<workgroup> row_tile: array<vec4<f32>, GRAM_TILE * ROWS4>;

fn weight(head: Head, rows: u32, row: u32, pair: u32) -> f32 {
    if row < rows && pair < head.pairs {
        return weights[head.weights + row * head.pairs + pair];
    }
    return 0.0;
}

fn gather(place: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(weights[place.x], weights[place.y], weights[place.z], weights[place.w]);
}

@compute @workgroup_size(GRAM_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let rows = rows_in_block(head, params.start, params.end);
    let first_row = group.y * GRAM_ROWS;
    let first_column = group.x * 2u * GRAM_LANES;
    if first_row >= head.pairs || first_column >= first_row + GRAM_ROWS || rows == 0u {
        return;
    }
    let near = first_column + lane;
    let far = near + GRAM_LANES;
    // Columns beyond the matrix repeat its last one, and are not written.
    let read_near = head.weights + min(near, head.pairs - 1u);
    let read_far = head.weights + min(far, head.pairs - 1u);

    var sum_near: array<vec4<f32>, ROWS4>;
    var sum_far: array<vec4<f32>, ROWS4>;
    for (var i = 0u; i < ROWS4; i++) {
        sum_near[i] = vec4<f32>(0.0);
        sum_far[i] = vec4<f32>(0.0);
    }
    for (var start = 0u; start < rows; start += GRAM_TILE) {
        let count = min(GRAM_TILE, rows - start);
        workgroupBarrier();
        for (var i = lane; i < (count + 3u) / 4u * 4u * ROWS4; i += GRAM_LANES) {
            let row = start + i / ROWS4;
            let pair = first_row + 4u * (i % ROWS4);
            row_tile[i] = vec4<f32>(
                weight(head, rows, row, pair),
                weight(head, rows, row, pair + 1u),
                weight(head, rows, row, pair + 2u),
                weight(head, rows, row, pair + 3u),
            );
        }
        workgroupBarrier();
        // Four rows at a time: a turn of the loop costs a software driver as much as the products of one. The tile holds
        // zeros behind the last.
        for (var q = 0u; q < count; q += 4u) {
            let last = start + count - 1u;
            let row = vec4<u32>(0u, 1u, 2u, 3u) + start + q;
            let place = min(row, vec4<u32>(last)) * head.pairs;
            let near_four = gather(place + read_near);
            let far_four = gather(place + read_far);
            for (var i = 0u; i < ROWS4; i++) {
                let a = row_tile[q * ROWS4 + i];
                let b = row_tile[(q + 1u) * ROWS4 + i];
                let c = row_tile[(q + 2u) * ROWS4 + i];
                let d = row_tile[(q + 3u) * ROWS4 + i];
                sum_near[i] += near_four.x * a + near_four.y * b + near_four.z * c + near_four.w * d;
                sum_far[i] += far_four.x * a + far_four.y * b + far_four.z * c + far_four.w * d;
            }
        }
    }
    for (var i = 0u; i < ROWS4; i++) {
        for (var c = 0u; c < 4u; c++) {
            let row = first_row + 4u * i + c;
            add(head, row, near, sum_near[i][c]);
            add(head, row, far, sum_far[i][c]);
        }
    }
}

fn add(head: Head, row: u32, column: u32, sum: f32) {
    if row >= head.pairs || column > row {
        return;
    }
    let place = head.square + row * head.pairs + column;
    if params.start == 0u {
        gram[place] = sum;
    } else {
        gram[place] += sum;
    }
}
