//! Compressions that are interrupted and go on: nothing that was finished is done again, and the result is that of one without a pause.

#![cfg(feature = "cpu")]
#![allow(
    clippy::unwrap_used,
    reason = "all of this is tests, and one that cannot go on has failed; clippy knows only functions marked as such"
)]

mod ahead;
mod driven;
mod faulty;
mod finished;
mod problem;
mod recovering;
mod several;
