//! The network configuration list on the node's disk, which tells the runtime that there is a network: written when pods
//! can be attached, removed when they cannot be for a while.
//!
//! Kubelet calls a node ready as soon as its runtime finds such a file. So it is there only while this agent can serve
//! ADD, as STATUS sees it. But a node whose agent restarts, or whose datastore is away for a moment, keeps it for
//! `conflist_grace`: its pods run on, and an ADD meanwhile is told to come again. For the same reason the file stays when
//! the agent ends; its successor takes it over, or removes it after that time.
//!
//! Invariants: the file is whole at any time (written under another name in the same folder, then renamed); a file that
//! does not name the plugin `calidris-cni` is somebody else's and is neither replaced nor removed; what is right already is
//! not written again.

use std::fs;
use std::future::Future;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::{info, warn};

use crate::clock;

/// File name of the plugin in a configuration.
const PLUGIN: &str = "calidris-cni";
/// How often readiness is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why there is nothing to install.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be read.
    #[error("cni.conflist_source: cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no configuration list of ours.
    #[error("cni.conflist_source: {} is not a network configuration list with a plugin of type \"{PLUGIN}\"", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
}

/// What is to be installed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigList {
    target: PathBuf,
    content: Vec<u8>,
    grace: Duration,
}

/// What was done to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was as it should be.
    Nothing,
    /// It was written.
    Installed,
    /// It was removed.
    Removed,
    /// There is a file of somebody else under that name.
    Foreign,
}

impl ConfigList {
    /// Reads what is to be installed at `target`; it is removed there after `grace` without readiness.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn load(source: &Path, target: &Path, grace: Duration) -> Result<Self, SourceError> {
        let content = fs::read(source).map_err(|error| SourceError::Read {
            path: source.to_owned(),
            source: error,
        })?;
        if !is_ours(&content) {
            return Err(SourceError::NotOurs {
                path: source.to_owned(),
            });
        }
        Ok(Self {
            target: target.to_owned(),
            content,
            grace,
        })
    }

    /// Keeps the file as readiness wants it, until the task is dropped.
    pub async fn run<Ready>(self, is_ready: impl Fn() -> Ready)
    where
        Ready: Future<Output = bool>,
    {
        let mut ready_at = clock::now();
        let mut said = None;
        loop {
            let now = clock::now();
            if is_ready().await {
                ready_at = now;
            }
            let result = self.keep(ready_at, now);
            match &result {
                Ok(Done::Installed) => {
                    info!(file = %self.target.display(), "pods can be attached: network configuration installed");
                }
                Ok(Done::Removed) => {
                    warn!(file = %self.target.display(), "pods cannot be attached: network configuration removed");
                }
                Ok(Done::Foreign) if said != Some("foreign") => {
                    warn!(file = %self.target.display(), "there is a network configuration of somebody else: it stays, ours is not installed");
                }
                Err(error) if said != Some("failed") => {
                    warn!(file = %self.target.display(), %error, "cannot keep the network configuration");
                }
                _ => {}
            }
            said = match result {
                Ok(Done::Foreign) => Some("foreign"),
                Err(_) => Some("failed"),
                Ok(_) => None,
            };
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One look at the file. `ready_at`: when pods could be attached the last time, or the agent started.
    ///
    /// # Errors
    /// When the file or its folder cannot be read or written.
    pub fn keep(&self, ready_at: Instant, now: Instant) -> io::Result<Done> {
        let present = match fs::read(&self.target) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_foreign = present.as_ref().is_some_and(|content| !is_ours(content));
        let is_ready = ready_at == now;
        match present {
            _ if is_foreign => Ok(Done::Foreign),
            Some(content) if is_ready && content == self.content => Ok(Done::Nothing),
            _ if is_ready => self.install().map(|()| Done::Installed),
            Some(_) if now.saturating_duration_since(ready_at) >= self.grace => {
                fs::remove_file(&self.target).map(|()| Done::Removed)
            }
            _ => Ok(Done::Nothing),
        }
    }

    fn install(&self) -> io::Result<()> {
        let folder = self.target.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        // Runtimes look at names that end in .conflist, .conf or .json only.
        let new = folder.join(".calidris-network-configuration.new");
        let mut file = fs::File::create(&new)?;
        file.write_all(&self.content)?;
        file.sync_all()?;
        fs::rename(&new, &self.target)
    }
}

/// Whether it is a configuration list, or a single configuration, with our plugin.
fn is_ours(content: &[u8]) -> bool {
    let Ok(config) = serde_json::from_slice::<Value>(content) else {
        return false;
    };
    let is_our_plugin = |plugin: &Value| plugin["type"] == PLUGIN;
    is_our_plugin(&config)
        || config["plugins"]
            .as_array()
            .is_some_and(|plugins| plugins.iter().any(is_our_plugin))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"calidris-cni"}]}"#;
    const FOREIGN: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    const GRACE: Duration = Duration::from_secs(60);

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("calidris-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn list(&self) -> ConfigList {
            let source = self.0.join("source");
            fs::write(&source, OURS).unwrap();
            ConfigList::load(&source, &self.target(), GRACE).unwrap()
        }

        fn target(&self) -> PathBuf {
            self.0.join("net.d/10-calidris.conflist")
        }

        fn present(&self) -> Option<String> {
            fs::read_to_string(self.target()).ok()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_file_comes_with_readiness_and_goes_after_the_grace_only() {
        let folder = Folder::new("conflist-follows");
        let (list, start) = (folder.list(), clock::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        // Not ready yet, and nothing there.
        assert_eq!(list.keep(start, later(1)).unwrap(), Done::Nothing);
        assert_eq!(folder.present(), None);
        assert_eq!(list.keep(later(2), later(2)).unwrap(), Done::Installed);
        assert_eq!(folder.present().as_deref(), Some(OURS));
        assert_eq!(list.keep(later(3), later(3)).unwrap(), Done::Nothing);
        assert_eq!(
            list.keep(later(3), later(62)).unwrap(),
            Done::Nothing,
            "within the grace"
        );
        assert!(folder.present().is_some());
        assert_eq!(list.keep(later(3), later(63)).unwrap(), Done::Removed);
        assert_eq!(list.keep(later(3), later(64)).unwrap(), Done::Nothing);
        assert_eq!(folder.present(), None);
        assert_eq!(list.keep(later(70), later(70)).unwrap(), Done::Installed);
        let names: Vec<_> = fs::read_dir(folder.target().parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_predecessors_file_is_taken_over_and_a_foreign_one_stays() {
        let folder = Folder::new("conflist-others");
        let (list, start) = (folder.list(), clock::now());
        fs::create_dir_all(folder.target().parent().unwrap()).unwrap();
        let older = OURS.replace("\"n\"", "\"older\"");
        fs::write(folder.target(), &older).unwrap();
        assert_eq!(list.keep(start, start + GRACE / 2).unwrap(), Done::Nothing);
        assert_eq!(folder.present(), Some(older));
        assert_eq!(list.keep(start, start).unwrap(), Done::Installed);
        assert_eq!(folder.present().as_deref(), Some(OURS));
        for foreign in [FOREIGN, "not json"] {
            fs::write(folder.target(), foreign).unwrap();
            assert_eq!(list.keep(start, start).unwrap(), Done::Foreign);
            assert_eq!(list.keep(start, start + GRACE * 2).unwrap(), Done::Foreign);
            assert_eq!(folder.present().as_deref(), Some(foreign));
        }
    }

    #[test]
    fn a_source_without_our_plugin_is_refused() {
        let folder = Folder::new("conflist-source");
        let source = folder.0.join("source");
        fs::write(&source, FOREIGN).unwrap();
        let refused = ConfigList::load(&source, &folder.target(), GRACE);
        assert!(matches!(refused, Err(SourceError::NotOurs { .. })), "{refused:?}");
        let missing = ConfigList::load(&folder.0.join("none"), &folder.target(), GRACE);
        assert!(matches!(missing, Err(SourceError::Read { .. })), "{missing:?}");
    }
}
