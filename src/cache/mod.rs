//! What comes in and what goes out: captures, compressed caches.
//!
//! Both are safetensors files. Reading distrusts them: sizes are checked before anything is allocated, and every
//! refusal names the file, the tensor and what to do. A capture can be [made in memory](Capture::from_layers) too, and is
//! then held to the same checks.

mod capture;
mod compressed;
mod container;
mod generate;
mod layout;
mod memory;
mod output;
mod rope;
mod source;

pub use capture::{Capture, Layer, Queries};
pub use compressed::{Compressed, CompressedHead, CompressedLayer};
pub use generate::Generator;
pub use layout::LayerShape;
pub use memory::Context;
pub use rope::{Pairing, Rope};

pub(crate) use output::Output;
pub(crate) use source::unreadable;

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

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The container's name for it.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}
