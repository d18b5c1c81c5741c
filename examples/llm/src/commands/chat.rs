//! `chat`: questions about a long document, answered over its compressed cache.

use std::io::{BufRead as _, IsTerminal as _, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use kvsculpt::cache::Compressed;

use super::arguments::{EngineArguments, ModelArguments, tokens};
use super::choice::Choice;
use super::progress::{Progress, print};
use super::session::{Session, read_text};
use super::variant::{MethodKind, PresetKind, ScopeKind, Switch, Variant};
use crate::model::Cache;
use crate::text::Conversation;

/// What the model is told before the document.
const INSTRUCTION: &str = "Read this document. Questions about it will follow.";

/// Read a long document, compress its cache, and answer questions over the short one.
///
/// The document is read once. Questions come from --ask or, line by line, from standard input; what is asked and answered is added
/// to the short cache as it is.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The document (UTF-8)
    #[arg(long, value_name = "FILE", required_unless_present = "load")]
    document: Option<PathBuf>,
    /// Keep the short cache in a file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Talk over a short cache of the same model from a file: --save's, or `kvsculpt compress`'s
    #[arg(long, value_name = "FILE", conflicts_with_all = ["document", "save", "compare"])]
    load: Option<PathBuf>,
    /// A question; may be given several times [default: questions are read from standard input]
    #[arg(long, value_name = "QUESTION")]
    ask: Vec<String>,
    /// Also answer from the full cache
    #[arg(long)]
    compare: bool,
    /// The fraction of the pairs that is kept
    #[arg(long, value_name = "FRACTION", default_value_t = 0.5, allow_negative_numbers = true)]
    keep: f64,
    /// How the short cache is made
    #[arg(long, value_enum, default_value_t = MethodKind::Kvsculpt)]
    method: MethodKind,
    /// Where the options come from
    #[arg(long, value_enum, default_value_t = PresetKind::Default)]
    preset: PresetKind,
    /// Which heads share a length [default: the preset's]
    #[arg(long, value_enum, value_name = "SCOPE")]
    budget: Option<ScopeKind>,
    /// Whether free pairs get a bias on their logit [default: the preset's]
    #[arg(long, value_enum)]
    bias: Option<Switch>,
    /// Options put over the preset, by their names in the library: '{"steps": 20}'
    #[arg(long, value_name = "JSON")]
    set: Option<String>,
    /// Tokens of the document that are read, at most [default: as many as the model was trained for, less room for the talk]
    #[arg(long, value_parser = tokens)]
    tokens: Option<usize>,
    /// Tokens of an answer, at most
    #[arg(long, value_name = "TOKENS", default_value = "200", value_parser = tokens)]
    answer: usize,
    /// How much chance there is in an answer; 0: the likeliest token every time
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Seeds the chance
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    engine: EngineArguments,
}

/// Runs the subcommand.
///
/// # Errors
/// In words for the user.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.temperature >= 0.0 && arguments.temperature.is_finite(),
        "--temperature {} is not zero or more",
        arguments.temperature
    );
    ensure!(
        arguments.ask.iter().all(|question| !question.trim().is_empty()),
        "--ask is given without a question"
    );
    let (session, conversation, mut voices) = match (&arguments.load, &arguments.document) {
        (Some(file), _) => loaded(file, arguments)?,
        (None, Some(document)) => read(document, arguments)?,
        (None, None) => bail!("give a --document, or a short cache to --load"),
    };
    let talk = Talk {
        session: &session,
        conversation: &conversation,
        arguments,
    };
    if arguments.ask.is_empty() {
        return talk.listen(&mut voices);
    }
    for question in &arguments.ask {
        print(&format!("\n> {question}\n"))?;
        talk.answer(&mut voices, question)?;
    }
    Ok(())
}

/// Who answers about a document: it is read, and its cache compressed.
fn read(document: &Path, arguments: &Arguments) -> Result<(Session, Conversation, Vec<Voice>)> {
    let variant = Variant::new(arguments.method, arguments.preset, arguments.keep, arguments.set.as_deref())?;
    let variant = variant.with(arguments.budget, arguments.bias);
    let text = read_text(document)?;
    ensure!(
        !text.trim().is_empty(),
        "{} is empty; give a document with a text",
        document.display()
    );
    if let Some(file) = &arguments.save {
        Compressed::check_writable(file)?;
    }
    let mut progress = Progress::new();
    let session = Session::open(&arguments.model, None, &mut progress)?;
    let name = document.display().to_string();
    let text = shortened(&session, &name, &text, arguments, &progress)?;
    let conversation = session.template.converse(INSTRUCTION, &text)?;
    let prefix = conversation.prefix_tokens(&session.tokenizer)?;
    variant.check(prefix.len())?;
    let (full, short) = prepare(&session, &name, &prefix, &variant, arguments, &mut progress)?;
    // Without --compare the full cache ends here, and its memory is free.
    let voices = if arguments.compare {
        vec![Voice::new("short cache", short), Voice::new("full cache", full)]
    } else {
        drop(full);
        vec![Voice::new("", short)]
    };
    Ok((session, conversation, voices))
}

/// Who answers over a short cache from a file.
fn loaded(file: &Path, arguments: &Arguments) -> Result<(Session, Conversation, Vec<Voice>)> {
    let short = Compressed::read(file)?;
    let session = Session::open(&arguments.model, None, &mut Progress::new())?;
    let config = session.model.config();
    let model = short.metadata.get("model");
    ensure!(
        model.is_none_or(|model| *model == config.name),
        "{} is a cache of {}, not of {}; give that model",
        file.display(),
        model.map_or("", String::as_str),
        config.name
    );
    let cache = Cache::from_compressed(config, &short, session.model.device()).with_context(|| file.display().to_string())?;
    // What stands before the first question is in the cache; what comes between turns does not depend on it.
    let conversation = session.template.converse(INSTRUCTION, "–")?;
    Ok((session, conversation, vec![Voice::new("", cache)]))
}

/// The document, cut to what the model can take.
fn shortened(session: &Session, name: &str, document: &str, arguments: &Arguments, progress: &Progress) -> Result<String> {
    let tokens = session.tokenizer.encode(document)?;
    // Room for the template's own words and for at least a few questions and answers.
    let trained = session.model.config().context_length;
    let room = (4 * arguments.answer + 512).min(trained / 2);
    let most = arguments.tokens.unwrap_or(trained).min(trained - room);
    if tokens.len() <= most {
        return Ok(document.to_owned());
    }
    progress.note(&format!("note: {name} has {} tokens; the first {most} are read", tokens.len()));
    // A character that the cut went through is left out.
    Ok(session
        .tokenizer
        .decode(&tokens[..most])?
        .trim_end_matches(char::REPLACEMENT_CHARACTER)
        .to_owned())
}

/// Reads the prefix and compresses its cache; says what was saved and how long it took.
fn prepare(
    session: &Session,
    name: &str,
    prefix: &[u32],
    variant: &Variant,
    arguments: &Arguments,
    progress: &mut Progress,
) -> Result<(Cache, Cache)> {
    let mut machine = arguments.engine.open()?;
    let reading = session.read(name, prefix, progress)?;
    let started = Instant::now();
    progress.begin(format!("compressing to {} of the pairs", variant.keep));
    let short = variant.shorten(&reading.capture(name, &session.model, None)?, &mut machine, progress)?;
    let cache = reading.cache.compressed(&short.compressed, session.model.device())?;
    if let Some(file) = &arguments.save {
        short.compressed.write(file)?;
    }
    progress.finish();
    let megabytes = |cache: &Cache| cache.bytes() as f64 / 1e6;
    progress.print(&format!(
        "{name}: {} tokens read in {:.1} s; cache {:.1} MB → {:.1} MB in {:.1} s ({})",
        prefix.len(),
        reading.seconds,
        megabytes(&reading.cache),
        megabytes(&cache),
        started.elapsed().as_secs_f64(),
        machine.name()
    ))?;
    Ok((reading.cache, cache))
}

/// One who answers: a cache and what was said last.
struct Voice {
    name: &'static str,
    cache: Cache,
    /// Whether it has answered before.
    begun: bool,
}

impl Voice {
    fn new(name: &'static str, cache: Cache) -> Self {
        Self { name, cache, begun: false }
    }
}

/// All that does not change from question to question.
struct Talk<'a> {
    session: &'a Session,
    conversation: &'a Conversation,
    arguments: &'a Arguments,
}

impl Talk<'_> {
    /// Answers lines of standard input until it ends.
    fn listen(&self, voices: &mut [Voice]) -> Result<()> {
        let prompt = stdin().is_terminal();
        if prompt {
            print("Ask about it; an empty line ends.\n")?;
        }
        loop {
            if prompt {
                print("\n> ")?;
            }
            let mut line = Vec::new();
            let read = stdin()
                .lock()
                .read_until(b'\n', &mut line)
                .context("standard input cannot be read")?;
            let question = String::from_utf8_lossy(&line);
            if read == 0 || (prompt && question.trim().is_empty()) {
                return Ok(());
            }
            if question.trim().is_empty() {
                continue;
            }
            if !prompt {
                print(&format!("\n> {}\n", question.trim()))?;
            }
            // Reading and compressing took minutes: a question that cannot be answered does not end the talk.
            if let Err(error) = self.answer(voices, &question) {
                eprintln!("error: {error:#}");
            }
        }
    }

    /// Every voice answers in turn, each over its own cache.
    fn answer(&self, voices: &mut [Voice], question: &str) -> Result<()> {
        for voice in voices {
            if !voice.name.is_empty() {
                print(&format!("[{}] ", voice.name))?;
            }
            let tokenizer = &self.session.tokenizer;
            let tokens = if voice.begun {
                // The token that ended the last answer is not in the cache: it begins what follows.
                self.conversation.next_question_tokens(tokenizer, question, None)?
            } else {
                self.conversation.first_question_tokens(tokenizer, question)?
            };
            self.speak(&mut voice.cache, &tokens)?;
            voice.begun = true;
        }
        Ok(())
    }

    /// Reads `tokens` and prints what the model says then. The token that ends it is not put into the cache.
    fn speak(&self, cache: &mut Cache, tokens: &[u32]) -> Result<()> {
        let Session { model, tokenizer, .. } = self.session;
        let left = model.config().context_length.saturating_sub(cache.position + tokens.len());
        ensure!(
            left > 0,
            "the talk has become as long as {} was trained for; begin again, with fewer --tokens of the document",
            self.session.name
        );
        let most = self.arguments.answer.min(left);
        let mut choice = Choice::new(self.arguments.temperature, self.arguments.seed ^ cache.position as u64);
        let mut words = tokenizer.stream();
        let started = Instant::now();
        let mut hidden = model.forward(tokens, cache, &mut ())?;
        let mut said = 0;
        while said < most {
            let rows = hidden.dim(0)?;
            let token = choice.next(&model.logits(&hidden.narrow(0, rows - 1, 1)?)?)?;
            if tokenizer.is_end(token) {
                break;
            }
            said += 1;
            print(&words.push(token)?)?;
            hidden = model.forward(&[token], cache, &mut ())?;
        }
        print(&words.finish()?)?;
        print("\n")?;
        if stdout().is_terminal() {
            eprintln!("({said} tokens, {:.1} a second)", said as f64 / started.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
