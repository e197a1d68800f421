//! containerd 1.6 or later on a machine of its own, with everything at its usual path; `ctr` brings images in.

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
        let mut command = Command::new(PROGRAM);
        command.args(["--log-level", "info"]);
        let mut process = lab.start(machine.name(), PROGRAM, machine, &mut command)?;
        eventually("containerd answers", READY_WITHIN, || {
            process.check_alive()?;
            ctr(machine, &["version"])
        })?;
        self.process = Some(process);
        Ok(())
    }
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
