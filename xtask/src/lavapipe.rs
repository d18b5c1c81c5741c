//! A recent lavapipe, Mesa's software Vulkan driver, beside the system instead of in it.
//!
//! Mesa 26 runs the kernels tens of times faster than the Mesa 22 of Debian 12. Debian offers it in a newer suite, so apt is given a state of
//! its own with that suite alone: it fetches, checks the archive's signature, and installs nothing. The packages' C library is newer
//! than the system's too, hence a runner that starts programs through the packages' dynamic linker.

use crate::system_package::identity;
use crate::workspace::{quiet_output, remove_abandoned};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const PARTIAL: &str = "lavapipe.partial-";
/// Finds its files beside itself, so that the build folder can be moved or copied.
const RUNNER: &str = r#"#!/bin/sh
# Starts a program on the software Vulkan driver of this folder: run PROGRAM ARGUMENTS
folder=$(cd "$(dirname "$0")" && pwd)
libraries=$folder/usr/lib/x86_64-linux-gnu
export VK_DRIVER_FILES="$folder/lvp.json" VK_ICD_FILENAMES="$folder/lvp.json"
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"
"#;

/// A driver unpacked into `folder`, and the version of Mesa it is.
#[derive(Debug)]
pub(crate) struct Lavapipe {
    pub(crate) folder: PathBuf,
    pub(crate) version: String,
}

impl Lavapipe {
    /// The script that starts a program on this driver.
    pub(crate) fn runner(&self) -> PathBuf {
        self.folder.join("run")
    }

    fn open(folder: PathBuf) -> Result<Self> {
        let file = folder.join("version");
        let version = fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .trim()
            .to_owned();
        let lavapipe = Self { folder, version };
        // A program linked against a C library newer than the packages' would not start: better to know now.
        let ourselves = std::env::current_exe().context("cannot find our own program")?;
        quiet_output(Command::new(lavapipe.runner()).arg(ourselves).arg("help")).context("its dynamic linker cannot start our programs")?;
        Ok(lavapipe)
    }
}

/// Makes sure `target/lavapipe` holds a working driver: about 60 MB to fetch once, 300 MB unpacked. An interrupted run leaves nothing that a later
/// one would trust. Fails, with the reason, on anything but x86-64 Linux with Debian's package tools and a reachable mirror.
pub(crate) fn bring(target: &Path) -> Result<Lavapipe> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")),
        "Debian's packages are fetched for x86-64 Linux only"
    );
    remove_abandoned(target, PARTIAL);
    let folder = target.join("lavapipe");
    if folder.join("run").exists() {
        return Lavapipe::open(folder);
    }
    let source = Source::of_this_system()?;
    let partial = target.join(format!("{PARTIAL}{}", std::process::id()));
    eprintln!(
        "xtask: no GPU driver; fetching Mesa's software driver into {} (about 60 MB, once)",
        folder.display()
    );
    let outcome = source.unpack_into(&partial).and_then(|()| put_in_place(&partial, &folder));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    outcome?;
    Lavapipe::open(folder)
}

/// One rename makes a complete folder appear; where another run was first, its folder serves. A folder with no runner is nobody's work.
fn put_in_place(partial: &Path, folder: &Path) -> Result<()> {
    if folder.exists() && !folder.join("run").exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    match fs::rename(partial.join("root"), folder) {
        Err(_) if folder.join("run").exists() => Ok(()),
        other => other.with_context(|| format!("cannot create {}", folder.display())),
    }
}

/// Where the packages come from and the key that signs them.
#[derive(Debug)]
struct Source {
    mirror: String,
    keyring: PathBuf,
}

impl Source {
    fn of_this_system() -> Result<Self> {
        let names = ["debian-archive-keyring.gpg", "debian-archive-keyring.pgp"];
        let keyring = names
            .map(|name| Path::new("/usr/share/keyrings").join(name))
            .into_iter()
            .find(|file| file.exists());
        let keyring = keyring.context("this system has no Debian archive key to check packages with")?;
        let default = || {
            identity()
                .is_some_and(|identity| identity.id == "debian")
                .then(|| "http://deb.debian.org/debian".to_owned())
        };
        let mirror = debian_mirror(&apt_sources())
            .or_else(default)
            .context("apt has no Debian mirror among its sources")?;
        Ok(Self { mirror, keyring })
    }

    /// Leaves the unpacked packages, manifest, version and runner in `partial/root`.
    fn unpack_into(&self, partial: &Path) -> Result<()> {
        let (state, root) = (partial.join("apt"), partial.join("root"));
        for folder in [&state.join("lists/partial"), &state.join("cache/archives/partial"), &root] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let line = |suite| {
            format!(
                "deb [arch=amd64 signed-by={}] {} {suite} main\n",
                self.keyring.display(),
                self.mirror
            )
        };
        fs::write(state.join("sources.list"), SUITES.map(line).concat())?;
        fs::write(state.join("status"), "")?;
        quiet_output(apt(&state).arg("update"))?;
        let wanted = [
            "-t",
            SUITES[1],
            "-y",
            "--download-only",
            "install",
            "mesa-vulkan-drivers",
            "libvulkan1",
        ];
        quiet_output(apt(&state).args(wanted))?;
        let mut version = None;
        for entry in fs::read_dir(state.join("cache/archives"))? {
            let package = entry?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                quiet_output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
                version = version.or_else(|| mesa_version(&package.file_name()?.to_string_lossy()));
            }
        }
        fs::write(root.join("version"), version.context("apt fetched no mesa-vulkan-drivers")?)?;
        write_manifest(&root)?;
        write_runner(&root)
    }
}

/// apt-get with every path it writes to, and every source it reads from, below `state`; the machine's proxy settings still hold.
fn apt(state: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let option = |name: &str, value: &str| format!("-o{name}={value}");
    let below = |name: &str, file: &str| option(name, &state.join(file).to_string_lossy());
    command.args([
        below("Dir::Etc::SourceList", "sources.list"),
        below("Dir::State::Lists", "lists"),
        below("Dir::State::status", "status"),
        below("Dir::Cache", "cache"),
        option("Dir::Etc::SourceParts", "/dev/null"),
        option("Dir::Etc::Preferences", "/dev/null"),
        option("Dir::Etc::PreferencesParts", "/dev/null"),
        option("APT::Sandbox::User", "root"),
        option("APT::Install-Recommends", "false"),
        option("APT::Update::Error-Mode", "any"),
        option("Acquire::Languages", "none"),
        option("Acquire::Retries", "2"),
        option("Acquire::http::Timeout", "30"),
    ]);
    command.arg("-qq").env("LC_ALL", "C");
    command
}

/// The driver's manifest with the path of its library relative to the manifest, which the Vulkan loader allows.
fn write_manifest(root: &Path) -> Result<()> {
    let folder = root.join("usr/share/vulkan/icd.d");
    let is_lavapipe = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lvp_icd"));
    let mut files = fs::read_dir(&folder)
        .context("the packages hold no driver manifest")?
        .flatten()
        .map(|entry| entry.path());
    let original = fs::read_to_string(files.find(is_lavapipe).context("the packages hold no lavapipe manifest")?)?;
    let library = crate::adapter::library_path(&original).context("lavapipe's manifest names no library")?;
    let relative = format!("{LIBRARIES}/{}", library.rsplit('/').next().unwrap_or(library));
    ensure!(
        root.join(&relative).exists(),
        "lavapipe's manifest names {library}, which the packages do not hold"
    );
    fs::write(
        root.join("lvp.json"),
        original.replace(&format!("\"{library}\""), &format!("\"{relative}\"")),
    )?;
    Ok(())
}

fn write_runner(root: &Path) -> Result<()> {
    let linker = root.join(LIBRARIES).join("ld-linux-x86-64.so.2");
    if !linker.exists() {
        bail!("the packages hold no dynamic linker");
    }
    let file = root.join("run");
    fs::write(&file, RUNNER)?;
    #[cfg(unix)]
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

/// The text of every list of sources apt is set up with.
fn apt_sources() -> String {
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let files = std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(parts);
    files
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| [text, "\n".into()])
        .collect()
}

/// The first Debian archive named in either of apt's forms (`deb URL suite …`, `URIs: URL …`).
fn debian_mirror(sources: &str) -> Option<String> {
    let lines = sources
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    let words = lines.flat_map(str::split_whitespace).map(|word| word.trim_end_matches('/'));
    let is_archive = |word: &&str| (word.starts_with("http://") || word.starts_with("https://")) && word.ends_with("/debian");
    words.into_iter().find(is_archive).map(String::from)
}

/// `mesa-vulkan-drivers_26.1.6-1_amd64.deb` gives `26.1.6-1`; any other package gives nothing.
fn mesa_version(package: &str) -> Option<String> {
    let (version, _) = package.strip_prefix("mesa-vulkan-drivers_")?.rsplit_once('_')?;
    Some(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_found_in_both_forms_of_source_lists() {
        let one_line = "# deb http://old.example/debian bookworm main\ndeb [arch=amd64] https://one.example/debian/ bookworm main\n";
        assert_eq!(debian_mirror(one_line).as_deref(), Some("https://one.example/debian"));
        let stanza = "Types: deb\n# URIs: http://snapshot.example/debian\nURIs: http://two.example/debian-security http://two.example/debian\nSuites: x\n";
        assert_eq!(debian_mirror(stanza).as_deref(), Some("http://two.example/debian"));
    }

    #[test]
    fn other_archives_are_no_debian_mirror() {
        let others =
            "deb http://archive.example/ubuntu noble main\ndeb-src http://three.example/debian x main\nURIs: mirror+file:/etc/apt/debian\n";
        assert_eq!(debian_mirror(others), None);
    }

    #[test]
    fn the_version_is_in_the_package_name() {
        assert_eq!(
            mesa_version("mesa-vulkan-drivers_26.1.6-1~bpo13+1_amd64.deb").as_deref(),
            Some("26.1.6-1~bpo13+1")
        );
        assert_eq!(mesa_version("libvulkan1_1.4.309.0-1_amd64.deb"), None);
    }

    #[test]
    fn the_manifest_points_at_its_own_folder() {
        let root = scratch("manifest");
        fs::create_dir_all(root.join("usr/share/vulkan/icd.d")).unwrap();
        fs::create_dir_all(root.join(LIBRARIES)).unwrap();
        let original = r#"{"ICD": {"api_version": "1.4", "library_path": "/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so"}}"#;
        fs::write(root.join("usr/share/vulkan/icd.d/lvp_icd.json"), original).unwrap();
        assert!(write_manifest(&root).is_err(), "the library is missing");
        fs::write(root.join(LIBRARIES).join("libvulkan_lvp.so"), "").unwrap();
        write_manifest(&root).unwrap();
        let written = fs::read_to_string(root.join("lvp.json")).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            written,
            r#"{"ICD": {"api_version": "1.4", "library_path": "usr/lib/x86_64-linux-gnu/libvulkan_lvp.so"}}"#
        );
    }

    #[test]
    fn a_complete_folder_replaces_half_a_one_but_not_another_complete_one() {
        let target = scratch("place");
        let (partial, folder) = (target.join("partial"), target.join("lavapipe"));
        let fill = |folder: &Path, content: &str| {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("run"), content).unwrap();
        };
        fs::create_dir_all(folder.join("usr")).unwrap();
        fill(&partial.join("root"), "first");
        put_in_place(&partial, &folder).unwrap();
        fill(&partial.join("root"), "second");
        put_in_place(&partial, &folder).unwrap();
        let kept = fs::read_to_string(folder.join("run")).unwrap();
        let half_left = folder.join("usr").exists();
        fs::remove_dir_all(&target).unwrap();
        assert_eq!((kept.as_str(), half_left), ("first", false));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_abandoned_folders_are_removed() {
        let target = scratch("abandoned");
        let running = target.join(format!("{PARTIAL}1"));
        let reused = target.join(format!("{PARTIAL}{}", std::process::id()));
        let abandoned = target.join(format!("{PARTIAL}4294967295"));
        let other = target.join("lavapipe");
        for folder in [&running, &reused, &abandoned, &other] {
            fs::create_dir_all(folder.join("root")).unwrap();
        }
        remove_abandoned(&target, PARTIAL);
        let left = [&running, &reused, &abandoned, &other].map(|folder| folder.exists());
        fs::remove_dir_all(&target).unwrap();
        assert_eq!(left, [true, false, false, true]);
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kvsculpt-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}
