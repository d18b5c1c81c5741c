// Sums and maxima over a workgroup, the result in every lane: subgroups first, then their results in order.
// The same functions as reduce_shared.wgsl. Every lane of the workgroup must call them. No size of a subgroup is
// assumed: there are at most as many subgroups as lanes.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

var<workgroup> reduce_sums: array<vec4<f32>, REDUCE_LANES>;
var<workgroup> reduce_bits: array<u32, REDUCE_LANES>;

fn workgroup_sum(lane: Lane, value: vec4<f32>) -> vec4<f32> {
    let own = subgroupAdd(value);
    workgroupBarrier();
    if lane.in_subgroup == 0u {
        reduce_sums[lane.subgroup] = own;
    }
    workgroupBarrier();
    var sum = reduce_sums[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        sum += reduce_sums[i];
    }
    return sum;
}

// Of magnitudes, see prelude.wgsl.
fn workgroup_max(lane: Lane, value: u32) -> u32 {
    let own = subgroupMax(value);
    workgroupBarrier();
    if lane.in_subgroup == 0u {
        reduce_bits[lane.subgroup] = own;
    }
    workgroupBarrier();
    var most = reduce_bits[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        most = max(most, reduce_bits[i]);
    }
    return most;
}
