//! The operations of [`Engine`] as recordings of kernels.

use std::collections::HashMap;
use std::ops::Range;

use half::f16;

use super::attention::{self, Attention};
use super::cholesky::Cholesky;
use super::copy_pairs::CopyPairs;
use super::effects::Effects;
use super::gram::Gram;
use super::key_gradient::KeyGradient;
use super::lbfgs_curvature::LbfgsCurvature;
use super::lbfgs_direction::{self, LbfgsDirection};
use super::lbfgs_move::LbfgsMove;
use super::lbfgs_push::LbfgsPush;
use super::loss::{self, Loss};
use super::rhs::Rhs;
use super::scores::Scores;
use super::slope::Slope;
use super::solve::Solve;
use super::spec::{MOST_HISTORY, Machine, Spec};
use super::step::Step;
use super::sum_blocks::SumBlocks;
use super::table::{Table, groups};
use super::weights::Weights;
use crate::engine::{Dims, Engine, Exchange, Head, History, Uploader};
use crate::error::{Error, Result};
use crate::gpu::{self, Array, Element, Gpu};

/// The engine that runs WGSL kernels on a GPU.
///
/// ```no_run
/// use kvsculpt::{gpu::{Gpu, Selection}, kernels::GpuEngine, solver::{Request, compress}};
///
/// # let capture = kvsculpt::cache::Capture::open(std::path::Path::new("cache.safetensors"))?;
/// // Or on an application's own device: Gpu::from_device.
/// let mut engine = GpuEngine::new(Gpu::open(&Selection::default())?)?;
/// let short = compress(&mut engine, &capture, &Request::default(), &mut ())?;
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// ```no_run
/// use kvsculpt::{gpu::{Gpu, Selection}, kernels::{GpuEngine, Machine}};
///
/// // The kernels of a GPU on whatever device there is, a software driver for one.
/// let machine = Machine { software: false, subgroups: false, matrices: None };
/// let mut engine = GpuEngine::as_machine(Gpu::open(&Selection::default())?, machine)?;
/// engine.set_scratch_limit(16 << 20);
/// assert!(engine.gpu().max_array_bytes() > 0);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct GpuEngine {
    gpu: Gpu,
    machine: Machine,
    kernels: HashMap<Dims, Kernels>,
    /// Sums of row blocks, between two dispatches of one operation.
    scratch: Option<Array>,
    /// How large that may grow, where it is for several heads.
    scratch_limit: u64,
}

/// The kernels of one specialisation, each compiled when first asked for.
#[derive(Debug)]
struct Kernels {
    spec: Spec,
    attention: HashMap<(Element, Element), Attention>,
    effects: HashMap<(Element, Element), Effects>,
    scores: HashMap<Element, Scores>,
    cholesky: Option<Cholesky>,
    copy_pairs: Option<CopyPairs>,
    gram: Option<Gram>,
    key_gradient: Option<KeyGradient>,
    lbfgs_curvature: Option<LbfgsCurvature>,
    lbfgs_direction: Option<LbfgsDirection>,
    lbfgs_move: Option<LbfgsMove>,
    lbfgs_push: Option<LbfgsPush>,
    loss: Option<Loss>,
    rhs: Option<Rhs>,
    slope: Option<Slope>,
    solve: Option<Solve>,
    step: Option<Step>,
    sum_blocks: Option<SumBlocks>,
    weights: Option<Weights>,
}

impl Kernels {
    fn new(spec: Spec) -> Self {
        Self {
            spec,
            attention: HashMap::new(),
            effects: HashMap::new(),
            scores: HashMap::new(),
            cholesky: None,
            copy_pairs: None,
            gram: None,
            key_gradient: None,
            lbfgs_curvature: None,
            lbfgs_direction: None,
            lbfgs_move: None,
            lbfgs_push: None,
            loss: None,
            rhs: None,
            slope: None,
            solve: None,
            step: None,
            sum_blocks: None,
            weights: None,
        }
    }
}

/// What is in its place, made first if nothing is.
fn ready<K>(place: &mut Option<K>, make: impl FnOnce() -> Result<K>) -> Result<&K> {
    if place.is_none() {
        *place = Some(make()?);
    }
    place.as_ref().ok_or_else(|| Error::Gpu("a kernel is missing".into()))
}

/// The same numbers in half precision, where shaders may use it and none changes by it.
fn compact(has_half: bool, data: &[f32]) -> Option<Vec<f16>> {
    let is_exact = has_half && data.iter().all(|&x| f16::from_f32(x).to_f32().to_bits() == x.to_bits());
    is_exact.then(|| data.iter().map(|&x| f16::from_f32(x)).collect())
}

impl Uploader<Array> for gpu::Uploader {
    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<Array> {
        self.upload(label, data)
    }

    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<Array> {
        match compact(self.has_half(), data) {
            Some(half) => self.upload_half(label, &half),
            None => self.upload(label, data),
        }
    }
}

impl GpuEngine {
    /// The engine on an open device. Kernels are compiled as they are needed.
    ///
    /// # Errors
    /// None so far: what a kernel needs of the device is checked when it is compiled.
    pub fn new(gpu: Gpu) -> Result<Self> {
        let machine = Machine::of(&gpu);
        Self::as_machine(gpu, machine)
    }

    /// The engine with kernels as another machine would get them: how the kernels for a GPU are tested on a software
    /// driver, and those without subgroups on a device that has them.
    ///
    /// # Errors
    /// As [`GpuEngine::new`].
    pub fn as_machine(gpu: Gpu, machine: Machine) -> Result<Self> {
        Ok(Self {
            machine,
            gpu,
            kernels: HashMap::new(),
            scratch: None,
            scratch_limit: 64 << 20,
        })
    }

    /// The device, to ask it for timings or to set its time-out.
    pub fn gpu(&mut self) -> &mut Gpu {
        &mut self.gpu
    }

    /// Holds the sums of row blocks for as many heads at once as fit into so many bytes, and for one at least; 64 MiB at
    /// first. Changes no result.
    pub fn set_scratch_limit(&mut self, bytes: u64) {
        self.scratch_limit = bytes;
    }

    /// The kernels for a table's channels, and the device to record them on.
    fn parts(&mut self, dims: Dims) -> Result<(&mut Kernels, &mut Gpu)> {
        let kernels = match self.kernels.entry(dims) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Kernels::new(Spec::new(dims, self.machine)?)),
        };
        Ok((kernels, &mut self.gpu))
    }

    /// The scratch array, taken out of its place, of at least `floats`.
    fn take_scratch(&mut self, floats: u64) -> Result<Array> {
        let kept = self.scratch.take();
        if let Some(kept) = kept.filter(|kept| kept.len() as u64 >= floats) {
            return Ok(kept);
        }
        let len = usize::try_from(floats).map_err(|_| Error::OutOfMemory {
            label: "scratch".into(),
            bytes: floats.saturating_mul(4),
            available: self.gpu.max_array_bytes(),
        })?;
        self.gpu.zeros("scratch", len)
    }
}

impl Engine for GpuEngine {
    type Array = Array;
    type Table = Table;

    fn name(&self) -> String {
        self.gpu.name()
    }

    fn max_array_bytes(&self) -> u64 {
        self.gpu.max_array_bytes()
    }

    fn reopen(&mut self) -> Result<()> {
        let gpu = self.gpu.reopen()?;
        self.kernels.clear();
        self.scratch = None;
        self.gpu = gpu;
        Ok(())
    }

    fn scratch_bytes(&self, dims: Dims, heads: &[Head]) -> u64 {
        let sums = |width| {
            let groups = groups(heads, self.machine.row_blocks(), width, self.scratch_limit);
            groups.iter().map(|group| group.floats(width)).max().unwrap_or(0)
        };
        let (gradient, scores) = (sums(dims.dim), sums(1));
        let most_rows = heads.iter().map(|head| head.rows).max().unwrap_or(0);
        let others = Spec::new(dims, self.machine).map_or(0, |spec| {
            loss::sums(&spec, most_rows, heads.len() as u64).max(lbfgs_direction::most_sums(&spec, heads))
        });
        4 * gradient.max(scores).max(others)
    }

    fn table(&mut self, dims: Dims, heads: &[Head]) -> Result<Table> {
        Spec::new(dims, self.machine)?;
        Table::new(&mut self.gpu, dims, heads)
    }

    fn set_table(&mut self, table: &mut Table, heads: &[Head]) -> Result<()> {
        table.set(&mut self.gpu, heads)
    }

    fn zeros(&mut self, label: &'static str, len: usize) -> Result<Array> {
        self.gpu.zeros(label, len)
    }

    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<Array> {
        self.gpu.upload(label, data)
    }

    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<Array> {
        match compact(self.gpu.has_half(), data) {
            Some(half) => self.gpu.upload_half(label, &half),
            None => self.gpu.upload(label, data),
        }
    }

    fn uploader(&self) -> Option<Box<dyn Uploader<Array> + Send>> {
        Some(Box::new(self.gpu.uploader()))
    }

    fn write(&mut self, array: &mut Array, data: &[f32]) -> Result<()> {
        self.gpu.write(array, data)
    }

    fn read(&mut self, array: &Array) -> Result<Vec<f32>> {
        self.gpu.read(array)
    }

    fn defers(&self) -> bool {
        true
    }

    fn wait(&mut self) -> Result<()> {
        self.gpu.finish()
    }

    fn exchanged(&self) -> Exchange {
        let counts = self.gpu.counts();
        Exchange {
            submissions: counts.submissions,
            reads: counts.reads,
            bytes_read: counts.bytes_read,
            writes: counts.writes,
            bytes_written: counts.bytes_written,
        }
    }

    fn take_peak_bytes(&mut self) -> Option<u64> {
        Some(self.gpu.take_peak_bytes())
    }

    fn copy_pairs(&mut self, table: &Table, width: u32, source: &Array, target: &mut Array) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        ready(&mut kernels.copy_pairs, || CopyPairs::new(gpu, &kernels.spec))?.record(gpu, table, width, source, target)
    }

    fn attention(
        &mut self,
        table: &Table,
        queries: &Array,
        keys: &Array,
        values: &Array,
        base: Option<&Array>,
        scale: f32,
        state: &mut Array,
    ) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        let stores = (keys.element(), values.element());
        if !kernels.attention.contains_key(&stores) {
            let made = Attention::new(gpu, &kernels.spec, stores.0, stores.1)?;
            kernels.attention.insert(stores, made);
        }
        let params = attention::Params {
            scale,
            based: u32::from(base.is_some()),
        };
        let arrays = attention::Arrays {
            queries,
            keys,
            values,
            base: base.unwrap_or(queries),
            state,
        };
        kernels.attention[&stores].record(gpu, table, &arrays, params)
    }

    fn scores(&mut self, table: &Table, queries: &Array, keys: &Array, state: &Array, scale: f32, scores: &mut Array) -> Result<()> {
        let groups = table.groups(self.machine.row_blocks(), 1, self.scratch_limit);
        let partial = self.take_scratch(groups.iter().map(|group| group.floats(1)).max().unwrap_or(0))?;
        let (kernels, gpu) = self.parts(table.dims)?;
        let store = keys.element();
        if !kernels.scores.contains_key(&store) {
            let made = Scores::new(gpu, &kernels.spec, store)?;
            kernels.scores.insert(store, made);
        }
        let sum = ready(&mut kernels.sum_blocks, || SumBlocks::new(gpu, &kernels.spec))?;
        for group in groups {
            kernels.scores[&store].record(gpu, table, group, [queries, keys, state, &partial], scale)?;
            sum.record(gpu, table, group, 1, &partial, scores)?;
        }
        self.scratch = Some(partial);
        Ok(())
    }

    fn effects(
        &mut self,
        table: &Table,
        queries: &Array,
        keys: &Array,
        values: &Array,
        state: &Array,
        scale: f32,
        effects: &mut Array,
    ) -> Result<()> {
        let groups = table.groups(self.machine.row_blocks(), 1, self.scratch_limit);
        let partial = self.take_scratch(groups.iter().map(|group| group.floats(1)).max().unwrap_or(0))?;
        let (kernels, gpu) = self.parts(table.dims)?;
        let stores = (keys.element(), values.element());
        if !kernels.effects.contains_key(&stores) {
            let made = Effects::new(gpu, &kernels.spec, stores.0, stores.1)?;
            kernels.effects.insert(stores, made);
        }
        let sum = ready(&mut kernels.sum_blocks, || SumBlocks::new(gpu, &kernels.spec))?;
        for group in groups {
            kernels.effects[&stores].record(gpu, table, group, [queries, keys, values, state, &partial], scale)?;
            sum.record(gpu, table, group, 1, &partial, effects)?;
        }
        self.scratch = Some(partial);
        Ok(())
    }

    fn loss(
        &mut self,
        table: &Table,
        state: &Array,
        teacher: &Array,
        mass_weight: &Array,
        error: &mut Array,
        scalars: &mut Array,
    ) -> Result<()> {
        let spec = self.parts(table.dims)?.0.spec;
        let sums = self.take_scratch(loss::sums(&spec, table.most_rows(), u64::from(table.len())))?;
        let (kernels, gpu) = self.parts(table.dims)?;
        ready(&mut kernels.loss, || Loss::new(gpu, &spec))?.record(gpu, table, [state, teacher, mass_weight, error, &sums, scalars])?;
        self.scratch = Some(sums);
        Ok(())
    }

    fn key_gradient(
        &mut self,
        table: &Table,
        queries: &Array,
        keys: &Array,
        values: &Array,
        error: &Array,
        scale: f32,
        gradient: &mut Array,
    ) -> Result<()> {
        let width = table.dims.dim;
        let groups = table.groups(self.machine.row_blocks(), width, self.scratch_limit);
        let partial = self.take_scratch(groups.iter().map(|group| group.floats(width)).max().unwrap_or(0))?;
        let (kernels, gpu) = self.parts(table.dims)?;
        let blocks = ready(&mut kernels.key_gradient, || KeyGradient::new(gpu, &kernels.spec))?;
        let sum = ready(&mut kernels.sum_blocks, || SumBlocks::new(gpu, &kernels.spec))?;
        for group in groups {
            blocks.record(gpu, table, group, [queries, keys, values, error, &partial], scale)?;
            sum.record(gpu, table, group, width, &partial, gradient)?;
        }
        self.scratch = Some(partial);
        Ok(())
    }

    fn weights(
        &mut self,
        table: &Table,
        queries: &Array,
        keys: &Array,
        state: &Array,
        scale: f32,
        rows: Range<u32>,
        weights: &mut Array,
    ) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        let kernel = ready(&mut kernels.weights, || Weights::new(gpu, &kernels.spec))?;
        kernel.record(gpu, table, [queries, keys, state, weights], scale, rows)
    }

    fn gram(&mut self, table: &Table, weights: &Array, rows: Range<u32>, gram: &mut Array) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        ready(&mut kernels.gram, || Gram::new(gpu, &kernels.spec))?.record(gpu, table, weights, rows, gram)
    }

    fn rhs(&mut self, table: &Table, weights: &Array, error: &Array, rows: Range<u32>, rhs: &mut Array) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        ready(&mut kernels.rhs, || Rhs::new(gpu, &kernels.spec))?.record(gpu, table, [weights, error, rhs], rows)
    }

    fn cholesky(&mut self, table: &Table, gram: &Array, ridge: &Array, factor: &mut Array, scalars: &mut Array) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        ready(&mut kernels.cholesky, || Cholesky::new(gpu, &kernels.spec))?.record(gpu, table, [gram, ridge, factor, scalars])
    }

    fn solve(&mut self, table: &Table, factor: &Array, rhs: &Array, anchor: &Array, values: &mut Array) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        ready(&mut kernels.solve, || Solve::new(gpu, &kernels.spec))?.record(gpu, table, [factor, rhs, anchor, values])
    }

    fn step(&mut self, table: &Table, origin: &Array, direction: &Array, lengths: &Array, trial: &mut Array) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        ready(&mut kernels.step, || Step::new(gpu, &kernels.spec))?.record(gpu, table, [origin, direction, lengths, trial])
    }

    fn slope(&mut self, table: &Table, gradient: &Array, direction: &Array, scalars: &mut Array) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        ready(&mut kernels.slope, || Slope::new(gpu, &kernels.spec))?.record(gpu, table, [gradient, direction, scalars])
    }

    fn lbfgs_direction(
        &mut self,
        table: &Table,
        gradient: &Array,
        history: &History<Array>,
        direction: &mut Array,
        scalars: &mut Array,
    ) -> Result<()> {
        if history.capacity > MOST_HISTORY {
            return Err(Error::Unsupported {
                what: "curvature pairs of a head".into(),
                need: history.capacity.to_string(),
                have: MOST_HISTORY.to_string(),
                remedy: "use a smaller --history".into(),
            });
        }
        let spec = self.parts(table.dims)?.0.spec;
        let floats = lbfgs_direction::sums(&spec, history.capacity, table.most_pairs(), u64::from(table.len()));
        let sums = self.take_scratch(floats)?;
        let (kernels, gpu) = self.parts(table.dims)?;
        let kernel = ready(&mut kernels.lbfgs_direction, || LbfgsDirection::new(gpu, &spec))?;
        let arrays = lbfgs_direction::Arrays {
            gradient,
            direction,
            scalars,
            sums: &sums,
        };
        kernel.record(gpu, table, history, &arrays)?;
        self.scratch = Some(sums);
        Ok(())
    }

    fn lbfgs_push(
        &mut self,
        table: &Table,
        lengths: &Array,
        direction: &Array,
        new_gradient: &Array,
        gradient: &mut Array,
        origin: &mut Array,
        history: &mut History<Array>,
        scalars: &mut Array,
    ) -> Result<()> {
        let (kernels, gpu) = self.parts(table.dims)?;
        let push = ready(&mut kernels.lbfgs_push, || LbfgsPush::new(gpu, &kernels.spec))?;
        let curvature = ready(&mut kernels.lbfgs_curvature, || LbfgsCurvature::new(gpu, &kernels.spec))?;
        let advance = ready(&mut kernels.lbfgs_move, || LbfgsMove::new(gpu, &kernels.spec))?;
        push.record(gpu, table, history, [lengths, direction, new_gradient, gradient])?;
        curvature.record(gpu, table, history, scalars)?;
        advance.record(gpu, table, [lengths, direction, new_gradient, gradient, origin])
    }
}
