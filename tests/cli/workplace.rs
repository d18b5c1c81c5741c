//! A folder with a small capture in it, and the program started there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::draft::{Draft, DraftTensor, encode};

pub(crate) const TOKENS: u64 = 96;
pub(crate) const DIM: u64 = 16;

/// Two layers of two KV heads and four query heads, uneven numbers from a small generator.
pub(crate) fn capture() -> Draft {
    let mut draft = Draft::default();
    for (key, value) in [
        ("format", "kv-capture"),
        ("version", "1"),
        ("tokens", "96"),
        ("next_position", "96"),
        ("rope_theta", "10000"),
        ("rope_pairing", "half"),
        ("rope_dim", "16"),
        ("softmax_scale", "0.25"),
    ] {
        draft.set(key, value);
    }
    let mut state = 1_u64;
    let mut number = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    for layer in [2, 5] {
        for (kind, heads, rows) in [
            ("key", 2, TOKENS),
            ("value", 2, TOKENS),
            ("query", 4, TOKENS),
            ("probe_query", 4, 8),
        ] {
            let values: Vec<f32> = (0..heads * rows * DIM).map(|_| 2.0 * number()).collect();
            draft.tensors.push(DraftTensor {
                name: format!("layers.{layer}.{kind}"),
                dtype: "F32",
                shape: vec![heads, rows, DIM],
                bytes: encode("F32", &values),
            });
        }
    }
    draft
}

/// A folder with a capture in it.
pub(crate) struct Workplace {
    folder: TempDir,
}

impl Workplace {
    pub(crate) fn new(capture: &[u8]) -> Self {
        let workplace = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        fs::write(workplace.capture(), capture).expect("written");
        workplace
    }

    pub(crate) fn capture(&self) -> PathBuf {
        self.path("capture.safetensors")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.path("short.safetensors")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Compresses the capture; on the CPU engine and in few steps where `more` does not say otherwise.
    pub(crate) fn compress(&self, more: &[&str]) -> Output {
        run(&self.arguments(&self.output(), more))
    }

    pub(crate) fn arguments(&self, output: &Path, more: &[&str]) -> Vec<String> {
        let text = |path: &Path| path.to_str().expect("a path of letters").to_owned();
        let mut arguments = vec!["compress".to_owned(), text(&self.capture()), "-o".into(), text(output)];
        for (option, value) in [("--steps", "2"), ("--iterations", "3"), ("--engine", "cpu")] {
            // Whoever names an adapter or an interface leaves the engine open.
            let given = |wanted| more.contains(&wanted);
            if !(given(option) || option == "--engine" && (given("--adapter") || given("--backend"))) {
                arguments.extend([option, value].map(String::from));
            }
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        arguments
    }

    /// The files of the folder.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("the folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

pub(crate) fn program() -> Command {
    let program = env!("CARGO_BIN_EXE_kvsculpt");
    let mut command = match std::env::var_os("KVSCULPT_TEST_RUNNER").filter(|runner| !runner.is_empty()) {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    for variable in ["RUST_LOG", "WGPU_ADAPTER_NAME", "WGPU_BACKEND"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

pub(crate) fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    program().args(arguments).output().expect("the program starts")
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// The program did what was asked and said nothing on standard error.
pub(crate) fn succeeded(output: &Output) -> &str {
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), ""),
        "standard output: {}",
        text(&output.stdout)
    );
    text(&output.stdout)
}

/// The program refused with this code, in one sentence that has these words, and printed no data.
pub(crate) fn refused(output: &Output, code: i32, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(text(&output.stdout), "");
    assert!(message.starts_with("error: ") && message.ends_with('\n'), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "{message} lacks {word:?}");
    }
}
