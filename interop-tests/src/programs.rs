//! Programs of others that a script here builds once for a user, since no package has them: `interop-tests/kubernetes/build.sh`
//! and `interop-tests/calico/build.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

const KUBERNETES: [&str; 5] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];
const CALICO: [&str; 3] = ["calicoctl", "calico", "calico-ipam"];

/// A folder that has all that belong together.
#[derive(Clone, Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// Takes the programs of Kubernetes from a folder.
    ///
    /// # Errors
    /// When one is not there.
    pub fn of_kubernetes(folder: &Path) -> anyhow::Result<Self> {
        Self::all(&KUBERNETES, folder, "make test-kubernetes")
    }

    /// Takes the programs of Calico from a folder.
    ///
    /// # Errors
    /// When one is not there.
    pub fn of_calico(folder: &Path) -> anyhow::Result<Self> {
        Self::all(&CALICO, folder, "make test-calico")
    }

    fn all(names: &[&str], folder: &Path, built_by: &str) -> anyhow::Result<Self> {
        for name in names {
            let path = folder.join(name);
            ensure!(
                path.exists(),
                "there is no {}; `{built_by}` builds it",
                path.display()
            );
        }
        Ok(Self(folder.to_owned()))
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// A command that runs one of them.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.0.join(name))
    }
}
