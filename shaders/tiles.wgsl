// Products by tiles, for devices with many lanes: a workgroup owns a tile of 64 × 64 sums, an invocation 4 × 4 of them in registers.
// What is multiplied passes through workgroup memory in slices of TILE_DEPTH: left[k] are 64 factors of the tile's rows as 16 vec4,
// right[k] those of its columns. Neighbouring lanes read neighbouring columns and the same rows.

const TILE: u32 = 64u;
const TILE4: u32 = TILE / 4u;
const TILE_DEPTH: u32 = 16u;
const TILE_LANES: u32 = TILE4 * TILE4;

var<workgroup> left: array<vec4<f32>, TILE_DEPTH * TILE4>;
var<workgroup> right: array<vec4<f32>, TILE_DEPTH * TILE4>;

// An invocation's sums: four rows of four columns.
struct Sums {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn no_sums() -> Sums {
    return Sums(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
}

// The invocation's first row and column in the tile.
fn tile_row(lane: u32) -> u32 {
    return 4u * (lane / TILE4);
}

fn tile_column(lane: u32) -> u32 {
    return 4u * (lane % TILE4);
}

// Adds the product of the slices in workgroup memory. Barriers before and after are the caller's.
fn add_slices(sums: Sums, lane: u32) -> Sums {
    var s = sums;
    for (var k = 0u; k < TILE_DEPTH; k++) {
        let row = left[k * TILE4 + lane / TILE4];
        let column = right[k * TILE4 + lane % TILE4];
        s.a += row.x * column;
        s.b += row.y * column;
        s.c += row.z * column;
        s.d += row.w * column;
    }
    return s;
}

// left[4 k4 + i] at `quad` ← element i of each of four rows, and the same on the right.
fn turn_left(k4: u32, quad: u32, rows: mat4x4<f32>) {
    let turned = transpose(rows);
    let place = 4u * k4 * TILE4 + quad;
    left[place] = turned[0];
    left[place + TILE4] = turned[1];
    left[place + 2u * TILE4] = turned[2];
    left[place + 3u * TILE4] = turned[3];
}

fn turn_right(k4: u32, quad: u32, columns: mat4x4<f32>) {
    let turned = transpose(columns);
    let place = 4u * k4 * TILE4 + quad;
    right[place] = turned[0];
    right[place + TILE4] = turned[1];
    right[place + 2u * TILE4] = turned[2];
    right[place + 3u * TILE4] = turned[3];
}
