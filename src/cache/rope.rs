//! Rotary position embedding: turns queries to the positions they are asked at.

use serde::{Deserialize, Serialize};

/// Which channels rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pairing {
    /// Channel i with channel i + rope_dim/2.
    Half,
    /// Channel 2i with channel 2i + 1.
    Interleaved,
}

/// A model's rotary embedding: fixed frequencies over the first `dim` channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Which channels rotate together.
    pub pairing: Pairing,
    /// Angle a position, of each pair of channels (after any scaling); `[rope_dim / 2]`.
    pub frequencies: Vec<f64>,
}

impl Rope {
    /// Turns one row of channels to a position, in place. Angles are computed in f64.
    pub fn rotate(&self, row: &mut [f32], position: f64) {
        let _ = (row, position);
        unimplemented!()
    }
}
