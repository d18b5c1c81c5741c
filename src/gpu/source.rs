//! A kernel's whole text: generated header, shared parts, the kernel's file.

use std::fmt::Write as _;

use super::array::Element;
use crate::error::Error;

/// The extension of cooperative matrices.
const MATRICES: &str = "wgpu_cooperative_matrix";

/// The text of one kernel in one specialisation.
///
/// The header is plain WGSL: `enable f16;` where something is in half precision, an `alias` for each precision that
/// varies, and a `const` for each number. `const` and not `override`: an override can size no register array and escapes the checks of limits.
///
/// ```
/// use kvsculpt::gpu::{Element, Source};
///
/// let source = Source::new("scale", "fn scaled(x: Store) -> f32 { return f32(x) * twice(f32(DIM)); }")
///     .part("prelude", "fn twice(x: f32) -> f32 { return 2.0 * x; }")
///     .alias("Store", Element::F32)
///     .constant("DIM", 64);
/// let text = source.text();
/// assert!(text.starts_with("alias Store = f32;\nconst DIM: u32 = 64u;\n") && source.kernel() == "scale");
/// // Which file a line of the whole is from.
/// let line = 1 + text.lines().position(|line| line.contains("fn twice")).unwrap() as u32;
/// assert_eq!((source.locate(line), source.locate(1).1), (("prelude", 1), 0));
/// ```
#[derive(Clone, Debug)]
pub struct Source {
    kernel: &'static str,
    header: String,
    /// Extensions of the language that the header enables.
    enabled: Vec<&'static str>,
    parts: Vec<(&'static str, &'static str)>,
    loops_end: bool,
}

impl Source {
    /// The kernel `kernel` (its file's name without `.wgsl`) with this text.
    #[must_use]
    pub fn new(kernel: &'static str, text: &'static str) -> Self {
        Self {
            kernel,
            header: String::new(),
            enabled: Vec::new(),
            parts: vec![(kernel, text)],
            loops_end: false,
        }
    }

    /// Adds `alias name = f32;` or `f16`, with `enable f16;` where that is needed.
    #[must_use]
    pub fn alias(mut self, name: &str, element: Element) -> Self {
        if element == Element::F16 {
            self.enable("f16");
        }
        let scalar = if element == Element::F16 { "f16" } else { "f32" };
        // Writing to a string cannot fail.
        let _ = writeln!(self.header, "alias {name} = {scalar};");
        self
    }

    /// Adds `const name: u32 = value;`.
    #[must_use]
    pub fn constant(mut self, name: &str, value: u32) -> Self {
        // Writing to a string cannot fail.
        let _ = writeln!(self.header, "const {name}: u32 = {value}u;");
        self
    }

    /// Adds the types of cooperative matrices of `side` × `side`, 8 or 16: `Left` and `Right`, the factors in half precision, and `Sums`, in
    /// single precision. For kernels that only devices with matrices of this side get.
    pub(crate) fn matrices(mut self, side: u32) -> Self {
        self.enable("f16");
        self.enable(MATRICES);
        for (name, scalar, role) in [("Left", "f16", 'A'), ("Right", "f16", 'B'), ("Sums", "f32", 'C')] {
            // Writing to a string cannot fail.
            let _ = writeln!(self.header, "alias {name} = coop_mat{side}x{side}<{scalar}, {role}>;");
        }
        self
    }

    /// Whether it has the types of cooperative matrices.
    pub(super) fn has_matrices(&self) -> bool {
        self.enabled.contains(&MATRICES)
    }

    /// Puts `enable extension;` before all else, once.
    fn enable(&mut self, extension: &'static str) {
        if !self.enabled.contains(&extension) {
            self.enabled.push(extension);
            self.header.insert_str(0, &format!("enable {extension};"));
        }
    }

    /// Puts a shared file (`name` without `.wgsl`) before the kernel, after those put before.
    #[must_use]
    pub fn part(mut self, name: &'static str, text: &'static str) -> Self {
        let last = self.parts.len() - 1;
        self.parts.insert(last, (name, text));
        self
    }

    /// Vouches that every loop ends, so that it is compiled without a counter of its own: with one, drivers do not unroll
    /// loops over a row's channels, which made such kernels three times slower on software drivers.
    ///
    /// For this crate's own shaders only, hence not public: each loop counts, by a counter that nothing else changes, up to a
    /// constant or to a count in a head table or in the parameters.
    pub(crate) fn loops_end(mut self) -> Self {
        self.loops_end = true;
        self
    }

    /// Whether every loop is known to end.
    pub(super) fn has_ending_loops(&self) -> bool {
        self.loops_end
    }

    /// The kernel's name.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.header.clone();
        for (_, part) in &self.parts {
            text.push_str(part);
            if !part.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }

    /// The file and line, from 1, of a line of the whole text; line 0 for the generated header.
    #[must_use]
    pub fn locate(&self, line: u32) -> (&'static str, u32) {
        let mut rest = line as usize;
        let header = self.header.lines().count();
        if rest <= header {
            return (self.kernel, 0);
        }
        rest -= header;
        for (name, part) in &self.parts {
            // An empty part still takes a line.
            let lines = part.lines().count().max(1);
            if rest <= lines {
                return (name, u32::try_from(rest).unwrap_or(0));
            }
            rest -= lines;
        }
        (self.kernel, 0)
    }

    /// The error at a line of the whole text.
    pub(super) fn error(&self, line: u32, message: impl Into<String>) -> Error {
        let (kernel, line) = self.locate(line);
        Error::Shader {
            kernel,
            line,
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_file_they_came_from() {
        let source = Source::new("kernel", "first\nsecond")
            .constant("DIM", 64)
            .alias("Store", Element::F16)
            .part("prelude", "one\ntwo\n");
        assert_eq!(
            source.text(),
            "enable f16;const DIM: u32 = 64u;\nalias Store = f16;\none\ntwo\nfirst\nsecond\n"
        );
        assert_eq!(source.locate(2), ("kernel", 0));
        assert_eq!(source.locate(3), ("prelude", 1));
        assert_eq!(source.locate(6), ("kernel", 2));
    }

    #[test]
    fn extensions_are_enabled_once_and_before_all_else() {
        let text = Source::new("kernel", "text")
            .constant("SIDE", 8)
            .alias("Store", Element::F16)
            .matrices(8)
            .text();
        let (enabled, rest) = text.split_once("const").unwrap();
        assert_eq!(enabled, "enable wgpu_cooperative_matrix;enable f16;");
        assert!(rest.contains("alias Right = coop_mat8x8<f16, B>;\n"), "{rest}");
    }
}
