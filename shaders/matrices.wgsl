// Products by cooperative matrices of SIDE × SIDE, for devices that have them and users who ask for them: a workgroup owns a tile of
// 4 × 4 matrices of sums, each of its first four subgroups a block of 2 × 2 of them.
//
// A matrix multiplies half precision and adds in single precision. Each factor x is split into x ≈ high + low, both of half
// precision, and  x y ≈ high high + high low + low high:  what is left out is at most 2⁻²² of x y, where single precision rounds by
// 2⁻²⁴. The caller scales factors so that the largest lie below 65504, the largest number of half precision, and not far: both
// parts together are off by at most 2⁻²³ of a factor above 2⁻², and by 2⁻²⁵ of smaller ones (2⁻¹⁴ where a device takes the smallest
// numbers of half precision for 0).
//
// What is multiplied passes through workgroup memory in slices of SLICE terms: [term][row or column].

const TILE: u32 = 4u * SIDE;
const TILE4: u32 = TILE / 4u;
const BLOCKS: u32 = 4u;
const SLICE: u32 = 16u;
// A row of a slice with what keeps the next one from the same banks of memory; of whole 16 bytes, which loads of matrices ask for.
const PITCH: u32 = TILE + 8u;
const AREA: u32 = SIDE * SIDE;
const_assert SLICE % SIDE == 0u && MATRIX_LANES % BLOCKS == 0u;

var<workgroup> left_high: array<f16, SLICE * PITCH>;
var<workgroup> left_low: array<f16, SLICE * PITCH>;
var<workgroup> right_high: array<f16, SLICE * PITCH>;
var<workgroup> right_low: array<f16, SLICE * PITCH>;
// A matrix of each block on its way out.
var<workgroup> finished: array<f32, BLOCKS * AREA>;

// The first row and column of a block in the tile.
fn block_row(block: u32) -> u32 {
    return 2u * SIDE * (block / 2u);
}

fn block_column(block: u32) -> u32 {
    return 2u * SIDE * (block % 2u);
}

// Four neighbours of a term. Rounded by quantizeToF16, for a driver may take there and back by f16() for nothing at all, and then
// nothing is left for `low`.
fn split_left(term: u32, row: u32, factors: vec4<f32>) {
    let high = quantizeToF16(factors);
    let place = term * PITCH + row;
    for (var i = 0u; i < 4u; i++) {
        left_high[place + i] = f16(high[i]);
        left_low[place + i] = f16(factors[i] - high[i]);
    }
}

fn split_right(term: u32, column: u32, factors: vec4<f32>) {
    let high = quantizeToF16(factors);
    let place = term * PITCH + column;
    for (var i = 0u; i < 4u; i++) {
        right_high[place + i] = f16(high[i]);
        right_low[place + i] = f16(factors[i] - high[i]);
    }
}

// SIDE rows of SIDE terms. They lie term by term: column by column for the left factor, row by row (the T) for the right one.
fn high_left(term: u32, row: u32) -> Left {
    return coopLoad<Left>(&left_high[term * PITCH + row], PITCH);
}

fn low_left(term: u32, row: u32) -> Left {
    return coopLoad<Left>(&left_low[term * PITCH + row], PITCH);
}

fn high_right(term: u32, column: u32) -> Right {
    return coopLoadT<Right>(&right_high[term * PITCH + column], PITCH);
}

fn low_right(term: u32, column: u32) -> Right {
    return coopLoadT<Right>(&right_low[term * PITCH + column], PITCH);
}

// The sums with SIDE terms more. These are summed by themselves, the small ones first, and then added: devices cut off what a running
// sum cannot hold when they multiply, and round when they add.
fn more(sums: Sums, left: Left, left_rest: Left, right: Right, right_rest: Right) -> Sums {
    var terms = coopMultiplyAdd(left_rest, right, Sums());
    terms = coopMultiplyAdd(left, right_rest, terms);
    terms = coopMultiplyAdd(left, right, terms);
    return sums + terms;
}

// A matrix of each block into `finished`, for all lanes to take out. Every lane of the workgroup comes here.
fn finish(sums: Sums, block: u32) {
    workgroupBarrier();
    if block < BLOCKS {
        coopStoreT(sums, &finished[block * AREA], SIDE);
    }
    workgroupBarrier();
}
