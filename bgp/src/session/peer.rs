//! One peer and its connections: when to connect, which of two connections survives, how long to wait after a failure.
//!
//! A peer has at most one connection it opened and one it accepted under way, and one that is Established. RFC 4271 §8.2.1 calls for
//! exactly this; §6.8 says which of two survives: the one opened by the side with the higher BGP Identifier (RFC 6286
//! §2.3: the higher AS when the identifiers are equal). RFC 4724 §4.2 adds one case: a new OPEN from a peer that announced graceful
//! restart means that the Established connection is dead, though we have not noticed.
//!
//! After a session that lasted, the next attempt follows soon and the peer may come to us at once. Repeated failures lead to Idle,
//! in which connections are refused, for a time that doubles each time (DampPeerOscillations).

use std::collections::VecDeque;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::counters::Counters;
use crate::config::{ConnectMode, PeerConfig, Role};
use crate::jitter::Jitter;
use crate::policy::PeerKind;
use crate::session::State;
use crate::session::close::{CloseReason, Closed};
use crate::session::connection::{Body, Connection, ConnectionSettings, Event};
use crate::session::negotiate::Negotiated;
use crate::session::offer::offer;
use crate::session::timers::{Timer, TimerTable};
use crate::time::Time;
use crate::wire::notification::{CeaseError, Notification, NotificationCode};

/// An OPEN on a second connection means a restart of the peer only when the Established one is older than this: both
/// connections of a collision at start-up arrive within moments of each other.
const RESTART_GUARD: Duration = Duration::from_secs(5);

/// Names one connection of one peer. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// Which peer.
    pub peer: u32,
    /// Which of its connections.
    pub serial: u32,
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// We did.
    Outgoing,
    /// The peer did.
    Incoming,
}

/// What the peer wants done with sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAction {
    /// Connect to the peer.
    Connect(ConnId),
    /// Write `last_words` behind what was handed out before, then close. Also ends an attempt to connect.
    Close {
        /// Which connection.
        conn: ConnId,
        /// A NOTIFICATION, or nothing.
        last_words: Vec<u8>,
    },
}

/// What a peer reports to the speaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// The session is Established.
    Up,
    /// An UPDATE; see [`Peer::body`].
    Update(Body),
    /// A ROUTE-REFRESH; see [`Peer::body`].
    RouteRefresh(Body),
    /// A KEEPALIVE on the Established session.
    Keepalive,
    /// A connection ended; when it `was_established`, the session did.
    Closed(Closed),
}

/// Why an incoming connection is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedConnection {
    /// Nobody of that address is configured.
    #[error("no peer has this address")]
    UnknownPeer,
    /// As many peers of the range of this address are there as may be.
    #[error("the range this address is in has all the peers it may have")]
    RangeIsFull,
    /// The peer is Idle: stopped, or waiting after a failure (RFC 4271 §8.2.2).
    #[error("the peer is Idle")]
    Idle,
    /// Another one of the peer's connections is under way already.
    #[error("another connection of the peer is being opened")]
    Busy,
}

/// What a peer has to know of the speaker it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalSpeaker {
    /// Our AS.
    pub asn: u32,
    /// Our identifier.
    pub router_id: std::net::Ipv4Addr,
    /// Whether OPENs say that we restarted (RFC 4724, R bit).
    pub restarting: bool,
    /// Whether OPENs say that we kept forwarding meanwhile (RFC 4724, F bit).
    pub forwarding: bool,
}

#[derive(Debug)]
struct Link {
    id: ConnId,
    direction: Direction,
    connection: Connection,
    local: SocketAddr,
    remote: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Administration {
    Up,
    Down,
    /// Down until the configuration changes: the peer broke a limit.
    Suspended,
}

/// A peer: its configuration, its connections, its timers.
#[derive(Debug)]
pub struct Peer {
    index: u32,
    next_serial: u32,
    config: PeerConfig,
    local: LocalSpeaker,
    administration: Administration,
    /// What follows when the last connection is closed, if not the usual wait: Idle for a time, or until the configuration changes.
    suspension: Option<Option<Duration>>,
    links: Vec<Link>,
    connecting: Option<ConnId>,
    timers: TimerTable,
    jitter: Jitter,
    /// Failures in a row.
    failures: u32,
    state: State,
    since: Time,
    established_count: u64,
    last_error: Option<(Closed, Time)>,
    /// Counters of the connections that are gone.
    past: Counters,
    actions: VecDeque<PeerAction>,
}

impl Peer {
    /// A peer that starts now (Events 1, 3 to 5), by its index and the serial number of the last connection of a predecessor with that index.
    pub fn new(
        (index, last_serial): (u32, u32),
        config: PeerConfig,
        local: LocalSpeaker,
        seed: u64,
        now: Time,
    ) -> Self {
        let mut peer = Self {
            index,
            next_serial: last_serial,
            config,
            local,
            administration: Administration::Up,
            suspension: None,
            links: Vec::new(),
            connecting: None,
            timers: TimerTable::default(),
            jitter: Jitter::new(seed),
            failures: 0,
            state: State::Idle,
            since: now,
            established_count: 0,
            last_error: None,
            past: Counters::default(),
            actions: VecDeque::new(),
        };
        if peer.config.held_down().is_some() {
            peer.administration = Administration::Down;
        }
        peer.connect(now);
        peer.note_state(now);
        peer
    }

    /// The connection of [`PeerAction::Connect`] is up (Event 16).
    pub fn handle_connected(&mut self, id: ConnId, local: SocketAddr, remote: SocketAddr, now: Time) {
        if self.connecting != Some(id) {
            return self.actions.push_back(PeerAction::Close {
                conn: id,
                last_words: Vec::new(),
            });
        }
        self.connecting = None;
        self.timers.stop(Timer::ConnectRetry);
        self.add_link(id, Direction::Outgoing, (local, remote), now);
    }

    /// The connection of [`PeerAction::Connect`] did not come up (Event 18).
    pub fn handle_connect_failed(&mut self, id: ConnId, why: &str, now: Time) {
        if self.connecting != Some(id) {
            return;
        }
        self.connecting = None;
        let closed = Closed {
            reason: CloseReason::Transport(why.to_owned()),
            was_established: false,
        };
        self.last_error = Some((closed, now));
        self.retry_after(self.config.connect_retry, now);
        self.note_state(now);
    }

    /// The peer opened a connection to us (Event 17).
    ///
    /// # Errors
    /// When the connection is to be closed again at once.
    pub fn handle_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Time,
    ) -> Result<ConnId, RefusedConnection> {
        if self.administration != Administration::Up || self.timers.deadline(Timer::IdleHold).is_some() {
            return Err(RefusedConnection::Idle);
        }
        let under_way = |link: &Link| {
            link.direction == Direction::Incoming && link.connection.state() != State::Established
        };
        if let Some(old) = self.links.iter_mut().find(|link| under_way(link)) {
            if old.connection.state() == State::OpenConfirm {
                return Err(RefusedConnection::Busy);
            }
            // The peer gave up on a connection of which it never sent an OPEN; so do we.
            old.connection
                .close_silently("the peer opened another connection");
        }
        let id = self.next_id();
        self.add_link(id, Direction::Incoming, (local, remote), now);
        Ok(id)
    }

    /// Bytes from the peer. Poll the events afterwards.
    pub fn handle_data(&mut self, id: ConnId, bytes: &[u8]) {
        if let Some(link) = self.link(id) {
            link.connection.handle_data(bytes);
        }
    }

    /// The transport of a connection is gone (Event 18). Poll the events afterwards.
    pub fn handle_transport_closed(&mut self, id: ConnId, why: &str) {
        if let Some(link) = self.link(id) {
            link.connection.handle_transport_closed(why);
        }
    }

    /// The transport took `count` bytes of what it was given.
    pub fn handle_transmitted(&mut self, id: ConnId, count: usize, now: Time) {
        if let Some(link) = self.link(id) {
            link.connection.handle_transmitted(count, now);
        }
    }

    /// Fires the timers that are due. Poll the events afterwards.
    pub fn handle_timeout(&mut self, now: Time) {
        for link in &mut self.links {
            link.connection.handle_timeout(now);
        }
        while let Some(timer) = self.timers.take_expired(now) {
            if matches!(timer, Timer::ConnectRetry | Timer::IdleHold) {
                self.connect(now);
            }
        }
        self.note_state(now);
    }

    /// The next thing that happened, until `None`.
    pub fn poll_event(&mut self, now: Time) -> Option<PeerEvent> {
        let mut at = 0;
        while let Some(link) = self.links.get_mut(at) {
            let id = link.id;
            match link.connection.poll_event(now) {
                None => at += 1,
                // One that lost may lie before this one, and has its end to tell.
                Some(Event::Open) => {
                    self.resolve_collision(at, now);
                    at = 0;
                }
                Some(Event::Established) => {
                    self.establish(id, now);
                    return Some(PeerEvent::Up);
                }
                Some(Event::Update(body)) => return Some(PeerEvent::Update(body)),
                Some(Event::RouteRefresh(body)) => return Some(PeerEvent::RouteRefresh(body)),
                Some(Event::Keepalive) => return Some(PeerEvent::Keepalive),
                Some(Event::Closed(closed)) => {
                    self.drop_link(at, &closed, now);
                    return Some(PeerEvent::Closed(closed));
                }
            }
        }
        self.note_state(now);
        None
    }

    /// The next thing to do with sockets, until `None`.
    pub fn poll_action(&mut self) -> Option<PeerAction> {
        self.actions.pop_front()
    }

    /// The earliest deadline of this peer and its connections.
    pub fn poll_timeout(&self) -> Option<(Time, Timer)> {
        self.links
            .iter()
            .map(|link| link.connection.timers())
            .chain([&self.timers])
            .filter_map(TimerTable::next)
            .min()
    }

    /// Ends all connections with `notification` and tries again after a while (Event 2 and 1, or a changed configuration).
    pub fn reset(&mut self, notification: &Notification, detail: &str) {
        for link in &mut self.links {
            link.connection.close(notification.clone(), detail);
        }
    }

    /// Ends all connections with `notification` and stays Idle for `pause`, or until the configuration changes.
    pub fn suspend(&mut self, notification: &Notification, detail: &str, pause: Option<Duration>) {
        self.suspension = Some(pause);
        self.abort_connecting();
        self.reset(notification, detail);
    }

    /// Ends all connections for good: with `notification`, or without a word when there is none. Poll events and actions afterwards.
    pub fn stop(&mut self, notification: Option<&Notification>, detail: &'static str, now: Time) {
        self.administration = Administration::Down;
        self.timers.stop_all();
        self.abort_connecting();
        for link in &mut self.links {
            match notification {
                Some(notification) => link.connection.close(notification.clone(), detail),
                None => link.connection.close_silently(detail),
            }
        }
        self.note_state(now);
    }

    /// Takes a configuration that differs in nothing that needs a new session, except whether there is to be one. Poll events and actions
    /// afterwards.
    pub fn set_config(&mut self, config: PeerConfig, now: Time) {
        let before = std::mem::replace(&mut self.config, config);
        // What the peer itself said, or what was found.
        if self.config.open_as.is_some() {
            self.config.remote_as = before.remote_as;
        }
        if self.config.interface.is_some() {
            (self.config.address, self.config.scope_id) = (before.address, before.scope_id);
        }
        match (before.held_down().is_some(), self.config.held_down().is_some()) {
            (false, true) => {
                let text = self.config.shutdown.clone().unwrap_or_default();
                let cease = Notification::cease_with_text(CeaseError::AdministrativeShutdown, &text);
                self.stop(Some(&cease), "held down by configuration", now);
            }
            (true, false) => self.start(now),
            (false, false) if self.administration == Administration::Suspended => self.start(now),
            _ => {}
        }
    }

    /// Where an unnumbered peer was found, or that it is not there any more (`::`). A session under way with another address goes on.
    pub fn set_address(&mut self, address: Ipv6Addr, scope_id: u32, now: Time) {
        self.config.address = address.into();
        self.config.scope_id = scope_id;
        self.timers.stop(Timer::ConnectRetry);
        self.abort_connecting();
        if self.timers.deadline(Timer::IdleHold).is_none() {
            self.connect(now);
        }
        self.note_state(now);
    }

    /// Whether a connection is under way or up.
    pub fn has_connection(&self) -> bool {
        !self.links.is_empty()
    }

    /// Whether the peer is kept from having a session.
    pub fn is_stopped(&self) -> bool {
        self.administration != Administration::Up
    }

    /// Takes what changed about the speaker; later OPENs say so.
    pub fn set_local(&mut self, local: LocalSpeaker) {
        self.local = local;
    }

    /// The configuration.
    pub fn config(&self) -> &PeerConfig {
        &self.config
    }

    /// Whether the peer is in our AS.
    pub fn kind(&self) -> PeerKind {
        if self.config.remote_as == self.local_as() {
            PeerKind::Ibgp
        } else {
            PeerKind::Ebgp
        }
    }

    /// What we are to the peer (RFC 9234), when it is in another AS.
    pub fn role(&self) -> Option<Role> {
        let role = self.config.role.map(|role| role.ours);
        role.filter(|_| self.kind() == PeerKind::Ebgp)
    }

    /// The state of the session, the furthest of its connections.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when it is in that state.
    pub fn since(&self) -> Time {
        self.since
    }

    /// How often the session was Established.
    pub fn established_count(&self) -> u64 {
        self.established_count
    }

    /// The last end of a connection and when it was.
    pub fn last_error(&self) -> Option<&(Closed, Time)> {
        self.last_error.as_ref()
    }

    /// Messages and bytes of all connections so far.
    pub fn counters(&self) -> Counters {
        self.links
            .iter()
            .fold(self.past, |sum, link| sum.plus(&link.connection.counters()))
    }

    /// Timers of the peer and of its furthest connection, with the time left.
    pub fn running_timers(&self, now: Time) -> Vec<(Timer, Duration)> {
        let furthest = self.links.iter().max_by_key(|link| link.connection.state());
        let mut timers = self.timers.running(now);
        timers.extend(
            furthest
                .map(|link| link.connection.timers().running(now))
                .unwrap_or_default(),
        );
        timers
    }

    /// The Established connection.
    pub fn established(&self) -> Option<&Connection> {
        self.links
            .iter()
            .map(|link| &link.connection)
            .find(|c| c.state() == State::Established)
    }

    /// The Established connection, to change it.
    pub fn established_mut(&mut self) -> Option<&mut Connection> {
        self.links
            .iter_mut()
            .map(|link| &mut link.connection)
            .find(|c| c.state() == State::Established)
    }

    /// A connection by its name.
    pub fn connection_mut(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.link(id).map(|link| &mut link.connection)
    }

    /// What the Established session agreed on.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.established().and_then(Connection::negotiated)
    }

    /// Both ends of the furthest connection, ours first.
    pub fn transport(&self) -> Option<(SocketAddr, SocketAddr)> {
        let furthest = self.links.iter().max_by_key(|link| link.connection.state())?;
        Some((furthest.local, furthest.remote))
    }

    /// The octets of a message that an event told of.
    pub fn body(&self, body: Body) -> &[u8] {
        self.established()
            .map(|connection| connection.body(body))
            .unwrap_or_default()
    }

    /// The serial number of the last connection.
    pub(crate) fn last_serial(&self) -> u32 {
        self.next_serial
    }

    /// All connections that are up.
    pub fn connections(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.links.iter().map(|link| link.id)
    }

    fn start(&mut self, now: Time) {
        self.administration = Administration::Up;
        self.failures = 0;
        self.connect(now);
        self.note_state(now);
    }

    /// The AS we are to this peer.
    fn local_as(&self) -> u32 {
        self.config.local_as(self.local.asn)
    }

    fn add_link(&mut self, id: ConnId, direction: Direction, ends: (SocketAddr, SocketAddr), now: Time) {
        let settings = ConnectionSettings {
            open: offer(&self.config, &self.local, self.role()),
            remote_as: self.config.expected_as(),
            strict_role: self.config.role.is_some_and(|role| role.strict),
            delay_open: self.config.delay_open,
            send_hold_time: self.config.send_hold_time,
        };
        let seed = u64::from(id.peer) << 32 | u64::from(id.serial);
        let connection = Connection::new(settings, Jitter::new(self.jitter.fork(seed)), now);
        self.links.push(Link {
            id,
            direction,
            connection,
            local: ends.0,
            remote: ends.1,
        });
        self.note_state(now);
    }

    /// Event 19: an OPEN came on the link at `at`; keep it, or the other one.
    fn resolve_collision(&mut self, at: usize, now: Time) {
        let Some((direction, theirs)) = self
            .links
            .get(at)
            .and_then(|link| Some((link.direction, link.connection.negotiated()?.clone())))
        else {
            return;
        };
        let winner = winner(
            (self.local.router_id.into(), self.local_as()),
            (theirs.router_id.into(), theirs.remote_as),
        );
        let age = now.since(self.since);
        let collision =
            Notification::bare(NotificationCode::Cease(CeaseError::ConnectionCollisionResolution));
        let mut keep = true;
        for (_, other) in self.links.iter_mut().enumerate().filter(|(i, _)| *i != at) {
            match other.connection.state() {
                State::Established => {
                    let restarts = other
                        .connection
                        .negotiated()
                        .is_some_and(|n| n.graceful_restart.is_some());
                    if restarts && direction == Direction::Incoming && age >= RESTART_GUARD {
                        other.connection.supersede();
                    } else {
                        keep = false;
                    }
                }
                State::OpenConfirm if direction == winner => other.connection.close(collision.clone(), ""),
                State::OpenConfirm => keep = false,
                State::Idle | State::Active | State::Connect | State::OpenSent => {}
            }
        }
        if let Some(link) = self.links.get_mut(at) {
            if keep {
                link.connection.confirm(now);
            } else {
                link.connection.close(collision, "");
            }
        }
    }

    /// The session is up: everything else under way is not needed any more.
    fn establish(&mut self, id: ConnId, now: Time) {
        self.timers.stop(Timer::ConnectRetry);
        self.abort_connecting();
        let collision =
            Notification::bare(NotificationCode::Cease(CeaseError::ConnectionCollisionResolution));
        for link in self.links.iter_mut().filter(|link| link.id != id) {
            link.connection.close(collision.clone(), "");
        }
        self.established_count += 1;
        if self.config.open_as.is_some()
            && let Some(terms) = self.negotiated()
        {
            self.config.remote_as = terms.remote_as;
        }
        self.note_state(now);
    }

    fn drop_link(&mut self, at: usize, closed: &Closed, now: Time) {
        let mut link = self.links.remove(at);
        let mut last_words = Vec::new();
        link.connection.take_transmit(&mut last_words);
        self.past = self.past.plus(&link.connection.counters());
        self.actions.push_back(PeerAction::Close {
            conn: link.id,
            last_words,
        });
        let lasted = closed.was_established && now.since(self.since) >= self.config.idle_hold_max;
        let alone = self.links.is_empty();
        if alone || closed.was_established {
            self.last_error = Some((closed.clone(), now));
        }
        if alone && let Some(pause) = self.suspension.take() {
            self.timers.stop_all();
            match pause {
                Some(pause) => self.timers.set(Timer::IdleHold, now + pause),
                None => self.administration = Administration::Suspended,
            }
        } else if alone && self.connecting.is_none() && self.administration == Administration::Up {
            if is_unopened(&link.connection, closed) {
                self.retry_after(self.config.connect_retry, now);
                return self.note_state(now);
            }
            self.failures = if lasted {
                1
            } else {
                self.failures.saturating_add(1)
            };
            self.wait_after_failure(now);
        }
        self.note_state(now);
    }

    /// The first failure is followed by another attempt soon; further ones by growing times in Idle.
    fn wait_after_failure(&mut self, now: Time) {
        if self.failures <= 1 {
            return self.retry_after(self.config.idle_hold, now);
        }
        let doubled = self
            .config
            .idle_hold
            .saturating_mul(1 << (self.failures - 2).min(16));
        let wait = self.jitter.spread(doubled.min(self.config.idle_hold_max));
        self.timers.stop(Timer::ConnectRetry);
        self.timers.set(Timer::IdleHold, now + wait);
    }

    fn retry_after(&mut self, wait: Duration, now: Time) {
        if self.administration == Administration::Up && self.config.connect == ConnectMode::Active {
            let at = now + self.jitter.spread(wait);
            self.timers.set(Timer::ConnectRetry, at);
        }
    }

    fn connect(&mut self, now: Time) {
        let outgoing = self
            .links
            .iter()
            .any(|link| link.direction == Direction::Outgoing);
        let settled = self
            .links
            .iter()
            .any(|link| link.connection.state() >= State::OpenConfirm);
        let passive = self.config.connect == ConnectMode::Passive || self.config.address.is_unspecified();
        if passive || outgoing || self.connecting.is_some() || self.is_stopped() {
            return;
        }
        if settled {
            return self.retry_after(self.config.connect_retry, now);
        }
        let id = self.next_id();
        self.connecting = Some(id);
        self.actions.push_back(PeerAction::Connect(id));
    }

    fn abort_connecting(&mut self) {
        if let Some(conn) = self.connecting.take() {
            self.actions.push_back(PeerAction::Close {
                conn,
                last_words: Vec::new(),
            });
        }
    }

    fn next_id(&mut self) -> ConnId {
        self.next_serial = self.next_serial.wrapping_add(1);
        ConnId {
            peer: self.index,
            serial: self.next_serial,
        }
    }

    fn link(&mut self, id: ConnId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    fn note_state(&mut self, now: Time) {
        let furthest = self
            .links
            .iter()
            .map(|link| link.connection.state())
            .max()
            .unwrap_or(State::Idle);
        let waiting = if self.is_stopped() || self.timers.deadline(Timer::IdleHold).is_some() {
            State::Idle
        } else if self.connecting.is_some() {
            State::Connect
        } else {
            State::Active
        };
        let state = furthest.max(waiting);
        if state != self.state {
            self.state = state;
            self.since = now;
        }
    }
}

/// Which of two connections survives a collision, by who opened it (RFC 4271 §6.8, RFC 6286 §2.3).
/// The transport went away before the peer's OPEN: Event 18 in OpenSent, which leads to Active and not to Idle (RFC 4271 §8.2.2). A peer that is
/// not ready may accept connections and close them at once; while we wait in Idle, it could not reach us either.
fn is_unopened(connection: &Connection, closed: &Closed) -> bool {
    matches!(closed.reason, CloseReason::Transport(_)) && connection.negotiated().is_none()
}

fn winner(ours: (u32, u32), theirs: (u32, u32)) -> Direction {
    if ours > theirs {
        Direction::Outgoing
    } else {
        Direction::Incoming
    }
}
