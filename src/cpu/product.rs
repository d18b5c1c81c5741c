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
        let rows = data.len().checked_div(stride).unwrap_or(0);
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

/// A row-major matrix that is written: the first `columns` floats of every `stride`.
pub(super) fn target(data: &mut [f32], columns: usize, stride: usize) -> MatMut<'_, f32> {
    let rows = data.len().checked_div(stride).unwrap_or(0);
    // Not `from_row_major_slice_with_stride_mut`: faer 0.24 swaps the two strides there and writes past the slice.
    MatMut::from_column_major_slice_with_stride_mut(data, columns, rows, stride).transpose_mut()
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

#[cfg(test)]
mod tests {
    use super::*;

    const GUARD: usize = 4096;

    /// Whole numbers small enough that every sum is exact.
    fn numbers(count: usize, period: usize) -> Vec<f32> {
        (0..count).map(|i| f32::from(u8::try_from(i % period).unwrap()) - 5.0).collect()
    }

    #[test]
    fn products_are_right_and_stay_in_their_place() {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 32, 7),
            (9, 1, 5),
            (6, 33, 1),
            (21, 32, 150),
            (150, 48, 21),
            (168, 358, 64),
            (64, 17, 300),
        ] {
            for (kind, gap) in [(0, 0), (1, 0), (2, 0), (0, 4), (1, 4), (2, 4)] {
                let (a, b, stride) = (numbers(m * k, 11), numbers(n * k, 13), n + gap);
                let mut c = vec![-7.0f32; m * stride + 2 * GUARD];
                let place = target(&mut c[GUARD..GUARD + m * stride], n, stride);
                match kind {
                    0 => by_transpose(place, 1.0, Rows::new(&a, k), Rows::new(&b, k)),
                    1 => add_product(place, 1.0, Rows::new(&a, k), Rows::new(&b, n)),
                    _ => transpose_product(place, false, 1.0, Rows::new(&a, m), Rows::new(&b, n)),
                }
                for (at, &got) in c.iter().enumerate() {
                    let (row, column) = (at.wrapping_sub(GUARD) / stride, at.wrapping_sub(GUARD) % stride);
                    let inside = at >= GUARD && row < m && column < n;
                    let sum: f32 = (0..if inside { k } else { 0 })
                        .map(|i| match kind {
                            0 => a[row * k + i] * b[column * k + i],
                            1 => a[row * k + i] * b[i * n + column],
                            _ => a[i * m + row] * b[i * n + column],
                        })
                        .sum();
                    let before = if inside && kind != 1 { 0.0 } else { -7.0 };
                    assert_eq!(got, before + sum, "kind {kind}, {m} {n} {k}, gap {gap}, place {at}");
                }
            }
        }
    }
}
