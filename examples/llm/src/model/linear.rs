//! `y = x Wᵀ + b` with quantised weights.

use std::sync::Arc;

use anyhow::Result;
use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{D, Module, Tensor};

/// From so many rows on, widening the weights once costs less than quantising every row.
const MANY_ROWS: usize = 32;

/// How products with quantised weights are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Few rows by candle's integer kernels, which round the rows to 8 bits too; many rows with the weights widened to f32
    /// for the moment. Least memory.
    #[default]
    Mixed,
    /// Always with the weights widened to f32, once for all: four bytes a weight. Rounds nothing but the sums.
    Widened,
    /// Always by candle's integer kernels, as candle's own models do.
    Quantised,
}

impl Products {
    /// Widened weights for models whose weights then stay below 4 GiB, else mixed products. Unless it is compiled for the very
    /// machine (`RUSTFLAGS="-C target-cpu=native"`), candle's integer kernels are plain loops on x86, several times slower than
    /// products in single precision.
    #[must_use]
    pub fn fitting(content: &Content) -> Self {
        const MOST: usize = 1 << 30;
        let weights: usize = content.tensor_infos.values().map(|tensor| tensor.shape.elem_count()).sum();
        if weights <= MOST { Self::Widened } else { Self::Mixed }
    }
}

/// One matrix of the model.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: Arc<QTensor>,
    product: QMatMul,
    products: Products,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight: [outputs, inputs]`, `bias: [outputs]`.
    pub(super) fn new(weight: QTensor, bias: Option<Tensor>, products: Products) -> Result<Self> {
        let weight = Arc::new(weight);
        let product = match products {
            Products::Widened => QMatMul::Tensor(weight.dequantize(&weight.device())?),
            Products::Mixed | Products::Quantised => QMatMul::from_arc(weight.clone())?,
        };
        Ok(Self {
            weight,
            product,
            products,
            bias,
        })
    }

    /// `x: [rows, inputs]` → `[rows, outputs]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let widen = self.products == Products::Mixed && x.dim(D::Minus2)? >= MANY_ROWS && matches!(self.product, QMatMul::QTensor(_));
        let y = if widen {
            x.matmul(&self.weight.dequantize(x.device())?.t()?)?
        } else {
            self.product.forward(x)?
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}
