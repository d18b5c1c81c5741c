// The values from the factored normal equations:  W ← anchor + (L Lᵀ)⁻¹ R
//
// By spans of SOLVE_SPAN unknowns; the host calls down and below for each span of the largest head from the first on, then up and above
// from the last, then finish.
// down:   L z = R for a span, what it owes to the spans before it taken off already.
// below:  takes a span's z off the unknowns below it:  R ← R − L[below, span] z
// up:     Lᵀ x = z for a span, what it owes to the spans after it taken off already.
// above:  takes a span's x off the unknowns above it:  z ← z − L[span, above]ᵀ x
// finish: adds the anchor.
// A lane owns a value channel, that is a column of R; L passes through workgroup memory in squares of 32 × 32, read by
// all lanes at the same index, and 32 unknowns are held in registers. W serves as the place for the unknowns found.
// Grid: x: blocks of SOLVE_LANES channels, y: blocks of 32 unknowns in below, above and finish, z: heads.
// Twin: reference/solve.rs

const BLOCK: u32 = 32u;
const BLOCK4: u32 = BLOCK / 4u;
const_assert SOLVE_SPAN % BLOCK == 0u;

struct Params {
    // The span's first unknown.
    first: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> factor: array<f32>;       // L, [heads: pairs × pairs]
@group(0) @binding(2) var<storage, read> rhs: array<f32>;          // R, [Σ pairs, VALUE_DIM]
@group(0) @binding(3) var<storage, read> anchor: array<f32>;       // [Σ pairs, VALUE_DIM]
@group(0) @binding(4) var<storage, read_write> values: array<f32>; // W, [Σ pairs, VALUE_DIM]

var<workgroup> tile: array<vec4<f32>, BLOCK * BLOCK4>;
var<workgroup> inverse: array<f32, BLOCK>;

// What the unknowns of a block of 32 owe to others.
var<private> owed: array<vec4<f32>, BLOCK4>;

fn owe_nothing() {
    for (var part = 0u; part < BLOCK4; part++) {
        owed[part] = vec4<f32>(0.0);
    }
}

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
    workgroupBarrier();
    for (var i = lane; i < BLOCK * BLOCK4; i += SOLVE_LANES) {
        let c = column + i % BLOCK;
        let r = row + 4u * (i / BLOCK);
        tile[(i % BLOCK) * BLOCK4 + i / BLOCK] =
            vec4<f32>(lower(head, r, c), lower(head, r + 1u, c), lower(head, r + 2u, c), lower(head, r + 3u, c));
    }
    workgroupBarrier();
}

// tile[r] ← L[row + r, columns of the block], strictly below the diagonal: a row of 32 as 8 vec4.
fn stage_rows(head: Head, row: u32, column: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < BLOCK * BLOCK4; i += SOLVE_LANES) {
        let r = row + i / BLOCK4;
        let c = column + 4u * (i % BLOCK4);
        tile[i] = vec4<f32>(lower(head, r, c), lower(head, r, c + 1u), lower(head, r, c + 2u), lower(head, r, c + 3u));
    }
    workgroupBarrier();
}

// Beside one of the two above.
fn stage_diagonal(head: Head, row: u32, lane: u32) {
    for (var i = lane; i < BLOCK; i += SOLVE_LANES) {
        let r = min(row + i, head.pairs - 1u);
        inverse[i] = 1.0 / factor[head.square + r * head.pairs + r];
    }
    workgroupBarrier();
}

// owed += the tile times the known unknowns of the block at `block`. Four at a time: a turn of the loop costs a software driver as much
// as the products of one. Behind the head's last the tile holds zeros.
fn owe(head: Head, block: u32, channel: u32) {
    let first = head.pair * VALUE_DIM + channel;
    let count = min(BLOCK, head.pairs - block);
    for (var i = 0u; i < count; i += 4u) {
        let place = min(vec4<u32>(0u, 1u, 2u, 3u) + block + i, vec4<u32>(head.pairs - 1u)) * VALUE_DIM + first;
        let a = values[place.x];
        let b = values[place.y];
        let c = values[place.z];
        let d = values[place.w];
        for (var part = 0u; part < BLOCK4; part++) {
            let near = a * tile[i * BLOCK4 + part] + b * tile[(i + 1u) * BLOCK4 + part];
            owed[part] += near + (c * tile[(i + 2u) * BLOCK4 + part] + d * tile[(i + 3u) * BLOCK4 + part]);
        }
    }
}

// Unknown number `i` of the block whose tile and diagonal are staged, from what is left of its right-hand side.
fn find(i: u32, rest: f32) -> f32 {
    var sum = vec4<f32>(0.0);
    for (var part = 0u; part < BLOCK4; part++) {
        sum += owed[part] * unit(i, part);
    }
    let known = (rest - sum4(sum)) * inverse[i];
    for (var part = 0u; part < BLOCK4; part++) {
        owed[part] += known * tile[i * BLOCK4 + part];
    }
    return known;
}

// What is left of the right-hand side on the way down: the first span finds it in R.
fn rest(place: u32) -> f32 {
    if params.first == 0u {
        return rhs[place];
    }
    return values[place];
}

@compute @workgroup_size(SOLVE_LANES)
fn down(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let channel = group.x * SOLVE_LANES + lane;
    let end = min(params.first + SOLVE_SPAN, head.pairs);
    for (var row = params.first; row < end; row += BLOCK) {
        owe_nothing();
        for (var column = params.first; column < row; column += BLOCK) {
            stage_columns(head, row, column, lane);
            if channel < VALUE_DIM {
                owe(head, column, channel);
            }
        }
        stage_columns(head, row, row, lane);
        stage_diagonal(head, row, lane);
        // Lanes beyond the last channel help to stage L, and touch nothing else.
        if channel < VALUE_DIM {
            for (var i = 0u; i < min(BLOCK, end - row); i++) {
                let place = (head.pair + row + i) * VALUE_DIM + channel;
                values[place] = find(i, rest(place));
            }
        }
    }
}

@compute @workgroup_size(SOLVE_LANES)
fn below(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let channel = group.x * SOLVE_LANES + lane;
    let row = params.first + SOLVE_SPAN + group.y * BLOCK;
    owe_nothing();
    if row >= head.pairs {
        return;
    }
    for (var column = params.first; column < params.first + SOLVE_SPAN; column += BLOCK) {
        stage_columns(head, row, column, lane);
        if channel < VALUE_DIM {
            owe(head, column, channel);
        }
    }
    if channel < VALUE_DIM {
        for (var i = 0u; i < min(BLOCK, head.pairs - row); i++) {
            let place = (head.pair + row + i) * VALUE_DIM + channel;
            values[place] = rest(place) - owed[i / 4u][i % 4u];
        }
    }
}

@compute @workgroup_size(SOLVE_LANES)
fn up(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let channel = group.x * SOLVE_LANES + lane;
    let end = min(params.first + SOLVE_SPAN, head.pairs);
    let blocks = (max(end, params.first) - params.first + BLOCK - 1u) / BLOCK;
    for (var turn = 0u; turn < blocks; turn++) {
        let row = params.first + (blocks - 1u - turn) * BLOCK;
        owe_nothing();
        for (var later = row + BLOCK; later < end; later += BLOCK) {
            stage_rows(head, later, row, lane);
            if channel < VALUE_DIM {
                owe(head, later, channel);
            }
        }
        stage_rows(head, row, row, lane);
        stage_diagonal(head, row, lane);
        if channel < VALUE_DIM {
            let count = min(BLOCK, end - row);
            for (var i = 0u; i < count; i++) {
                let place = (head.pair + row + count - 1u - i) * VALUE_DIM + channel;
                values[place] = find(count - 1u - i, values[place]);
            }
        }
    }
}

@compute @workgroup_size(SOLVE_LANES)
fn above(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let channel = group.x * SOLVE_LANES + lane;
    let row = group.y * BLOCK;
    let end = min(params.first + SOLVE_SPAN, head.pairs);
    owe_nothing();
    // A head that ends before the span has nothing in it.
    for (var later = params.first; later < end; later += BLOCK) {
        stage_rows(head, later, row, lane);
        if channel < VALUE_DIM {
            owe(head, later, channel);
        }
    }
    if channel < VALUE_DIM && params.first < end {
        for (var i = 0u; i < BLOCK; i++) {
            let place = (head.pair + row + i) * VALUE_DIM + channel;
            values[place] -= owed[i / 4u][i % 4u];
        }
    }
}

@compute @workgroup_size(SOLVE_LANES)
fn finish(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let channel = group.x * SOLVE_LANES + lane;
    let row = group.y * BLOCK;
    if channel < VALUE_DIM && row < head.pairs {
        for (var i = 0u; i < min(BLOCK, head.pairs - row); i++) {
            let place = (head.pair + row + i) * VALUE_DIM + channel;
            values[place] += anchor[place];
        }
    }
}
