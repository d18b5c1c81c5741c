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

/// A test for every check and engine. The engine comes last in its name: tests start in the order of their names, so that two that run at
/// once are of two engines, and one's kernels are compiled beside the other's.
macro_rules! checks {
    ($($kernel:ident { $($check:ident: $($engine:ident),+;)+ })+) => {
        $(mod $kernel {
            $(mod $check {
                $(test!($engine: $kernel::$check);)+
            })+
        })+
    };
}

macro_rules! test {
    (on_cpu: $kernel:ident::$check:ident) => {
        #[cfg(feature = "cpu")]
        #[test]
        fn on_cpu() {
            crate::$kernel::$check(&mut crate::engines::cpu());
        }
    };
    (on_gpu: $kernel:ident::$check:ident) => {
        #[test]
        fn on_gpu() {
            crate::$kernel::$check(&mut *crate::engines::gpu());
        }
    };
    (as_another_machine: $kernel:ident::$check:ident) => {
        #[test]
        fn as_another_machine() {
            crate::$kernel::$check(&mut *crate::engines::gpu_as_another_machine());
        }
    };
    (with_matrices: $kernel:ident::$check:ident) => {
        #[test]
        fn with_matrices() {
            if let Some(mut engine) = crate::engines::gpu_with_matrices() {
                crate::$kernel::$check(&mut *engine);
            }
        }
    };
}

// As another machine: kernels that it gets otherwise. With matrices: what goes by them.
checks! {
    attention {
        with_a_base: on_cpu, on_gpu, as_another_machine;
        without_a_base: on_cpu, on_gpu;
        hard_inputs: on_cpu, on_gpu, as_another_machine;
        no_pairs: on_cpu, on_gpu, as_another_machine;
        compact_arrays: on_cpu, on_gpu, as_another_machine;
    }
    scores {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        hard_inputs: on_cpu, on_gpu, as_another_machine;
        many_rows: on_cpu, on_gpu, as_another_machine;
        same_bits_alone: on_cpu, on_gpu, as_another_machine;
    }
    effects {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        hard_inputs: on_cpu, on_gpu, as_another_machine;
        many_rows: on_cpu, on_gpu;
    }
    loss {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        rows_that_are_not_finite: on_cpu, on_gpu, as_another_machine;
    }
    key_gradient {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        hard_inputs: on_cpu, on_gpu, as_another_machine;
        many_rows: on_cpu, on_gpu, as_another_machine;
    }
    evaluate {
        ragged_batches: on_cpu, on_gpu;
        hard_inputs: on_cpu, on_gpu;
        same_bits_again_and_alone: on_cpu, on_gpu, as_another_machine;
    }
    weights {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        a_later_block: on_cpu, on_gpu, as_another_machine;
        hard_inputs: on_cpu, on_gpu, as_another_machine;
    }
    gram {
        ragged_batches: on_cpu, on_gpu, as_another_machine, with_matrices;
        several_blocks: on_cpu, on_gpu, as_another_machine, with_matrices;
        weights_of_attention: on_cpu, on_gpu, as_another_machine, with_matrices;
        same_bits_alone: on_cpu, on_gpu, as_another_machine, with_matrices;
    }
    rhs {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        several_blocks: on_cpu, on_gpu, as_another_machine;
    }
    cholesky {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        not_positive: on_cpu, on_gpu, as_another_machine;
        many_pairs: on_cpu, on_gpu, as_another_machine;
    }
    solve {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        many_pairs: on_cpu, on_gpu, as_another_machine;
    }
    value_fit {
        same_bits_again_and_alone: on_cpu, on_gpu, as_another_machine;
    }
    step {
        ragged_batches: on_cpu, on_gpu;
    }
    slope {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        not_finite: on_cpu, on_gpu, as_another_machine;
    }
    lbfgs_direction {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        no_history: on_cpu, on_gpu, as_another_machine;
        same_bits_alone: on_cpu, on_gpu, as_another_machine;
    }
    lbfgs_push {
        ragged_batches: on_cpu, on_gpu, as_another_machine;
        pairs_of_no_use: on_cpu, on_gpu, as_another_machine;
    }
    copy_pairs {
        ragged_batches: on_cpu, on_gpu;
    }
}
