//! Rotary position embedding: turns queries to the positions they are asked at.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Which channels rotate together.
///
/// ```
/// use kvsculpt::cache::{Pairing, Rope};
///
/// // A quarter turn of the first of two channel pairs: of channels 0 and 2, or of 0 and 1.
/// for (pairing, right) in [(Pairing::Half, 2), (Pairing::Interleaved, 1)] {
///     let rope = Rope::new(10_000.0, 4, pairing, None)?;
///     let mut row = [1.0, 0.0, 0.0, 0.0];
///     rope.rotate(&mut row, std::f64::consts::FRAC_PI_2);
///     assert!((row[right] - 1.0).abs() < 1e-6);
/// }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pairing {
    /// Channel i with channel i + rope_dim/2.
    Half,
    /// Channel 2i with channel 2i + 1.
    Interleaved,
}

/// A model's rotary embedding: fixed frequencies over the first `dim` channels.
///
/// ```
/// use kvsculpt::cache::{Pairing, Rope};
///
/// let rope = Rope::new(10_000.0, 4, Pairing::Half, Some(r#"{"rope_type": "linear", "factor": 2.0}"#))?;
/// assert_eq!((rope.dim(), rope.frequencies[0], rope.frequencies[1]), (4, 0.5, 0.005));
/// let mut row = [1.0, 2.0, 3.0, 4.0, 5.0];
/// rope.rotate(&mut row, 7.0);
/// rope.rotate(&mut row, -7.0);
/// // Back where it was; the fifth channel never turned.
/// assert!(row.iter().zip([1.0, 2.0, 3.0, 4.0, 5.0]).all(|(found, right)| (found - right).abs() < 1e-5));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Which channels rotate together.
    pub pairing: Pairing,
    /// Angle a position, of each pair of channels (after any scaling); `[rope_dim / 2]`.
    pub frequencies: Vec<f64>,
    /// Why queries cannot be rotated here, where the model's scaling is not one of those known. Such a capture
    /// opens only if every layer brings its `reference_query`.
    pub unsupported: Option<String>,
}

impl Rope {
    /// `θ^(−2i / dim)` for i in 0..dim/2, then the scaling, a JSON object as in a model's configuration
    /// (`rope_type` or `type`: `default`, `linear`, `llama3`), or
    /// `{"rope_type": "factors", "factors": […]}`: dim/2 numbers by which the frequencies are divided, as the tensor
    /// `rope_freqs.weight` of GGUF files gives them.
    ///
    /// A scaling of another kind is not an error yet: see [`unsupported`](Self::unsupported).
    ///
    /// # Errors
    /// [`Error::Shape`] where `theta` is not positive and finite, `dim` is zero or odd, or a known scaling lacks
    /// a number or has one that is not positive.
    pub fn new(theta: f64, dim: usize, pairing: Pairing, scaling: Option<&str>) -> Result<Self> {
        Self::build(theta, dim, pairing, scaling).map_err(|reason| Error::shape("rope", reason))
    }

    /// As [`new`](Self::new), the error in words that name the metadata.
    pub(super) fn build(theta: f64, dim: usize, pairing: Pairing, scaling: Option<&str>) -> Result<Self, String> {
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("rope_theta is {theta}; it must be a positive number"));
        }
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(format!("rope_dim is {dim}; it must be even and at least 2"));
        }
        let mut rope = Self {
            pairing,
            frequencies: (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect(),
            unsupported: None,
        };
        if let Some(text) = scaling {
            let value = serde_json::from_str(text)
                .map_err(|error| format!("rope_scaling is not JSON ({error}); write it as in the model's configuration"))?;
            match value {
                Value::Null => {}
                Value::Object(object) => rope.scale(&object)?,
                _ => return Err("rope_scaling is not a JSON object; write it as in the model's configuration".to_owned()),
            }
        }
        if let Some(frequency) = rope.frequencies.iter().find(|frequency| !frequency.is_finite()) {
            return Err(format!(
                "rope_theta {theta} gives a frequency of {frequency}; check rope_theta and rope_scaling"
            ));
        }
        Ok(rope)
    }

    fn scale(&mut self, object: &Map<String, Value>) -> Result<(), String> {
        let kind = match object.get("rope_type").or_else(|| object.get("type")) {
            Some(Value::String(kind)) => kind.as_str(),
            _ => return Err("rope_scaling has no text `rope_type`; write it as in the model's configuration".to_owned()),
        };
        if object.contains_key("mrope_section") {
            self.unsupported = Some("rope_scaling with `mrope_section` (several positions a token)".to_owned());
            return Ok(());
        }
        match kind {
            "default" => {}
            "linear" => {
                let factor = number(object, "factor")?;
                for frequency in &mut self.frequencies {
                    *frequency /= factor;
                }
            }
            "llama3" => self.scale_by_wavelength(object)?,
            "factors" => self.scale_one_by_one(object)?,
            other => self.unsupported = Some(format!("rope_scaling of type `{}`", super::container::shown(other))),
        }
        Ok(())
    }

    /// Llama 3's scaling: waves longer than the original context are slowed by `factor`, short ones left, and
    /// those between blended by how many turns they make in it.
    fn scale_by_wavelength(&mut self, object: &Map<String, Value>) -> Result<(), String> {
        let factor = number(object, "factor")?;
        let low = number(object, "low_freq_factor")?;
        let high = number(object, "high_freq_factor")?;
        let context = number(object, "original_max_position_embeddings")?;
        if high <= low {
            return Err(format!(
                "rope_scaling has high_freq_factor {high}, which must be larger than low_freq_factor {low}"
            ));
        }
        for frequency in &mut self.frequencies {
            let turns = context * *frequency / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            *frequency *= kept + (1.0 - kept) / factor;
        }
        Ok(())
    }

    /// Each frequency divided by its own factor.
    fn scale_one_by_one(&mut self, object: &Map<String, Value>) -> Result<(), String> {
        let pairs = self.frequencies.len();
        let Some(Value::Array(factors)) = object.get("factors") else {
            return Err(format!(
                "rope_scaling lacks the list `factors`; write {pairs} numbers, one for each two channels"
            ));
        };
        if factors.len() != pairs {
            return Err(format!(
                "rope_scaling has {} `factors`; write {pairs}, one for each two of the {} channels that rotate",
                factors.len(),
                2 * pairs
            ));
        }
        for (i, (frequency, factor)) in self.frequencies.iter_mut().zip(factors).enumerate() {
            match factor.as_f64() {
                Some(factor) if factor.is_finite() && factor > 0.0 => *frequency /= factor,
                _ => {
                    return Err(format!(
                        "rope_scaling has {factor} as number {i} of `factors`; it must be a positive number"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Channels that rotate: the first so many of a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Turns one row of channels to a position, in place. Angles are computed in f64; channels from
    /// [`dim`](Self::dim) on stay as they are. Where the embedding is [`unsupported`](Self::unsupported) the row
    /// becomes NaN: never a wrong number.
    ///
    /// # Panics
    /// If the row has fewer channels than [`dim`](Self::dim).
    pub fn rotate(&self, row: &mut [f32], position: f64) {
        if self.unsupported.is_some() {
            row.fill(f32::NAN);
            return;
        }
        let half = self.frequencies.len();
        assert!(
            row.len() >= 2 * half,
            "a row of {} channels, of which {} rotate",
            row.len(),
            2 * half
        );
        for (i, frequency) in self.frequencies.iter().enumerate() {
            let (sine, cosine) = (frequency * position).sin_cos();
            let (a, b) = match self.pairing {
                Pairing::Half => (i, i + half),
                Pairing::Interleaved => (2 * i, 2 * i + 1),
            };
            let (x, y) = (f64::from(row[a]), f64::from(row[b]));
            #[allow(clippy::cast_possible_truncation, reason = "computed in f64, kept in f32")]
            {
                row[a] = (x * cosine - y * sine) as f32;
                row[b] = (y * cosine + x * sine) as f32;
            }
        }
    }
}

/// Puts a row's rotating channels in another order, with room for as many: half to interleaved, `moved[2j + i] = key[i · half + j]`, or back.
pub(crate) fn reorder(key: &mut [f32], moved: &mut [f32], to: Pairing) {
    let half = key.len() / 2;
    for j in 0..half {
        for i in 0..2 {
            let (split, woven) = (i * half + j, 2 * j + i);
            match to {
                Pairing::Interleaved => moved[woven] = key[split],
                Pairing::Half => moved[split] = key[woven],
            }
        }
    }
    key.copy_from_slice(moved);
}

/// A positive number of the scaling.
fn number(object: &Map<String, Value>, key: &str) -> Result<f64, String> {
    match object.get(key).and_then(Value::as_f64) {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        Some(value) => Err(format!("rope_scaling has `{key}` {value}; it must be a positive number")),
        None => Err(format!(
            "rope_scaling lacks the number `{key}`; write it as in the model's configuration"
        )),
    }
}
