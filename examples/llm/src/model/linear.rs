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

/// One matrix of the model, as it is multiplied.
#[derive(Clone, Debug)]
enum Weight {
    /// Widened once for all.
    Wide(Tensor),
    /// As in the file, by candle's integer kernels; with `widen`, many rows by the weights widened for the moment.
    Stored {
        weight: Arc<QTensor>,
        product: QMatMul,
        widen: bool,
    },
}

/// `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight: [outputs, inputs]`, `bias: [outputs]`.
    pub(super) fn new(weight: QTensor, bias: Option<Tensor>, products: Products) -> Result<Self> {
        let weight = match products {
            Products::Widened => Weight::Wide(weight.dequantize(&weight.device())?),
            Products::Mixed | Products::Quantised => {
                let weight = Arc::new(weight);
                Weight::Stored {
                    product: QMatMul::from_arc(weight.clone())?,
                    weight,
                    widen: products == Products::Mixed,
                }
            }
        };
        Ok(Self { weight, bias })
    }

    /// With a matrix that is wide already, such as the embedding in models that write with it.
    pub(super) fn wide(weight: Tensor) -> Self {
        Self {
            weight: Weight::Wide(weight),
            bias: None,
        }
    }

    /// `x: [rows, inputs]` → `[rows, outputs]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Wide(weight) => x.matmul(&weight.t()?)?,
            Weight::Stored { weight, widen: true, .. } if x.dim(D::Minus2)? >= MANY_ROWS => {
                x.matmul(&weight.dequantize(x.device())?.t()?)?
            }
            Weight::Stored { product, .. } => product.forward(x)?,
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}
