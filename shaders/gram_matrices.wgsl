// The Gram matrix of the weights of a block of rows, as gram.wgsl does, by the cooperative matrices of matrices.wgsl:  G += AᵀA
//
// Lower triangle only.
// Grid: x: tiles of columns, y: tiles of rows of G, z: heads.  Twin: reference/gram.rs

// Weights are at most 1, up to rounding. Scaled so they are finite up to 3.99, and split without loss to speak of from 2⁻¹⁶ on.
const WEIGHT_SCALE: f32 = 16384.0;

struct Params {
    // The rows of A are the rows [start, end) of each head; the first block overwrites G.
    start: u32,
    end: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;    // A, [heads: rows of the block × pairs]
@group(0) @binding(2) var<storage, read_write> gram: array<f32>; // G, [heads: pairs × pairs]

@compute @workgroup_size(MATRIX_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) block: u32,
) {
    let head = heads[group.z];
    let rows = rows_in_block(head, params.start, params.end);
    let first_row = group.y * TILE;
    let first_column = group.x * TILE;
    if first_row >= head.pairs || first_column > first_row || rows == 0u {
        return;
    }
    // The block's four matrices: upper left, upper right, lower left, lower right.
    var a = Sums();
    var b = Sums();
    var c = Sums();
    var d = Sums();
    for (var start = 0u; start < rows; start += SLICE) {
        workgroupBarrier();
        for (var i = lane; i < SLICE * TILE4; i += MATRIX_LANES) {
            let term = i / TILE4;
            let pair = 4u * (i % TILE4);
            split_left(term, pair, WEIGHT_SCALE * weights4(head, rows, start + term, first_row + pair));
            split_right(term, pair, WEIGHT_SCALE * weights4(head, rows, start + term, first_column + pair));
        }
        workgroupBarrier();
        // Subgroups beyond the fourth, where the driver makes them smaller than it may, only help with the slices.
        if block < BLOCKS {
            for (var term = 0u; term < min(SLICE, rows - start); term += SIDE) {
                let row = block_row(block);
                let column = block_column(block);
                let upper = high_left(term, row);
                let upper_rest = low_left(term, row);
                let lower = high_left(term, row + SIDE);
                let lower_rest = low_left(term, row + SIDE);
                let near = high_right(term, column);
                let near_rest = low_right(term, column);
                let far = high_right(term, column + SIDE);
                let far_rest = low_right(term, column + SIDE);
                a = more(a, upper, upper_rest, near, near_rest);
                b = more(b, upper, upper_rest, far, far_rest);
                c = more(c, lower, lower_rest, near, near_rest);
                d = more(d, lower, lower_rest, far, far_rest);
            }
        }
    }
    finish(a, block);
    add(head, first_row, first_column, lane);
    finish(b, block);
    add(head, first_row, first_column + SIDE, lane);
    finish(c, block);
    add(head, first_row + SIDE, first_column, lane);
    finish(d, block);
    add(head, first_row + SIDE, first_column + SIDE, lane);
}

// What is finished, to G; the matrix of the first block begins at `row` and `column`.
fn add(head: Head, row: u32, column: u32, lane: u32) {
    for (var i = lane; i < BLOCKS * AREA; i += MATRIX_LANES) {
        let block = i / AREA;
        let own_row = row + block_row(block) + i % AREA / SIDE;
        let own_column = column + block_column(block) + i % SIDE;
        if own_row < head.pairs && own_column <= own_row {
            let place = head.square + own_row * head.pairs + own_column;
            let sum = finished[i] / (WEIGHT_SCALE * WEIGHT_SCALE);
            if params.start == 0u {
                gram[place] = sum;
            } else {
                gram[place] += sum;
            }
        }
    }
}
