//! How far what a model says with the short cache is from what it says with the full one.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Tokens whose share of the whole divergence is reported.
const WORST: usize = 5;

/// The next-token distributions of a run of tokens.
#[derive(Clone, Debug)]
pub struct Distributions {
    vocabulary: usize,
    /// Logits, `[rows, vocabulary]`.
    logits: Vec<f32>,
    /// Of each row, `log Σ exp(logit)`.
    normaliser: Vec<f64>,
    /// Of each row, the likeliest token.
    top: Vec<usize>,
}

impl Distributions {
    /// From logits `[rows, vocabulary]`.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn new(logits: &Tensor) -> Result<Self> {
        let (rows, vocabulary) = logits.dims2()?;
        let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let (mut normaliser, mut top) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for row in logits.chunks_exact(vocabulary) {
            let mut best = 0;
            for (token, &logit) in row.iter().enumerate() {
                ensure!(logit.is_finite(), "the model's logits are not finite");
                if logit > row[best] {
                    best = token;
                }
            }
            let largest = f64::from(row[best]);
            let sum: f64 = row.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
            normaliser.push(largest + sum.ln());
            top.push(best);
        }
        Ok(Self {
            vocabulary,
            logits,
            normaliser,
            top,
        })
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.top.len()
    }

    /// Of each row, the likeliest token; the first of equals.
    #[must_use]
    pub fn top(&self) -> &[usize] {
        &self.top
    }

    /// The logarithm of the probability of `token` in a row.
    ///
    /// # Panics
    /// If there is no such row or token.
    #[must_use]
    pub fn log_probability(&self, row: usize, token: usize) -> f64 {
        assert!(token < self.vocabulary, "token {token} of {}", self.vocabulary);
        f64::from(self.logits[row * self.vocabulary + token]) - self.normaliser[row]
    }

    /// `Σ_t p(t) (log p(t) − log p̂(t))` of one row, in nats; p is this, p̂ the other.
    fn divergence(&self, row: usize, other: &Self) -> f64 {
        let of = |distributions: &Self| row * distributions.vocabulary..(row + 1) * distributions.vocabulary;
        let shift = other.normaliser[row] - self.normaliser[row];
        let pairs = self.logits[of(self)].iter().zip(&other.logits[of(other)]);
        pairs
            .map(|(&p, &q)| {
                let (p, q) = (f64::from(p), f64::from(q));
                (p - self.normaliser[row]).exp() * (p - q + shift)
            })
            .sum()
    }

    /// `exp` of the mean surprise at `targets[row]`, the token that really came after each row; rows without one are left out.
    #[must_use]
    pub fn perplexity(&self, targets: &[u32]) -> f64 {
        let surprises = targets
            .iter()
            .zip(0..self.rows())
            .map(|(&token, row)| -self.log_probability(row, token as usize));
        (surprises.sum::<f64>() / targets.len().min(self.rows()).max(1) as f64).exp()
    }
}

/// KL(full ‖ short) over a run of tokens, in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Mean over tokens: the figure that counts.
    pub mean: f64,
    /// Median over tokens.
    pub median: f64,
    /// Share of the sum that the five worst tokens hold, in [0, 1].
    pub worst_share: f64,
    /// Share of tokens whose likeliest successor is the same, in [0, 1].
    pub top1: f64,
    /// Perplexity of the text with the full cache.
    pub perplexity_full: f64,
    /// Perplexity of the text with the short cache.
    pub perplexity_short: f64,
    /// Each token's divergence, in the order of the text; none in rows of which only the figures above were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<f64>,
}

impl Divergence {
    /// Compares two runs over the same tokens; `targets` are the tokens that followed each.
    ///
    /// # Errors
    /// Runs of different length or vocabulary, or of no tokens.
    pub fn new(full: &Distributions, short: &Distributions, targets: &[u32]) -> Result<Self> {
        ensure!(
            full.rows() == short.rows() && full.vocabulary == short.vocabulary && full.rows() > 0,
            "two runs of {} and {} tokens cannot be compared",
            full.rows(),
            short.rows()
        );
        let rows = full.rows();
        let tokens: Vec<f64> = (0..rows).map(|row| full.divergence(row, short)).collect();
        let mut sorted = tokens.clone();
        sorted.sort_by(f64::total_cmp);
        let sum: f64 = tokens.iter().sum();
        let worst: f64 = sorted.iter().rev().take(WORST).sum();
        let agreed = full.top.iter().zip(&short.top).filter(|(a, b)| a == b).count();
        Ok(Self {
            mean: sum / rows as f64,
            median: f64::midpoint(sorted[(rows - 1) / 2], sorted[rows / 2]),
            worst_share: if sum > 0.0 { worst / sum } else { 0.0 },
            top1: agreed as f64 / rows as f64,
            perplexity_full: full.perplexity(targets),
            perplexity_short: short.perplexity(targets),
            tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn distributions(rows: &[[f32; 3]]) -> Distributions {
        let logits = rows.concat();
        Distributions::new(&Tensor::from_vec(logits, (rows.len(), 3), &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn equal_runs_do_not_diverge_whatever_is_added_to_all_logits() {
        let full = distributions(&[[1.0, 2.0, 3.0], [0.0, -5.0, 80.0]]);
        let shifted = distributions(&[[11.0, 12.0, 13.0], [-100.0, -105.0, -20.0]]);
        let found = Divergence::new(&full, &shifted, &[2, 2]).unwrap();
        assert!(found.mean.abs() < 1e-12, "{}", found.mean);
        assert_eq!((found.top1, found.worst_share.is_nan()), (1.0, false));
    }

    #[test]
    fn by_hand() {
        let ln = |p: f32| p.ln();
        let full = distributions(&[[ln(0.5), ln(0.25), ln(0.25)]]);
        let short = distributions(&[[ln(0.25), ln(0.5), ln(0.25)]]);
        let found = Divergence::new(&full, &short, &[0]).unwrap();
        // 0.5 ln 2 − 0.25 ln 2
        assert!((found.mean - 0.25 * 2.0_f64.ln()).abs() < 1e-7, "{}", found.mean);
        assert_eq!(found.top1, 0.0);
        assert!((found.perplexity_full - 2.0).abs() < 1e-6);
        assert!((found.perplexity_short - 4.0).abs() < 1e-6);
        assert_eq!(found.worst_share, 1.0);
    }

    #[test]
    fn the_median_and_the_worst_five_are_of_tokens() {
        let full: Vec<[f32; 3]> = vec![[0.0, 0.0, 0.0]; 20];
        let short: Vec<[f32; 3]> = (0..20).map(|row| if row == 7 { [9.0, 0.0, 0.0] } else { [0.0; 3] }).collect();
        let found = Divergence::new(&distributions(&full), &distributions(&short), &[0; 20]).unwrap();
        assert_eq!(found.median, 0.0);
        assert!((found.worst_share - 1.0).abs() < 1e-12);
        assert!((found.tokens[7] - found.mean * 20.0).abs() < 1e-12);
    }

    #[test]
    fn different_lengths_are_refused() {
        assert!(Divergence::new(&distributions(&[[0.0; 3]]), &distributions(&[[0.0; 3]; 2]), &[]).is_err());
    }
}
