//! A part of a text that the model has read, and what follows it.

use std::path::Path;

use anyhow::Result;
use kvsculpt::cache::Capture;

use super::progress::Progress;
use super::session::{Session, name};
use crate::measure::Distributions;
use crate::reading::{Reading, follow};
use crate::record::Recorder;

/// A text the model has read: the same for every way to compress.
#[derive(Debug)]
pub struct Passage {
    /// The text's name.
    pub text: String,
    /// Its first character.
    pub offset: usize,
    /// The text as the model has read it.
    pub reading: Reading,
    /// What was seen, the queries of the tokens that follow as probes.
    pub capture: Capture,
    /// The queries of the tokens that follow.
    pub probe: Recorder,
    /// The tokens that follow, and one more: the last one's successor.
    pub following: Vec<u32>,
    /// What the model expects after each of the tokens that follow, over the full cache.
    pub full: Distributions,
}

impl Passage {
    /// Reads `tokens` tokens of a text from a character on, and the `next` tokens that follow.
    ///
    /// # Errors
    /// As [`Session::tokens`] and [`Session::read`].
    pub fn read(session: &Session, path: &Path, offset: usize, tokens: usize, next: usize, progress: &mut Progress) -> Result<Self> {
        // One token more, so that the last one measured has a successor to be surprised by.
        let all = session.tokens(path, offset, tokens + next + 1)?;
        let (context, following) = all.split_at(tokens);
        let text = name(path);
        let reading = session.read(&format!("{text} from character {offset}"), context, progress)?;
        let mut probe = Recorder::after_rope(&session.model);
        let full = follow(&session.model, &reading.cache, &following[..next], &mut probe)?;
        let capture = reading.capture(&text, &session.model, Some(&probe))?;
        Ok(Self {
            text,
            offset,
            reading,
            capture,
            probe,
            following: following.to_vec(),
            full,
        })
    }
}
