//! What only the GPU's engine promises: what it refuses, how it stores compact arrays, how much scratch memory it says it needs.

use kvsculpt::Error;
use kvsculpt::engine::{Dims, Engine, Head, History};
use kvsculpt::gpu::{Element, Gpu, Matrices, Selection};
use kvsculpt::kernels::{GpuEngine, Machine};

use crate::engines::gpu;

const DIMS: Dims = Dims { dim: 64, value_dim: 64 };

fn head(rows: u32, pairs: u32) -> Head {
    Head {
        rows,
        pairs,
        ..Head::default()
    }
}

#[test]
fn channels_without_a_kernel_are_refused() {
    for (dim, value_dim) in [(66, 64), (64, 260), (0, 64)] {
        let refused = gpu().table(Dims { dim, value_dim }, &[head(1, 1)]);
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{dim}, {value_dim}: {refused:?}");
    }
}

#[test]
fn a_table_takes_as_many_heads_as_it_was_made_for() {
    let mut engine = gpu();
    let mut table = engine.table(DIMS, &[head(1, 1), head(2, 2)]).unwrap();
    assert!(engine.set_table(&mut table, &[head(1, 1); 3]).is_err());
    engine.set_table(&mut table, &[]).unwrap();
    engine.set_table(&mut table, &[head(1, 1); 2]).unwrap();
}

#[test]
fn a_history_too_long_is_refused() {
    let mut engine = gpu();
    let table = engine.table(DIMS, &[head(1, 1)]).unwrap();
    let gradient = engine.zeros("gradient", 64).unwrap();
    let mut direction = engine.zeros("direction", 64).unwrap();
    let mut scalars = engine.zeros("scalars", 16).unwrap();
    let history = History {
        capacity: 257,
        steps: engine.zeros("steps", 257 * 64).unwrap(),
        changes: engine.zeros("changes", 257 * 64).unwrap(),
        curvatures: engine.zeros("curvatures", 257 * 2).unwrap(),
        cursor: engine.zeros("cursor", 2).unwrap(),
    };
    let refused = engine.lbfgs_direction(&table, &gradient, &history, &mut direction, &mut scalars);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}

/// Numbers that half precision cannot hold: too fine, too large, too small, and NaN, whose payload it would cut.
#[test]
fn compact_arrays_lose_nothing() {
    let mut engine = gpu();
    let fine = [0.0, -0.0, 1.0, -2.5, 65504.0, 5.960_464_5e-8];
    let array = engine.upload_compact("keys", &fine).unwrap();
    let has_half = engine.gpu().has_half();
    assert_eq!(array.element(), if has_half { Element::F16 } else { Element::F32 });
    assert_eq!(engine.read(&array).unwrap().map_bits(), fine.map_bits());
    for coarse in [0.1, 65520.0, 1e-8, f32::from_bits(0x7f80_0001)] {
        let data = [1.0, coarse];
        let array = engine.upload_compact("keys", &data).unwrap();
        assert_eq!(array.element(), Element::F32, "{coarse}");
        assert_eq!(engine.read(&array).unwrap().map_bits(), data.map_bits());
    }
}

#[test]
fn a_compact_array_is_refused_where_only_single_precision_is_read() {
    let mut engine = gpu();
    let table = engine.table(DIMS, &[head(1, 1)]).unwrap();
    let half = engine.upload_compact("keys", &[1.0; 64]).unwrap();
    let single = engine.zeros("direction", 64).unwrap();
    let mut trial = engine.zeros("trial", 64).unwrap();
    let outcome = engine.step(&table, &half, &single, &single, &mut trial);
    assert_eq!(outcome.is_err(), engine.gpu().has_half());
}

/// A device has the feature only where its selection asked for it.
#[test]
fn matrices_are_refused_on_a_device_opened_without_them() {
    let gpu = Gpu::open(&Selection::default()).unwrap();
    assert_eq!(gpu.matrices(), None);
    let machine = Machine {
        matrices: Some(Matrices { side: 8, subgroup: 8 }),
        ..Machine::of(&gpu)
    };
    let mut engine = GpuEngine::as_machine(gpu, machine).unwrap();
    let table = engine.table(DIMS, &[head(1, 1)]).unwrap();
    let weights = engine.zeros("weights", 1).unwrap();
    let mut gram = engine.zeros("gram", 1).unwrap();
    let refused = engine.gram(&table, &weights, 0..1, &mut gram).unwrap_err().to_string();
    assert!(refused.contains("cooperative matrices of gram_matrices.wgsl"), "{refused}");
}

/// 300 pairs, 64 channels, 4 bytes in each block; six blocks of 512 rows on a software driver.
#[test]
fn scratch_memory_is_that_of_the_row_blocks() {
    let mut engine = gpu();
    let blocks = Machine::of(engine.gpu()).row_blocks().of(2688);
    assert_eq!(engine.scratch_bytes(DIMS, &[head(2688, 300)]), u64::from(blocks) * 300 * 64 * 4);
    let many = vec![head(2688, 300); 1000];
    assert!(engine.scratch_bytes(DIMS, &many) <= 64 << 20);
}

trait Bits {
    fn map_bits(&self) -> Vec<u32>;
}

impl Bits for [f32] {
    fn map_bits(&self) -> Vec<u32> {
        self.iter().map(|x| x.to_bits()).collect()
    }
}
