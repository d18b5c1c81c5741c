//! Matrix products over row-major slices, single-threaded: the tasks around them bring the threads.

use std::ops::Range;

use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, MatMut, MatRef, Par};

/// A row-major matrix: `columns` floats of every `stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows that follow each other without a gap.
    pub(super) fn new(data: &'a [f32], columns: usize) -> Self {
        Self::strided(data, columns, columns)
    }

    /// The first `columns` floats of every `stride`.
    pub(super) fn strided(data: &'a [f32], columns: usize, stride: usize) -> Self {
        let rows = if stride == 0 { 0 } else { data.len() / stride };
        Self {
            data,
            rows,
            columns,
            stride,
        }
    }

    /// Some of the columns.
    pub(super) fn columns(self, columns: Range<usize>) -> Self {
        Self {
            data: &self.data[columns.start.min(self.data.len())..],
            columns: columns.len(),
            ..self
        }
    }

    pub(super) fn view(self) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice_with_stride(self.data, self.rows, self.columns, self.stride)
    }
}

/// A row-major matrix that is written.
pub(super) fn target(data: &mut [f32], columns: usize, stride: usize) -> MatMut<'_, f32> {
    let rows = if stride == 0 { 0 } else { data.len() / stride };
    MatMut::from_row_major_slice_with_stride_mut(data, rows, columns, stride)
}

/// `C ← α A Bᵀ`.
pub(super) fn by_transpose(c: MatMut<'_, f32>, alpha: f32, a: Rows<'_>, b: Rows<'_>) {
    matmul(c, Accum::Replace, a.view(), b.view().transpose(), alpha, Par::Seq);
}

/// `C ← C + α A B`.
pub(super) fn add_product(c: MatMut<'_, f32>, alpha: f32, a: Rows<'_>, b: Rows<'_>) {
    matmul(c, Accum::Add, a.view(), b.view(), alpha, Par::Seq);
}

/// `C ← [C +] α Aᵀ B`.
pub(super) fn transpose_product(c: MatMut<'_, f32>, add: bool, alpha: f32, a: Rows<'_>, b: Rows<'_>) {
    matmul(c, accumulate(add), a.view().transpose(), b.view(), alpha, Par::Seq);
}

/// `C ← [C +] A[:, rows]ᵀ A[:, ..rows.end]`: the strip of `AᵀA` at `rows` up to and with the diagonal.
pub(super) fn gram_strip(strip: &mut [f32], add: bool, a: Rows<'_>, rows: Range<usize>) {
    let stride = a.columns;
    let left = a.view().subcols(rows.start, rows.len());
    let (before, diagonal) = target(strip, stride, stride).split_at_col_mut(rows.start);
    matmul(
        before,
        accumulate(add),
        left.transpose(),
        a.view().subcols(0, rows.start),
        1.0,
        Par::Seq,
    );
    triangular::matmul(
        diagonal.subcols_mut(0, rows.len()),
        triangular::BlockStructure::TriangularLower,
        accumulate(add),
        left.transpose(),
        triangular::BlockStructure::Rectangular,
        left,
        triangular::BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
}

fn accumulate(add: bool) -> Accum {
    if add { Accum::Add } else { Accum::Replace }
}
