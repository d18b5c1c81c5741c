//! The engines under test, and which checks each must pass.

use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kvsculpt::Error;
use kvsculpt::engine::Engine;
use kvsculpt::gpu::{Gpu, Selection, chosen};
use kvsculpt::kernels::{GpuEngine, Machine};

/// The engine of the processor.
#[cfg(feature = "cpu")]
fn cpu() -> kvsculpt::cpu::CpuEngine {
    kvsculpt::cpu::CpuEngine::new()
}

/// An engine of the GPU, opened once for the whole binary, so that its kernels are compiled once.
type Shared = OnceLock<Result<Mutex<GpuEngine>, String>>;

/// The GPU's engine.
pub fn gpu() -> MutexGuard<'static, GpuEngine> {
    static ENGINE: Shared = OnceLock::new();
    share(&ENGINE, |gpu| {
        let engine = GpuEngine::new(gpu)?;
        // Not eprintln!, which the test harness keeps to itself.
        let _ = writeln!(std::io::stderr(), "GPU tests run on {}", engine.name());
        Ok(engine)
    })
}

/// The same device with the kernels of the other kind of machine: a GPU's on a software driver, and the reverse; without
/// subgroups where it has them. Sums of row blocks are held for one head at a time.
fn gpu_as_another_machine() -> MutexGuard<'static, GpuEngine> {
    static ENGINE: Shared = OnceLock::new();
    share(&ENGINE, |gpu| {
        let other = Machine {
            software: !gpu.is_software(),
            subgroups: false,
            matrices: None,
        };
        let mut engine = GpuEngine::as_machine(gpu, other)?;
        // So little that every head is a group of its own.
        engine.set_scratch_limit(0);
        Ok(engine)
    })
}

/// The device with products by cooperative matrices; `None` where the adapter has none that kernels can use, which then is what it
/// is refused for.
pub fn gpu_with_matrices() -> Option<MutexGuard<'static, GpuEngine>> {
    static ENGINE: Shared = OnceLock::new();
    let selection = Selection {
        cooperative_matrices: true,
        ..Selection::default()
    };
    let adapter = chosen(&selection).unwrap_or_else(|error| panic!("{error}"));
    if adapter.matrices.is_none() {
        let refused = Gpu::open(&selection);
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
        let _ = writeln!(std::io::stderr(), "{} has no cooperative matrices for kernels", adapter.name);
        return None;
    }
    Some(share_selected(&ENGINE, &selection, GpuEngine::new))
}

fn share(place: &'static Shared, make: impl FnOnce(Gpu) -> kvsculpt::Result<GpuEngine>) -> MutexGuard<'static, GpuEngine> {
    share_selected(place, &Selection::default(), make)
}

fn share_selected(
    place: &'static Shared,
    selection: &Selection,
    make: impl FnOnce(Gpu) -> kvsculpt::Result<GpuEngine>,
) -> MutexGuard<'static, GpuEngine> {
    let engine = place.get_or_init(|| {
        let engine = Gpu::open(selection).and_then(make);
        engine.map(Mutex::new).map_err(|error| error.to_string())
    });
    match engine {
        // A failed check says nothing about the next one.
        Ok(engine) => engine.lock().unwrap_or_else(PoisonError::into_inner),
        Err(error) => panic!(
            "{error}. GPU tests need an adapter; a software one will do: install the package mesa-vulkan-drivers, \
             or run `cargo xtask test`, which fetches one."
        ),
    }
}

macro_rules! checks {
    ($($kernel:ident: $($check:ident),+;)+) => {
        #[cfg(feature = "cpu")]
        mod on_cpu {
            $(mod $kernel {
                $(#[test]
                fn $check() {
                    crate::$kernel::$check(&mut crate::engines::cpu());
                })+
            })+
        }

        mod on_gpu {
            $(mod $kernel {
                $(#[test]
                fn $check() {
                    crate::$kernel::$check(&mut *crate::engines::gpu());
                })+
            })+
        }
    };
}

/// The checks of kernels that another machine gets otherwise.
macro_rules! checks_as_another_machine {
    ($($kernel:ident: $($check:ident),+;)+) => {
        mod on_gpu_as_another_machine {
            $(mod $kernel {
                $(#[test]
                fn $check() {
                    crate::$kernel::$check(&mut *crate::engines::gpu_as_another_machine());
                })+
            })+
        }
    };
}

/// The checks of what goes by cooperative matrices.
macro_rules! checks_with_matrices {
    ($($kernel:ident: $($check:ident),+;)+) => {
        mod on_gpu_with_matrices {
            $(mod $kernel {
                $(#[test]
                fn $check() {
                    if let Some(mut engine) = crate::engines::gpu_with_matrices() {
                        crate::$kernel::$check(&mut *engine);
                    }
                })+
            })+
        }
    };
}

checks_with_matrices! {
    gram: ragged_batches, several_blocks, weights_of_attention, same_bits_alone;
}

checks_as_another_machine! {
    attention: with_a_base, hard_inputs, no_pairs, compact_arrays;
    key_gradient: ragged_batches, hard_inputs, many_rows;
    loss: ragged_batches, rows_that_are_not_finite;
    scores: ragged_batches, hard_inputs, many_rows, same_bits_alone;
    weights: ragged_batches, a_later_block, hard_inputs;
    effects: ragged_batches, hard_inputs;
    evaluate: same_bits_again_and_alone;
    gram: ragged_batches, several_blocks, weights_of_attention, same_bits_alone;
    rhs: ragged_batches, several_blocks;
    cholesky: ragged_batches, not_positive, many_pairs;
    solve: ragged_batches, many_pairs;
    value_fit: same_bits_again_and_alone;
    slope: ragged_batches, not_finite;
    lbfgs_direction: ragged_batches, no_history, same_bits_alone;
    lbfgs_push: ragged_batches, pairs_of_no_use;
}

checks! {
    attention: with_a_base, without_a_base, hard_inputs, no_pairs, compact_arrays;
    scores: ragged_batches, hard_inputs, many_rows, same_bits_alone;
    effects: ragged_batches, hard_inputs, many_rows;
    loss: ragged_batches, rows_that_are_not_finite;
    key_gradient: ragged_batches, hard_inputs, many_rows;
    evaluate: ragged_batches, hard_inputs, same_bits_again_and_alone;
    weights: ragged_batches, a_later_block, hard_inputs;
    gram: ragged_batches, several_blocks, weights_of_attention, same_bits_alone;
    rhs: ragged_batches, several_blocks;
    cholesky: ragged_batches, not_positive, many_pairs;
    solve: ragged_batches, many_pairs;
    value_fit: same_bits_again_and_alone;
    step: ragged_batches;
    slope: ragged_batches, not_finite;
    lbfgs_direction: ragged_batches, no_history, same_bits_alone;
    lbfgs_push: ragged_batches, pairs_of_no_use;
    copy_pairs: ragged_batches;
}
