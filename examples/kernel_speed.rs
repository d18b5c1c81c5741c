//! What each kernel costs at the size of a real layer; prints GFLOP/s. Not a test: numbers depend on the machine.
//!
//! Arguments, all of which may be left out from the end: channels, rows, pairs, heads, how the names of kernels begin, and `matrices` for
//! products by cooperative matrices.

use std::time::Instant;

use kvsculpt::engine::{Dims, Engine, Head, History, SCALARS, WEIGHT_ROWS};
use kvsculpt::gpu::{Gpu, Selection};
use kvsculpt::kernels::GpuEngine;

fn main() -> kvsculpt::Result<()> {
    let number = |place: usize, usual: u32| std::env::args().nth(place).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (dim, rows, pairs, count) = (number(1, 64), number(2, 2688), number(3, 358), number(4, 8));
    let mut gpu = Gpu::open(&Selection {
        cooperative_matrices: std::env::args().nth(6).is_some_and(|word| word == "matrices"),
        ..Selection::default()
    })?;
    gpu.enable_timings();
    let mut engine = GpuEngine::new(gpu)?;
    println!("{}: dim {dim}, {rows} rows, {pairs} pairs, {count} heads", engine.name());
    let dims = Dims { dim, value_dim: dim };
    let block = rows.min(WEIGHT_ROWS);
    let heads: Vec<Head> = (0..count)
        .map(|i| Head {
            index: i,
            row: i * rows,
            rows,
            pair: i * pairs,
            pairs,
            square: i * pairs * pairs,
            weights: i * block * pairs,
            padding: 0,
        })
        .collect();
    let (n, k, d, h) = (rows as usize, pairs as usize, dim as usize, count as usize);
    let mut seed = 1_u32;
    let mut random = |len: usize| -> Vec<f32> {
        (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / 16_777_216.0 - 0.5
            })
            .collect()
    };
    let table = engine.table(dims, &heads)?;
    let queries = engine.upload("queries", &random(h * n * d))?;
    let keys = engine.upload("keys", &random(h * k * d))?;
    let values = engine.upload("values", &random(h * k * d))?;
    let base = engine.upload("base", &random(h * n * (d + 4)))?;
    let teacher = engine.upload("teacher", &random(h * n * (d + 4)))?;
    let mass_weight = engine.upload("mass weight", &vec![1.0; h])?;
    let ridge = engine.upload("ridge", &vec![1e-2; 2 * h])?;
    let lengths = engine.upload("lengths", &vec![1e-3; h])?;
    let mut state = engine.zeros("state", h * n * (d + 4))?;
    let mut error = engine.zeros("error", h * n * (d + 4))?;
    let mut scalars = engine.zeros("scalars", h * SCALARS)?;
    let mut gradient = engine.zeros("gradient", h * k * d)?;
    let mut origin = engine.zeros("origin", h * k * d)?;
    let mut direction = engine.zeros("direction", h * k * d)?;
    let mut scores = engine.zeros("scores", h * k)?;
    let mut weights = engine.zeros("weights", h * block as usize * k)?;
    let mut gram = engine.zeros("gram", h * k * k)?;
    let mut factor = engine.zeros("factor", h * k * k)?;
    let mut rhs = engine.zeros("rhs", h * k * d)?;
    let mut solved = engine.zeros("solved", h * k * d)?;
    let capacity = 10;
    let mut history = History {
        capacity,
        steps: engine.upload("steps", &random(h * k * d * capacity as usize))?,
        changes: engine.upload("changes", &random(h * k * d * capacity as usize))?,
        curvatures: engine.upload("curvatures", &vec![1e-3; h * capacity as usize * 2])?,
        cursor: engine.upload("cursor", &[capacity as f32, 3.0].repeat(h))?,
    };
    let only = std::env::args().nth(5).unwrap_or_default();
    let scale = (d as f32).sqrt().recip();
    let product = 2.0 * (h * n * k * d) as f64;
    let mut time = |name: &str, flops: f64, run: &mut dyn FnMut(&mut GpuEngine) -> kvsculpt::Result<()>| -> kvsculpt::Result<()> {
        if !only.is_empty() && !name.starts_with(&only) {
            return Ok(());
        }
        run(&mut engine)?;
        engine.read(&lengths)?;
        let start = Instant::now();
        let mut runs = 0;
        while runs < 2 || start.elapsed().as_secs_f64() < 0.6 {
            run(&mut engine)?;
            engine.read(&lengths)?;
            runs += 1;
        }
        let wall = start.elapsed().as_secs_f64() / f64::from(runs);
        println!("{name:16} {:9.2} ms {:8.1} GFLOP/s", wall * 1e3, flops / wall * 1e-9);
        Ok(())
    };
    time("attention", 2.0 * product, &mut |e| {
        e.attention(&table, &queries, &keys, &values, Some(&base), scale, &mut state)
    })?;
    time("loss", 6.0 * (h * n * d) as f64, &mut |e| {
        e.loss(&table, &state, &teacher, &mass_weight, &mut error, &mut scalars)
    })?;
    time("key_gradient", 3.0 * product, &mut |e| {
        e.key_gradient(&table, &queries, &keys, &values, &error, scale, &mut gradient)
    })?;
    time("scores", product, &mut |e| {
        e.scores(&table, &queries, &keys, &state, scale, &mut scores)
    })?;
    let share = f64::from(block) / n as f64;
    time("weights", product * share, &mut |e| {
        e.weights(&table, &queries, &keys, &state, scale, 0..block, &mut weights)
    })?;
    time("gram (half)", (h * block as usize * k * k) as f64, &mut |e| {
        e.gram(&table, &weights, 0..block, &mut gram)
    })?;
    time("rhs", product * share, &mut |e| e.rhs(&table, &weights, &error, 0..block, &mut rhs))?;
    time("cholesky", (h * k * k * k) as f64 / 3.0, &mut |e| {
        e.cholesky(&table, &gram, &ridge, &mut factor, &mut scalars)
    })?;
    time("solve", 2.0 * (h * k * k * d) as f64, &mut |e| {
        e.solve(&table, &factor, &rhs, &values, &mut solved)
    })?;
    time("lbfgs_direction", 8.0 * (h * k * d * capacity as usize) as f64, &mut |e| {
        e.lbfgs_direction(&table, &gradient, &history, &mut direction, &mut scalars)
    })?;
    time("slope", 3.0 * (h * k * d) as f64, &mut |e| {
        e.slope(&table, &gradient, &direction, &mut scalars)
    })?;
    time("step", 2.0 * (h * k * d) as f64, &mut |e| {
        e.step(&table, &keys, &direction, &lengths, &mut origin)
    })?;
    time("lbfgs_push", 8.0 * (h * k * d) as f64, &mut |e| {
        e.lbfgs_push(
            &table,
            &lengths,
            &direction,
            &rhs,
            &mut gradient,
            &mut origin,
            &mut history,
            &mut scalars,
        )
    })?;
    Ok(())
}
