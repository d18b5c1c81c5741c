//! The whole way in one function, to copy from: a model reads a document, its cache is compressed, and the model goes on over the
//! short one.
//!
//! ```sh
//! cargo run --release -p kvsculpt-llm --example minimal -- target/models/smollm2-135m.gguf examples/llm/texts/katrine.txt
//! ```

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use candle_core::{D, Device};
use kvsculpt::gpu::Selection;
use kvsculpt::machine::{Preference, choose};
use kvsculpt::solver::Request;
use kvsculpt_llm::model::Model;
use kvsculpt_llm::reading::Reading;
use kvsculpt_llm::text::Tokenizer;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (model, document) = arguments.next().zip(arguments.next()).context("give a model (GGUF) and a text")?;

    let device = Device::Cpu;
    let (content, model) = Model::open(&model, &device, None)?;
    let tokenizer = Tokenizer::from_gguf(&content)?;
    let mut tokens = tokenizer.encode(&std::fs::read_to_string(document)?)?;
    tokens.truncate(1024);
    let reading = Reading::new(&model, &tokens, &mut |_| ())?;

    // A GPU where there is one, else the CPU engine. An observer in place of `()` would show progress and could cancel.
    let mut machine = choose(Preference::Auto, &Selection::default())?.open()?;
    let mut request = Request::default();
    request.options.keep = 0.5;
    let short = machine.compress(&reading.capture("document", &model, None)?, &request, &mut ())?;
    let (before, after) = short.bytes();
    println!("{} tokens: {before} bytes, now {after}, by {}", tokens.len(), machine.name());

    // New tokens follow at the positions after the document's; their pairs are appended as they are.
    let mut cache = reading.cache.compressed(&short.compressed, &device)?;
    drop(reading);
    let mut words = tokenizer.stream();
    let mut next = tokenizer.encode("\n\nAnd then")?;
    for _ in 0..40 {
        let hidden = model.forward(&next, &mut cache, &mut ())?;
        let last = hidden.narrow(0, next.len() - 1, 1)?;
        let likeliest = model.logits(&last)?.argmax(D::Minus1)?.to_vec1::<u32>()?[0];
        if tokenizer.is_end(likeliest) {
            break;
        }
        print!("{}", words.push(likeliest)?);
        next = vec![likeliest];
    }
    println!("{}", words.finish()?);
    Ok(())
}
