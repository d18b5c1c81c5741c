//! Says what is right: every operation of [`engine`](crate::engine) for one head, in f64, in plain loops written from
//! the formula and never from an engine. Slow; for tests, benches and `devices --check`.
//!
//! Matrices are row-major slices; a function takes them with the sizes it needs.
