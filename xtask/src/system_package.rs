//! The distribution's own software Vulkan driver: older and slower, but it serves.

use crate::workspace::quiet_output;
use anyhow::{Result, bail};
use std::fs;
use std::process::Command;

const PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// What `/etc/os-release` says of the distribution and of those it descends from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: String,
    like: Vec<String>,
}

/// This system's identity, where it has one.
pub(crate) fn identity() -> Option<Identity> {
    parse_identity(
        &fs::read_to_string("/etc/os-release")
            .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
            .ok()?,
    )
}

fn parse_identity(release: &str) -> Option<Identity> {
    let field = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned())
    };
    let like = field("ID_LIKE").unwrap_or_default().split_whitespace().map(String::from).collect();
    Some(Identity { id: field("ID")?, like })
}

/// The command that installs a software driver and the Vulkan loader, for the distributions we know of.
fn command_for(identity: &Identity) -> Option<&'static str> {
    let names = std::iter::once(&identity.id).chain(&identity.like);
    names.into_iter().find_map(|name| match name.as_str() {
        "debian" | "ubuntu" => Some("sudo apt-get install mesa-vulkan-drivers libvulkan1"),
        "fedora" | "rhel" | "centos" => Some("sudo dnf install mesa-vulkan-drivers vulkan-loader"),
        "arch" => Some("sudo pacman -S vulkan-swrast vulkan-icd-loader"),
        "opensuse" | "suse" => Some("sudo zypper install libvulkan_lvp libvulkan1"),
        "alpine" => Some("sudo apk add mesa-vulkan-swrast vulkan-loader"),
        _ => None,
    })
}

/// Installs the package where that can be done without asking: apt, and root (a container, most likely). Else fails with what to type.
pub(crate) fn install() -> Result<()> {
    let is_root = quiet_output(Command::new("id").arg("-u")).is_ok_and(|user| user.trim() == "0");
    let has_apt = quiet_output(Command::new("apt-get").arg("--version")).is_ok();
    if !(is_root && has_apt) {
        bail!("{}", advice(identity().as_ref()));
    }
    eprintln!("xtask: installing the system's {}", PACKAGES.join(" and "));
    // A list of packages that is a little old still serves, and so does one where a single source failed.
    if let Err(reason) = quiet_output(Command::new("apt-get").args(["-qq", "update"])) {
        eprintln!("xtask: {reason:#}");
    }
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "install", "-y", "--no-install-recommends"])
        .args(PACKAGES)
        .env("DEBIAN_FRONTEND", "noninteractive");
    match quiet_output(&mut command) {
        Ok(_) => Ok(()),
        Err(reason) => bail!("{} ({reason:#})", advice(identity().as_ref())),
    }
}

fn advice(identity: Option<&Identity>) -> String {
    let start = "this machine has no Vulkan driver and the tests need one";
    match identity.and_then(command_for) {
        Some(command) => format!("{start}; install a software driver with `{command}`, then run this again"),
        None => format!(
            "{start}; install the Vulkan loader and Mesa's lavapipe (on Debian: mesa-vulkan-drivers and libvulkan1), then run this again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(release: &str) -> Option<&'static str> {
        command_for(&parse_identity(release).unwrap())
    }

    #[test]
    fn every_distribution_gets_its_own_command() {
        assert!(command("NAME=x\nID=ubuntu\nID_LIKE=debian\n").unwrap().contains("apt-get"));
        assert!(command("ID=fedora\n").unwrap().contains("dnf"));
        assert!(
            command("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n")
                .unwrap()
                .contains("zypper")
        );
        assert!(command("ID=manjaro\nID_LIKE=arch\n").unwrap().contains("pacman"));
        assert!(command("ID=alpine\n").unwrap().contains("apk"));
        assert_eq!(command("ID=plan9\n"), None);
    }

    #[test]
    fn an_unknown_system_still_gets_a_sentence() {
        assert_eq!(parse_identity("NAME=nothing\nVERSION_ID=3\n"), None);
        assert!(advice(None).contains("lavapipe"));
    }
}
