//! Sockets and timers for `calidris-bgp`.
//!
//! One task owns the [`Speaker`](calidris_bgp::Speaker). Around it stand small tasks that know nothing of BGP: one per listening socket,
//! one per attempt to connect, and one per connection that reads into, and writes from, buffers of bounded size. The owner's loop is
//! always the same four steps: wait for something to happen, feed it to the speaker, do the actions the speaker asks
//! for, hand out what it has to transmit.
//!
//! Everything between the tasks is bounded: the owner's inbox holds a fixed number of events and readers wait when it is full
//! (TCP then slows the peer down); a connection holds one chunk of unsent bytes, and the next one is made from the
//! tables when that is written, so that a stuck peer costs one chunk and no queue.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use calidris_bgp::SpeakerConfig;
use calidris_bgp::config::{ConfigError, Impact};
use calidris_bgp::family::Prefix;
use calidris_bgp::route::{Origination, RouteChange};
use calidris_bgp::status::{RouteFilter, RouteStatus, SpeakerStatus};
use tokio::sync::{mpsc, oneshot, watch};

/// What a speaker needs to start.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// Addresses to listen on; empty means that peers cannot connect to us.
    pub listen: Vec<SocketAddr>,
    /// AS, identifier, peers.
    pub speaker: SpeakerConfig,
    /// Whether a predecessor of this process may have left routes at the peers: they are told to keep them (RFC 4724, R bit),
    /// and that forwarding went on meanwhile (F bit).
    pub restarting: bool,
    /// Seeds the jitter of timers.
    pub seed: u64,
}

/// Why a speaker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not one.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A listening socket could not be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The speaker's task is gone; nothing can be asked any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the BGP speaker has stopped")]
pub struct Stopped;

/// Why a new configuration was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigureError {
    /// It is not one; the old one stays.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no speaker.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// How to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shutdown {
    /// Close the connections without NOTIFICATION, so that peers with graceful restart keep our routes for our successor.
    ForRestart,
    /// End every session with Cease / Administrative Shutdown and these words (RFC 9003, at most 255 bytes of them are sent).
    Cease {
        /// Why.
        text: String,
    },
}

/// A handle on the running speaker; clones are handles on the same one.
#[derive(Debug, Clone)]
pub struct BgpHandle {
    commands: mpsc::Sender<Command>,
    events: watch::Receiver<Notice>,
}
