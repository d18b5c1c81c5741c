//! Whether a model finds something again in its cache.

use anyhow::{Context as _, Result, ensure};

use super::Distributions;
use crate::model::{Cache, Model};
use crate::reading::follow;

/// What became of one question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recall {
    /// Tokens of the answer.
    pub tokens: usize,
    /// How many of them were the likeliest, each after the right ones before it.
    pub top1: usize,
    /// Logarithm of the probability of the whole answer.
    pub log_probability: f64,
}

impl Recall {
    /// From what was expected after each token of [question; answer without its last], in one run.
    ///
    /// # Errors
    /// An empty question or answer, or a run of another length.
    pub fn new(found: &Distributions, question: &[u32], answer: &[u32]) -> Result<Self> {
        ensure!(
            !question.is_empty() && !answer.is_empty(),
            "a question and an answer need a token each"
        );
        let first = question.len() - 1;
        ensure!(
            found.rows() == first + answer.len(),
            "a question of {} tokens and an answer of {} do not go with a run of {}",
            question.len(),
            answer.len(),
            found.rows()
        );
        let wanted = || answer.iter().map(|&token| token as usize).zip(first..);
        Ok(Self {
            tokens: answer.len(),
            top1: wanted().filter(|&(token, row)| found.top()[row] == token).count(),
            log_probability: wanted().map(|(token, row)| found.log_probability(row, token)).sum(),
        })
    }

    /// Whether greedy decoding gives the answer: every token was the likeliest.
    #[must_use]
    pub fn exact(&self) -> bool {
        self.top1 == self.tokens
    }
}

/// Asks a question after the cache, which stays as it is.
///
/// # Errors
/// An empty question or answer, or what candle reports.
pub fn ask(model: &Model, cache: &Cache, question: &[u32], answer: &[u32]) -> Result<Recall> {
    let (_, before) = answer.split_last().context("an answer needs a token")?;
    let found = follow(model, cache, &[question, before].concat(), &mut ())?;
    Recall::new(&found, question, answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// Expects these tokens, one a row, of a vocabulary of 5, at twice the weight of all others together.
    fn expecting(tokens: &[usize]) -> Distributions {
        let logit = |token, wanted| if token == wanted { 8.0_f32.ln() } else { 0.0 };
        let logits: Vec<f32> = tokens
            .iter()
            .flat_map(|&wanted| (0..5).map(move |token| logit(token, wanted)))
            .collect();
        Distributions::new(&Tensor::from_vec(logits, (tokens.len(), 5), &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn what_copies_is_exact() {
        let found = Recall::new(&expecting(&[0, 0, 3, 1, 4]), &[2, 2, 2], &[3, 1, 4]).unwrap();
        assert_eq!((found.tokens, found.top1, found.exact()), (3, 3, true));
        assert!((found.log_probability - 3.0 * (2.0_f64 / 3.0).ln()).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn one_wrong_token_is_not() {
        let found = Recall::new(&expecting(&[0, 0, 3, 0, 4]), &[2, 2, 2], &[3, 1, 4]).unwrap();
        assert_eq!((found.top1, found.exact()), (2, false));
        // The likeliest one row too early or too late helps nothing.
        let shifted = Recall::new(&expecting(&[0, 3, 1, 4, 0]), &[2, 2, 2], &[3, 1, 4]).unwrap();
        assert_eq!(shifted.top1, 0);
    }

    #[test]
    fn runs_of_another_length_are_refused() {
        assert!(Recall::new(&expecting(&[0, 3]), &[2, 2], &[3, 1]).is_err());
        assert!(Recall::new(&expecting(&[0]), &[], &[3]).is_err());
    }
}
