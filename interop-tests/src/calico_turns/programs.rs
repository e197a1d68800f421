//! The programs of Calico, which `interop-tests/calico/build.sh` builds once for a user.

use std::path::{Path, PathBuf};

use anyhow::ensure;

const NAMES: [&str; 3] = ["calicoctl", "calico", "calico-ipam"];

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
                "there is no {}; `make test-calico` builds it",
                path.display()
            );
        }
        Ok(Self(folder.to_owned()))
    }

    /// Where they are.
    pub(super) fn folder(&self) -> &Path {
        &self.0
    }
}
