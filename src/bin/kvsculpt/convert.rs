//! `kvsculpt convert`: a cache of one format in, the same cache in another format out.

use std::path::PathBuf;

use kvsculpt::cache::Dtype;
use kvsculpt::formats::{Cache, Format, LayerFacts};
use kvsculpt::{Error, Result};

use crate::arguments::DtypeKind;
use crate::compress::is_same;
use crate::formats::{FormatKind, KnownArguments, LayoutArguments};
use crate::print;

/// Convert a cache to another engine's format.
///
/// Reads our captures and compressed caches, mlx-lm prompt caches, llama.cpp sequence states and safetensors as Hugging Face's users
/// write them; which it is shows from the contents. Where a format cannot hold the cache it says why and writes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file to read
    input: PathBuf,
    /// The file to write
    output: PathBuf,
    /// What to write [default: the format that is read]
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<FormatKind>,
    /// How keys and values are stored [default: as they are; f16 for llama.cpp]
    #[arg(long, value_enum)]
    dtype: Option<DtypeKind>,
    #[command(flatten)]
    layout: LayoutArguments,
    #[command(flatten)]
    known: KnownArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { input, output, .. } = arguments;
    let mut read = arguments.known.sources().chain([input.as_path()]);
    if read.any(|path| is_same(path, output)) {
        return Err(Error::File {
            path: output.clone(),
            reason: "is a file that is read, which would be lost; choose another path".to_owned(),
        });
    }
    let cache = Cache::open(input, &arguments.known.known()?)?;
    let format = arguments.to.map_or(cache.format, Into::into);
    let target = arguments.layout.target(format, arguments.dtype.map(Into::into))?;
    let written = cache.write(output, &target)?;
    let queries = matches!((cache.format, target.format), (Format::Capture, format) if format != Format::Capture);
    print(&format!(
        "read     {}: {}, {}\nwritten  {}: {}, {}, {} bytes\n{}{}",
        input.display(),
        cache.format,
        described(&cache.layers),
        output.display(),
        target.format,
        described(&written.layers),
        written.bytes,
        if written.turned {
            "Keys were turned to their new positions.\n"
        } else {
            ""
        },
        if queries { "The capture's queries are left behind.\n" } else { "" },
    ))
}

/// Layers in a line of words.
fn described(layers: &[LayerFacts]) -> String {
    let range = |values: &mut dyn Iterator<Item = usize>| {
        let values: Vec<usize> = values.collect();
        match (values.iter().min(), values.iter().max()) {
            (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
            (least, _) => least.copied().unwrap_or(0).to_string(),
        }
    };
    let mut dtypes: Vec<&str> = layers
        .iter()
        .flat_map(|layer| [layer.key_dtype, layer.value_dtype])
        .map(|dtype| match dtype {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        })
        .collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    format!(
        "{} layers of {} KV heads, {} pairs a head, next position {}, {}",
        layers.len(),
        range(&mut layers.iter().map(|layer| layer.lengths.len())),
        range(&mut layers.iter().flat_map(|layer| layer.lengths.iter().copied())),
        range(&mut layers.iter().map(|layer| layer.next_position)),
        dtypes.join(" and ")
    )
}
