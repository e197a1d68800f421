//! A peer as the features see it, whatever daemon it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::setup::{Announced, Family};
use crate::lab::Lab;

/// A running daemon.
pub trait Peer: Send {
    /// The state of a session, as the daemon tells it.
    ///
    /// # Errors
    /// When the daemon does not answer or says something unexpected.
    fn session(&self, name: &str) -> anyhow::Result<SessionView>;

    /// The prefixes of a family that the daemon learnt from neighbours.
    ///
    /// # Errors
    /// When the daemon does not answer or says something unexpected.
    fn prefixes(&self, family: Family) -> anyhow::Result<BTreeSet<IpNetwork>>;

    /// All paths to a prefix that the daemon learnt from neighbours.
    ///
    /// # Errors
    /// When the daemon does not answer or says something unexpected.
    fn paths(&self, prefix: IpNetwork) -> anyhow::Result<Vec<Path>>;

    /// Announces one more prefix, or the same one with other attributes.
    ///
    /// # Errors
    /// When the daemon refuses, or [`PeerCannot`].
    fn announce(&mut self, route: &Announced) -> anyhow::Result<()>;

    /// Takes a prefix back.
    ///
    /// # Errors
    /// When the daemon refuses, or [`PeerCannot`].
    fn withdraw(&mut self, prefix: IpNetwork) -> anyhow::Result<()>;

    /// Asks the neighbour for its routes again (RFC 2918).
    ///
    /// # Errors
    /// When the daemon refuses, or [`PeerCannot`].
    fn refresh(&self, session: &str) -> anyhow::Result<()>;

    /// Ends a session with a text for the neighbour (RFC 9003), and keeps it down.
    ///
    /// # Errors
    /// When the daemon refuses, or [`PeerCannot`].
    fn shut_down(&self, session: &str, text: &str) -> anyhow::Result<()>;

    /// Kills the daemon with SIGKILL. What it programmed into the kernel stays.
    ///
    /// # Errors
    /// When it does not go.
    fn kill(&mut self) -> anyhow::Result<()>;

    /// Starts it again after [`Peer::kill`], as one that restarts; returns when it answers.
    ///
    /// # Errors
    /// When it does not come back.
    fn launch(&mut self, lab: &Lab) -> anyhow::Result<()>;

    /// Announces a prefix with attributes as they stand, right or wrong, in ExaBGP's notation:
    /// `attribute [ 0xTYPE 0xFLAGS 0xVALUE ]`.
    ///
    /// # Errors
    /// [`PeerCannot`], for all but ExaBGP.
    fn send_attributes(&mut self, _prefix: IpNetwork, _attributes: &str) -> anyhow::Result<()> {
        peer_cannot("only ExaBGP sends what it is told")
    }
}

/// The state of a session as a daemon tells it.
#[derive(Clone, Debug, Default)]
pub struct SessionView {
    /// Whether it is Established.
    pub established: bool,
    /// The state in the daemon's words.
    pub state: String,
    /// What the neighbour's OPEN offered, of the capabilities that the daemon shows at all.
    pub received: BTreeMap<Capability, bool>,
    /// Words on how the last session ended, the neighbour's included.
    pub last_error: String,
}

impl SessionView {
    /// Of a session that the daemon knows nothing of, with what there is to say about it.
    #[must_use]
    pub fn unknown(why: impl fmt::Display) -> Self {
        Self {
            state: format!("{why:#}"),
            ..Self::default()
        }
    }

    /// The capabilities that the neighbour's OPEN offered.
    #[must_use]
    pub fn came(&self) -> Vec<Capability> {
        let came = self.received.iter().filter(|(_, came)| **came);
        came.map(|(capability, _)| *capability).collect()
    }

    /// Notes the capabilities that the daemon shows, and which of them came.
    pub fn note(&mut self, shown: &[Capability], came: impl Fn(Capability) -> bool) {
        self.received
            .extend(shown.iter().map(|&capability| (capability, came(capability))));
    }
}

/// One path of a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Next hop, where the daemon tells one.
    pub next_hop: Option<IpAddr>,
    /// AS_PATH in words, without decoration: `65001 65002`.
    pub as_path: String,
    /// Communities in our notation: `1:2`, `rt:1:2`, `1:2:3`.
    pub communities: BTreeSet<String>,
    /// Whether it is from before the neighbour's restart, where the daemon tells.
    pub stale: bool,
}

/// Capabilities that cases look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// RFC 4760, IPv4 unicast.
    Ipv4,
    /// RFC 4760, IPv6 unicast.
    Ipv6,
    /// RFC 2918.
    RouteRefresh,
    /// RFC 7313.
    EnhancedRefresh,
    /// RFC 6793.
    FourOctetAs,
    /// RFC 8654.
    ExtendedMessage,
    /// RFC 4724.
    GracefulRestart,
    /// RFC 9494.
    LongLived,
    /// RFC 7911.
    AddPath,
    /// RFC 8950.
    ExtendedNextHop,
    /// RFC 9234.
    Role,
}

/// The error of a case that this peer has no means for; the text says what is missing.
#[derive(Debug)]
pub struct PeerCannot(pub String);

impl fmt::Display for PeerCannot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PeerCannot {}

/// The error of a case that our speaker has no means for yet.
#[derive(Debug)]
pub struct WeCannot(pub String);

impl fmt::Display for WeCannot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WeCannot {}

/// Fails with [`PeerCannot`].
///
/// # Errors
/// Always.
pub fn peer_cannot<T>(why: impl Into<String>) -> anyhow::Result<T> {
    Err(PeerCannot(why.into()).into())
}
