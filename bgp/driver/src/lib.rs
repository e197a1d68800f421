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
//!
//! What a peer costs at most beside its routes: one read of 64 KiB and less than one message (64 KiB) received and not understood yet, one chunk
//! of some 64 KiB to send, and what its session says for itself, of which there is never more than one of a kind. Its routes are bounded by its
//! prefix limit, and by 64 paths to a prefix. What waits for it is no queue: a place in a log of 1 MiB for each update group, or the set of routes that
//! it has missed; a peer that has missed more than 65,536 withdrawals is given up. A log line about what it sends comes once in ten seconds.

mod connect;
mod connection;
mod event;
mod listener;
mod neighbor;
mod socket;
mod task;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use calidris_bgp::SpeakerConfig;
use calidris_bgp::config::{ConfigError, Impact};
use calidris_bgp::family::{AfiSafi, Prefix};
use calidris_bgp::rib::{Links, Underlay};
use calidris_bgp::route::{Origination, RouteChange};
use calidris_bgp::status::{RouteCursor, RouteFilter, RoutePage, SpeakerStatus};
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
///
/// [`BgpHandle::changed`] and [`BgpHandle::take_changes`] are for one consumer: what one clone has taken, no other sees.
#[derive(Debug, Clone)]
pub struct BgpHandle {
    commands: mpsc::Sender<Command>,
    notices: watch::Receiver<Notice>,
}

/// What the task tells everybody without being asked: the latest value counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    /// Changed best routes wait to be taken.
    pub(crate) routes_changed: bool,
    /// Every peer has sent its table, or its time to do so is over.
    pub(crate) in_sync: bool,
}

/// What the task is asked, with the place for the answer.
#[derive(Debug)]
pub(crate) enum Command {
    Configure(Box<SpeakerConfig>, oneshot::Sender<Result<Impact, ConfigError>>),
    Plan(Box<SpeakerConfig>, oneshot::Sender<Result<Impact, ConfigError>>),
    Originate(BTreeMap<Prefix, Origination>, oneshot::Sender<()>),
    Underlay(Option<Underlay>, oneshot::Sender<()>),
    Links(Links, oneshot::Sender<()>),
    TakeChanges(oneshot::Sender<Vec<RouteChange>>),
    BestRoutes(oneshot::Sender<Vec<RouteChange>>),
    Status(oneshot::Sender<SpeakerStatus>),
    Routes(RouteFilter, RouteCursor, oneshot::Sender<RoutePage>),
    Refresh(String, AfiSafi, oneshot::Sender<bool>),
    Shutdown(Shutdown, oneshot::Sender<()>),
}

/// Commands that may wait for the task; whoever asks more waits too.
const COMMANDS: usize = 16;

/// Opens the listening sockets and starts the task that owns the speaker.
///
/// # Errors
/// A configuration that is none, or a listening socket that cannot be had; nothing runs then.
#[expect(
    clippy::unused_async,
    reason = "needs the runtime: a caller outside of one does not compile"
)]
pub async fn start(config: DriverConfig) -> Result<BgpHandle, StartError> {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (notify, notices) = watch::channel(Notice::default());
    task::start(config, inbox, notify)?;
    Ok(BgpHandle { commands, notices })
}

impl BgpHandle {
    /// Makes the speaker follow a new configuration. Sessions are reset only where a peer's identity changed.
    ///
    /// # Errors
    /// When the configuration is none; the old one stays in force.
    pub async fn configure(&self, config: SpeakerConfig) -> Result<Impact, ConfigureError> {
        Ok(self
            .ask(|reply| Command::Configure(Box::new(config), reply))
            .await??)
    }

    /// What [`BgpHandle::configure`] would do at this moment, without doing it.
    ///
    /// # Errors
    /// When the configuration is none.
    pub async fn plan(&self, config: SpeakerConfig) -> Result<Impact, ConfigureError> {
        Ok(self.ask(|reply| Command::Plan(Box::new(config), reply)).await??)
    }

    /// Announces exactly these prefixes as our own: what is new is announced, what is not named any more is withdrawn. The first call also
    /// says that the set is complete; until then no End-of-RIB is sent.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn originate(&self, routes: BTreeMap<Prefix, Origination>) -> Result<(), Stopped> {
        self.ask(|reply| Command::Originate(routes, reply)).await
    }

    /// Says how this machine reaches other addresses without BGP, all of it each time: next hops are resolved through it (see
    /// [`Speaker::handle_underlay`](calidris_bgp::Speaker::handle_underlay)). `None`, as at the start: every next hop is reachable.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn set_underlay(&self, underlay: Option<Underlay>) -> Result<(), Stopped> {
        self.ask(|reply| Command::Underlay(underlay, reply)).await
    }

    /// Names the subnets on this machine's links for policies, where no underlay does (see
    /// [`Speaker::handle_links`](calidris_bgp::Speaker::handle_links)).
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn set_links(&self, links: Links) -> Result<(), Stopped> {
        self.ask(|reply| Command::Links(links, reply)).await
    }

    /// Waits until best routes have changed that were not taken yet.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn changed(&mut self) -> Result<(), Stopped> {
        self.notices
            .wait_for(|notice| notice.routes_changed)
            .await
            .map(|_| ())
            .map_err(|_| Stopped)
    }

    /// Takes changed best routes, each prefix with its latest state, some thousands at most; `changed` is ready again at once when more wait.
    /// The first calls hand out all best routes there are.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn take_changes(&self) -> Result<Vec<RouteChange>, Stopped> {
        self.ask(Command::TakeChanges).await
    }

    /// All best routes at this moment, whether taken before or not.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn best_routes(&self) -> Result<Vec<RouteChange>, Stopped> {
        self.ask(Command::BestRoutes).await
    }

    /// Waits until every peer has sent its table, or its time to do so is over: from then on a route in the kernel that no
    /// peer announced is stale.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn in_sync(&mut self) -> Result<(), Stopped> {
        self.notices
            .wait_for(|notice| notice.in_sync)
            .await
            .map(|_| ())
            .map_err(|_| Stopped)
    }

    /// Whether [`BgpHandle::in_sync`] would return at once.
    pub fn is_in_sync(&self) -> bool {
        self.notices.borrow().in_sync
    }

    /// The speaker and its peers.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn status(&self) -> Result<SpeakerStatus, Stopped> {
        self.ask(Command::Status).await
    }

    /// Routes with all candidates, and why the best is best; some hundreds at a time, from `cursor` on.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn routes(&self, filter: RouteFilter, cursor: RouteCursor) -> Result<RoutePage, Stopped> {
        self.ask(|reply| Command::Routes(filter, cursor, reply)).await
    }

    /// Asks a peer to send all its routes of a family again (RFC 2918). `false` when there is no Established session
    /// of that name that carries the family and knows of route refresh.
    ///
    /// # Errors
    /// When the speaker has stopped.
    pub async fn request_refresh(&self, peer: String, family: AfiSafi) -> Result<bool, Stopped> {
        self.ask(|reply| Command::Refresh(peer, family, reply)).await
    }

    /// Stops the speaker and waits until its connections are closed, or two seconds have passed.
    ///
    /// # Errors
    /// When it had stopped already.
    pub async fn shutdown(&self, how: Shutdown) -> Result<(), Stopped> {
        self.ask(|reply| Command::Shutdown(how, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}
