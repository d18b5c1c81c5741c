//! How far the student is from the teacher.

use super::{State, dot};

/// The student's errors row by row, and their sums.
///
/// ```
/// use kvsculpt::reference::Loss;
///
/// // Two rows, λ = 2.
/// let loss = Loss { mass: vec![0.0; 2], mass_weight: 2.0, output_sum: 4.0, mass_sum: 1.0, ..Loss::default() };
/// assert_eq!(loss.value(), 3.0);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// `e = ŷ − y`, `[rows, value_dim]`.
    pub error: Vec<f64>,
    /// `e·ŷ − λδ`, `[rows]`.
    pub correction: Vec<f64>,
    /// The student's mass l̂, `[rows]`.
    pub mass: Vec<f64>,
    /// `δ = l̂ − l`, `[rows]`.
    pub mass_error: Vec<f64>,
    /// λ.
    pub mass_weight: f64,
    /// `Σ ‖e‖²`.
    pub output_sum: f64,
    /// `Σ δ²`.
    pub mass_sum: f64,
    /// `Σ ‖y‖²`.
    pub scale_sum: f64,
    /// Rows in which e, l̂ or δ is not finite.
    pub not_finite: usize,
}

impl Loss {
    /// `(Σ‖e‖² + λ Σδ²) / rows`.
    #[must_use]
    pub fn value(&self) -> f64 {
        (self.output_sum + self.mass_weight * self.mass_sum) / self.mass.len() as f64
    }
}

/// Error rows and sums of a student's state against its teacher's.
///
/// ```
/// use kvsculpt::reference::{State, loss};
///
/// let teacher = State { output: vec![1.0], mass: vec![0.0] };
/// let student = State { output: vec![3.0], mass: vec![1.0] };
/// let loss = loss(&student, &teacher, 0.5);
/// // e = 2, δ = 1, e·ŷ − λδ = 6 − 0.5, and 4 + 0.5 in all.
/// assert_eq!((loss.error, loss.mass_error, loss.correction), (vec![2.0], vec![1.0], vec![5.5]));
/// assert_eq!(loss.output_sum + 0.5 * loss.mass_sum, 4.5);
/// ```
#[must_use]
pub fn loss(student: &State, teacher: &State, mass_weight: f64) -> Loss {
    let rows = student.mass.len();
    let value_dim = student.output.len().checked_div(rows).unwrap_or(0);
    let mut loss = Loss {
        mass_weight,
        mass: student.mass.clone(),
        ..Loss::default()
    };
    for row in 0..rows {
        let channels = row * value_dim..(row + 1) * value_dim;
        let (output, wanted) = (&student.output[channels.clone()], &teacher.output[channels]);
        let error: Vec<f64> = output.iter().zip(wanted).map(|(output, wanted)| output - wanted).collect();
        let mass_error = student.mass[row] - teacher.mass[row];
        loss.output_sum += dot(&error, &error);
        loss.mass_sum += mass_error * mass_error;
        loss.scale_sum += dot(wanted, wanted);
        loss.not_finite += usize::from(!(mass_error.is_finite() && error.iter().all(|e| e.is_finite())));
        loss.correction.push(dot(&error, output) - mass_weight * mass_error);
        loss.mass_error.push(mass_error);
        loss.error.extend(error);
    }
    loss
}
