//! Packs heads into batches that fit the machine.

use super::workspace::{Shape, Workspace};
use crate::error::{Error, Result};

/// What a batch may use.
///
/// ```
/// use kvsculpt::{batch::{Budget, Shape, schedule}, engine::Dims};
///
/// let dims = Dims { dim: 64, value_dim: 64 };
/// let head = Shape { dims, tokens: 2048, fixed: 100, free: 500, solved: 500, training: 1024, validation: 256, probe: 0 };
/// // No head fits into so little.
/// let budget = Budget { total: 1 << 20, array: 1 << 18 };
/// assert!(schedule(&[head], 10, budget, |_| 0).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// All arrays of a batch together and what the host holds of them, in bytes.
    pub total: u64,
    /// The largest single array, in bytes.
    pub array: u64,
}

/// Packs heads into batches: heads of the same dims, largest first, as many as the budget holds. A pure function of
/// its arguments; returns the heads' numbers, batch by batch. `scratch` gives an engine's own need for some heads.
///
/// ```
/// use kvsculpt::{batch::{Budget, Shape, Workspace, schedule}, engine::Dims};
///
/// let dims = Dims { dim: 64, value_dim: 64 };
/// let head = |free| Shape { dims, tokens: 2048, fixed: 100, free, solved: free, training: 1024, validation: 256, probe: 0 };
/// let heads = [head(100), head(500), head(300)];
/// let all = Workspace::new(&heads, 10);
/// let total = all.bytes() + all.host_bytes();
/// let together = schedule(&heads, 10, Budget { total, array: 1 << 30 }, |_| 0)?;
/// assert_eq!(together, [[1, 2, 0]]); // the largest first
/// // With a little less the smallest waits for a batch of its own.
/// let apart = schedule(&heads, 10, Budget { total: total - 1, array: 1 << 30 }, |_| 0)?;
/// assert_eq!(apart, [vec![1, 2], vec![0]]);
/// # Ok::<(), kvsculpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::OutOfMemory`] if one head alone is too large, naming its largest array.
pub fn schedule(shapes: &[Shape], history: u32, budget: Budget, scratch: impl Fn(&[Shape]) -> u64) -> Result<Vec<Vec<usize>>> {
    let mut order: Vec<usize> = (0..shapes.len()).collect();
    order.sort_by_key(|&head| (shapes[head].dims, std::cmp::Reverse(shapes[head].work()), head));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut packed: Vec<Shape> = Vec::new();
    for head in order {
        let shape = shapes[head];
        if packed.last().is_some_and(|last| last.dims == shape.dims) {
            packed.push(shape);
            if excess(&packed, history, budget, &scratch).is_none() {
                if let Some(batch) = batches.last_mut() {
                    batch.push(head);
                }
                continue;
            }
        }
        packed = vec![shape];
        if let Some(error) = excess(&packed, history, budget, &scratch) {
            return Err(error);
        }
        batches.push(vec![head]);
    }
    Ok(batches)
}

/// Bytes that these heads take together: all arrays of the batch, an engine's own, and what the host holds of them.
pub(crate) fn need(shapes: &[Shape], history: u32, scratch: u64) -> u64 {
    let workspace = Workspace::new(shapes, history);
    workspace.bytes() + workspace.host_bytes() + scratch
}

/// What of these heads is too large for the budget, if anything is.
fn excess(shapes: &[Shape], history: u32, budget: Budget, scratch: &impl Fn(&[Shape]) -> u64) -> Option<Error> {
    let workspace = Workspace::new(shapes, history);
    let (label, bytes) = workspace.largest();
    // Shaders count elements in 32 bits.
    let array = budget.array.min(4 * u64::from(u32::MAX));
    if bytes > array {
        return Some(Error::OutOfMemory {
            label: label.to_owned(),
            bytes,
            available: array,
        });
    }
    let bytes = need(shapes, history, scratch(shapes));
    (bytes > budget.total).then(|| Error::OutOfMemory {
        label: "everything of one head".to_owned(),
        bytes,
        available: budget.total,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Dims;

    fn shape(dim: u32, free: u32) -> Shape {
        Shape {
            dims: Dims { dim, value_dim: dim },
            tokens: 2048,
            fixed: 68,
            free,
            solved: free,
            training: 1000,
            validation: 10,
            probe: 10,
        }
    }

    #[test]
    fn packs_every_head_once_within_the_budget_and_never_mixes_dims() {
        let shapes: Vec<Shape> = (0..40)
            .map(|i| shape(if i % 3 == 0 { 64 } else { 128 }, 50 + 13 * (i % 7)))
            .collect();
        let one = Workspace::new(&shapes[..1], 10).bytes();
        let budget = Budget {
            total: 6 * one,
            array: u64::MAX,
        };
        let batches = schedule(&shapes, 10, budget, |_| 0).unwrap();
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..40).collect::<Vec<_>>());
        for batch in &batches {
            let members: Vec<Shape> = batch.iter().map(|&head| shapes[head]).collect();
            assert!(members.iter().all(|member| member.dims == members[0].dims));
            assert!(Workspace::new(&members, 10).bytes() <= budget.total);
        }
        assert!(batches.len() > 2);
        assert_eq!(batches, schedule(&shapes, 10, budget, |_| 0).unwrap());
    }

    #[test]
    fn a_head_too_large_is_an_error_that_names_the_array() {
        let error = schedule(
            &[shape(64, 1500)],
            100,
            Budget {
                total: u64::MAX,
                array: 1 << 20,
            },
            |_| 0,
        )
        .unwrap_err();
        assert!(error.to_string().contains("history"), "{error}");
        let error = schedule(
            &[shape(64, 1500)],
            100,
            Budget {
                total: 1 << 20,
                array: u64::MAX,
            },
            |_| 0,
        )
        .unwrap_err();
        assert!(error.to_string().contains("one head"), "{error}");
    }
}
