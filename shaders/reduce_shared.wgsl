// Sums and maxima over a workgroup, the result in every lane: through workgroup memory, for any device.
// The same functions as reduce_subgroup.wgsl. Every lane of the workgroup must call them.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

const_assert 0u == (REDUCE_LANES & (REDUCE_LANES - 1u));

var<workgroup> reduce_sums: array<vec4<f32>, REDUCE_LANES>;
var<workgroup> reduce_bits: array<u32, REDUCE_LANES>;

fn workgroup_sum(lane: Lane, value: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    reduce_sums[lane.index] = value;
    for (var width = REDUCE_LANES / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane.index < width {
            reduce_sums[lane.index] += reduce_sums[lane.index + width];
        }
    }
    workgroupBarrier();
    return reduce_sums[0];
}

// Of magnitudes, see prelude.wgsl.
fn workgroup_max(lane: Lane, value: u32) -> u32 {
    workgroupBarrier();
    reduce_bits[lane.index] = value;
    for (var width = REDUCE_LANES / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane.index < width {
            reduce_bits[lane.index] = max(reduce_bits[lane.index], reduce_bits[lane.index + width]);
        }
    }
    workgroupBarrier();
    return reduce_bits[0];
}
