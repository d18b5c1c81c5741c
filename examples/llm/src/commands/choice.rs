//! Which token a model says next.

use anyhow::{Result, ensure};
use candle_core::Tensor;

/// Which token comes next.
#[derive(Clone, Debug)]
pub struct Choice {
    temperature: f64,
    random: fastrand::Rng,
}

impl Choice {
    /// Draws at this temperature, by this seed; at 0 nothing is drawn.
    #[must_use]
    pub fn new(temperature: f64, seed: u64) -> Self {
        Self {
            temperature,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The likeliest of `logits: [1, vocabulary]`; with a temperature T one drawn from `softmax(logits / T)`, as the largest of
    /// `logits / T` plus Gumbel noise.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn next(&mut self, logits: &Tensor) -> Result<u32> {
        let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let mut best = (f64::NEG_INFINITY, 0);
        for (token, &logit) in logits.iter().enumerate() {
            let mut score = f64::from(logit);
            if self.temperature > 0.0 {
                // In (0, 1), both ends out: neither logarithm is of 0.
                let drawn = (self.random.f64() + f64::EPSILON / 4.0).min(1.0 - f64::EPSILON);
                score = score / self.temperature - (-drawn.ln()).ln();
            }
            if score > best.0 {
                best = (score, token);
            }
        }
        ensure!(best.0 > f64::NEG_INFINITY, "the model's logits are not finite");
        Ok(u32::try_from(best.1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn logits() -> Tensor {
        Tensor::new(&[[0.0_f32, 2.0, 1.0]], &Device::Cpu).unwrap()
    }

    #[test]
    fn without_chance_the_likeliest_token_is_taken() {
        assert_eq!(Choice::new(0.0, 1).next(&logits()).unwrap(), 1);
    }

    #[test]
    fn with_chance_tokens_come_as_often_as_their_probability() {
        let mut choice = Choice::new(1.0, 5);
        let mut counts = [0_u32; 3];
        for _ in 0..20_000 {
            counts[choice.next(&logits()).unwrap() as usize] += 1;
        }
        let all: f64 = (0..3).map(|k| f64::from(k).exp()).sum();
        for (count, logit) in counts.iter().zip([0.0, 2.0, 1.0_f64]) {
            let share = f64::from(*count) / 20_000.0;
            assert!((share - logit.exp() / all).abs() < 0.01, "{counts:?}");
        }
    }
}
