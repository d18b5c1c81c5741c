//! Barriers and matrices that all reach, and those that some may miss.

use super::*;
use wgpu::naga::front::wgsl::parse_str;

const HEAD: &str = "struct Head { first: u32, count: u32 }
struct Params { turns: u32 }
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
var<workgroup> shared_: array<u32, 64>;
var<workgroup> flag: u32;
fn twice(x: u32) -> u32 { var y = x; if (y > 3u) { return y + 1u; } return 2u * y; }
fn meet(x: u32) -> u32 { workgroupBarrier(); return shared_[x]; }
fn write(x: ptr<function, u32>) { *x = 1u; }
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32, @builtin(global_invocation_id) id: vec3<u32>) {
";

fn faults(body: &str) -> Vec<String> {
    let text = format!("{HEAD}{body}\n}}");
    let module = parse_str(&text).unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
    let line = |fault: &Fault| text.lines().nth(fault.span.location(&text).line_number as usize - 1).unwrap();
    check(&module, &module.entry_points[0])
        .iter()
        .map(|fault| line(fault).to_owned())
        .collect()
}

#[test]
fn barriers_that_all_reach_are_accepted() {
    for body in [
        "workgroupBarrier();",
        "if (group.x >= params.turns) { return; } workgroupBarrier();",
        "let head = heads[group.z]; for (var i = 0u; i < head.count; i += 16u) { shared_[lane] = i; workgroupBarrier(); }",
        "for (var i = 0u; i < params.turns; i++) { for (var j = i; j < heads[group.x].count; j++) { if (lane > j) { shared_[lane] = j; } workgroupBarrier(); } }",
        "for (var half = 32u; half > 0u; half /= 2u) { if (lane < half) { shared_[lane] += shared_[lane + half]; } workgroupBarrier(); }",
        "var i = 0u; while (i < params.turns) { i += 1u; if (i == 3u) { continue; } storageBarrier(); }",
        "var i = 0u; loop { workgroupBarrier(); continuing { i++; break if i > params.turns; } }",
        "if (lane == 0u) { flag = out[0]; } let go = workgroupUniformLoad(&flag); if (go == 1u) { workgroupBarrier(); }",
        "for (var i = lane; i < 100u; i += 64u) { if (i == 3u) { break; } shared_[0] += i; } workgroupBarrier();",
        "if (group.x > 1u && params.turns > 2u) { workgroupBarrier(); }",
        "for (var i = 0u; i < twice(group.x); i++) { _ = meet(lane); }",
        "switch lane { case 0u: { out[0] = 1u; break; } default: {} } workgroupBarrier();",
        "switch params.turns { case 0u: { workgroupBarrier(); } default: {} }",
        "let value = subgroupAdd(lane); shared_[lane] = value;",
    ] {
        assert!(faults(body).is_empty(), "{body}");
    }
}

#[test]
fn barriers_that_some_may_miss_are_found() {
    for body in [
        "if (lane < 3u) { workgroupBarrier(); }",
        "if (lane >= 3u) { return; } workgroupBarrier();",
        "if (id.x > params.turns) { return; } workgroupBarrier();",
        "for (var i = lane; i < 64u; i++) { workgroupBarrier(); }",
        "for (var i = 0u; i < lane; i++) { storageBarrier(); }",
        "for (var i = 0u; i < out[0]; i++) { workgroupBarrier(); }",
        "for (var i = 0u; i < shared_[0]; i++) { workgroupBarrier(); }",
        "for (var i = 0u; i < 9u; i++) { workgroupBarrier(); if (shared_[i] > lane) { break; } }",
        "for (var i = 0u; i < 9u; i++) { if (lane == i) { continue; } workgroupBarrier(); }",
        "for (var i = 0u; i < 9u; i++) { workgroupBarrier(); if (lane == i) { return; } }",
        "var count = 3u; if (lane > 2u) { count = 4u; } for (var i = 0u; i < count; i++) { workgroupBarrier(); }",
        "var i = 0u; loop { workgroupBarrier(); continuing { i++; break if i > lane; } }",
        "var a = 0u; var b = 0u; for (var i = 0u; i < 9u; i++) { if (b > 3u) { workgroupBarrier(); } b = a; a = lane; }",
        "if (lane > 1u && params.turns > 2u) { workgroupBarrier(); }",
        "if (heads[lane].count > 1u) { workgroupBarrier(); }",
        "if (twice(lane) > 1u) { workgroupBarrier(); }",
        "var x = 0u; write(&x); if (x > 1u) { workgroupBarrier(); }",
        "if (subgroupAdd(1u) > 2u) { workgroupBarrier(); }",
        "if (lane < 2u) { out[1] = subgroupMax(lane); }",
        "if (lane < 2u) { out[1] = workgroupUniformLoad(&flag); }",
        "switch lane { case 0u: { workgroupBarrier(); } default: {} }",
        "for (var i = 0u; i < 9u; i++) { switch lane { case 0u: { continue; } default: {} } workgroupBarrier(); }",
    ] {
        assert_eq!(faults(body).len(), 1, "{body}");
    }
}

#[test]
fn a_barrier_in_a_called_function_is_found_where_it_stands() {
    let found = faults("if (lane < 3u) { out[0] = meet(lane); } out[1] = meet(lane);");
    assert!(found.len() == 1 && found[0].starts_with("fn meet"), "{found:?}");
}

/// A kernel on matrices; `block` is the subgroup's number.
fn faults_of_matrices(body: &str) -> usize {
    let text = format!(
        "enable f16; enable wgpu_cooperative_matrix;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;
var<workgroup> factors: array<f16, 640>;
var<workgroup> sums: array<f32, 640>;
fn product(place: u32) -> Sums {{
    return coopMultiplyAdd(coopLoad<Left>(&factors[place], 8u), coopLoadT<Right>(&factors[0], 8u), Sums());
}}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) block: u32) {{
{body}
}}"
    );
    let module = parse_str(&text).unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
    check(&module, &module.entry_points[0]).len()
}

#[test]
fn matrices_are_for_whole_subgroups() {
    for sound in [
        "coopStoreT(product(64u * block), &sums[64u * block], 8u);",
        "if block < 4u { coopStoreT(product(block), &sums[64u * group.x], 8u); } workgroupBarrier();",
        "var sum = Sums(); for (var i = 0u; i < block; i++) { sum = sum + product(i); } coopStoreT(sum, &sums[0], 8u);",
    ] {
        assert_eq!(faults_of_matrices(sound), 0, "{sound}");
    }
    for (wrong, count) in [
        ("if lane < 8u { let left = coopLoad<Left>(&factors[0], 8u); }", 1),
        ("let left = coopLoad<Left>(&factors[lane], 8u);", 1),
        ("let left = coopLoad<Left>(&factors[0], lane);", 1),
        ("var sum = Sums(); if lane > 3u { return; } coopStoreT(sum, &sums[0], 8u);", 1),
        ("if lane < 8u { let sum = product(0u); }", 3),
        // Whole subgroups, but not all of the workgroup.
        ("if block < 4u { workgroupBarrier(); }", 1),
    ] {
        assert_eq!(faults_of_matrices(wrong), count, "{wrong}");
    }
}
