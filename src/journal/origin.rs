//! What a journal's heads belong to.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::batch::Shard;
use crate::cache::{Capture, hexadecimal};
use crate::options::Target;
use crate::solver::Request;
use crate::{Error, Result};

/// What a journal's heads were made of and by: another origin may give other bytes.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{journal::Origin, solver::Request};
///
/// let request = Request::default();
/// let origin = Origin::new(&capture, &request, "the CPU engine")?;
/// // Memory changes no byte of the result, so it is no part of the origin.
/// let less = Request { memory: Some(1 << 28), ..request };
/// assert_eq!(Origin::new(&capture, &less, "the CPU engine")?, origin);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The release of this crate.
    pub(super) tool: String,
    /// The capture's digest.
    pub(super) source: String,
    /// Engine and adapter in words.
    pub(super) machine: String,
    /// The options, as JSON.
    pub(super) options: String,
    /// The rest that decides the result: layers, dtype, budgets and weights of the request, and what the capture says of itself.
    pub(super) rest: String,
    /// Which part of the heads, where it is not all.
    #[serde(default)]
    pub(super) shard: Option<String>,
}

impl Origin {
    /// What a compression of this capture is of. Memory is not part of it: it changes no byte.
    ///
    /// ```
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// use kvsculpt::{journal::Origin, solver::Request};
    ///
    /// let (default, mut shorter) = (Request::default(), Request::default());
    /// shorter.options.keep = 0.2;
    /// assert_ne!(Origin::new(&capture, &default, "a GPU")?, Origin::new(&capture, &shorter, "a GPU")?);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// A capture that cannot be read.
    pub fn new(capture: &Capture, request: &Request, machine: &str) -> Result<Self> {
        let options = serde_json::to_string(&request.options)
            .map_err(|error| Error::file(&capture.path, format!("options cannot be written down: {error}")))?;
        // Lengths depend on what is written only where its bytes count.
        let written_as = request
            .written_as
            .filter(|_| matches!(request.options.target, Some(Target::Bytes(_))));
        // The metadata say how a capture's numbers are to be understood, and which queries stand in for its own.
        let rest = format!(
            "{:?}",
            (
                &request.layers,
                request.dtype,
                written_as,
                &request.budgets,
                &request.weights,
                &capture.metadata
            )
        );
        Ok(Self {
            tool: env!("CARGO_PKG_VERSION").into(),
            source: capture.digest()?,
            machine: machine.into(),
            options,
            rest: hexadecimal(&Sha256::digest(rest)),
            shard: None,
        })
    }

    /// The same, of these heads alone.
    ///
    /// ```
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// use kvsculpt::{batch::Shard, journal::Origin, solver::Request};
    ///
    /// let whole = Origin::new(&capture, &Request::default(), "a GPU")?;
    /// assert_ne!(whole.clone().of_shard(Shard::new(0, 2)?), whole);
    /// assert_eq!(whole.clone().of_shard(Shard::WHOLE), whole);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn of_shard(self, shard: Shard) -> Self {
        Self {
            shard: (shard != Shard::WHOLE).then(|| shard.to_string()),
            ..self
        }
    }

    /// What differs, for a sentence that begins with "of".
    pub(super) fn difference(&self, wanted: &Self) -> Option<String> {
        if self.tool != wanted.tool {
            Some(format!("version {} of kvsculpt, and this is {}", self.tool, wanted.tool))
        } else if self.source != wanted.source {
            Some("another capture".into())
        } else if self.machine != wanted.machine {
            Some(format!("another machine ({}), and this is {}", self.machine, wanted.machine))
        } else if self.options != wanted.options {
            Some(format!("other options ({})", differing(&self.options, &wanted.options)))
        } else if self.rest != wanted.rest {
            Some("other layers, another dtype or format, other queries or facts about the capture, or other files of budgets or sensitivities".into())
        } else if self.shard != wanted.shard {
            let part = |of: &Self| {
                of.shard
                    .as_ref()
                    .map_or("all heads".to_owned(), |shard| format!("the heads of part {shard}"))
            };
            Some(format!("{}, and these are {}", part(self), part(wanted)))
        } else {
            None
        }
    }
}

/// The names of the options that differ.
fn differing(one: &str, other: &str) -> String {
    let read = |text: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).unwrap_or_default();
    let (one, other) = (read(one), read(other));
    let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
    let names: Vec<&str> = names
        .filter(|name| one.get(*name) != other.get(*name))
        .map(String::as_str)
        .collect();
    names.join(", ")
}
