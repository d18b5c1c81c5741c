//! Writing a sequence state.

use std::path::Path;

use super::super::cache::LayerFacts;
use super::super::target::Plan;
use super::super::{Format, LlamaVersion};
use super::{TRANSPOSED, ggml_type};
use crate::cache::{Dtype, Output};
use crate::error::{Error, Result};

/// A cell's position and its one sequence.
const CELL_BYTES: u64 = 12;

/// Fails now as [`write`] would.
pub(in crate::formats) fn check(plan: &Plan<'_>) -> Result<()> {
    positions(plan)?;
    token_ids(plan).map(drop)
}

/// Writes the cache as the state of one sequence; returns its bytes.
pub(in crate::formats) fn write(plan: &Plan<'_>, path: &Path, version: LlamaVersion, transposed: Option<bool>) -> Result<u64> {
    let positions = positions(plan)?;
    let ids = token_ids(plan)?;
    let kept = plan.cache.metadata.get(TRANSPOSED).is_some_and(|text| text == "true");
    let transposed = transposed.unwrap_or(kept);
    let mut output = Output::create(path)?;
    let word = |number: usize| {
        u32::try_from(number).map(u32::to_le_bytes).map_err(|_| {
            plan.cache
                .error(format!("has a count of {number}, too large for a llama.cpp sequence state"))
        })
    };
    output.bytes(b"qsgg")?;
    output.bytes(&version.number().to_le_bytes())?;
    output.bytes(&word(ids.len())?)?;
    for id in ids {
        output.bytes(&id.to_le_bytes())?;
    }
    output.bytes(&word(1)?)?;
    output.bytes(&word(positions.len())?)?;
    for position in &positions {
        output.bytes(&position.to_le_bytes())?;
        // In one sequence, number 0.
        output.bytes(&word(1)?)?;
        output.bytes(&word(0)?)?;
    }
    output.bytes(&word(usize::from(transposed))?)?;
    output.bytes(&word(plan.layers.len())?)?;
    for (number, facts) in plan.layers.iter().enumerate() {
        let key = plan.read(number)?.key;
        write_block(&mut output, Block::new(facts, &key, facts.dim, facts.key_dtype, "keys"), false)?;
    }
    // The format wants the values of all layers after the keys of all, so each layer is read twice rather than all held.
    for (number, facts) in plan.layers.iter().enumerate() {
        let value = plan.read(number)?.value;
        write_block(
            &mut output,
            Block::new(facts, &value, facts.value_dim, facts.value_dtype, "values"),
            transposed,
        )?;
    }
    output.finish()
}

/// Bytes of the file beside its cells, and those of a cell beside its keys and values.
pub(in crate::formats) fn beside(plan: &Plan<'_>) -> Result<(u64, u64)> {
    // Magic, version, and the counts of tokens, streams, cells and layers, and whether values are transposed.
    let words = 7 + token_ids(plan)?.len();
    // A type and a width, or two numbers, before the keys and before the values.
    let blocks = 2 * plan.layers.len();
    Ok((4 * words as u64 + 12 * blocks as u64, CELL_BYTES))
}

/// One layer's keys or values, head by head.
struct Block<'a> {
    facts: &'a LayerFacts,
    data: &'a [f32],
    channels: usize,
    dtype: Dtype,
    what: &'static str,
}

impl<'a> Block<'a> {
    fn new(facts: &'a LayerFacts, data: &'a [f32], channels: usize, dtype: Dtype, what: &'static str) -> Self {
        Self {
            facts,
            data,
            channels,
            dtype,
            what,
        }
    }
}

fn write_block(output: &mut Output<'_>, block: Block<'_>, transposed: bool) -> Result<()> {
    let (heads, cells) = (block.facts.lengths.len(), block.facts.longest());
    let width = heads * block.channels;
    output.bytes(&ggml_type(block.dtype).to_le_bytes())?;
    if transposed {
        for number in [block.dtype.bytes(), width] {
            let number = u32::try_from(number).map_err(|_| Error::shape(block.what, format!("{number} does not fit 32 bits")))?;
            output.bytes(&number.to_le_bytes())?;
        }
    } else {
        output.bytes(&((width * block.dtype.bytes()) as u64).to_le_bytes())?;
    }
    let head_first = |cell: usize, channel: usize| ((channel / block.channels) * cells + cell) * block.channels + channel % block.channels;
    let moved: Vec<f32> = if transposed {
        (0..width * cells)
            .map(|at| block.data[head_first(at % cells, at / cells)])
            .collect()
    } else {
        (0..width * cells)
            .map(|at| block.data[head_first(at / width, at % width)])
            .collect()
    };
    let label = format!("{} of layer {}", block.what, block.facts.index);
    output.floats(&label, &moved, block.dtype, |at| {
        let (cell, channel) = if transposed {
            (at % cells, at / cells)
        } else {
            (at / width, at % width)
        };
        format!(
            "head {}, pair {cell}, channel {}",
            channel / block.channels,
            channel % block.channels
        )
    })
}

/// Positions of the cells: the cache's own, or spread evenly over its tokens, ending just before the next position, where
/// llama.cpp goes on from. The first stands where the cache's text begins, so that no window of positions seems to be lost.
fn positions(plan: &Plan<'_>) -> Result<Vec<i32>> {
    for (number, facts) in plan.layers.iter().enumerate() {
        if facts.index != number {
            return Err(plan.cache.error(format!(
                "has no layer {number}, and a llama.cpp sequence state holds all layers of a model; compress all of them"
            )));
        }
    }
    let next = plan.next_position().ok_or_else(|| {
        plan.cache.error(format!(
            "has layers that stand before different positions, and a llama.cpp sequence state has one next position; turn them to one with --frame{}",
            plan.original().map(|position| format!(" {position}, where the original cache stood")).unwrap_or_default()
        ))
    })?;
    if let Some(positions) = &plan.positions {
        return Ok(positions.clone());
    }
    let cells = plan.layers.first().map_or(0, LayerFacts::longest);
    if next < cells || i32::try_from(next).is_err() {
        return Err(Error::option(
            "--frame",
            format!(
                "{cells} pairs stand before position {next}, and llama.cpp gives each a position of its own from 0 to {}",
                i32::MAX
            ),
        ));
    }
    let span = plan.cache.tokens.clamp(cells, next);
    let spread = |cell: usize| (next - span) + cell * (span - 1) / (cells - 1).max(1);
    let last = |cell: usize| if cell + 1 == cells { next - 1 } else { spread(cell) };
    (0..cells)
        .map(|cell| i32::try_from(last(cell)).map_err(|_| Error::option("--frame", "is beyond llama.cpp's positions")))
        .collect()
}

/// The text's tokens, which must end where the cache does.
fn token_ids<'a>(plan: &Plan<'a>) -> Result<&'a [i32]> {
    let ids = plan.cache.token_ids.as_deref().unwrap_or(&[]);
    let untouched = matches!(plan.cache.format, Format::Llama(_)) && !plan.turned();
    match plan.next_position() {
        Some(next) if !ids.is_empty() && !untouched && ids.len() != next => Err(Error::option(
            "--frame",
            format!(
                "{} has {} tokens, and the keys are to stand before position {next}; llama.cpp goes on after the last token, so give --frame {}",
                plan.cache.path.display(),
                ids.len(),
                ids.len()
            ),
        )),
        _ => Ok(ids),
    }
}
