//! What a compression is written as.

use std::path::Path;

use kvsculpt::budget::Scope;
use kvsculpt::cache::{Capture, Compressed, Dtype};
use kvsculpt::formats::{Cache, Format, Known, Target};
use kvsculpt::solver::Request;
use kvsculpt::{Error, Result};

use crate::Talk;
use crate::formats::{FormatKind, LayoutArguments};
use crate::input::note;

/// What the short cache is written as.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DestinationArguments {
    /// What to write; lengths and biases are what that can hold [default: compressed]
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<FormatKind>,
    #[command(flatten)]
    layout: LayoutArguments,
}

impl DestinationArguments {
    /// What is to be written of a file of this format, stored as the request says.
    ///
    /// # Errors
    /// An argument without meaning for the format.
    pub(crate) fn target(&self, from: Format, capture: &Capture, request: &Request) -> Result<Target> {
        let format = self.to.map_or(Format::Compressed, Into::into);
        let mut dtype = request.dtype;
        if matches!((from, format), (Format::Llama(_), Format::Llama(_))) {
            dtype = dtype.or(one_dtype(capture)?);
        }
        let target = self.layout.target(format, dtype)?;
        if format == Format::Compressed {
            let given = [("--frame", target.frame.is_some()), ("--pairing", target.pairing.is_some())];
            if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(Error::Options {
                    option,
                    reason: "says how another engine's file is laid out, and a compressed cache keeps the frame and order of what it is made of; give --to, or turn the result with `kvsculpt convert`".into(),
                });
            }
        }
        Ok(target)
    }
}

/// How all layers are stored, where they are stored alike.
fn one_dtype(capture: &Capture) -> Result<Option<Dtype>> {
    let mut found = None;
    for &layer in &capture.layers {
        let dtype = capture.shape(layer)?.dtype;
        if *found.get_or_insert(dtype) != dtype {
            return Ok(None);
        }
    }
    Ok(found)
}

/// Makes the request one whose result the target can hold. What the user did not say is changed and told; what was said is refused.
///
/// # Errors
/// [`Error::Options`], naming what the target cannot hold.
pub(crate) fn fit(request: &mut Request, target: &Target, said_budget: bool, talk: Talk) -> Result<()> {
    let format = target.format;
    let refuse = |option, reason: String| Err(Error::Options { option, reason });
    if request.options.has_bias() && !target.holds_bias() {
        return refuse(
            "--bias",
            format!("no {format} can hold a bias on a pair's logit; leave it out, or write --to compressed"),
        );
    }
    request.written_as = Some(*target);
    let scope = target.scope();
    let (held, word) = match scope {
        Scope::Head => return Ok(()),
        Scope::Layer => ("one length for all heads of a layer", "layer"),
        Scope::Uniform => ("one length for all heads and layers", "uniform"),
    };
    if let Some(budgets) = &request.budgets {
        let wanted = |layer: usize| request.layers.as_ref().is_none_or(|layers| layers.contains(&layer));
        let lengths: Vec<&[usize]> = budgets
            .layers()
            .filter(|&(layer, _)| wanted(layer))
            .map(|(_, lengths)| lengths)
            .collect();
        let differ = |lengths: &[usize]| lengths.windows(2).any(|pair| pair[0] != pair[1]);
        let firsts: Vec<usize> = lengths.iter().filter_map(|lengths| lengths.first().copied()).collect();
        if lengths.iter().any(|lengths| differ(lengths)) || (scope == Scope::Uniform && differ(&firsts)) {
            return refuse(
                "--budgets",
                format!("has heads of different lengths, and a {format} has {held}; solve them again with --budget {word}"),
            );
        }
        return Ok(());
    }
    let budget = request.options.budget;
    let fits = budget == Scope::Uniform || budget == scope;
    if fits {
        return Ok(());
    }
    if said_budget {
        let of = if budget == Scope::Layer { "layers" } else { "heads" };
        return refuse(
            "--budget",
            format!("gives {of} lengths of their own, and a {format} has {held}; give --budget {word}, or leave it out"),
        );
    }
    request.options.budget = scope;
    note(talk, &format!("a {format} has {held}, so lengths are decided with --budget {word}"));
    Ok(())
}

/// Writes the short cache, whole or not at all; returns the file's bytes.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write(compressed: &Compressed, target: &Target, output: &Path) -> Result<u64> {
    if target.format == Format::Compressed {
        return compressed.write(output);
    }
    let cache = Cache::from_compressed(output, compressed.clone(), &Known::default())?;
    Ok(cache.write(output, target)?.bytes)
}
