//! The speaker: owns peers and tables, and is the single entry point.
//!
//! How to drive it: after every call of a `handle_*` or of [`Speaker::configure`], [`Speaker::originate`], [`Speaker::shutdown`],
//! do what [`Speaker::poll_action`] says until it returns `None`; then, for every connection of [`Speaker::poll_writable`] that has nothing unsent,
//! send what [`Speaker::poll_transmit`] returns and report it with [`Speaker::handle_transmitted`]; then wait, at most until
//! [`Speaker::poll_timeout`]. UPDATEs are made when they are asked for, from the tables as they are then: a peer that takes nothing costs no
//! memory beyond its Adj-RIB-Out.

mod agenda;
mod configure;
mod dynamic;
mod explain;
mod export;
mod groups;
mod import;
mod keep;
mod limit;
mod refresh;
mod restart;
mod routes;
mod snapshot;
mod status;
mod transmit;
mod underlay;
mod unnumbered;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dynamic::AddressKey;
pub use snapshot::{FamilySnapshot, PeerSnapshot, SnapshotError};

use crate::config::{ConfigError, Level, PeerConfig, SpeakerConfig};
use crate::family::{AfiSafi, Family, Ipv4Unicast, Ipv6Unicast, Prefix};
use crate::jitter::Jitter;
use crate::policy::{PeerKind, SourceKind};
use crate::rib::update_group::Told;
use crate::rib::{AttrStore, LocRib, Source, SourceId, Tables};
use crate::route::Origination;
use crate::session::{
    Closed, ConnId, LocalSpeaker, Negotiated, Peer, PeerAction, PeerEvent, RefusedConnection, Timer,
    TimerTable,
};
use crate::time::Time;
use crate::wire::notification::{CeaseError, Notification};

/// Log events kept for a driver that does not fetch them; the oldest go first.
const MAX_EVENTS: usize = 256;

/// At most one report of the same kind a peer in this time.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// What the driver is to do with sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a connection, and report it by [`Speaker::handle_connected`] or [`Speaker::handle_connect_failed`].
    Connect {
        /// Its name from now on.
        conn: ConnId,
        /// Where to.
        remote: SocketAddr,
        /// Where from.
        local: Option<IpAddr>,
    },
    /// Write `last_words` behind what was handed out before, then close. Also ends an attempt to connect.
    Close {
        /// Which connection.
        conn: ConnId,
        /// A NOTIFICATION, or nothing.
        last_words: Vec<u8>,
    },
}

/// Something for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// A session is Established.
    Up {
        /// The peer.
        peer: String,
    },
    /// A connection ended; with `was_established`, a session did.
    Down {
        /// The peer.
        peer: String,
        /// Why.
        closed: Closed,
    },
    /// An UPDATE had errors that RFC 7606 survives. Reported at most once in ten seconds a peer.
    UpdateErrors {
        /// The peer.
        peer: String,
        /// The first of them.
        text: String,
    },
    /// A peer comes near its prefix limit, or beyond. Reported at most once in ten seconds a peer.
    PrefixLimit {
        /// The peer.
        peer: String,
        /// The family.
        family: AfiSafi,
        /// How many prefixes of it there are.
        held: usize,
        /// The limit.
        max: u32,
    },
    /// Routes kept through a restart of the peer are gone.
    StaleRoutesRemoved {
        /// The peer.
        peer: String,
    },
    /// Every peer has sent its table, or its time to do so is over.
    InSync,
}

/// How the speaker goes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Farewell {
    /// Without a word, so that peers with graceful restart keep our routes.
    ForRestart,
    /// Cease / Administrative Shutdown with these words (RFC 9003).
    Cease(String),
}

/// Both tables of one family, and who reads them.
#[derive(Debug)]
struct FamilyTables<F: Family> {
    loc_rib: LocRib<F>,
    /// The peers with a session, by what they are told.
    groups: groups::Groups<F>,
    /// How far best routes were taken; `None` until somebody takes.
    reader: Option<routes::Reader>,
    /// How far changes were looked at for next hops that may be resolved through them; `None` when they are not resolved.
    underlay_cursor: Option<u64>,
}

impl<F: Family> FamilyTables<F> {
    fn new(seed: u64) -> Self {
        Self {
            loc_rib: LocRib::new(seed),
            groups: groups::Groups::new(),
            reader: None,
            underlay_cursor: None,
        }
    }
}

/// What the session of a peer has done in one family.
#[derive(Debug, Clone, Copy, Default)]
struct FamilyProgress {
    end_of_rib_received: bool,
    end_of_rib_sent: bool,
    /// The peer is sending everything again; what it has not sent yet is marked stale (RFC 7313).
    refreshing: bool,
    /// We are, and have to say when it is all.
    answering: bool,
    /// What the operator was told about the prefix limit.
    level: Level,
    /// Prefixes not stored because of it.
    discarded: u64,
    /// Prefixes announced and withdrawn by the peer.
    announcements: u64,
    withdrawals: u64,
    /// What the peer was told.
    told: Told,
}

#[derive(Debug)]
struct PeerEntry {
    peer: Peer,
    /// The terms of the Established session.
    session: Option<Negotiated>,
    progress: BTreeMap<AfiSafi, FamilyProgress>,
    /// Restart, Stale and LongLived.
    timers: TimerTable,
    /// What is kept of its routes while it is away.
    kept: keep::Kept,
    /// When UPDATE errors may be reported again.
    quiet_until: Time,
    /// When the prefix limit may be reported again.
    limit_quiet_until: Time,
    /// The range of addresses that made it; `None` for a configured peer.
    range: Option<String>,
}

/// A BGP speaker. See the module for the order of calls.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    jitter: Jitter,
    peers: BTreeMap<u32, PeerEntry>,
    by_address: BTreeMap<AddressKey, u32>,
    /// By [`SourceId`].
    sources: Vec<Source>,
    /// Indices of peers that are gone, and the serial number of the last connection of each.
    retired: Vec<(u32, u32)>,
    attrs: AttrStore,
    ipv4: FamilyTables<Ipv4Unicast>,
    ipv6: FamilyTables<Ipv6Unicast>,
    originations: BTreeMap<Prefix, Origination>,
    sync: restart::Sync,
    agenda: agenda::Agenda,
    leaving: bool,
    actions: VecDeque<Action>,
    events: VecDeque<LogEvent>,
}

/// Does the same with the tables of both families.
macro_rules! each_family {
    ($speaker:expr, $tables:ident => $body:expr) => {{
        {
            let $tables = &mut $speaker.ipv4;
            $body;
        }
        {
            let $tables = &mut $speaker.ipv6;
            $body;
        }
    }};
}
use each_family;

impl Speaker {
    /// A speaker that starts now. `restarting` says that a predecessor may have left routes at the peers and in the kernel.
    ///
    /// # Errors
    /// A configuration that is none.
    pub fn new(config: SpeakerConfig, restarting: bool, seed: u64, now: Time) -> Result<Self, ConfigError> {
        config.check()?;
        let mut jitter = Jitter::new(seed);
        let mut speaker = Self {
            sync: restart::Sync::new(restarting, now + config.sync_timeout),
            peers: BTreeMap::new(),
            by_address: BTreeMap::new(),
            sources: vec![Source::ORIGINATED],
            retired: Vec::new(),
            attrs: AttrStore::new(jitter.fork(0)),
            ipv4: FamilyTables::new(jitter.fork(4)),
            ipv6: FamilyTables::new(jitter.fork(6)),
            originations: BTreeMap::new(),
            agenda: agenda::Agenda::default(),
            leaving: false,
            actions: VecDeque::new(),
            events: VecDeque::new(),
            jitter,
            config,
        };
        speaker.attrs.note_links(speaker.config.link_names());
        for peer in speaker.config.peers.clone() {
            speaker.add_peer(peer, now);
        }
        Ok(speaker)
    }

    /// The connection of [`Action::Connect`] is up.
    pub fn handle_connected(&mut self, conn: ConnId, local: SocketAddr, remote: SocketAddr, now: Time) {
        if let Some(entry) = self.peers.get_mut(&conn.peer) {
            entry.peer.handle_connected(conn, local, remote, now);
            self.drain(conn.peer, now);
        }
    }

    /// The connection of [`Action::Connect`] did not come up.
    pub fn handle_connect_failed(&mut self, conn: ConnId, why: &str, now: Time) {
        if let Some(entry) = self.peers.get_mut(&conn.peer) {
            entry.peer.handle_connect_failed(conn, why, now);
            self.drain(conn.peer, now);
        }
    }

    /// Somebody opened a connection to us.
    ///
    /// # Errors
    /// When the connection is to be closed again at once.
    pub fn handle_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Time,
    ) -> Result<ConnId, RefusedConnection> {
        let index = self.peer_at(remote, now)?;
        let entry = self.peers.get_mut(&index).ok_or(RefusedConnection::UnknownPeer)?;
        let conn = entry.peer.handle_accepted(local, remote, now);
        self.drain(index, now);
        conn
    }

    /// Bytes from a peer.
    pub fn handle_data(&mut self, conn: ConnId, bytes: &[u8], now: Time) {
        if let Some(entry) = self.peers.get_mut(&conn.peer) {
            entry.peer.handle_data(conn, bytes);
            self.drain(conn.peer, now);
            self.relieve(now);
        }
    }

    /// A connection failed, or the peer closed it.
    pub fn handle_transport_closed(&mut self, conn: ConnId, why: &str, now: Time) {
        if let Some(entry) = self.peers.get_mut(&conn.peer) {
            entry.peer.handle_transport_closed(conn, why);
            self.drain(conn.peer, now);
        }
    }

    /// The transport took `count` bytes of what [`Speaker::poll_transmit`] gave it.
    pub fn handle_transmitted(&mut self, conn: ConnId, count: usize, now: Time) {
        if let Some(entry) = self.peers.get_mut(&conn.peer) {
            entry.peer.handle_transmitted(conn, count, now);
            self.agenda.touch(conn.peer);
            self.note_deadline(conn.peer);
        }
    }

    /// Fires all timers that are due.
    pub fn handle_timeout(&mut self, now: Time) {
        for index in self.due(now) {
            if let Some(entry) = self.peers.get_mut(&index) {
                entry.peer.handle_timeout(now);
                self.drain(index, now);
                self.expire_restart_timers(index, now);
                self.note_deadline(index);
            }
        }
        self.update_sync(now);
    }

    /// Sets what we announce ourselves: the whole set each time.
    pub fn originate(&mut self, routes: BTreeMap<Prefix, Origination>, now: Time) {
        self.set_originations(routes, now);
        self.settle_next_hops();
        self.sync.note_originated();
        // End-of-RIB may go out now.
        self.agenda.stir();
        self.update_sync(now);
    }

    /// Ends all sessions for good.
    pub fn shutdown(&mut self, farewell: &Farewell, now: Time) {
        self.leaving = *farewell == Farewell::ForRestart;
        let notification = match farewell {
            Farewell::ForRestart => None,
            Farewell::Cease(text) => Some(Notification::cease_with_text(
                CeaseError::AdministrativeShutdown,
                text,
            )),
        };
        for index in self.peers.keys().copied().collect::<Vec<_>>() {
            if let Some(entry) = self.peers.get_mut(&index) {
                entry.peer.stop(notification.as_ref(), "shutting down", now);
                self.drain(index, now);
            }
        }
    }

    /// The next thing to do with sockets, until `None`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next thing to log, until `None`.
    pub fn poll_event(&mut self) -> Option<LogEvent> {
        self.events.pop_front()
    }

    /// When to call [`Speaker::handle_timeout`] next, and the timer that will fire.
    pub fn poll_timeout(&self) -> Option<(Time, Timer)> {
        let sync = self.sync.deadline().map(|at| (at, Timer::Restart));
        self.next_peer_timeout().into_iter().chain(sync).min()
    }

    /// Whether every peer has sent its table, or its time to do so is over.
    pub fn in_sync(&self) -> bool {
        self.sync.is_done()
    }

    /// All connections that are up.
    pub fn connections(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.peers.values().flat_map(|entry| entry.peer.connections())
    }

    /// The peer a connection belongs to, and whether it is in our AS: what its socket needs follows from that.
    pub fn peer_of(&self, conn: ConnId) -> Option<(&PeerConfig, PeerKind)> {
        self.peers
            .get(&conn.peer)
            .map(|entry| (entry.peer.config(), entry.peer.kind()))
    }

    /// The TCP-MD5 keys that connections to us need, by where they come from (RFC 2385).
    pub fn md5_keys(&self) -> BTreeMap<Prefix, String> {
        let key = |peer: &PeerConfig| peer.transport.md5_password.clone();
        let ranges = self.config.dynamic.iter();
        let ranges = ranges.filter_map(|range| Some((range.range, key(&range.template)?)));
        let peers = self.peers.values().map(|entry| entry.peer.config());
        let configured = peers.filter(|peer| !peer.address.is_unspecified());
        let peers = configured.filter_map(|peer| Some((Prefix::host(peer.address), key(peer)?)));
        ranges.chain(peers).collect()
    }

    /// The configuration in force.
    pub fn config(&self) -> &SpeakerConfig {
        &self.config
    }

    /// Attribute sets and destinations held, for tests of what is left over.
    pub fn table_sizes(&self) -> (usize, usize) {
        (
            self.attrs.len(),
            self.ipv4.loc_rib.len() + self.ipv6.loc_rib.len(),
        )
    }

    /// Makes a peer and returns its index.
    fn add_peer(&mut self, config: PeerConfig, now: Time) -> u32 {
        let unused = u32::try_from(self.sources.len() - 1).unwrap_or(u32::MAX - 1);
        let (index, serial) = self.retired.pop().unwrap_or((unused, 0));
        let seed = self.jitter.fork(u64::from(index));
        let peer = Peer::new((index, serial), config, self.local(), seed, now);
        if !peer.config().address.is_unspecified() {
            let key = AddressKey::new(peer.config().address, peer.config().scope_id);
            self.by_address.insert(key, index);
        }
        let place = SourceId::peer(index).index();
        match self.sources.get_mut(place) {
            Some(source) => *source = source_of(&peer),
            None => self.sources.push(source_of(&peer)),
        }
        let timers = TimerTable::default();
        let entry = PeerEntry {
            peer,
            session: None,
            progress: BTreeMap::new(),
            timers,
            kept: keep::Kept::default(),
            quiet_until: now,
            limit_quiet_until: now,
            range: None,
        };
        self.peers.insert(index, entry);
        self.drain(index, now);
        index
    }

    /// Ends a peer's session with `cease` and forgets the peer with all its routes.
    fn remove_peer(&mut self, index: u32, cease: CeaseError, now: Time) {
        let notification = Notification::cease_with_text(cease, "");
        if let Some(entry) = self.peers.get_mut(&index) {
            entry
                .peer
                .stop(Some(&notification), "removed from the configuration", now);
            self.drain(index, now);
        }
        if let Some(entry) = self.peers.remove(&index) {
            let config = entry.peer.config();
            self.by_address
                .remove(&AddressKey::new(config.address, config.scope_id));
            self.retired.push((index, entry.peer.last_serial()));
        }
        self.note_deadline(index);
        self.clear_routes(index);
    }

    fn local(&self) -> LocalSpeaker {
        LocalSpeaker {
            asn: self.config.local_as,
            router_id: self.config.router_id,
            restarting: self.sync.restarting(),
            forwarding: self.sync.forwarding(),
        }
    }

    /// Handles everything a peer has to report, then passes its actions on.
    fn drain(&mut self, index: u32, now: Time) {
        while let Some(entry) = self.peers.get_mut(&index) {
            let Some(event) = entry.peer.poll_event(now) else {
                break;
            };
            match event {
                PeerEvent::Up => self.session_up(index, now),
                PeerEvent::Update(body) => self.handle_update(index, body, now),
                PeerEvent::RouteRefresh(body) => self.handle_route_refresh(index, body, now),
                PeerEvent::Keepalive => self.handle_keepalive(index, now),
                PeerEvent::Closed(closed) => {
                    let peer = entry.peer.config().name.clone();
                    if closed.was_established {
                        self.session_down(index, &closed, now);
                    }
                    self.log(LogEvent::Down { peer, closed });
                }
            }
        }
        self.settle_next_hops();
        let Some(entry) = self.peers.get_mut(&index) else {
            return self.note_deadline(index);
        };
        while let Some(action) = entry.peer.poll_action() {
            self.actions.push_back(match action {
                PeerAction::Close { conn, last_words } => Action::Close { conn, last_words },
                PeerAction::Connect(conn) => connect_action(conn, &entry.peer),
            });
        }
        self.note_presence(index, now);
        self.agenda.touch(index);
        self.note_deadline(index);
    }

    /// Forgets all routes of a peer, and what it was told.
    fn clear_routes(&mut self, index: u32) {
        self.leave_groups(index);
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        each_family!(self, family => family.loc_rib.clear_source(SourceId::peer(index), &mut tables));
    }

    fn log(&mut self, event: LogEvent) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

impl PeerEntry {
    fn next_timeout(&self) -> Option<(Time, Timer)> {
        self.peer
            .poll_timeout()
            .into_iter()
            .chain(self.timers.next())
            .min()
    }

    /// Whether the peer has sent its table, or is not to be waited for.
    fn is_synced(&self) -> bool {
        if self.peer.config().held_down().is_some() || (self.range.is_some() && self.session.is_none()) {
            return true;
        }
        self.session.is_some()
            && self
                .progress
                .values()
                .all(|progress| progress.end_of_rib_received)
    }
}

fn connect_action(conn: ConnId, peer: &Peer) -> Action {
    let config = peer.config();
    let remote = match config.address {
        IpAddr::V4(address) => SocketAddr::from((address, config.port)),
        IpAddr::V6(address) => std::net::SocketAddrV6::new(address, config.port, 0, config.scope_id).into(),
    };
    Action::Connect {
        conn,
        remote,
        local: config.local_address,
    }
}

fn source_of(peer: &Peer) -> Source {
    let config = peer.config();
    Source {
        kind: SourceKind::from(peer.kind()),
        weight: config.weight,
        router_id: peer
            .negotiated()
            .map_or(std::net::Ipv4Addr::UNSPECIFIED, |n| n.router_id),
        address: config.address,
        reflector_client: config.route_reflector_client,
    }
}
