// The right-hand side of the value solve over a block of rows, as rhs.wgsl does, by the tiles of tiles.wgsl:  R −= Aᵀ e
//
// Grid: x: tiles of pairs, y: tiles of value channels, z: heads.  Twin: reference/rhs.rs

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

fn error4(head: Head, rows: u32, row: u32, channel4: u32) -> vec4<f32> {
    if row < rows && channel4 < VALUE4 {
        return error[(head.row + params.start + row) * STATE4 + channel4];
    }
    return vec4<f32>(0.0);
}

@compute @workgroup_size(TILE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let rows = rows_in_block(head, params.start, params.end);
    let first_pair = group.x * TILE;
    if first_pair >= head.pairs || rows == 0u {
        return;
    }
    let channel4 = group.y * TILE4 + lane % TILE4;
    var sums = no_sums();
    for (var start = 0u; start < rows; start += TILE_DEPTH) {
        let row = start + lane / TILE4;
        workgroupBarrier();
        left[lane] = weights4(head, rows, row, first_pair + tile_column(lane));
        right[lane] = error4(head, rows, row, channel4);
        workgroupBarrier();
        sums = add_slices(sums, lane);
    }
    if channel4 < VALUE4 {
        let pair = first_pair + tile_row(lane);
        subtract(head, pair, channel4, sums.a);
        subtract(head, pair + 1u, channel4, sums.b);
        subtract(head, pair + 2u, channel4, sums.c);
        subtract(head, pair + 3u, channel4, sums.d);
    }
}

fn subtract(head: Head, pair: u32, channel4: u32, sum: vec4<f32>) {
    if pair >= head.pairs {
        return;
    }
    let place = (head.pair + pair) * VALUE4 + channel4;
    if params.start == 0u {
        rhs[place] = -sum;
    } else {
        rhs[place] -= sum;
    }
}
