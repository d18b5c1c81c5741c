//! `l = log(Σ_j e^{s q·k_j} + e^{l_base})`, `o = Σ_j e^{s q·k_j − l} v_j + e^{l_base − l} o_base`

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Array, Element, Gpu, Kernel, Source};

use super::spec::Spec;
use super::table::Table;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Params {
    pub(super) scale: f32,
    pub(super) based: u32,
}

#[derive(Debug)]
pub(super) struct Attention {
    kernel: Kernel<Params>,
    /// Rows a workgroup.
    rows: u32,
}

/// In the order of the bindings after the heads.
#[derive(Debug)]
pub(super) struct Arrays<'a> {
    pub(super) queries: &'a Array,
    pub(super) keys: &'a Array,
    pub(super) values: &'a Array,
    /// Any array that is not written, where there is no base.
    pub(super) base: &'a Array,
    pub(super) state: &'a Array,
}

impl Attention {
    pub(super) fn source(spec: &Spec, keys: Element, values: Element) -> Source {
        let dots = spec.attention_tile * spec.attention_lanes;
        let text = include_str!("../../shaders/attention.wgsl");
        spec.sharing_source("attention", text, spec.attention_shares, dots)
            .alias("KeyStore", keys)
            .alias("ValueStore", values)
    }

    pub(super) fn new(gpu: &Gpu, spec: &Spec, keys: Element, values: Element) -> Result<Self> {
        let kernel = Kernel::new(gpu, &Self::source(spec, keys, values), "main")?;
        let rows = spec.attention_lanes / spec.attention_shares;
        Ok(Self { kernel, rows })
    }

    pub(super) fn record(&self, gpu: &mut Gpu, table: &Table, arrays: &Arrays<'_>, params: Params) -> Result<()> {
        let Arrays {
            queries,
            keys,
            values,
            base,
            state,
        } = *arrays;
        gpu.announce(table.products(table.dims.dim + table.dims.value_dim))?;
        let grid = [table.most_rows().div_ceil(self.rows), 1, table.len()];
        self.kernel
            .record(gpu, &[&table.rows, queries, keys, values, base, state], &params, grid)
    }
}
