// The values from the factored normal equations:  W ← anchor + (L Lᵀ)⁻¹ R
//
// A lane owns a value channel, that is a column of R; L passes through workgroup memory in squares of 32 × 32, read by
// all lanes at the same index, and 32 unknowns are held in registers. W serves as the place for the unknowns found.
// Grid: x: blocks of SOLVE_LANES channels, z: heads.  Twin: reference/solve.rs

const BLOCK: u32 = 32u;
const BLOCK4: u32 = BLOCK / 4u;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> factor: array<f32>;       // L, [heads: pairs × pairs]
@group(0) @binding(2) var<storage, read> rhs: array<f32>;          // R, [Σ pairs, VALUE_DIM]
@group(0) @binding(3) var<storage, read> anchor: array<f32>;       // [Σ pairs, VALUE_DIM]
@group(0) @binding(4) var<storage, read_write> values: array<f32>; // W, [Σ pairs, VALUE_DIM]

var<workgroup> tile: array<vec4<f32>, BLOCK * BLOCK4>;
var<workgroup> inverse: array<f32, BLOCK>;

fn lower(head: Head, row: u32, column: u32) -> f32 {
    if row < head.pairs && column < row {
        return factor[head.square + row * head.pairs + column];
    }
    return 0.0;
}

// 1 at element `row` of a block of 32, as its vec4 number `part` sees it; 0 elsewhere.
fn unit(row: u32, part: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), vec4<f32>(1.0), vec4<u32>(0u, 1u, 2u, 3u) + 4u * part == vec4<u32>(row));
}

// tile[c] ← L[rows of the block, column + c], strictly below the diagonal: a column of 32 as 8 vec4.
fn stage_columns(head: Head, row: u32, column: u32, lane: u32) {
    for (var i = lane; i < BLOCK * BLOCK4; i += SOLVE_LANES) {
        let c = column + i % BLOCK;
        let r = row + 4u * (i / BLOCK);
        tile[(i % BLOCK) * BLOCK4 + i / BLOCK] =
            vec4<f32>(lower(head, r, c), lower(head, r + 1u, c), lower(head, r + 2u, c), lower(head, r + 3u, c));
    }
}

// tile[r] ← L[row + r, columns of the block], strictly below the diagonal: a row of 32 as 8 vec4.
fn stage_rows(head: Head, row: u32, column: u32, lane: u32) {
    for (var i = lane; i < BLOCK * BLOCK4; i += SOLVE_LANES) {
        let r = row + i / BLOCK4;
        let c = column + 4u * (i % BLOCK4);
        tile[i] = vec4<f32>(lower(head, r, c), lower(head, r, c + 1u), lower(head, r, c + 2u), lower(head, r, c + 3u));
    }
}

fn stage_diagonal(head: Head, row: u32, lane: u32) {
    for (var i = lane; i < BLOCK; i += SOLVE_LANES) {
        let r = min(row + i, head.pairs - 1u);
        inverse[i] = 1.0 / factor[head.square + r * head.pairs + r];
    }
}

@compute @workgroup_size(SOLVE_LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let blocks = (head.pairs + BLOCK - 1u) / BLOCK;
    let channel = group.x * SOLVE_LANES + lane;
    // Lanes beyond the last channel help to stage L, and touch nothing else.
    let mine = channel < VALUE_DIM;
    let first = head.pair * VALUE_DIM + channel;
    var open: array<vec4<f32>, BLOCK4>;

    // L z = R, downwards.
    for (var block = 0u; block < blocks; block++) {
        let row = block * BLOCK;
        let count = min(BLOCK, head.pairs - row);
        for (var part = 0u; part < BLOCK4; part++) {
            open[part] = vec4<f32>(0.0);
        }
        for (var earlier = 0u; earlier < block; earlier++) {
            workgroupBarrier();
            stage_columns(head, row, earlier * BLOCK, lane);
            workgroupBarrier();
            if mine {
                for (var c = 0u; c < min(BLOCK, head.pairs); c++) {
                    let known = values[first + (earlier * BLOCK + c) * VALUE_DIM];
                    for (var part = 0u; part < BLOCK4; part++) {
                        open[part] -= known * tile[c * BLOCK4 + part];
                    }
                }
            }
        }
        workgroupBarrier();
        stage_columns(head, row, row, lane);
        stage_diagonal(head, row, lane);
        workgroupBarrier();
        if mine {
            for (var c = 0u; c < count; c++) {
                var sum = vec4<f32>(0.0);
                for (var part = 0u; part < BLOCK4; part++) {
                    sum += open[part] * unit(c, part);
                }
                let known = (rhs[first + (row + c) * VALUE_DIM] + sum4(sum)) * inverse[c];
                values[first + (row + c) * VALUE_DIM] = known;
                for (var part = 0u; part < BLOCK4; part++) {
                    open[part] -= known * tile[c * BLOCK4 + part];
                }
            }
        }
    }

    // Lᵀ x = z, upwards.
    for (var turn = 0u; turn < blocks; turn++) {
        let block = blocks - 1u - turn;
        let row = block * BLOCK;
        let count = min(BLOCK, head.pairs - row);
        for (var part = 0u; part < BLOCK4; part++) {
            open[part] = vec4<f32>(0.0);
        }
        for (var later = block + 1u; later < blocks; later++) {
            workgroupBarrier();
            stage_rows(head, later * BLOCK, row, lane);
            workgroupBarrier();
            if mine {
                for (var r = 0u; r < min(BLOCK, head.pairs - later * BLOCK); r++) {
                    let known = values[first + (later * BLOCK + r) * VALUE_DIM];
                    for (var part = 0u; part < BLOCK4; part++) {
                        open[part] -= known * tile[r * BLOCK4 + part];
                    }
                }
            }
        }
        workgroupBarrier();
        stage_rows(head, row, row, lane);
        stage_diagonal(head, row, lane);
        workgroupBarrier();
        if mine {
            for (var up = 0u; up < count; up++) {
                let r = count - 1u - up;
                var sum = vec4<f32>(0.0);
                for (var part = 0u; part < BLOCK4; part++) {
                    sum += open[part] * unit(r, part);
                }
                let place = first + (row + r) * VALUE_DIM;
                let known = (values[place] + sum4(sum)) * inverse[r];
                values[place] = known;
                for (var part = 0u; part < BLOCK4; part++) {
                    open[part] -= known * tile[r * BLOCK4 + part];
                }
            }
        }
    }
    if mine {
        for (var r = 0u; r < head.pairs; r++) {
            values[first + r * VALUE_DIM] += anchor[first + r * VALUE_DIM];
        }
    }
}
