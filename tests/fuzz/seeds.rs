//! Small whole files of every kind, from which mutations start.

use std::path::Path;

use kvsculpt::batch::Shard;
use kvsculpt::cache::{Dtype, gather};
use kvsculpt::cpu::CpuEngine;
use kvsculpt::formats::{Cache, Format, Known, LlamaVersion, MlxLayout, Target};
use kvsculpt::journal::{Existing, Journal};
use kvsculpt::options::{Scope, Tail};
use kvsculpt::solver::{Request, allocate, compress, compress_part, measure_curves};
use kvsculpt::{Options, Result};

use crate::readers::{origin, small};

/// By reader, its files.
pub(crate) type Seeds = Vec<(&'static str, Vec<Vec<u8>>)>;

/// Files of every reader.
pub(crate) fn seeds() -> Seeds {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let capture = small();
    let mut request = Request::default();
    (request.options.steps, request.options.context_rows, request.options.keep) = (1, 12, 0.5);
    (request.options.sinks, request.options.tail, request.options.chunk) = (1, Tail::Pairs(2), 16);
    let mut engine = CpuEngine::new();
    let curves = measure_curves(&mut engine, capture, &request, Shard::WHOLE, &mut ()).unwrap();
    let budgets = allocate(&curves, &request.options, None).unwrap();
    let mut bias = request.clone();
    bias.options.bias = true;
    let with_bias = compress(&mut engine, capture, &bias, &mut ()).unwrap().compressed;
    let mut uniform = request.clone();
    (uniform.options.budget, uniform.options.chunk) = (Scope::Uniform, 0);
    let even = compress(&mut engine, capture, &uniform, &mut ()).unwrap().compressed;
    let parts = [(0, 2), (3, 4)].map(|(index, count)| {
        let shard = Shard::new(index, count).unwrap();
        compress_part(&mut engine, capture, &uniform, shard, &mut ()).unwrap().part
    });
    let file = |write: &dyn Fn(&Path) -> Result<()>| {
        write(&path).unwrap();
        std::fs::read(&path).unwrap()
    };
    let captures = [Dtype::F32, Dtype::Bf16].map(|dtype| file(&|path| capture.write(path, dtype).map(drop)));
    let compressed = [&with_bias, &even].map(|short| file(&|path| short.write(path).map(drop)));
    let known = Known {
        architecture: Some("qwen2".to_owned()),
        ..Known::default()
    };
    let cache = Cache::from_compressed("short", even, &known).unwrap();
    let formats = [
        Format::Mlx(MlxLayout::default()),
        Format::Llama(LlamaVersion::default()),
        Format::HuggingFace,
    ];
    let mut caches = formats
        .map(|format| file(&|path| cache.write(path, &Target::new(format)).map(drop)))
        .to_vec();
    caches.extend(compressed.clone());
    let simple = b"{\"format\": \"kv-budgets\", \"version\": 1, \"tokens\": 40, \"layers\": {\"0\": [12, 40], \"3\": [7]}}".to_vec();
    let sensitivities = b"{\"format\":\"kv-sensitivity\",\"version\":1,\"layers\":[{\"layer\":0,\"sensitivity\":0.5,\"heads\":[{\"head\":0,\"sensitivity\":1e-3},{\"head\":1,\"sensitivity\":null}]},{\"layer\":2,\"sensitivity\":2}]}";
    let options = [Options::default(), Options::published()];
    let statistics = file(&|path| gather(std::slice::from_ref(capture), path, &mut |_| {}).map(drop));
    let journal = file(&|path| {
        std::fs::remove_file(path).unwrap();
        let mut journal = Journal::open(path, &origin(), Existing::Restart)?.journal;
        compress(&mut CpuEngine::new(), capture, &bias, &mut journal).map(drop)
    });
    vec![
        ("capture", captures.to_vec()),
        ("compressed", compressed.to_vec()),
        ("part", parts.map(|part| file(&|path| part.write(path).map(drop))).to_vec()),
        ("cache", caches),
        ("budgets", vec![budgets.to_string().into_bytes(), simple]),
        ("sensitivities", vec![sensitivities.to_vec()]),
        ("curves", vec![file(&|path| curves.write(path).map(drop))]),
        ("statistics", vec![statistics]),
        ("journal", vec![journal]),
        (
            "configuration",
            vec![
                b"{\"model_type\":\"llama\",\"num_attention_heads\":32,\"num_key_value_heads\":8,\"head_dim\":128,\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}".to_vec(),
                b"{\"text_config\":{\"model_type\":\"qwen2\",\"num_attention_heads\":14,\"num_key_value_heads\":2,\"hidden_size\":896,\"rope_theta\":1000000.0}}".to_vec(),
            ],
        ),
        ("options", options.map(|options| serde_json::to_vec(&options).unwrap()).to_vec()),
        (
            "rope_scaling",
            vec![
                b"{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}".to_vec(),
                b"{\"rope_type\":\"factors\",\"factors\":[1.0,1.5,2.0,4.0]}".to_vec(),
            ],
        ),
    ]
}
