//! `[cni]`: the server that the plugin calls.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::{SocketPath, duration, within};
use crate::cni_config::{ConfigList, SourceError};

/// `[cni]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    /// The socket.
    pub socket: SocketPath,
    /// MTU of pods' interfaces in bytes, 1280 (for IPv6, RFC 8200 §5) to 65535. `None`: as the uplinks and tunnels allow.
    #[serde(deserialize_with = "mtu")]
    pub mtu: Option<u32>,
    /// Requests worked on at a time, 1 to 256.
    #[serde(deserialize_with = "concurrency")]
    pub max_concurrent: u16,
    /// Requests waiting beyond those, 0 to 10000.
    #[serde(deserialize_with = "waiting")]
    pub max_waiting: u16,
    /// Longest time for a request.
    #[serde(deserialize_with = "duration::deserialize")]
    pub request_timeout: Duration,
    /// How long ADD waits until the pod's route was heard back from a BGP peer; zero: not at all.
    #[serde(deserialize_with = "duration::deserialize")]
    pub heard_back_timeout: Duration,
    /// What becomes of an ADD whose route was not heard back in that time.
    pub not_heard_back: NotHeardBack,
    /// The network configuration list to install when pods can be attached; with `conflist`, or neither.
    pub conflist_source: Option<PathBuf>,
    /// Where it is installed.
    pub conflist: Option<PathBuf>,
    /// After how long without readiness it is removed again.
    #[serde(deserialize_with = "duration::deserialize")]
    pub conflist_grace: Duration,
}

/// What becomes of an ADD whose route was not heard back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotHeardBack {
    /// It succeeds, and the log says so.
    #[default]
    Warn,
    /// It is undone, and the runtime is told to try again.
    Fail,
}

impl Cni {
    /// The configuration list to install, if there is to be one.
    ///
    /// # Errors
    /// When it cannot be read or is none.
    pub fn config_list(&self) -> Result<Option<ConfigList>, SourceError> {
        let files = self.conflist_source.as_ref().zip(self.conflist.as_ref());
        files
            .map(|(source, target)| ConfigList::load(source, target, self.conflist_grace))
            .transpose()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.heard_back_timeout >= self.request_timeout {
            return Err("cni.heard_back_timeout is not below cni.request_timeout".to_owned());
        }
        if self.conflist_source.is_some() != self.conflist.is_some() {
            return Err(
                "cni.conflist_source and cni.conflist go together; one of them is missing".to_owned(),
            );
        }
        if let Some(target) = &self.conflist
            && (!target.is_absolute() || target.extension().is_none_or(|extension| extension != "conflist"))
        {
            return Err(format!(
                "cni.conflist: {target:?} is not an absolute path that ends in .conflist"
            ));
        }
        Ok(())
    }
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            socket: SocketPath(PathBuf::from(calidris_cni::spec::DEFAULT_SOCKET)),
            mtu: None,
            max_concurrent: 16,
            max_waiting: 512,
            request_timeout: Duration::from_secs(25),
            heard_back_timeout: Duration::ZERO,
            not_heard_back: NotHeardBack::default(),
            conflist_source: None,
            conflist: None,
            conflist_grace: Duration::from_secs(60),
        }
    }
}

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    within(u32::deserialize(deserializer)?, 1280, 65_535)
        .map(Some)
        .map_err(D::Error::custom)
}

fn concurrency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    within(u16::deserialize(deserializer)?, 1, 256).map_err(D::Error::custom)
}

fn waiting<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    within(u16::deserialize(deserializer)?, 0, 10_000).map_err(D::Error::custom)
}
