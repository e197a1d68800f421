//! The configuration of `calidris speaker`: the agent's `[bgp]`, and nothing of a node.
//!
//! Every key is documented in `deploy/calidris-speaker.toml` (a test compares).

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use calidris_bgp::SpeakerConfig;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::{Bgp, ConfigError, Control, Log, SocketPath, file};

/// Everything the operator of a speaker without a node decides.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeakerFile {
    /// The speaker, its peers and what it announces.
    #[serde(deserialize_with = "with_router_id")]
    pub bgp: Bgp,
    /// The control socket.
    #[serde(default = "control")]
    pub control: Control,
    /// Logging.
    #[serde(default)]
    pub log: Log,
}

impl SpeakerFile {
    /// Where the configuration is unless the command line says otherwise.
    pub const DEFAULT_FILE: &str = "/etc/calidris/calidris-speaker.toml";
    /// The default of `control.socket`: another one than the agent's, so that both can run on one machine.
    pub const DEFAULT_CONTROL_SOCKET: &str = "/run/calidris/speaker.sock";

    /// Reads and checks the file.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        file::load(path)
    }

    /// Checks `text`, which came from `path`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        file::parse(text, path)
    }

    /// The speaker's configuration. Reads the passwords; a peer whose password cannot be had is held down.
    pub fn speaker(&self) -> SpeakerConfig {
        // Never unspecified: `with_router_id` has looked.
        self.bgp
            .speaker(self.bgp.router_id.unwrap_or(Ipv4Addr::UNSPECIFIED))
    }
}

/// `[bgp]` where no node address can stand in for the router ID.
fn with_router_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bgp, D::Error> {
    let bgp = <Bgp as Deserialize>::deserialize(deserializer)?;
    if bgp.router_id.is_none() {
        return Err(D::Error::custom(
            "router_id is missing; expected an IPv4 address, unique within the AS",
        ));
    }
    Ok(bgp)
}

fn control() -> Control {
    Control {
        socket: SocketPath(PathBuf::from(SpeakerFile::DEFAULT_CONTROL_SOCKET)),
    }
}
