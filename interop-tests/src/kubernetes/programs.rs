//! The programs of Kubernetes, which `interop-tests/kubernetes/build.sh` builds once for a user.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

const NAMES: [&str; 5] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

/// A folder that has them all.
#[derive(Clone, Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// Takes the programs of a folder.
    ///
    /// # Errors
    /// When one is not there.
    pub fn in_folder(folder: &Path) -> anyhow::Result<Self> {
        for name in NAMES {
            let path = folder.join(name);
            ensure!(
                path.exists(),
                "there is no {}; `make test-kubernetes` builds it",
                path.display()
            );
        }
        Ok(Self(folder.to_owned()))
    }

    /// A command that runs one of them.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.0.join(name))
    }
}
