//! Facts planted in a text: what is to be found again in a short cache.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use fastrand::Rng;

use crate::text::Tokenizer;

/// How far on from where something should be planted the end of a sentence is looked for, in tokens.
const SEARCH: usize = 64;
/// Digits of a needle's number.
const DIGITS: Range<u32> = 10_000..100_000;
/// Beginnings and endings of made-up names: no text knows them, so that nothing but the needle answers.
const BEGINNINGS: [&str; 12] = ["Mar", "Bel", "Tor", "Hal", "Quin", "Ster", "Dun", "Os", "Pem", "Carl", "Wex", "Lin"];
const ENDINGS: [&str; 8] = ["low", "wick", "den", "more", "stone", "by", "field", "mere"];
const PLACES: [&str; 8] = [
    "lighthouse",
    "observatory",
    "granary",
    "archive",
    "boathouse",
    "quarry",
    "foundry",
    "chapel",
];

/// A sentence with a number in it, `The access code of the Marlow lighthouse is 48213.`, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needle {
    /// The whole sentence.
    pub tokens: Vec<u32>,
    /// Which of them are the number; those before are the question.
    pub answer: Range<usize>,
}

impl Needle {
    /// From the tokens of a sentence that says `number` and no other digit.
    ///
    /// # Errors
    /// A tokenizer that puts a part of the number and something else into one token.
    pub fn new(tokenizer: &Tokenizer, sentence: &str, number: u32) -> Result<Self> {
        let tokens = tokenizer.encode(sentence)?;
        let number = number.to_string();
        let until = |end: usize| tokenizer.decode(&tokens[..end]);
        let mut answer = None;
        for end in 1..=tokens.len() {
            let read = until(end)?;
            if answer.is_none() && read.contains(|letter: char| letter.is_ascii_digit()) {
                answer = Some(end - 1);
            }
            let Some(start) = answer else { continue };
            let before = spaced(&until(start)?);
            let rest = sentence.strip_prefix(&before).and_then(|rest| rest.strip_prefix(&number));
            let whole = rest.is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_ascii_digit()));
            if whole && tokenizer.decode(&tokens[start..end])?.trim_start() == number {
                return Ok(Self {
                    tokens,
                    answer: start..end,
                });
            }
        }
        bail!("this model's tokenizer does not cut {sentence:?} before and after its number");
    }

    /// What is asked: the sentence up to its number.
    #[must_use]
    pub fn question(&self) -> &[u32] {
        &self.tokens[..self.answer.start]
    }

    /// What should come.
    #[must_use]
    pub fn number(&self) -> &[u32] {
        &self.tokens[self.answer.clone()]
    }
}

/// A text with exactly one blank at its end: whether the blank belongs to the word before or to the number is the tokenizer's affair.
fn spaced(text: &str) -> String {
    format!("{} ", text.trim_end())
}

/// So many needles, each with a place and a number of its own, the same for the same seed.
///
/// # Errors
/// More than there are names, or as [`Needle::new`].
pub fn needles(tokenizer: &Tokenizer, count: usize, random: &mut Rng) -> Result<Vec<Needle>> {
    let mut names: Vec<String> = BEGINNINGS
        .iter()
        .flat_map(|begin| ENDINGS.map(|end| format!("{begin}{end}")))
        .collect();
    ensure!(
        count <= names.len(),
        "there are names for {} needles in a passage, and {count} are asked for",
        names.len()
    );
    random.shuffle(&mut names);
    let mut numbers: Vec<u32> = Vec::with_capacity(count);
    while numbers.len() < count {
        let number = random.u32(DIGITS);
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    let needle = |(name, &number): (&String, &u32)| {
        let place = PLACES[random.usize(..PLACES.len())];
        Needle::new(tokenizer, &format!(" The access code of the {name} {place} is {number}."), number)
    };
    names.iter().zip(&numbers).map(needle).collect()
}

/// Whether a sentence may end with this token.
///
/// # Errors
/// A token the tokenizer does not know.
pub fn ends_sentence(tokenizer: &Tokenizer, token: u32) -> Result<bool> {
    let text = tokenizer.decode(&[token])?;
    let bare = text.trim_end().trim_end_matches(['"', '”', '’', '\'', ')', '_']);
    Ok(text.contains('\n') || bare.ends_with(['.', '!', '?']))
}

/// A context with needles in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planted {
    /// The context.
    pub tokens: Vec<u32>,
    /// Where each needle is.
    pub places: Vec<Range<usize>>,
    /// Of each token, whether a sentence may end with it.
    ends: Vec<bool>,
}

impl Planted {
    /// The beginning of `text` with `needles` spliced in, `count` tokens in all. Each comes with its depth in [0, 1], in ascending
    /// order, and is planted at the end of the first sentence from there on, at most 64 tokens later; of several at one depth each
    /// has a sentence's end of its own where there are enough. Nothing is planted before the first token.
    ///
    /// # Errors
    /// A text that is too short, needles that do not fit, or depths out of order.
    pub fn new(text: &[u32], ends: impl Fn(u32) -> Result<bool>, needles: &[(f64, &[u32])], count: usize) -> Result<Self> {
        let added: usize = needles.iter().map(|(_, needle)| needle.len()).sum();
        ensure!(
            2 * added <= count,
            "{added} tokens are planted in {count}; give fewer --needles or more --tokens, so that they are at most half"
        );
        ensure!(
            text.len() >= count - added,
            "the text has {} tokens, and {} are needed",
            text.len(),
            count - added
        );
        ensure!(needles.windows(2).all(|pair| pair[0].0 <= pair[1].0), "depths must ascend");
        let text = &text[..count - added];
        let text_ends = text.iter().map(|&token| ends(token)).collect::<Result<Vec<_>>>()?;
        let mut planted = Self {
            tokens: Vec::with_capacity(count),
            places: Vec::with_capacity(needles.len()),
            ends: Vec::with_capacity(count),
        };
        let mut copied = 0;
        for &(depth, needle) in needles {
            let goal = at(depth, count).saturating_sub(planted.tokens.len() - copied);
            // Behind the needle before, at least a token of text.
            let first = goal.max(copied + 1).min(text.len());
            let last = (first + SEARCH).min(text.len());
            let place = (first..=last).find(|&place| text_ends[place - 1]).unwrap_or(first);
            planted.extend(&text[copied..place], &text_ends[copied..place]);
            let start = planted.tokens.len();
            planted.extend(needle, &needle.iter().map(|&token| ends(token)).collect::<Result<Vec<_>>>()?);
            planted.places.push(start..planted.tokens.len());
            copied = place;
        }
        planted.extend(&text[copied..], &text_ends[copied..]);
        Ok(planted)
    }

    fn extend(&mut self, tokens: &[u32], ends: &[bool]) {
        self.tokens.extend_from_slice(tokens);
        self.ends.extend_from_slice(ends);
    }

    /// Where `length` tokens of the text itself, no needle among them, are from a depth in [0, 1] on: at the beginning of a sentence
    /// where there is one within 64 tokens; none where no such run is left.
    #[must_use]
    pub fn passage(&self, depth: f64, length: usize) -> Option<Range<usize>> {
        let last = self.tokens.len().checked_sub(length)?;
        let goal = at(depth, self.tokens.len()).clamp(1, last.max(1));
        let free = |&start: &usize| {
            self.places
                .iter()
                .all(|needle| needle.end <= start || start + length <= needle.start)
        };
        let first = (goal..=last).find(free).or_else(|| (1..goal.min(last + 1)).rev().find(free))?;
        let begins = |&start: &usize| free(&start) && self.ends[start - 1];
        let start = (first..=last.min(first + SEARCH)).find(begins).unwrap_or(first);
        Some(start..start + length)
    }
}

/// The token at a depth.
fn at(depth: f64, count: usize) -> usize {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a token count")]
    let token = (depth.clamp(0.0, 1.0) * count as f64).round() as usize;
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens ending in 9 end a sentence.
    fn ends(token: u32) -> Result<bool> {
        Ok(token % 10 == 9)
    }

    fn text(count: u32) -> Vec<u32> {
        (1000..1000 + count).collect()
    }

    #[test]
    fn planting_keeps_the_count_and_the_text() {
        let (one, other) = (vec![1, 2, 3, 4], vec![5, 6, 7]);
        let needles = [(0.25, one.as_slice()), (0.25, other.as_slice()), (0.75, one.as_slice())];
        let planted = Planted::new(&text(300), ends, &needles, 200).unwrap();
        assert_eq!(planted.tokens.len(), 200);
        for (place, (_, needle)) in planted.places.iter().zip(&needles) {
            assert_eq!(&planted.tokens[place.clone()], *needle);
            assert_eq!(planted.tokens[place.start - 1] % 10, 9, "not at a sentence's end");
        }
        // 1049 is the 50th token; the next sentence ends ten tokens of text later.
        assert_eq!(planted.places[0], 50..54);
        assert_eq!(planted.places[1], 64..67);
        // 150 − 7 planted = 143 tokens of text, and the sentence ends with the 150th.
        assert_eq!(planted.places[2], 157..161);
        let rest: Vec<u32> = planted.tokens.iter().copied().filter(|&token| token >= 1000).collect();
        assert_eq!(rest, text(189));
    }

    #[test]
    fn where_no_sentence_ends_the_depth_itself_is_taken_and_nothing_comes_first() {
        let needles = [(0.0, [1, 2].as_slice()), (0.5, [3, 4].as_slice()), (1.0, [5, 6].as_slice())];
        let planted = Planted::new(&text(100), |_| Ok(false), &needles, 100).unwrap();
        assert_eq!(planted.places, [1..3, 50..52, 98..100]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let needle = [1; 30];
        assert!(Planted::new(&text(99), ends, &[(0.5, &needle), (0.6, &needle)], 100).is_err());
        assert!(Planted::new(&text(69), ends, &[(0.5, &needle)], 100).is_err());
        assert!(Planted::new(&text(99), ends, &[(0.5, &needle), (0.4, &needle[..2])], 100).is_err());
    }

    #[test]
    fn a_copied_passage_is_text_and_begins_a_sentence() {
        let needles = [(0.25, [1, 2, 3].as_slice())];
        let planted = Planted::new(&text(200), ends, &needles, 200).unwrap();
        assert_eq!(planted.places[0], 50..53);
        // From 40 on twelve tokens would run into the needle; 53 is the first after it, and a sentence begins there no more than with
        // the token after the needle, 1050, whose sentence ends ten tokens later.
        let passage = planted.passage(0.2, 12).unwrap();
        assert_eq!(passage, 63..75);
        assert_eq!(planted.tokens[62], 1059);
        // The end of the context: the last that fits.
        assert_eq!(planted.passage(1.0, 12).unwrap(), 188..200);
        assert_eq!(planted.passage(0.5, 201), None);
    }
}
