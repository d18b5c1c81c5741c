//! Where a model's file is: what the argument MODEL means.

use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What is taken where nobody asks for a quantisation: small and close to the original first.
const PREFERRED: [&str; 10] = ["Q4_K_M", "Q8_0", "Q5_K_M", "Q6_K", "Q4_K_S", "Q4_1", "Q4_0", "Q3_K_M", "F16", "F32"];

/// A file here, or one on the model hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path that exists.
    File(PathBuf),
    /// A repository `owner/repo` and which of its files.
    Hub {
        /// `owner/repo`.
        repository: String,
        /// Which of its GGUF files.
        wanted: Wanted,
    },
}

/// Which GGUF file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The first of the usual quantisations that is there.
    Any,
    /// One quantisation, such as `Q4_K_M`.
    Quantisation(String),
    /// One file, by its path in the repository.
    File(String),
}

/// The GGUF file that MODEL names, downloaded where it is a name on the hub and not in the hub's folder yet.
///
/// # Errors
/// In words for the user: as [`parse`] and [`choose`], a file that cannot be downloaded, or one that is no GGUF file.
pub fn find(model: &str) -> Result<PathBuf> {
    let file = match parse(model)? {
        Source::File(file) => file,
        Source::Hub { repository, wanted } => download(&repository, &wanted).with_context(|| {
            format!("`{model}` is no file here and could not be had from the hub; give the path of a GGUF file, or check the name and the network")
        })?,
    };
    check(&file)?;
    Ok(file)
}

/// What MODEL means: a path that exists, `owner/repo`, `owner/repo:QUANTISATION` or `owner/repo/file.gguf`.
///
/// # Errors
/// A folder, or a path that does not exist and is no name on the hub either.
pub fn parse(model: &str) -> Result<Source> {
    let path = Path::new(model);
    if path.is_file() {
        return Ok(Source::File(path.to_path_buf()));
    }
    ensure!(!path.is_dir(), "{model} is a folder; give the path of a GGUF file in it");
    let missing = || format!("there is no file {model}; give the path of a GGUF file, or a name on the hub such as owner/repo:Q4_K_M");
    let (name, quantisation) = match model.split_once(':') {
        Some((name, quantisation)) => (name, Some(quantisation)),
        None => (model, None),
    };
    let parts: Vec<&str> = name.split('/').collect();
    let (&[owner, repository, ref inside @ ..], false) = (parts.as_slice(), looks_like_path(name)) else {
        bail!(missing())
    };
    ensure!([owner, repository].into_iter().all(is_name), missing());
    let wanted = match (inside, quantisation) {
        ([], None) => Wanted::Any,
        ([], Some(label)) if is_name(label) => Wanted::Quantisation(label.to_owned()),
        (inside, None) if is_gguf(name) => Wanted::File(inside.join("/")),
        _ => bail!(missing()),
    };
    Ok(Source::Hub {
        repository: format!("{owner}/{repository}"),
        wanted,
    })
}

/// Whether somebody meant a file: marks of a path, two parts of which the second is a file's name, or a first part that is a folder here.
fn looks_like_path(name: &str) -> bool {
    let marked = name.starts_with(['.', '/', '~']) || name.contains('\\');
    let parts = name.split('/').count();
    let folder = name.split('/').next().is_some_and(|first| Path::new(first).is_dir());
    marked || (is_gguf(name) && (parts < 3 || folder))
}

fn is_gguf(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn is_name(part: &str) -> bool {
    !part.is_empty() && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
}

/// The file of a repository's listing that is wanted.
///
/// # Errors
/// None that fits, or a model that is spread over several; the sentence names those there are.
pub fn choose<'a>(files: &[&'a str], wanted: &Wanted) -> Result<&'a str> {
    let ggufs: Vec<&str> = files
        .iter()
        .copied()
        .filter(|file| is_gguf(file) && !file.contains("mmproj"))
        .collect();
    ensure!(
        !ggufs.is_empty(),
        "the repository has no GGUF file; look for one whose name ends in -GGUF, made from the same model"
    );
    let labelled = |label: &str| {
        let mut fitting: Vec<&str> = ggufs.iter().copied().filter(|file| has_label(file, label)).collect();
        // Of a whole file and one in parts the whole one serves.
        fitting.sort_by_key(|file| is_part(file));
        fitting.first().copied()
    };
    let chosen = match wanted {
        Wanted::File(file) => ggufs.iter().copied().find(|name| name == file),
        Wanted::Quantisation(label) => labelled(label),
        Wanted::Any => {
            let whole = |label: &&str| labelled(label).filter(|file| !is_part(file));
            let only = || ggufs.first().copied().filter(|_| ggufs.len() == 1);
            let parts = || ggufs.iter().copied().find(|file| is_part(file));
            PREFERRED.iter().find_map(whole).or_else(only).or_else(parts)
        }
    };
    let list = ggufs.join(", ");
    let chosen = chosen.with_context(|| format!("the repository has no such GGUF file; it has {list}"))?;
    ensure!(
        !is_part(chosen),
        "{chosen} is one part of a model in several files, which cannot be read; join them with llama.cpp's llama-gguf-split --merge, or choose another of {list}"
    );
    Ok(chosen)
}

/// Whether a file's name carries a quantisation as a word of its own: `Q4_K` is not in `model-Q4_K_M.gguf`.
fn has_label(file: &str, label: &str) -> bool {
    let (file, label) = (file.to_ascii_uppercase(), label.to_ascii_uppercase());
    file.match_indices(&label).any(|(start, found)| {
        let before = file[..start].chars().next_back();
        let after = file[start + found.len()..].chars().next();
        !before.is_some_and(|letter| letter.is_ascii_alphanumeric())
            && !after.is_some_and(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    })
}

/// `model-00001-of-00003.gguf` is one of several.
fn is_part(file: &str) -> bool {
    let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut words = stem.rsplit('-');
    let (count, of, number) = (words.next(), words.next(), words.next());
    of == Some("of") && count.is_some_and(is_number) && number.is_some_and(is_number)
}

#[cfg(feature = "hub")]
fn download(repository: &str, wanted: &Wanted) -> Result<PathBuf> {
    // The hub's own variables (HF_HOME, HF_ENDPOINT) and folder, so that what other programs fetched is found.
    let api = hf_hub::api::sync::ApiBuilder::from_env()
        .with_progress(true)
        .build()
        .context("the hub's folder cannot be used")?;
    let files = api.model(repository.to_owned());
    if let Wanted::File(file) = wanted {
        ensure!(
            !is_part(file),
            "{file} is one part of a model in several files, which cannot be read; choose a file that is whole"
        );
        return files
            .get(file)
            .with_context(|| format!("{file} of {repository} cannot be downloaded"));
    }
    let listing = files
        .info()
        .with_context(|| format!("the files of {repository} cannot be listed"))?;
    let names: Vec<&str> = listing.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let chosen = choose(&names, wanted).with_context(|| format!("nothing to take from {repository}"))?;
    files
        .get(chosen)
        .with_context(|| format!("{chosen} of {repository} cannot be downloaded"))
}

#[cfg(not(feature = "hub"))]
fn download(_repository: &str, _wanted: &Wanted) -> Result<PathBuf> {
    bail!("this program was built without the hub; build it with `--features hub`, or download the file and give its path")
}

fn check(file: &Path) -> Result<()> {
    let mut first = Vec::new();
    let opened = File::open(file).with_context(|| format!("{} cannot be opened", file.display()))?;
    opened
        .take(4)
        .read_to_end(&mut first)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    ensure!(
        first == b"GGUF",
        "{} is not a GGUF file (its first bytes are not `GGUF`); take a model in that format, often in repositories whose name ends in -GGUF",
        file.display()
    );
    Ok(())
}

/// The file of the small model that the tests use.
///
/// # Errors
/// A file that is not there; `cargo xtask model smollm2` fetches it, and the sentence says so.
#[doc(hidden)]
pub fn small_test_model() -> Result<PathBuf> {
    let file = target(env::var_os("CARGO_TARGET_DIR")).join("models/smollm2-135m.gguf");
    ensure!(
        file.is_file(),
        "{} is not there; `cargo xtask model smollm2` fetches it (98 MB)",
        file.display()
    );
    Ok(file)
}

/// The folder that cargo builds into. Tests run in their package's folder, and `cargo xtask` in the workspace's: a folder that is set
/// is meant from there.
fn target(set: Option<OsString>) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    workspace.join(set.unwrap_or_else(|| OsString::from("target")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: [&str; 7] = [
        "README.md",
        "Model-Q2_K.gguf",
        "Model-Q4_K_S.gguf",
        "Model-Q4_K_M.gguf",
        "mmproj-Model-Q4_K_M.gguf",
        "Model.Q8_0.gguf",
        "big/Model-F16-00001-of-00002.gguf",
    ];

    fn hub(repository: &str, wanted: Wanted) -> Source {
        Source::Hub {
            repository: repository.to_owned(),
            wanted,
        }
    }

    fn quantisation(label: &str) -> Wanted {
        Wanted::Quantisation(label.to_owned())
    }

    #[test]
    fn names_on_the_hub_are_read() {
        assert_eq!(parse("Owner/Some.Repo-GGUF").unwrap(), hub("Owner/Some.Repo-GGUF", Wanted::Any));
        assert_eq!(parse("owner/repo:Q8_0").unwrap(), hub("owner/repo", quantisation("Q8_0")));
        assert_eq!(
            parse("owner/repo/x/file.gguf").unwrap(),
            hub("owner/repo", Wanted::File("x/file.gguf".to_owned()))
        );
    }

    #[test]
    fn paths_that_do_not_exist_are_no_names_on_the_hub() {
        for path in [
            "./a.gguf",
            "/no/such/file.gguf",
            "~/a/b.gguf",
            "models/a.gguf",
            "a.gguf",
            r"C:\a\b.gguf",
            "name",
            "",
            "a/b/c",
            "src/models/a.gguf",
            "a/b:",
            "a//b.gguf",
        ] {
            assert!(parse(path).unwrap_err().to_string().contains("there is no file"), "{path}");
        }
    }

    #[test]
    fn files_are_taken_as_they_are_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.gguf");
        std::fs::write(&file, b"GGUF and more").unwrap();
        let name = file.to_str().unwrap();
        assert_eq!(find(name).unwrap(), file);
        std::fs::write(&file, b"GGU").unwrap();
        assert!(find(name).unwrap_err().to_string().contains("not a GGUF file"));
        assert!(
            find(folder.path().to_str().unwrap())
                .unwrap_err()
                .to_string()
                .contains("is a folder")
        );
    }

    #[test]
    fn the_build_folder_is_meant_from_the_workspace() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        assert_eq!(target(None), workspace.join("target"));
        assert_eq!(target(Some("elsewhere".into())), workspace.join("elsewhere"));
        let absolute = std::env::temp_dir().join("elsewhere");
        assert_eq!(target(Some(absolute.clone().into())), absolute);
    }

    #[test]
    fn the_quantisation_asked_for_is_taken() {
        assert_eq!(choose(&LISTING, &Wanted::Any).unwrap(), "Model-Q4_K_M.gguf");
        assert_eq!(choose(&LISTING, &quantisation("q8_0")).unwrap(), "Model.Q8_0.gguf");
        assert_eq!(choose(&LISTING, &quantisation("Q4_K_S")).unwrap(), "Model-Q4_K_S.gguf");
        assert_eq!(choose(&LISTING[..3], &Wanted::Any).unwrap(), "Model-Q4_K_S.gguf");
        assert_eq!(choose(&["only.gguf"], &Wanted::Any).unwrap(), "only.gguf");
        let named = Wanted::File("Model-Q2_K.gguf".to_owned());
        assert_eq!(choose(&LISTING, &named).unwrap(), "Model-Q2_K.gguf");
    }

    #[test]
    fn what_cannot_be_taken_is_refused_with_the_choice_there_is() {
        let refused = |files: &[&str], wanted: &Wanted| choose(files, wanted).unwrap_err().to_string();
        assert!(refused(&LISTING, &quantisation("Q4_K")).contains("it has Model-Q2_K.gguf"));
        assert!(refused(&LISTING, &quantisation("F16")).contains("several files"));
        assert!(refused(&LISTING[6..], &Wanted::Any).contains("several files"));
        assert!(refused(&["a.gguf", "b.gguf"], &Wanted::Any).contains("it has a.gguf, b.gguf"));
        assert!(refused(&["model.safetensors"], &Wanted::Any).contains("no GGUF file"));
    }
}
