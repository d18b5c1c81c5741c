//! Every operation of every engine against the f64 reference: one module an operation, each check written once, for any
//! engine. `engines.rs` names the engines and lists the checks.
//!
//! Outputs are full of NaN before an operation, so that what it leaves out shows, and heads that are not in the table
//! must still be NaN after it. An error is measured against a bound with its reason: a few times the f32 ε, times the
//! scale of what is summed, times the square root of how many terms are.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unreachable_pub, reason = "a test binary has no public surface")]

mod attention;
mod batch;
mod cholesky;
mod compare;
mod copy_pairs;
mod effects;
mod engines;
mod evaluate;
mod gpu_engine;
mod gram;
mod key_gradient;
mod lbfgs_direction;
mod lbfgs_push;
mod loss;
mod problem;
mod rhs;
mod scores;
mod slope;
mod solve;
mod step;
mod value_fit;
mod weights;
