//! The engines under test, and which checks each must pass.

/// The engine of the processor.
#[cfg(feature = "cpu")]
fn cpu() -> kvsculpt::cpu::CpuEngine {
    kvsculpt::cpu::CpuEngine::new()
}

/// The GPU's engine: opened once for the whole binary, so that its kernels are compiled once.
fn gpu() -> std::sync::MutexGuard<'static, kvsculpt::kernels::GpuEngine> {
    use kvsculpt::engine::Engine;
    use kvsculpt::gpu::{Gpu, Selection};
    use kvsculpt::kernels::GpuEngine;
    use std::io::Write as _;
    use std::sync::{Mutex, OnceLock, PoisonError};

    static ENGINE: OnceLock<Result<Mutex<GpuEngine>, String>> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| {
        let engine = Gpu::open(&Selection::default())
            .and_then(GpuEngine::new)
            .map_err(|error| error.to_string())?;
        // Not eprintln!, which the test harness keeps to itself.
        let _ = writeln!(std::io::stderr(), "GPU tests run on {}", engine.name());
        Ok(Mutex::new(engine))
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

checks! {
    attention: with_a_base, without_a_base, hard_inputs, no_pairs, compact_arrays;
    scores: ragged_batches, hard_inputs;
    loss: ragged_batches, rows_that_are_not_finite;
    key_gradient: ragged_batches, hard_inputs;
    evaluate: ragged_batches, hard_inputs, same_bits_again_and_alone;
    weights: ragged_batches, a_later_block, hard_inputs;
    gram: ragged_batches, several_blocks;
    rhs: ragged_batches, several_blocks;
    cholesky: ragged_batches, not_positive;
    solve: ragged_batches;
    value_fit: same_bits_again_and_alone;
    step: ragged_batches;
    slope: ragged_batches, not_finite;
    lbfgs_direction: ragged_batches, no_history;
    lbfgs_push: ragged_batches, pairs_of_no_use;
    copy_pairs: ragged_batches;
}
