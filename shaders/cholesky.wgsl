// The Cholesky factor of each head's Gram matrix with its ridge:  L Lᵀ = G + (ridge₀ + ridge₁ · mean diag G) I
//
// Right-looking by blocks of 32 columns; the host calls diagonal, panel and trailing for each block of the largest head.
// mean:     mean diag G, and FACTORED = 1.        A workgroup a head.  Grid: z: heads.
// fill:     L starts as G's lower triangle, with the ridge.  Grid: x: workgroups that stride over rows, z: heads.
// diagonal: factors a block's 32 × 32 square; a lane owns a row.  Grid: z: heads.
// panel:    the rows below it, P ← P L⁻ᵀ; a lane owns a row.  Grid: x: blocks of PANEL_LANES rows, z: heads.
// trailing: the rest, T ← T − P Pᵀ, lower triangle; a lane owns two columns of a tile, for a read of the tile's rows of P, which pass
//           through workgroup memory, costs as much as a product.  Grid: x: blocks of PANEL_LANES columns, y: blocks of 32 rows, z: heads.
// A pivot that is not positive and finite sets FACTORED = 0 and is taken as 1: the head goes on, and what it leaves in L
// has no meaning.
// Twin: reference/cholesky.rs

const BLOCK: u32 = 32u;
const BLOCK4: u32 = BLOCK / 4u;
const PANEL_LANES: u32 = 64u;
const TRAILING_LANES: u32 = PANEL_LANES / 2u;

struct Params {
    // The first column of the block.
    first: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> gram: array<f32>;          // G, [heads: pairs × pairs]
@group(0) @binding(2) var<storage, read> ridge: array<vec2<f32>>;   // [heads]
@group(0) @binding(3) var<storage, read_write> factor: array<f32>;  // L, [heads: pairs × pairs]
@group(0) @binding(4) var<storage, read_write> scalars: array<f32>; // [heads, SCALARS]

// Rows of L or of the panel.
var<workgroup> row_tile: array<vec4<f32>, BLOCK * BLOCK4>;
var<workgroup> inverse: array<f32, BLOCK>;
var<workgroup> pivot: f32;

// Four neighbours of a row of L.
fn factor4(place: u32) -> vec4<f32> {
    return vec4<f32>(factor[place], factor[place + 1u], factor[place + 2u], factor[place + 3u]);
}

// 1 at element `column` of a row of 32, as its vec4 number `part` sees it; 0 elsewhere.
fn unit(column: u32, part: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), vec4<f32>(1.0), vec4<u32>(0u, 1u, 2u, 3u) + 4u * part == vec4<u32>(column));
}

@compute @workgroup_size(REDUCE_LANES)
fn mean(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = heads[group.z];
    var sum = 0.0;
    for (var i = lane.index; i < head.pairs; i += REDUCE_LANES) {
        sum += gram[head.square + i * head.pairs + i];
    }
    let total = workgroup_sum(lane, vec4<f32>(sum, 0.0, 0.0, 0.0));
    if lane.index == 0u {
        scalars[head.index * SCALARS + FACTORED] = 1.0;
        scalars[head.index * SCALARS + DIAGONAL] = total.x / f32(head.pairs);
    }
}

@compute @workgroup_size(ELEMENT_LANES)
fn fill(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let head = heads[group.z];
    let strength = ridge[head.index].x + ridge[head.index].y * scalars[head.index * SCALARS + DIAGONAL];
    for (var row = group.x; row < head.pairs; row += groups.x) {
        let place = head.square + row * head.pairs;
        for (var column = lane; column <= row; column += ELEMENT_LANES) {
            factor[place + column] = gram[place + column] + select(0.0, strength, row == column);
        }
    }
}

@compute @workgroup_size(BLOCK)
fn diagonal(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    if params.first >= head.pairs {
        return;
    }
    let size = min(BLOCK, head.pairs - params.first);
    let place = head.square + (params.first + min(lane, size - 1u)) * head.pairs + params.first;
    var row: array<vec4<f32>, BLOCK4>;
    for (var part = 0u; part < BLOCK4; part++) {
        row[part] = vec4<f32>(0.0);
        row_tile[lane * BLOCK4 + part] = vec4<f32>(0.0);
    }
    var sound = true;
    for (var column = 0u; column < size; column++) {
        workgroupBarrier();
        var dot = vec4<f32>(0.0);
        for (var part = 0u; part < BLOCK4; part++) {
            dot += row[part] * row_tile[column * BLOCK4 + part];
        }
        var rest = 0.0;
        if lane >= column && lane < size {
            rest = factor[place + column] - sum4(dot);
        }
        if lane == column {
            pivot = rest;
        }
        workgroupBarrier();
        let good = pivot > 0.0 && is_finite(pivot);
        sound = sound && good;
        let root = sqrt(select(1.0, pivot, good));
        let entry = select(rest / root, root, lane == column);
        for (var part = 0u; part < BLOCK4; part++) {
            row[part] += entry * unit(column, part);
        }
        row_tile[lane * BLOCK4 + column / 4u][column % 4u] = entry;
        if lane >= column && lane < size {
            factor[place + column] = entry;
        }
    }
    if lane == 0u && !sound {
        scalars[head.index * SCALARS + FACTORED] = 0.0;
    }
}

@compute @workgroup_size(PANEL_LANES)
fn panel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let below = params.first + BLOCK + group.x * PANEL_LANES;
    if below >= head.pairs {
        return;
    }
    let square = head.square + params.first * head.pairs + params.first;
    // Strictly below its diagonal, so that a row's product with the elements found so far is a whole row's.
    for (var i = lane; i < BLOCK * BLOCK4; i += PANEL_LANES) {
        let row = i / BLOCK4;
        let column = vec4<u32>(0u, 1u, 2u, 3u) + 4u * (i % BLOCK4);
        row_tile[i] = select(vec4<f32>(0.0), factor4(square + row * head.pairs + column.x), column < vec4<u32>(row));
    }
    if lane < BLOCK {
        inverse[lane] = 1.0 / factor[square + lane * head.pairs + lane];
    }
    workgroupBarrier();
    if below + lane >= head.pairs {
        return;
    }
    let place = head.square + (below + lane) * head.pairs + params.first;
    var row: array<vec4<f32>, BLOCK4>;
    for (var part = 0u; part < BLOCK4; part++) {
        row[part] = vec4<f32>(0.0);
    }
    // The count of columns comes from the table, or the driver would unroll all of this.
    let columns = min(BLOCK, head.pairs);
    for (var column = 0u; column < columns; column++) {
        var dot = vec4<f32>(0.0);
        for (var part = 0u; part < BLOCK4; part++) {
            dot += row[part] * row_tile[column * BLOCK4 + part];
        }
        let entry = (factor[place + column] - sum4(dot)) * inverse[column];
        for (var part = 0u; part < BLOCK4; part++) {
            row[part] += entry * unit(column, part);
        }
        factor[place + column] = entry;
    }
}

@compute @workgroup_size(TRAILING_LANES)
fn trailing(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = heads[group.z];
    let first_row = params.first + BLOCK + group.y * BLOCK;
    let first_column = params.first + BLOCK + group.x * PANEL_LANES;
    if first_row >= head.pairs || first_column >= first_row + BLOCK {
        return;
    }
    let rows = min(BLOCK, head.pairs - first_row);
    for (var i = lane; i < rows * BLOCK4; i += TRAILING_LANES) {
        row_tile[i] = factor4(head.square + (first_row + i / BLOCK4) * head.pairs + params.first + 4u * (i % BLOCK4));
    }
    let near = first_column + lane;
    let far = near + TRAILING_LANES;
    var own_near: array<vec4<f32>, BLOCK4>;
    var own_far: array<vec4<f32>, BLOCK4>;
    for (var part = 0u; part < BLOCK4; part++) {
        own_near[part] = factor4(head.square + min(near, head.pairs - 1u) * head.pairs + params.first + 4u * part);
        own_far[part] = factor4(head.square + min(far, head.pairs - 1u) * head.pairs + params.first + 4u * part);
    }
    workgroupBarrier();
    for (var r = 0u; r < rows; r++) {
        var dot_near = vec4<f32>(0.0);
        var dot_far = vec4<f32>(0.0);
        for (var part = 0u; part < BLOCK4; part++) {
            let row = row_tile[r * BLOCK4 + part];
            dot_near += own_near[part] * row;
            dot_far += own_far[part] * row;
        }
        let place = head.square + (first_row + r) * head.pairs;
        if near <= first_row + r {
            factor[place + near] -= sum4(dot_near);
        }
        if far <= first_row + r {
            factor[place + far] -= sum4(dot_far);
        }
    }
}
