//! Keys turned to another frame of positions, and their channels put in another engine's order.

use crate::cache::{Pairing, Rope, reorder};

/// What becomes of the keys of a layer.
#[derive(Debug)]
pub(super) struct Turn {
    /// The rotation and by how many positions, where it is not by none.
    pub(super) rotation: Option<(Rope, f64)>,
    /// The rotating channels and the order they get, where it is another one.
    pub(super) order: Option<(usize, Pairing)>,
}

impl Turn {
    /// Rotates every key of `[rows, dim]` by one angle a channel pair, `R(Δ) k`, then puts its channels in order.
    pub(super) fn apply(&self, keys: &mut [f32], dim: usize) {
        if let Some((rope, shift)) = &self.rotation {
            for key in keys.chunks_exact_mut(dim) {
                rope.rotate(key, *shift);
            }
        }
        if let Some((rotating, pairing)) = self.order {
            let mut moved = vec![0.0; rotating];
            for key in keys.chunks_exact_mut(dim) {
                reorder(&mut key[..rotating], &mut moved, pairing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_channels_are_woven_and_parted() {
        let half = [0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 7.0];
        let mut key = half;
        let order = |pairing| Turn {
            rotation: None,
            order: Some((6, pairing)),
        };
        order(Pairing::Interleaved).apply(&mut key, 7);
        assert_eq!(key, [0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 7.0]);
        order(Pairing::Half).apply(&mut key, 7);
        assert_eq!(key, half);
    }
}
