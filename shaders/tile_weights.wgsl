// For kernels that multiply with `weights`, A; with tiles.wgsl or matrices.wgsl.

// Four neighbours of a row of A, zeros beyond its ends.
fn weights4(head: Head, rows: u32, row: u32, pair: u32) -> vec4<f32> {
    var four = vec4<f32>(0.0);
    if row < rows {
        let place = head.weights + row * head.pairs;
        for (var i = 0u; i < 4u; i++) {
            if pair + i < head.pairs {
                four[i] = weights[place + pair + i];
            }
        }
    }
    return four;
}
