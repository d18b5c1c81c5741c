//! `capture`: the model reads a text, and what `kvsculpt compress` needs is written to a file.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use kvsculpt::cache::{Compressed, Dtype};

use super::arguments::{ModelArguments, some_tokens, tokens};
use super::progress::Progress;
use super::session::{Session, read_text};
use crate::model::Products;
use crate::reading::go_on;
use crate::record::Recorder;

/// Write the cache and the queries of a model that reads a text, as `kvsculpt compress` takes them.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The text (UTF-8)
    text: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Tokens of the text
    #[arg(long, default_value = "2048", value_parser = tokens)]
    tokens: usize,
    /// The character at which reading begins
    #[arg(long, value_name = "CHARACTER", default_value_t = 0)]
    offset: usize,
    /// Tokens that follow, whose queries are never fitted and only reported on
    #[arg(long, value_name = "TOKENS", default_value = "256", value_parser = some_tokens)]
    probe: usize,
    /// How numbers are stored
    #[arg(long, value_enum, default_value_t = DtypeKind::F16)]
    dtype: DtypeKind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeKind {
    F32,
    F16,
    Bf16,
}

impl From<DtypeKind> for Dtype {
    fn from(kind: DtypeKind) -> Self {
        match kind {
            DtypeKind::F32 => Self::F32,
            DtypeKind::F16 => Self::F16,
            DtypeKind::Bf16 => Self::Bf16,
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// In words for the user.
pub fn run(arguments: &Arguments) -> Result<()> {
    read_text(&arguments.text)?;
    let same = |path: &Path| matches!((path.canonicalize(), arguments.output.canonicalize()), (Ok(a), Ok(b)) if a == b);
    ensure!(
        !same(&arguments.text) && !same(Path::new(&arguments.model.model)),
        "{} is what is to be read; choose another path for the capture",
        arguments.output.display()
    );
    Compressed::check_writable(&arguments.output)?;
    let mut progress = Progress::new();
    let session = Session::open(&arguments.model, Some(Products::Widened), &mut progress)?;
    let tokens = session.tokens(&arguments.text, arguments.offset, arguments.tokens + arguments.probe)?;
    let (context, following) = tokens.split_at(arguments.tokens);
    let what = arguments.text.display().to_string();
    let reading = session.read(&what, context, &mut progress)?;
    let mut probe = Recorder::after_rope(&session.model);
    if !following.is_empty() {
        progress.begin("reading what follows");
        go_on(
            &session.model,
            &mut reading.cache.clone(),
            following,
            &mut probe,
            &mut |_, _| Ok(()),
        )?;
    }
    progress.begin(format!("writing {}", arguments.output.display()));
    let capture = reading.capture(&what, &session.model, (!following.is_empty()).then_some(&probe))?;
    let bytes = capture.write(&arguments.output, arguments.dtype.into())?;
    progress.finish();
    progress.print(&format!(
        "{}: {} tokens of {} in {} layers, {:.1} MB; read in {:.1} s",
        arguments.output.display(),
        context.len(),
        session.name,
        capture.layers.len(),
        bytes as f64 / 1e6,
        reading.seconds
    ))
}
