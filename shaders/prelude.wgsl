// What every kernel knows: where a head lies in the arrays of its batch, and the numbers agreed with engine.rs.
// Types and pure functions only. Before this text stand the lines generated from the Spec: DIM, VALUE_DIM, KeyStore, ...

// One row of the head table (engine.rs, struct Head).
struct Head {
    index: u32,
    row: u32,
    rows: u32,
    pair: u32,
    pairs: u32,
    square: u32,
    weights: u32,
    // Pairs of the heads before this one in the table: its place in arrays that hold this table's heads only.
    place: u32,
}

const_assert DIM % 4u == 0u && DIM >= 4u && DIM <= 256u;
const_assert VALUE_DIM % 4u == 0u && VALUE_DIM >= 4u && VALUE_DIM <= 256u;

const DIM4: u32 = DIM / 4u;
const VALUE4: u32 = VALUE_DIM / 4u;
// A row of a state or error array in vec4: the value channels, then mass and company.
const STATE4: u32 = VALUE4 + 1u;

// The mass of no pairs at all (engine.rs).
const NO_MASS: f32 = -1.0e30;

// A head's row of scalars and the places in it (engine.rs, mod scalar).
const SCALARS: u32 = 16u;
const OUTPUT: u32 = 0u;
const MASS: u32 = 1u;
const SCALE: u32 = 2u;
const NOT_FINITE: u32 = 3u;
const SLOPE: u32 = 4u;
const GRADIENT_MAX: u32 = 5u;
const GRADIENT_SUM: u32 = 6u;
const DIRECTION_SLOPE: u32 = 8u;
const DIRECTION_MAX: u32 = 9u;
const CURVATURE: u32 = 10u;
const FACTORED: u32 = 12u;
const DIAGONAL: u32 = 13u;

// The bits of |x|. As unsigned numbers they are ordered as the magnitudes are, with infinity and NaN on top:
// a comparison of floats cannot tell NaN on Vulkan, and max() drops it.
fn magnitude(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

fn largest_magnitude(x: vec4<f32>) -> u32 {
    return max(max(magnitude(x.x), magnitude(x.y)), max(magnitude(x.z), magnitude(x.w)));
}

fn is_finite(x: f32) -> bool {
    return magnitude(x) < 0x7f800000u;
}

fn sum4(x: vec4<f32>) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}

// e^x to about an ulp. Drivers may be off by 3 + 2|x| ulp (WGSL's own bound, and some are), which a head whose error is
// small feels in its gradient. x = n ln 2 + r with |r| ≤ ln 2 / 2, n ln 2 in two parts of which the first is exact; the
// series of e^r to the 7th power. 0 below −87; what is not finite stays so.
fn exponential(x: f32) -> f32 {
    let n = round(clamp(x, -87.0, 88.0) * 1.442695041);
    let r = (x - n * 0.693359375) + n * 2.12194440e-4;
    let tail = 1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0))));
    let series = 1.0 + (r + r * r * (0.5 + r * tail));
    let power = bitcast<f32>(u32(i32(n) + 127) << 23u);
    return select(series * power, 0.0, x < -87.0);
}

// log x for x of ordinary size: the driver's, and one Newton step on e^l = x.
fn logarithm(x: f32) -> f32 {
    let l = log(x);
    return l + (x * exponential(-l) - 1.0);
}

// A softmax seen so far: sum · e^most is its total, most the largest logit met.
struct Softmax {
    most: f32,
    sum: f32,
}

// One more logit: what everything summed so far is to be multiplied with, and the new logit's weight.
struct Merge {
    softmax: Softmax,
    keep: f32,
    weight: f32,
}

fn merge(softmax: Softmax, logit: f32) -> Merge {
    let most = max(softmax.most, logit);
    // One of the two factors is 1.
    let rises = logit > softmax.most;
    let factor = exponential(-abs(logit - softmax.most));
    let keep = select(1.0, factor, rises);
    let weight = select(factor, 1.0, rises);
    return Merge(Softmax(most, softmax.sum * keep + weight), keep, weight);
}

// Rows that a head has in the block [start, end) of its rows.
fn rows_in_block(head: Head, start: u32, end: u32) -> u32 {
    return min(max(head.rows, start), end) - start;
}

// Rows of a block where sums over a head's rows are cut into blocks: of the head's own rows only, so that a head gives
// the same bits in every batch. (spec.rs, RowBlocks)
fn row_block(rows: u32) -> u32 {
    return max(ROW_BLOCK, (rows + MOST_BLOCKS - 1u) / MOST_BLOCKS);
}
