// Adds the sums of a head's row blocks, in the order of the blocks:  total_j = Σ_b partial_bj
//
// Grid: x: workgroups that stride over a head's elements, z: heads from params.first on.
// Twin: none of its own, it ends scores and key_gradient.

struct Params {
    // The first head of this dispatch in the table.
    first: u32,
    // Pairs of the dispatch's heads together.
    pairs: u32,
    // Floats a pair.
    width: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> partial: array<f32>;     // [row blocks, params.pairs, params.width]
@group(0) @binding(2) var<storage, read_write> total: array<f32>; // [Σ pairs, params.width]

@compute @workgroup_size(ELEMENT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let head = heads[params.first + group.z];
    let blocks = (head.rows + row_block(head.rows) - 1u) / row_block(head.rows);
    let place = (head.place - heads[params.first].place) * params.width;
    for (var i = group.x * ELEMENT_LANES + lane; i < head.pairs * params.width; i += groups.x * ELEMENT_LANES) {
        var sum = 0.0;
        for (var block = 0u; block < blocks; block++) {
            sum += partial[block * params.pairs * params.width + place + i];
        }
        total[head.pair * params.width + i] = sum;
    }
}
