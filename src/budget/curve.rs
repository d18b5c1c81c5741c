//! A head's error at every length it may get.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The error of a head that stores so many pairs.
///
/// ```
/// use kvsculpt::budget::Point;
///
/// let whole = Point { length: 2048, error: 0.0 };
/// assert!(whole.error == 0.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Pairs stored: sinks, free pairs and tail.
    pub length: usize,
    /// The head's error there, zero or more.
    pub error: f64,
}

/// A head's error over its length, linear between the points.
///
/// ```
/// use kvsculpt::budget::{Curve, Point};
///
/// let points = vec![Point { length: 100, error: 0.2 }, Point { length: 200, error: 0.1 }, Point { length: 1000, error: 0.0 }];
/// let curve = Curve { layer: 3, head: 0, points };
/// // Between the points on a line, outside as at the nearest.
/// assert!((curve.error(150) - 0.15).abs() < 1e-12);
/// assert_eq!([curve.error(50), curve.error(1000)], [0.2, 0.0]);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The layer's index.
    pub layer: usize,
    /// The KV head's index.
    pub head: usize,
    /// In ascending lengths: the first is the least the head may get, the last its whole cache, where nothing is lost.
    /// Errors are measured and may rise here and there.
    pub points: Vec<Point>,
}

impl Curve {
    /// The error at a length: on the line between the points on either side, at the first or last point outside.
    #[must_use]
    pub fn error(&self, length: usize) -> f64 {
        let above = self.points.partition_point(|point| point.length < length);
        let (Some(high), Some(low)) = (
            self.points.get(above).or(self.points.last()),
            self.points.get(above.saturating_sub(1)),
        ) else {
            return 0.0;
        };
        if high.length <= low.length || length <= low.length {
            return if length <= low.length { low.error } else { high.error };
        }
        let share = (length.min(high.length) - low.length) as f64 / (high.length - low.length) as f64;
        low.error + share * (high.error - low.error)
    }

    /// Least length and whole cache of a curve that has points, strictly ascending lengths, and errors that are finite and
    /// not negative.
    ///
    /// # Errors
    /// [`Error::Shape`] for any other, with the place in it.
    pub(crate) fn ends(&self) -> Result<(usize, usize)> {
        let refuse = |reason: String| Err(Error::shape(format!("layer {} head {}", self.layer, self.head), reason));
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return refuse("its error curve has no points; it needs the least length and the whole cache".to_owned());
        };
        if let Some(pair) = self.points.windows(2).find(|pair| pair[0].length >= pair[1].length) {
            return refuse(format!(
                "its error curve goes from {} pairs to {}; lengths must ascend",
                pair[0].length, pair[1].length
            ));
        }
        if let Some(point) = self.points.iter().find(|point| !(point.error.is_finite() && point.error >= 0.0)) {
            return refuse(format!(
                "its error at {} pairs is {}; errors must be finite and zero or more",
                point.length, point.error
            ));
        }
        Ok((first.length, last.length))
    }
}
