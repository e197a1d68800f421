//! containerd 1.6 or later on a machine of its own, with everything at its usual path; `ctr` brings images in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::READY_WITHIN;
use crate::eventually::eventually;
use crate::image::BUSYBOX_IMAGE;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::process::Process;

/// Where its socket is on the machine.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// The program.
const PROGRAM: &str = "containerd";

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    process: Option<Process>,
}

impl Containerd {
    /// Starts it and imports the archives of images; returns when it answers.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn start(lab: &Lab, machine: &Machine, images: &[PathBuf]) -> anyhow::Result<Self> {
        machine.write("/etc/containerd/config.toml", config_text())?;
        let mut containerd = Self { process: None };
        containerd.launch(lab, machine)?;
        for archive in images {
            import(machine, archive)?;
        }
        Ok(containerd)
    }

    /// Kills it with SIGKILL; its shims and their containers go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("containerd does not run")?.kill()
    }

    /// Starts it again on the same state and returns when it answers.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn launch(&mut self, lab: &Lab, machine: &Machine) -> anyhow::Result<()> {
        let folders = snapshot_folders(machine)?;
        let mut command = Command::new(PROGRAM);
        command.args(["--log-level", "info"]);
        let mut process = lab.start(machine.name(), PROGRAM, machine, &mut command)?;
        eventually("containerd answers", READY_WITHIN, || {
            process.check_alive()?;
            ctr(machine, &["version"])
        })?;
        self.process = Some(process);
        remove_half_made(machine, &folders)
    }
}

/// The folders of snapshots, by number.
fn snapshot_folders(machine: &Machine) -> anyhow::Result<BTreeSet<u64>> {
    let entries = match std::fs::read_dir(machine.path(SNAPSHOTS)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.with_context(|| format!("read {SNAPSHOTS}"))?,
    };
    let mut folders = BTreeSet::new();
    for entry in entries {
        folders.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u64>().ok()),
        );
    }
    Ok(folders)
}

/// A containerd that is killed after it has made the folder of a snapshot and before it has noted the snapshot gives the next
/// one the same number, and finds the folder in its way for ever ("failed to rename: file exists"). Nothing was ever in it.
/// `folders` were there before containerd was started: those with numbers above all snapshots that it knows are removed.
fn remove_half_made(machine: &Machine, folders: &BTreeSet<u64>) -> anyhow::Result<()> {
    let of_snapshotter = |words: &[&str]| {
        ctr(
            machine,
            &[&["snapshots", "--snapshotter", SNAPSHOTTER][..], words].concat(),
        )
    };
    let mut highest = None;
    for line in of_snapshotter(&["list"])?.lines() {
        // Key, parent if there is one, and kind.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(key), Some(&"Active")) = (words.first(), words.last()) else {
            continue;
        };
        let mount = of_snapshotter(&["mounts", "/mnt", key])?;
        let number = mount.split_once(&format!("{SNAPSHOTS}/")).and_then(|(_, rest)| {
            let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
            digits.parse::<u64>().ok()
        });
        highest = highest.max(number.filter(|number| folders.contains(number)));
    }
    let Some(highest) = highest else { return Ok(()) };
    for folder in folders.iter().filter(|folder| **folder > highest) {
        let path = machine.path(&format!("{SNAPSHOTS}/{folder}"));
        std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// Runs `ctr` in the namespace of Kubernetes.
///
/// # Errors
/// When it fails, with what it said.
pub fn ctr(machine: &Machine, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("ctr");
    command
        .args(["--address", SOCKET, "--namespace", "k8s.io"])
        .args(words);
    machine.run(&mut command)
}

fn import(machine: &Machine, archive: &Path) -> anyhow::Result<()> {
    let archive = archive.to_str().context("the archive's path is not UTF-8")?;
    let words = ["images", "import", "--snapshotter", SNAPSHOTTER, archive];
    ctr(machine, &words).map(drop)
}

/// Where it keeps snapshots.
const SNAPSHOTS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.native/snapshots";
/// Copies instead of overlays: works on every file system that a lab may lie on, and the images are small.
const SNAPSHOTTER: &str = "native";

/// What differs from the defaults. A machine that is a container itself may lack the right to set a lower
/// `oom_score_adj`, and no AppArmor.
fn config_text() -> String {
    format!(
        r#"version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BUSYBOX_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{SNAPSHOTTER}"
"#
    )
}
