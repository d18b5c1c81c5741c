//! How far the student is from the teacher.

use super::{State, dot};

/// The student's errors row by row, and their sums.
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
