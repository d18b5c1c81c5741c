//! Every kernel in every specialisation, checked with no device: it parses and validates, barriers are reached by all
//! lanes or none, and it needs no more than every device has.

#![allow(clippy::unwrap_used, reason = "tests")]

use kvsculpt::engine::Dims;
use kvsculpt::gpu::{Matrices, reflect};
use kvsculpt::kernels::{Machine, Spec, WORKGROUP_BYTES, sources};

/// What every device has: invocations in a workgroup, arrays bound, bytes of parameters.
const INVOCATIONS: u32 = 256;
const ARRAYS: usize = 8;
const PARAMETER_BYTES: u32 = 128;

fn machines() -> impl Iterator<Item = Machine> {
    [false, true].into_iter().flat_map(|software| {
        [false, true].map(|subgroups| Machine {
            software,
            subgroups,
            matrices: None,
        })
    })
}

fn machines_with_matrices() -> impl Iterator<Item = Machine> {
    let shapes = [(8, 8), (8, 32), (16, 32), (16, 64)];
    shapes.into_iter().map(|(side, subgroup)| Machine {
        software: false,
        subgroups: true,
        matrices: Some(Matrices { side, subgroup }),
    })
}

fn specs() -> Vec<Spec> {
    let equal = [32, 64, 80, 96, 128, 256].map(|dim| (dim, dim));
    let unequal = [(192, 128), (64, 256), (256, 64), (4, 12), (80, 68)];
    let of = |(dim, value_dim), machine| Spec::new(Dims { dim, value_dim }, machine).unwrap();
    let dims = equal.into_iter().chain(unequal);
    let plain = dims.flat_map(|dims| machines().map(move |machine| of(dims, machine)));
    // What goes by matrices knows no channels.
    plain.chain(machines_with_matrices().map(|machine| of((64, 64), machine))).collect()
}

#[test]
fn every_kernel_is_sound_in_every_specialisation() {
    for spec in specs() {
        for (source, entry_points) in sources(&spec) {
            for entry_point in entry_points {
                let kernel = source.kernel();
                let found = reflect(&source, entry_point).unwrap_or_else(|error| panic!("{error}, with {spec:?}"));
                let [x, y, z] = found.workgroup_size;
                assert!(x * y * z <= INVOCATIONS, "{kernel}: {x} × {y} × {z} invocations");
                assert!(
                    found.workgroup_bytes <= WORKGROUP_BYTES,
                    "{kernel}: {} bytes, {spec:?}",
                    found.workgroup_bytes
                );
                assert!(found.bindings.len() <= ARRAYS, "{kernel}: {} arrays", found.bindings.len());
                assert!(
                    found.immediate_bytes <= PARAMETER_BYTES,
                    "{kernel}: {} bytes",
                    found.immediate_bytes
                );
                assert!(spec.subgroups || !found.uses_subgroups, "{kernel} uses subgroups");
                assert!(
                    spec.matrices.is_some() || !found.uses_matrices,
                    "{kernel} uses cooperative matrices"
                );
            }
        }
    }
}

#[test]
fn arrays_read_come_before_arrays_written_and_heads_first() {
    let spec = Spec::new(
        Dims { dim: 64, value_dim: 64 },
        Machine {
            software: false,
            subgroups: false,
            matrices: None,
        },
    )
    .unwrap();
    for (source, entry_points) in sources(&spec) {
        let bindings = reflect(&source, entry_points[0]).unwrap().bindings;
        assert_eq!(bindings[0].name, "heads", "{}", source.kernel());
        let written = bindings.iter().position(|binding| !binding.read_only).unwrap();
        let all_written = bindings[written..].iter().all(|binding| !binding.read_only);
        assert!(
            all_written,
            "{}: an array that is only read comes after one that is written",
            source.kernel()
        );
    }
}

#[test]
fn every_shader_file_is_tried() {
    let dims = Dims { dim: 64, value_dim: 64 };
    let specs = machines()
        .chain(machines_with_matrices())
        .map(|machine| Spec::new(dims, machine).unwrap());
    let tried: Vec<&str> = specs.flat_map(|spec| sources(&spec)).map(|(source, _)| source.kernel()).collect();
    let shared = [
        "prelude",
        "reduce_shared",
        "reduce_subgroup",
        "tiles",
        "tile_logits",
        "tile_weights",
        "matrices",
        "share_one",
        "share_many",
    ];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(
            tried.contains(&name.as_str()) || shared.contains(&name.as_str()),
            "{name}.wgsl is no kernel's"
        );
    }
}
