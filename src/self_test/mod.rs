//! Every operation of an engine against the f64 reference, on a small batch: whether a machine and its driver compute what they
//! should. The tests of this crate ask more, with a model of every error; this is for a user's machine, in about a second.

mod attend;
mod steps;
mod trial;
mod values;

use std::time::Instant;

use serde::Serialize;

use crate::engine::{Dims, Engine};
use crate::error::Result;
use trial::Trial;

/// The largest error that passes, as the norm of the difference over the norm of what is right. A correct operation in single
/// precision is near 1e-6 here, a wrong one is off by the size of the numbers themselves.
pub const ALLOWED: f64 = 1e-4;

/// What became of one operation.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{cpu::CpuEngine, engine::Dims, self_test::{ALLOWED, self_test}};
///
/// for check in self_test(&mut CpuEngine::new(), Dims { dim: 4, value_dim: 8 }) {
///     println!("{}: {:?}", check.operation, check.error);
///     assert!(check.dims == (4, 8) && check.error.is_some_and(|error| error < ALLOWED));
/// }
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// The operation, as [`Engine`] calls it.
    pub operation: &'static str,
    /// Channels of keys and of values it was tried with.
    pub dims: (u32, u32),
    /// The largest error of its outputs; `None` where it did not run to its end or gave what is not a number.
    pub error: Option<f64>,
    /// Why it did not run to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Seconds, compiling counted in.
    pub seconds: f64,
}

impl Check {
    /// Whether the operation gave what it should.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// use kvsculpt::{cpu::CpuEngine, engine::Dims, self_test::self_test};
    ///
    /// let checks = self_test(&mut CpuEngine::new(), Dims { dim: 4, value_dim: 4 });
    /// let wrong: Vec<_> = checks.iter().filter(|check| !check.passed()).map(|check| check.operation).collect();
    /// assert!(wrong.is_empty(), "{wrong:?}");
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn passed(&self) -> bool {
        self.error.is_some_and(|error| error <= ALLOWED)
    }
}

/// Tries an operation and gives the largest error of its outputs.
type Attempt<E> = fn(&mut E, &Trial) -> Result<f64>;

/// Tries every operation with these channels, on three heads of different sizes.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use kvsculpt::{cpu::CpuEngine, engine::Dims, self_test::self_test};
///
/// let checks = self_test(&mut CpuEngine::new(), Dims { dim: 16, value_dim: 16 });
/// assert!(checks.iter().all(|check| check.passed()));
/// # }
/// ```
pub fn self_test<E: Engine>(engine: &mut E, dims: Dims) -> Vec<Check> {
    let trial = Trial::new(dims);
    let attempts: [(&'static str, Attempt<E>); 18] = [
        ("attention", attend::attention),
        ("attention, compact", attend::compact_attention),
        ("scores", attend::scores),
        ("effects", attend::effects),
        ("loss", attend::loss),
        ("key_gradient", attend::key_gradient),
        ("evaluate", attend::evaluate),
        ("weights", values::weights),
        ("gram", values::gram),
        ("rhs", values::rhs),
        ("cholesky", values::cholesky),
        ("solve", values::solve),
        ("value fit", values::fit),
        ("copy_pairs", steps::copy_pairs),
        ("step", steps::step),
        ("slope", steps::slope),
        ("lbfgs_direction", steps::lbfgs_direction),
        ("lbfgs_push", steps::lbfgs_push),
    ];
    let check = |(operation, attempt): (&'static str, Attempt<E>)| {
        let started = Instant::now();
        let found = attempt(engine, &trial);
        Check {
            operation,
            dims: (dims.dim, dims.value_dim),
            error: found.as_ref().ok().copied().filter(|error| error.is_finite()),
            failure: found.err().map(|error| error.to_string()),
            seconds: started.elapsed().as_secs_f64(),
        }
    };
    attempts.map(check).into()
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use crate::cpu::CpuEngine;

    #[test]
    fn the_cpu_engine_passes() {
        for dims in [(64, 64), (96, 32)] {
            let (dim, value_dim) = dims;
            for check in self_test(&mut CpuEngine::new(), Dims { dim, value_dim }) {
                assert!(check.passed(), "{check:?}");
                assert!(check.error.unwrap() < ALLOWED / 5.0, "{check:?}");
            }
        }
    }

    /// One number off by a thousandth of the whole is found, and so is one that is none.
    #[test]
    fn what_is_wrong_does_not_pass() {
        let check = |error: Option<f64>| Check {
            operation: "any",
            dims: (4, 4),
            error,
            failure: None,
            seconds: 0.0,
        };
        let right = [3.0, 4.0, 0.0];
        let error_of = |wrong: [f32; 3]| trial::distance(&wrong, &right);
        assert!(check(Some(error_of([3.0, 4.0, 1e-6]))).passed());
        assert!(!check(Some(error_of([3.0, 4.0, 5e-3]))).passed());
        assert!(!error_of([3.0, 4.0, f32::NAN]).is_finite());
        assert!(!check(None).passed());
    }
}
