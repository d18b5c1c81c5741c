//! Between text and tokens.
