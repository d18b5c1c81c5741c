//! Numbers drawn at random, any of which can be asked for on its own: the same on every machine.

/// 2⁶⁴ / φ, odd: steps by it visit every number.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A family of numbers; the n-th depends on the seed, the parts named on the way and n alone.
///
/// A counter goes through the finishing step of SplitMix64 (Steele, Lea and Flood, 2014). Only whole numbers, additions and
/// multiplications are used, so no mathematical library can make a difference.
#[derive(Clone, Copy, Debug)]
pub(in crate::cache) struct Stream(u64);

impl Stream {
    pub(in crate::cache) fn new(seed: u64) -> Self {
        Self(mix(seed ^ GOLDEN))
    }

    /// A family of its own for a part of the whole.
    pub(in crate::cache) fn part(self, number: u64) -> Self {
        Self(mix(self.0.rotate_left(17) ^ mix(number.wrapping_add(GOLDEN))))
    }

    fn bits(self, at: u64) -> u64 {
        mix(self.0.wrapping_add(at.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Uniform in [0, 1).
    pub(super) fn uniform(self, at: u64) -> f64 {
        (self.bits(at) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub(super) fn between(self, at: u64, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform(at)
    }

    /// Mean 0, variance 1, nearly normal (never beyond 3.5): the sum of four uniform numbers of 16 bits.
    pub(in crate::cache) fn bell(self, at: u64) -> f32 {
        // √3 / 2¹⁶: four uniform numbers of n values each have together the variance n² / 3.
        const SCALE: f32 = 1.732_050_8 / 65_536.0;
        let bits = self.bits(at);
        let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        // Below 2¹⁸, so exact in f32.
        (sum as f32 - 131_070.0) * SCALE
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bells_have_mean_0_and_variance_1_and_streams_are_not_alike() {
        let count = 40_000_u64;
        let (one, other) = (Stream::new(7), Stream::new(7).part(1));
        let mean_of = |number: &dyn Fn(u64) -> f64| (0..count).map(number).sum::<f64>() / count as f64;
        let bell = |stream: Stream, at| f64::from(stream.bell(at));
        assert!(mean_of(&|at| bell(one, at)).abs() < 0.02);
        assert!((mean_of(&|at| bell(one, at).powi(2)) - 1.0).abs() < 0.03);
        for shifted in [0, 1] {
            let product = mean_of(&|at| bell(one, at) * bell(other, at + shifted));
            assert!(product.abs() < 0.02, "{product}");
        }
        assert!((mean_of(&|at| one.between(at, 2.0, 4.0)) - 3.0).abs() < 0.02);
    }

    /// Whoever changes these changes every file that a seed stands for.
    #[test]
    fn a_seed_means_the_same_numbers_for_good() {
        let stream = Stream::new(1).part(2);
        assert_eq!(stream.bits(3), 11_717_085_409_513_198_660);
    }
}
