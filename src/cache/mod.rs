//! What comes in and what goes out: captures, compressed caches.
//!
//! Both are safetensors files. Reading distrusts them: sizes are checked before anything is allocated, and every
//! refusal names the file, the tensor and what to do. A capture can be [made in memory](Capture::from_layers) too, and is
//! then held to the same checks.

mod capture;
mod compressed;
mod container;
mod file;
mod generate;
mod layout;
mod memory;
mod output;
mod part;
mod queries;
mod rope;
mod source;

pub use capture::{Capture, Layer, Queries};
pub use compressed::{Compressed, CompressedHead, CompressedLayer};
pub use file::CacheFile;
pub use generate::Generator;
pub use layout::LayerShape;
pub use memory::Context;
pub use output::write_whole;
pub use part::{Part, merge};
pub use queries::{QuerySource, QueryStatistics, gather};
pub use rope::{Pairing, Rope};

pub(crate) use container::{Container, shown};
#[cfg(feature = "journal")]
pub(crate) use output::unwritable;
pub(crate) use output::{Entry, Output, header};
pub(crate) use part::{About, share};
pub(crate) use rope::reorder;
pub(crate) use source::{CHUNK, Source, hexadecimal, unreadable};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// How a tensor's elements are stored in a file.
///
/// ```
/// use kvsculpt::cache::Dtype;
///
/// // As files say it.
/// assert_eq!(serde_json::to_string(&Dtype::Bf16).ok().as_deref(), Some("\"bf16\""));
/// ```
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
    ///
    /// ```
    /// use kvsculpt::cache::Dtype;
    ///
    /// let numbers = 2 * 100 * 64; // keys and values of 100 pairs
    /// assert_eq!((numbers * Dtype::F32.bytes(), numbers * Dtype::F16.bytes()), (51_200, 25_600));
    /// ```
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Appends stored elements, widened to f32; bytes that make no whole element are left out.
    pub(crate) fn widen(self, bytes: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F32 => values.extend(bytes.as_chunks().0.iter().map(|&element| f32::from_le_bytes(element))),
            Self::F16 => values.extend(bytes.as_chunks().0.iter().map(|&element| f16::from_le_bytes(element).to_f32())),
            Self::Bf16 => values.extend(bytes.as_chunks().0.iter().map(|&element| bf16::from_le_bytes(element).to_f32())),
        }
    }

    /// The container's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}
