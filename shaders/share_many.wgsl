// Where neighbouring invocations share a row's channels: each leaves its part of a dot for the others. Not through subgroups, for
// nothing says that neighbours are in the same one.

var<workgroup> dots: array<f32, DOTS>;

fn leave_dot(place: u32, dot: f32) {
    dots[place] = dot;
}

fn left_dot(place: u32) -> f32 {
    return dots[place];
}
