//! The errors that count: what tokens appended later would see of them.

use super::State;
use crate::solver::Errors;

/// Sums over the rows of one KV head, from which [`Errors`] are quotients; sums of several heads may be added first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Rows.
    pub rows: usize,
    /// `Σ‖ŷ − y‖²`.
    pub output: f64,
    /// `Σ‖y‖²`.
    pub output_scale: f64,
    /// `Σ(l̂ − l)²`.
    pub mass: f64,
    /// `Σ‖m̂ − m‖²`.
    pub merged: f64,
    /// `Σ‖m‖²`.
    pub merged_scale: f64,
}

impl Sums {
    /// The quotients. Not a number where there is no row, or a teacher that says nothing.
    #[must_use]
    pub fn errors(&self) -> Errors {
        Errors {
            output: self.output / self.output_scale,
            mass: (self.mass / self.rows as f64).sqrt(),
            merged: self.merged / self.merged_scale,
        }
    }
}

/// The errors of a student against its teacher over all rows of one KV head, its query heads' rows one after the other.
///
/// Each row's context is merged with a block of new tokens: `m = w y + (1 − w) u` with `w = 1 / (1 + e^{l_u − l})`. The
/// block's mass `l_u` is the mean of the teacher's masses, so that a wrong mass moves weight to or from it, and its
/// output `u` is the teacher's for the row before (the last row, for the first): of the right size and not the row's own.
#[must_use]
pub fn errors(student: &State, teacher: &State, value_dim: usize) -> Errors {
    sums(student, teacher, value_dim).errors()
}

/// The sums behind [`errors`], in time linear in the rows.
#[must_use]
pub fn sums(student: &State, teacher: &State, value_dim: usize) -> Sums {
    let rows = teacher.mass.len();
    let new_mass = teacher.mass.iter().sum::<f64>() / rows as f64;
    let output = |state: &State, row: usize, channel: usize| state.output[row * value_dim + channel];
    let mut sums = Sums { rows, ..Sums::default() };
    for row in 0..rows {
        let weight = (1.0 + (new_mass - teacher.mass[row]).exp()).recip();
        let student_weight = (1.0 + (new_mass - student.mass[row]).exp()).recip();
        sums.mass += (student.mass[row] - teacher.mass[row]).powi(2);
        let before = if row == 0 { rows - 1 } else { row - 1 };
        for channel in 0..value_dim {
            let (wanted, got) = (output(teacher, row, channel), output(student, row, channel));
            let new = output(teacher, before, channel);
            let merged = weight * wanted + (1.0 - weight) * new;
            let student_merged = student_weight * got + (1.0 - student_weight) * new;
            sums.output += (got - wanted).powi(2);
            sums.output_scale += wanted.powi(2);
            sums.merged += (student_merged - merged).powi(2);
            sums.merged_scale += merged.powi(2);
        }
    }
    sums
}
