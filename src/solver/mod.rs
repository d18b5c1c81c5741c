//! Says in what order: teacher, seed, values ⇄ keys, line search, stop. Names no wgpu.

use serde::{Deserialize, Serialize};

/// Why a head's key optimisation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Stop {
    /// The method does not optimise keys.
    NotOptimised,
    /// Every step that was asked for was taken.
    OutOfSteps,
    /// The gradient vanished.
    Converged,
    /// No step lowered the loss any more.
    Flat,
    /// No better on the validation rows for several refits.
    NoBetter,
    /// A value that is not finite turned up; the last good iterate is returned.
    NotFinite,
}

/// Errors over a set of rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// `Σ‖ŷ − y‖² / Σ‖y‖²`.
    pub output: f64,
    /// Root mean square of `l̂ − l`.
    pub mass: f64,
    /// The error that counts: `Σ‖m̂ − m‖² / Σ‖m‖²`, where m merges the context with a block of new tokens that holds as
    /// much mass as the context has on average (see [`merged`](crate::reference::merged)).
    pub merged: f64,
}

/// One candidate's errors: on the rows it was fitted to and on the capture's probe queries, where it has some.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The training loss `(Σ‖ŷ − y‖² + λ Σ(l̂ − l)²) / rows`.
    pub loss: f64,
    /// On training rows.
    pub training: Errors,
    /// On probe rows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probe: Option<Errors>,
}

/// What became of one head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outcome {
    /// Layer.
    pub layer: usize,
    /// KV head.
    pub head: usize,
    /// Pairs in the cache.
    pub tokens: usize,
    /// Pairs stored.
    pub kept: usize,
    /// Free pairs among them.
    pub free: usize,
    /// What is returned.
    pub result: Judged,
    /// The seed's pairs as they are, at the same length.
    pub select: Judged,
    /// The seed's keys with solved values, at the same length; absent where the method is `random` or `select`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub select_fit: Option<Judged>,
    /// L-BFGS iterations.
    pub iterations: u32,
    /// Evaluations of loss and gradient.
    pub evaluations: u32,
    /// Why key optimisation ended.
    pub stop: Stop,
}

/// Follows a compression and may end it.
pub trait Observer {
    /// Called as work proceeds: heads finished, heads in all, and how far all are, in [0, 1]. `false` asks to stop.
    fn progress(&mut self, finished: usize, heads: usize, fraction: f64) -> bool {
        let _ = (finished, heads, fraction);
        true
    }
}

/// Watches nothing and never stops.
impl Observer for () {}
