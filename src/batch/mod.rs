//! Says which heads go together, and how large every array is before any of it is allocated.

mod deal;
mod schedule;
mod shard;
mod workspace;

pub use deal::deal;
pub(crate) use schedule::need;
pub use schedule::{Budget, schedule};
pub use shard::Shard;
pub(crate) use workspace::layout;
pub use workspace::{Shape, Workspace};
