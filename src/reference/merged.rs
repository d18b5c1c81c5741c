//! The errors that count: what tokens appended later would see of them.

use super::State;
use crate::solver::Errors;

/// Sums over the rows of one KV head, from which [`Errors`] are quotients; sums of several heads may be added first.
///
/// ```
/// use kvsculpt::reference::merged::Sums;
///
/// // Two heads' rows as if they were one's.
/// let (one, other) = (Sums { rows: 1, output: 1.0, output_scale: 4.0, ..Sums::default() }, Sums { rows: 1, output_scale: 4.0, ..Sums::default() });
/// let both = Sums { rows: 2, output: one.output + other.output, output_scale: 8.0, ..Sums::default() };
/// assert_eq!(both.errors().output, 0.125);
/// ```
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
    ///
    /// ```
    /// use kvsculpt::reference::merged::Sums;
    ///
    /// let sums = Sums { rows: 4, output: 2.0, output_scale: 8.0, mass: 1.0, merged: 1.0, merged_scale: 8.0 };
    /// let errors = sums.errors();
    /// assert_eq!((errors.output, errors.mass, errors.merged), (0.25, 0.5, 0.125));
    /// ```
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
///
/// ```
/// use kvsculpt::reference::{State, merged::errors};
///
/// let teacher = State { output: vec![1.0, 2.0], mass: vec![0.0, 0.0] };
/// assert_eq!(errors(&teacher, &teacher, 1).merged, 0.0);
/// // With new tokens as heavy as the context, half of an output's error is left.
/// let student = State { output: vec![1.0, 3.0], mass: vec![0.0, 0.0] };
/// let errors = errors(&student, &teacher, 1);
/// assert_eq!((errors.output, errors.merged), (1.0 / 5.0, 0.25 / 4.5));
/// ```
#[must_use]
pub fn errors(student: &State, teacher: &State, value_dim: usize) -> Errors {
    sums(student, teacher, value_dim).errors()
}

/// The sums behind [`errors`], in time linear in the rows.
///
/// ```
/// use kvsculpt::reference::{State, merged::sums};
///
/// let teacher = State { output: vec![1.0, 2.0], mass: vec![0.0, 0.0] };
/// let student = State { output: vec![1.0, 3.0], mass: vec![0.0, 0.5] };
/// let sums = sums(&student, &teacher, 1);
/// assert_eq!((sums.rows, sums.output, sums.output_scale, sums.mass), (2, 1.0, 5.0, 0.25));
/// ```
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
