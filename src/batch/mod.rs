//! Says which heads go together, and how large every array is before any of it is allocated.

mod schedule;
mod shard;
mod workspace;

pub(crate) use schedule::need;
pub use schedule::{Budget, schedule};
pub use shard::Shard;
pub(crate) use workspace::layout;
pub use workspace::{Shape, Workspace};
