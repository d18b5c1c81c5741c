//! Which Vulkan drivers a Linux machine offers, from the files the Vulkan loader itself would read.
//!
//! Loading Vulkan would be more certain, but xtask has to build in seconds. A driver's manifest proves nothing by itself (Mesa's package
//! brings those of every GPU it knows), so a GPU's driver counts only beside a device file that this user may open.

use crate::workspace::quiet_output;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs on the CPU.
    Software,
    Nvidia,
    /// Any other GPU, reached through the kernel's render nodes.
    Gpu,
}

/// One driver's manifest file and the library it names.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) file: PathBuf,
    pub(crate) library: String,
}

/// What is installed: the GPU driver that would serve, the software driver that would serve.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) gpu: Option<Manifest>,
    pub(crate) software: Option<Manifest>,
}

/// Looks at this machine; finds nothing where there is no Vulkan loader, since no driver helps without one.
pub(crate) fn find() -> Found {
    if !loader_is_installed() {
        return Found::default();
    }
    let manifests = manifests(&manifest_places(|name| env::var(name).ok()));
    let first = |fits: &dyn Fn(Kind) -> bool| manifests.iter().find(|manifest| fits(kind(&manifest.library))).cloned();
    Found {
        gpu: first(&|kind| kind != Kind::Software && has_device(kind)),
        software: first(&|kind| kind == Kind::Software),
    }
}

/// The library a manifest names: `{"ICD": {"library_path": "libvulkan_lvp.so"}}` gives `libvulkan_lvp.so`.
pub(crate) fn library_path(manifest: &str) -> Option<&str> {
    let (_, rest) = manifest.split_once("\"library_path\"")?;
    let value = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    value.split_once('"').map(|(path, _)| path).filter(|path| !path.is_empty())
}

fn kind(library: &str) -> Kind {
    let name = library.rsplit('/').next().unwrap_or(library).to_ascii_lowercase();
    if ["lvp", "lavapipe", "swrast", "swiftshader"]
        .iter()
        .any(|software| name.contains(software))
    {
        Kind::Software
    } else if name.contains("nvidia") {
        Kind::Nvidia
    } else {
        Kind::Gpu
    }
}

/// Files and folders in the order the Vulkan loader looks at them, given the environment.
fn manifest_places(variable: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let paths = |list: String| env::split_paths(&list).collect::<Vec<_>>();
    if let Some(list) = set("VK_DRIVER_FILES").or_else(|| set("VK_ICD_FILENAMES")) {
        return paths(list);
    }
    let home = set("HOME").map(PathBuf::from);
    let personal = |name: &str, below_home: &str| {
        set(name)
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|home| home.join(below_home)))
    };
    let mut folders: Vec<PathBuf> = personal("XDG_CONFIG_HOME", ".config").into_iter().collect();
    folders.extend(paths(set("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into())));
    folders.push("/etc".into());
    folders.extend(personal("XDG_DATA_HOME", ".local/share"));
    folders.extend(paths(set("XDG_DATA_DIRS").unwrap_or_else(|| "/usr/local/share:/usr/share".into())));
    folders.push("/run/opengl-driver/share".into()); // NixOS
    let added = set("VK_ADD_DRIVER_FILES").map(paths).unwrap_or_default();
    added
        .into_iter()
        .chain(folders.into_iter().map(|folder| folder.join("vulkan/icd.d")))
        .collect()
}

/// Every readable manifest among `places`; a folder stands for the `.json` files in it, by name.
fn manifests(places: &[PathBuf]) -> Vec<Manifest> {
    let mut files = Vec::new();
    for place in places {
        let Ok(entries) = fs::read_dir(place) else {
            files.push(place.clone());
            continue;
        };
        let mut inside: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        inside.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        inside.sort();
        files.append(&mut inside);
    }
    let read = |file: PathBuf| {
        let library = library_path(&fs::read_to_string(&file).ok()?)?.to_owned();
        Some(Manifest { file, library })
    };
    files.into_iter().filter_map(read).collect()
}

fn loader_is_installed() -> bool {
    const LOADER: &str = "libvulkan.so.1";
    let listed = |ldconfig: &str| quiet_output(Command::new(ldconfig).arg("-p")).is_ok_and(|libraries| libraries.contains(LOADER));
    let extra = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    env::split_paths(&extra).chain(usual).any(|folder| folder.join(LOADER).exists()) || listed("ldconfig") || listed("/sbin/ldconfig") // not on every user's PATH
}

fn has_device(kind: Kind) -> bool {
    let may_open = |file: &Path| File::options().read(true).write(true).open(file).is_ok();
    match kind {
        Kind::Software => true,
        Kind::Nvidia => may_open(Path::new("/dev/nvidiactl")),
        Kind::Gpu => {
            let nodes = fs::read_dir("/dev/dri").into_iter().flatten().flatten().map(|entry| entry.path());
            let is_render_node = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("renderD"));
            let others = ["/dev/dxg", "/dev/kgsl-3d0"].map(PathBuf::from); // Windows' GPU seen from WSL; Adreno
            nodes.filter(is_render_node).chain(others).any(|file| may_open(&file))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_read_from_a_manifest() {
        let spread_out = "{\n \"ICD\": {\n  \"api_version\": \"1.4.354\",\n  \"library_path\" : \"/usr/lib/libvulkan_lvp.so\"\n }\n}";
        assert_eq!(library_path(spread_out), Some("/usr/lib/libvulkan_lvp.so"));
        assert_eq!(
            library_path(r#"{"ICD":{"library_path":"libGLX_nvidia.so.0"}}"#),
            Some("libGLX_nvidia.so.0")
        );
    }

    #[test]
    fn a_broken_manifest_names_no_library() {
        for broken in [
            "",
            "{}",
            r#"{"library_path"}"#,
            r#"{"library_path": 3}"#,
            r#"{"library_path": "cut off"#,
            r#"{"library_path": ""}"#,
        ] {
            assert_eq!(library_path(broken), None, "{broken}");
        }
    }

    #[test]
    fn software_drivers_are_told_from_gpus() {
        assert_eq!(kind("/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so"), Kind::Software);
        assert_eq!(kind("./libvk_swiftshader.so"), Kind::Software);
        assert_eq!(kind("libGLX_nvidia.so.0"), Kind::Nvidia);
        assert_eq!(kind("/opt/lvp/libvulkan_radeon.so"), Kind::Gpu);
    }

    #[cfg(unix)] // lists of paths are separated differently elsewhere
    #[test]
    fn the_environment_moves_the_places() {
        let only = manifest_places(|name| (name == "VK_DRIVER_FILES").then(|| "/a.json:/b".into()));
        assert_eq!(only, [PathBuf::from("/a.json"), PathBuf::from("/b")]);
        let usual = manifest_places(|name| match name {
            "HOME" => Some("/home/ada".into()),
            "VK_ADD_DRIVER_FILES" => Some("/extra.json".into()),
            "XDG_DATA_DIRS" => Some(String::new()),
            _ => None,
        });
        let expected = [
            "/extra.json",
            "/home/ada/.config/vulkan/icd.d",
            "/etc/xdg/vulkan/icd.d",
            "/etc/vulkan/icd.d",
            "/home/ada/.local/share/vulkan/icd.d",
            "/usr/local/share/vulkan/icd.d",
            "/usr/share/vulkan/icd.d",
            "/run/opengl-driver/share/vulkan/icd.d",
        ];
        assert_eq!(usual, expected.map(PathBuf::from));
    }

    #[test]
    fn manifests_come_from_files_and_folders() {
        let folder = env::temp_dir().join(format!("kvsculpt-manifests-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("b.json"), r#"{"ICD":{"library_path":"libvulkan_lvp.so"}}"#).unwrap();
        fs::write(folder.join("a.json"), r#"{"ICD":{"library_path":"libvulkan_intel.so"}}"#).unwrap();
        fs::write(folder.join("broken.json"), "{").unwrap();
        fs::write(folder.join("note.txt"), r#"{"ICD":{"library_path":"not a manifest"}}"#).unwrap();
        let found = manifests(&[folder.join("b.json"), folder.clone(), folder.join("absent")]);
        fs::remove_dir_all(&folder).unwrap();
        let libraries: Vec<_> = found.iter().map(|manifest| manifest.library.as_str()).collect();
        assert_eq!(libraries, ["libvulkan_lvp.so", "libvulkan_intel.so", "libvulkan_lvp.so"]);
    }
}
