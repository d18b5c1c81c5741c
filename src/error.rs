//! What can go wrong, each with the place, the reason and what to do.

use std::path::PathBuf;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Numeric trouble inside one head is not here: it is that head's
/// [`Outcome`](crate::solver::Outcome).
///
/// ```
/// use kvsculpt::{Error, Options};
///
/// // What a program may do about it.
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::Options { .. } | Error::File { .. } => "the user's to mend",
///         Error::OutOfMemory { .. } => "less at once",
///         Error::Cancelled => "nothing",
///         _ => "told as it is",
///     }
/// }
/// let mut options = Options::default();
/// options.keep = 0.0;
/// let error = options.validate().unwrap_err();
/// assert_eq!((advice(&error), error.to_string().starts_with("option --keep")), ("the user's to mend", true));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No adapter fits the request.
    #[error("no GPU adapter: {0}")]
    NoAdapter(String),
    /// The device lacks something a kernel needs.
    #[error("{what}: this device has {have}, {need} is needed; {remedy}")]
    Unsupported {
        /// The feature or limit.
        what: String,
        /// What the kernel needs.
        need: String,
        /// What the device offers.
        have: String,
        /// What the user can do.
        remedy: String,
    },
    /// A head's sizes do not fit together.
    #[error("{head}: {reason}")]
    Shape {
        /// The head, or the layer, in words.
        head: String,
        /// What does not fit, and what would.
        reason: String,
    },
    /// An option has no meaning, or none for this cache.
    #[error("option {option}: {reason}")]
    Options {
        /// The option's name as the program spells it.
        option: &'static str,
        /// Why it is refused and what would do.
        reason: String,
    },
    /// A file cannot be read, understood or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The tensor or offset, what is wrong with it and what to do.
        reason: String,
    },
    /// A file could be begun and not brought to its end: the disk is full, or fails. Nothing of it was left behind, but of a journal what
    /// it held before.
    #[error("{}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says and what to do.
        reason: String,
    },
    /// A kernel's text does not compile: a mistake in this crate or in the driver.
    #[error("shader {kernel}.wgsl, line {line}: {message}")]
    Shader {
        /// The kernel.
        kernel: &'static str,
        /// The line in the kernel's own file, from 1; 0 where it is not known.
        line: u32,
        /// The compiler's words.
        message: String,
    },
    /// An array does not fit.
    #[error(
        "out of memory: array `{label}` needs {bytes} bytes, {}", room(*available)
    )]
    OutOfMemory {
        /// The array.
        label: String,
        /// Its size.
        bytes: u64,
        /// What the device or the memory budget allows; 0 where the device refused it without saying.
        available: u64,
    },
    /// The device went away; nothing it still held is returned.
    #[error("the GPU device was lost: {0}")]
    DeviceLost(String),
    /// The device did not answer in time.
    #[error("the GPU did not finish within {seconds} s; it may hang, or the work is too large for it")]
    Timeout {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The graphics layer reported an error of its own.
    #[error("GPU: {0}")]
    Gpu(String),
    /// A machine does not compute what it should.
    #[error("{machine} fails: {failed}; update its driver, or choose another machine with --adapter or --engine cpu")]
    SelfTest {
        /// The machine in words.
        machine: String,
        /// The operations that are wrong, or why it could not be tested.
        failed: String,
    },
    /// The work met a mistake of this crate, or of an engine or observer of the caller's, where it panicked.
    #[error("the work broke down: {0}; this is a mistake in the program, please report it")]
    Panicked(String),
    /// The caller's [`Observer`](crate::solver::Observer) asked to stop.
    #[error("stopped before the end, as asked")]
    Cancelled,
}

/// What an array that does not fit would have had, and what to do.
fn room(available: u64) -> String {
    if available == 0 {
        "and the device refused it; give a smaller --memory, lower --keep or --history, or choose fewer --layers".to_owned()
    } else {
        format!(
            "and only {available} may be used; raise --memory if it set that limit, else lower --keep or --history, or choose fewer --layers"
        )
    }
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::File {
            path: path.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn write(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Write {
            path: path.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn option(option: &'static str, reason: impl Into<String>) -> Self {
        Self::Options {
            option,
            reason: reason.into(),
        }
    }

    pub(crate) fn shape(head: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Shape {
            head: head.into(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_refused_is_not_told_as_a_limit() {
        let text = |available| {
            let label = "queries".to_owned();
            let bytes = 4096;
            Error::OutOfMemory { label, bytes, available }.to_string()
        };
        let refused = text(0);
        assert!(
            refused.contains("4096") && refused.contains("refused it") && refused.contains("smaller --memory"),
            "{refused}"
        );
        assert!(!refused.contains("only"), "{refused}");
        let limited = text(1024);
        assert!(
            limited.contains("only 1024 may be used") && limited.contains("raise --memory"),
            "{limited}"
        );
    }
}
