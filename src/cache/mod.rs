//! What comes in and what goes out: captures, compressed caches.

mod capture;
mod compressed;
mod rope;

pub use capture::{Capture, Layer, Queries};
pub use compressed::{Compressed, CompressedLayer};
pub use rope::{Pairing, Rope};

use serde::{Deserialize, Serialize};

/// How a tensor's elements are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}
