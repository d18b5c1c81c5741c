//! A model and the texts it reads.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::arguments::ModelArguments;
use super::progress::Progress;
use crate::model::{Model, Products};
use crate::reading::Reading;
use crate::source;
use crate::text::{Template, Tokenizer};

/// An open model.
#[derive(Debug)]
pub struct Session {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: Template,
    /// Its file's name.
    pub name: String,
}

impl Session {
    /// Opens the model; without `products` with those that fit.
    ///
    /// # Errors
    /// A model that cannot be found, read or run.
    pub fn open(arguments: &ModelArguments, products: Option<Products>, progress: &mut Progress) -> Result<Self> {
        progress.begin(format!("opening {}", arguments.model));
        let path = source::find(&arguments.model)?;
        let (content, model) = Model::open(&path, &arguments.model_device.open()?, products)?;
        let tokenizer = Tokenizer::from_gguf(&content).with_context(|| path.display().to_string())?;
        Ok(Self {
            model,
            tokenizer,
            template: Template::from_gguf(&content),
            name: name(&path),
        })
    }

    /// The first `count` tokens of a text from a character on.
    ///
    /// # Errors
    /// More tokens than the model was trained for, or a text that cannot be read or has fewer.
    pub fn tokens(&self, path: &Path, offset: usize, count: usize) -> Result<Vec<u32>> {
        let config = self.model.config();
        ensure!(
            count <= config.context_length,
            "{count} tokens are asked for, with those that follow, and {} was trained for {}; give fewer --tokens",
            self.name,
            config.context_length
        );
        let text = read_text(path)?;
        let start = text.char_indices().map(|(byte, _)| byte).nth(offset);
        let Some(start) = start else {
            bail!("{} has {} characters; give an --offset below", path.display(), text.chars().count());
        };
        let mut tokens: Vec<u32> = self.tokenizer.beginning().into_iter().collect();
        tokens.extend(self.tokenizer.encode(&text[start..])?);
        ensure!(
            tokens.len() >= count,
            "{} has {} tokens from character {offset} on, and {count} are needed, those that follow counted; give a longer text, a smaller --offset or fewer --tokens",
            path.display(),
            tokens.len()
        );
        tokens.truncate(count);
        Ok(tokens)
    }

    /// Reads tokens, showing how far it is.
    ///
    /// # Errors
    /// As [`Reading::new`].
    pub fn read(&self, what: &str, tokens: &[u32], progress: &mut Progress) -> Result<Reading> {
        progress.begin(format!("{}: reading {} tokens of {what}", self.name, tokens.len()));
        Reading::new(&self.model, tokens, &mut |read| progress.at(read, tokens.len()))
    }
}

/// Reads a text.
///
/// # Errors
/// A file that cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("the text {} cannot be read; give a file in UTF-8", path.display()))
}

/// A file's name without folder and ending.
#[must_use]
pub fn name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
