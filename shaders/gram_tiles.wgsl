// The Gram matrix of the weights of a block of rows, as gram.wgsl does, by the tiles of tiles.wgsl:  G += AᵀA
//
// Lower triangle only.
// Grid: x: tiles of columns, y: tiles of rows of G, z: heads.  Twin: reference/gram.rs

struct Params {
    // The rows of A are the rows [start, end) of each head; the first block overwrites G.
    start: u32,
    end: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;    // A, [heads: rows of the block × pairs]
@group(0) @binding(2) var<storage, read_write> gram: array<f32>; // G, [heads: pairs × pairs]

@compute @workgroup_size(TILE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let rows = rows_in_block(head, params.start, params.end);
    let first_row = group.y * TILE;
    let first_column = group.x * TILE;
    if first_row >= head.pairs || first_column > first_row || rows == 0u {
        return;
    }
    var sums = no_sums();
    for (var start = 0u; start < rows; start += TILE_DEPTH) {
        let row = start + lane / TILE4;
        workgroupBarrier();
        left[lane] = weights4(head, rows, row, first_row + tile_column(lane));
        right[lane] = weights4(head, rows, row, first_column + tile_column(lane));
        workgroupBarrier();
        sums = add_slices(sums, lane);
    }
    let row = first_row + tile_row(lane);
    let column = first_column + tile_column(lane);
    add(head, row, column, sums.a);
    add(head, row + 1u, column, sums.b);
    add(head, row + 2u, column, sums.c);
    add(head, row + 3u, column, sums.d);
}

fn add(head: Head, row: u32, column: u32, sum: vec4<f32>) {
    if row >= head.pairs {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if column + i <= row {
            let place = head.square + row * head.pairs + column + i;
            if params.start == 0u {
                gram[place] = sum[i];
            } else {
                gram[place] += sum[i];
            }
        }
    }
}
