// A tile of logits, s q·k, for kernels with `queries`, `keys` and `params.scale`; with tiles.wgsl.

const_assert TILE_DEPTH == 16u && TILE_LANES >= 8u * TILE4;

// Four channels of a query or key; zeros beyond the last channel. What is beyond a head's last row or pair repeats it.
fn query4(head: Head, row: u32, channel4: u32) -> vec4<f32> {
    if channel4 < DIM4 {
        return queries[(head.row + min(row, head.rows - 1u)) * DIM4 + channel4];
    }
    return vec4<f32>(0.0);
}

fn key4(head: Head, pair: u32, channel4: u32) -> vec4<f32> {
    if channel4 < DIM4 {
        return params.scale * vec4<f32>(keys[(head.pair + min(pair, head.pairs - 1u)) * DIM4 + channel4]);
    }
    return vec4<f32>(0.0);
}

// An invocation's logits of the tile whose first row and pair, counted in the head, are these.
fn logits(head: Head, first_row: u32, first_pair: u32, lane: u32) -> Sums {
    var sums = no_sums();
    let own4 = lane % 4u;
    let quad = lane / 4u % TILE4;
    let row = first_row + 4u * quad;
    let pair = first_pair + 4u * quad;
    for (var start = 0u; start < DIM4; start += 4u) {
        let channel4 = start + own4;
        workgroupBarrier();
        // A lane turns a square of four rows and four channels.
        if lane < 4u * TILE4 {
            turn_left(own4, quad, mat4x4<f32>(
                query4(head, row, channel4),
                query4(head, row + 1u, channel4),
                query4(head, row + 2u, channel4),
                query4(head, row + 3u, channel4),
            ));
        } else if lane < 8u * TILE4 {
            turn_right(own4, quad, mat4x4<f32>(
                key4(head, pair, channel4),
                key4(head, pair + 1u, channel4),
                key4(head, pair + 2u, channel4),
                key4(head, pair + 3u, channel4),
            ));
        }
        workgroupBarrier();
        sums = add_slices(sums, lane);
    }
    return sums;
}
