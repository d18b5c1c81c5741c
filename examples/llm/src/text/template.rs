//! A conversation as the model was taught to read it: the chat template of the GGUF file, or a plain form where it has none.
//!
//! Documents and questions never pass through the template: a mark stands for each, and the rendered text is split at the marks. So a document
//! that contains `<|im_end|>` stays a document, and the part before the first question is known without any question.

use super::tokenizer::{Piece, Tokenizer};
use anyhow::{Context, Result, anyhow, bail};
use candle_core::quantized::gguf_file::{Content, Value};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Says how to answer.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
}

impl Role {
    /// As templates name it.
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, without any markup.
    pub content: String,
}

/// The chat template of one model.
#[derive(Debug)]
pub struct Template {
    source: Option<String>,
    beginning: String,
    end: String,
}

/// A conversation about one document, cut where questions go in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Everything before the first question, the document in it: read once, and compressed.
    prefix: Vec<Piece>,
    /// White space before the first question: a word and the space before it are one token, so it must not end the prefix.
    before_question: String,
    /// From a question's end to where the answer begins.
    after_question: String,
    /// From an answer's end to where the next question begins.
    after_answer: String,
}

const NAME: &str = "chat";
/// Characters of the private use area: no template looks for them, none trims them.
const DOCUMENT: &str = "\u{e000}document\u{e001}";
const QUESTION: &str = "\u{e000}question\u{e001}";
const ANSWER: &str = "\u{e000}answer\u{e001}";
const NEXT_QUESTION: &str = "\u{e000}next question\u{e001}";

impl Template {
    /// The file's template (`tokenizer.chat_template`) with the names of its first and last token; the plain form where it has none.
    pub fn from_gguf(content: &Content) -> Self {
        let text = |key: &str| match content.metadata.get(key) {
            Some(Value::String(text)) => Some(text.clone()),
            _ => None,
        };
        let token = |key: &str| {
            let id = content.metadata.get(key).and_then(|value| value.to_u32().ok());
            let tokens = content.metadata.get("tokenizer.ggml.tokens").and_then(|value| value.to_vec().ok());
            let name = tokens
                .zip(id)
                .and_then(|(tokens, id)| tokens.get(usize::try_from(id).ok()?)?.to_string().ok());
            name.cloned().unwrap_or_default()
        };
        Self::new(
            text("tokenizer.chat_template"),
            &token("tokenizer.ggml.bos_token_id"),
            &token("tokenizer.ggml.eos_token_id"),
        )
    }

    /// A template in Jinja, or the plain form; the texts of the tokens it may name `bos_token` and `eos_token`.
    pub fn new(source: Option<String>, beginning: &str, end: &str) -> Self {
        Self {
            source,
            beginning: beginning.to_owned(),
            end: end.to_owned(),
        }
    }

    /// Whether the plain form stands in for a template.
    pub fn is_plain(&self) -> bool {
        self.source.is_none()
    }

    /// The conversation as text; with `asks_for_answer` the header of the assistant's turn follows.
    ///
    /// # Errors
    /// A template that cannot be rendered, with its line.
    pub fn render(&self, messages: &[Message], asks_for_answer: bool) -> Result<String> {
        let Some(source) = &self.source else {
            return Ok(plain(messages, asks_for_answer));
        };
        let mut environment = Environment::new();
        // The settings under which model makers write their templates.
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .context("the template engine refuses its settings")?,
        );
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // Templates that name the day would otherwise say something else tomorrow, and be another prefix.
        environment.add_function("strftime_now", |_format: String| DAY);
        let sentence = "the chat template in the GGUF file cannot be rendered; use a file with another template";
        environment
            .add_template(NAME, source)
            .map_err(|error| anyhow!("{sentence} ({error})"))?;
        let template = environment.get_template(NAME).context(sentence)?;
        let turns = messages
            .iter()
            .map(|message| context! { role => message.role.name(), content => message.content.as_str() });
        let values = context! {
            messages => turns.collect::<Vec<_>>(),
            add_generation_prompt => asks_for_answer,
            bos_token => self.beginning.as_str(),
            eos_token => self.end.as_str(),
            // Models that think aloud would fill the short cache with it.
            enable_thinking => false,
        };
        template.render(values).map_err(|error| anyhow!("{sentence} ({error})"))
    }

    /// Cuts a conversation about `document` where questions go in; `instruction` says before the document what it is for.
    ///
    /// # Errors
    /// As [`render`](Self::render), and a template that does not print what it is given, once and in order.
    pub fn converse(&self, instruction: &str, document: &str) -> Result<Conversation> {
        let asked = format!(
            "{}\n\n{DOCUMENT}\n\n{}{QUESTION}",
            instruction.trim(),
            if self.is_plain() { "Question: " } else { "" }
        );
        let asked = asked.trim_start();
        let message = |role, content: &str| Message {
            role,
            content: content.to_owned(),
        };
        let first = [message(Role::User, asked)];
        let twice = [
            message(Role::User, asked),
            message(Role::Assistant, ANSWER),
            message(Role::User, NEXT_QUESTION),
        ];
        let once = self.render(&first, true)?;
        let (before, after_question) = split(&once, QUESTION)?;
        let (markup, between) = split(before, DOCUMENT)?;
        let kept = between.trim_end();
        let long = self.render(&twice, true)?;
        let (_, from_answer) = split(&long, ANSWER)?;
        let (after_answer, _) = split(from_answer, NEXT_QUESTION)?;
        Ok(Conversation {
            prefix: vec![
                Piece::Markup(markup.to_owned()),
                Piece::Words(document.trim().to_owned()),
                Piece::Markup(kept.to_owned()),
            ],
            before_question: between[kept.len()..].to_owned(),
            after_question: after_question.to_owned(),
            after_answer: match self.is_plain() {
                true => format!("{after_answer}Question: "),
                false => after_answer.to_owned(),
            },
        })
    }
}

const DAY: &str = "26 Jul 2024";

fn split<'a>(text: &'a str, mark: &str) -> Result<(&'a str, &'a str)> {
    match text.split_once(mark) {
        Some((before, after)) if !after.contains(mark) => Ok((before, after)),
        Some(_) => bail!(
            "the chat template in the GGUF file prints one message twice, so a conversation cannot be continued; use a file with another template"
        ),
        None => bail!("the chat template in the GGUF file leaves a message out; use a file with another template"),
    }
}

fn plain(messages: &[Message], asks_for_answer: bool) -> String {
    let turn = |message: &Message| match message.role {
        Role::System | Role::User => format!("{}\n", message.content),
        Role::Assistant => format!("Answer: {}\n\n", message.content),
    };
    let turns: String = messages.iter().map(turn).collect();
    if asks_for_answer { turns + "Answer:" } else { turns }
}

impl Conversation {
    /// What is read once: everything before the first question, the document in it.
    pub fn prefix(&self) -> &[Piece] {
        &self.prefix
    }

    /// What follows the prefix for the first question, up to where the answer begins.
    pub fn first_question(&self, question: &str) -> Vec<Piece> {
        let mut pieces = vec![Piece::Markup(self.before_question.clone())];
        pieces.extend(self.question(question));
        pieces
    }

    /// What follows an answer for the next question. The token that ended the answer belongs to this: leave it out of the cache, or, where
    /// it is in, use [`Self::next_question_tokens`].
    pub fn next_question(&self, question: &str) -> Vec<Piece> {
        let mut pieces = vec![Piece::Markup(self.after_answer.clone())];
        pieces.extend(self.question(question));
        pieces
    }

    fn question(&self, question: &str) -> [Piece; 2] {
        [Piece::Words(question.trim().to_owned()), Piece::Markup(self.after_question.clone())]
    }

    /// The tokens of [`Self::first_question`], going on from the prefix.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn first_question_tokens(&self, tokenizer: &Tokenizer, question: &str) -> Result<Vec<u32>> {
        tokenizer.encode_continued(&self.first_question(question))
    }

    /// The tokens of [`Self::next_question`] after an answer whose last token was `last`: one that ends a turn is not said again.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn next_question_tokens(&self, tokenizer: &Tokenizer, question: &str, last: Option<u32>) -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode_continued(&self.next_question(question))?;
        if last.is_some_and(|last| tokenizer.is_end(last) && ids.first() == Some(&last)) {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The tokens before the first question, the model's beginning token in front where it wants one and the template prints none.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn prefix_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode_pieces(&self.prefix)?;
        if let Some(beginning) = tokenizer.beginning().filter(|beginning| ids.first() != Some(beginning)) {
            ids.insert(0, beginning);
        }
        Ok(ids)
    }
}

#[cfg(test)]
#[path = "template/tests.rs"]
mod tests;
