//! The state machine of one TCP connection (RFC 4271 §8), from the moment the connection is up until it is closed.
//!
//! ```text
//!            new                 OPEN received            confirm              KEEPALIVE received
//!  (TCP up) ────► DelayOpen ────────────────────┐
//!     │             │ DelayOpenTimer            ▼
//!     └─────────────┴──────────► OpenSent ──► OpenReceived ─────► OpenConfirm ─────► Established
//! ```
//!
//! `OpenReceived` is the moment between Event 19 and what follows from it, in which the owner resolves a collision
//! ([`Connection::confirm`] or [`Connection::close`]). To the outside it is OpenSent. Any error leads to Closed, from where nothing leads on.
//!
//! Bytes go in by [`Connection::handle_data`], messages come out of [`Connection::poll_event`], which is called until it returns `None`.
//! What the connection itself has to say (OPEN, KEEPALIVE, NOTIFICATION, ROUTE-REFRESH) collects in a small buffer that
//! [`Connection::take_transmit`] empties; there is never more than one unsent KEEPALIVE. UPDATEs are the speaker's.

use std::time::Duration;

use super::counters::Counters;
use crate::config::RemoteAs;
use crate::jitter::Jitter;
use crate::session::State;
use crate::session::close::{CloseReason, Closed};
use crate::session::negotiate::{Negotiated, check_role, negotiate};
use crate::session::timers::{Timer, TimerTable};
use crate::time::Time;
use crate::wire::capability::Capabilities;
use crate::wire::error::WireError;
use crate::wire::frame::{self, Frame, MessageLimit, MessageType};
use crate::wire::notification::{CeaseError, FsmError, Notification, NotificationCode};
use crate::wire::open::Open;

/// The hold time until the peer's OPEN tells another (RFC 4271 §8.2.2 suggests four minutes).
const OPEN_HOLD_TIME: Duration = Duration::from_secs(240);

/// The shortest SendHoldTime (RFC 9687 §4.1); twice the hold time when that is longer.
const MIN_SEND_HOLD_TIME: Duration = Duration::from_secs(480);

/// What a connection has to know before it can send an OPEN.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// The OPEN we send.
    pub open: Open,
    /// The AS the peer must name.
    pub remote_as: RemoteAs,
    /// Refuse a peer that names no role (RFC 9234 §4.2), when our OPEN names one.
    pub strict_role: bool,
    /// Wait this long for the peer's OPEN before sending ours.
    pub delay_open: Option<Duration>,
    /// How long the peer may take nothing (RFC 9687), if not the default.
    pub send_hold_time: Option<Duration>,
}

/// Where the body of a message lies in the receive buffer; good until the next [`Connection::handle_data`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    start: usize,
    end: usize,
}

/// What a connection reports to its peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An acceptable OPEN came. The owner must now call [`Connection::confirm`] or [`Connection::close`].
    Open,
    /// The session is up.
    Established,
    /// An UPDATE.
    Update(Body),
    /// A ROUTE-REFRESH.
    RouteRefresh(Body),
    /// A KEEPALIVE on an Established session.
    Keepalive,
    /// The connection is over. The last event.
    Closed(Closed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    DelayOpen,
    OpenSent,
    OpenReceived,
    OpenConfirm,
    Established,
    Closed,
}

/// One TCP connection with a peer.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    settings: ConnectionSettings,
    timers: TimerTable,
    jitter: Jitter,
    /// Bytes received, of which the first `consumed` are done with. Holds less than one message between calls of `handle_data`.
    received: Vec<u8>,
    consumed: usize,
    transmit: Vec<u8>,
    keepalive_unsent: bool,
    /// Bytes handed to the transport that it has not taken yet.
    outstanding: usize,
    negotiated: Option<Negotiated>,
    /// What the peer's OPEN said that it can.
    their_capabilities: Capabilities,
    closed: Option<Closed>,
    counters: Counters,
}

impl Connection {
    /// A connection that is up now: sends OPEN, or waits for the peer's if so told (Events 16 and 17).
    pub fn new(settings: ConnectionSettings, jitter: Jitter, now: Time) -> Self {
        let mut connection = Self {
            phase: Phase::OpenSent,
            settings,
            timers: TimerTable::default(),
            jitter,
            received: Vec::new(),
            consumed: 0,
            transmit: Vec::new(),
            keepalive_unsent: false,
            outstanding: 0,
            negotiated: None,
            their_capabilities: Capabilities::default(),
            closed: None,
            counters: Counters::default(),
        };
        match connection.settings.delay_open {
            Some(delay) => {
                connection.phase = Phase::DelayOpen;
                connection.timers.set(Timer::DelayOpen, now + delay);
                connection.timers.set(Timer::Hold, now + delay + OPEN_HOLD_TIME);
            }
            None => connection.send_open(now),
        }
        connection
    }

    /// Takes bytes the peer sent. Poll the events afterwards.
    pub fn handle_data(&mut self, bytes: &[u8]) {
        if self.phase == Phase::Closed {
            return;
        }
        self.counters.bytes_in += bytes.len() as u64;
        self.received.drain(..self.consumed);
        self.consumed = 0;
        self.received.extend_from_slice(bytes);
    }

    /// The TCP connection failed, or the peer closed it (Event 18).
    pub fn handle_transport_closed(&mut self, why: &str) {
        self.end(CloseReason::Transport(why.to_owned()));
    }

    /// Fires the timers that are due at `now` (Events 10 to 12). Poll the events afterwards.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(timer) = self.timers.take_expired(now) {
            match timer {
                Timer::DelayOpen => self.send_open(now),
                Timer::Hold if self.phase == Phase::DelayOpen => {
                    self.end(CloseReason::Silent("the peer sent no OPEN"));
                }
                Timer::Hold => self.close(Notification::bare(NotificationCode::HoldTimerExpired), ""),
                Timer::Keepalive => self.keepalive(now),
                // RFC 9687 §4.3: a NOTIFICATION would only queue behind what the peer does not read.
                Timer::SendHold => {
                    self.end(CloseReason::Silent(
                        "send hold timer expired: the peer does not read",
                    ));
                }
                Timer::ConnectRetry
                | Timer::IdleHold
                | Timer::Restart
                | Timer::Stale
                | Timer::LongLived
                | Timer::Forget => {}
            }
        }
    }

    /// The next thing that happened, until `None`.
    pub fn poll_event(&mut self, now: Time) -> Option<Event> {
        if let Some(closed) = self.closed.take() {
            return Some(Event::Closed(closed));
        }
        if matches!(self.phase, Phase::Closed | Phase::OpenReceived) {
            return None;
        }
        let limit = self
            .negotiated
            .as_ref()
            .map_or(MessageLimit::Standard, |n| n.message_limit);
        let (message_type, start, end) =
            match Frame::parse(self.received.get(self.consumed..).unwrap_or_default(), limit) {
                Ok(None) => return None,
                Ok(Some(frame)) => {
                    let end = self.consumed + frame.total_len();
                    (frame.message_type, end - frame.body.len(), end)
                }
                Err(error) => {
                    self.refuse(&error);
                    return self.closed.take().map(Event::Closed);
                }
            };
        self.consumed = end;
        self.counters.messages_in += 1;
        *match message_type {
            MessageType::Open => &mut self.counters.opens_in,
            MessageType::Update => &mut self.counters.updates_in,
            MessageType::Notification => &mut self.counters.notifications_in,
            MessageType::Keepalive => &mut self.counters.keepalives_in,
            MessageType::RouteRefresh => &mut self.counters.route_refreshes_in,
        } += 1;
        self.handle_message(message_type, Body { start, end }, now)
    }

    /// The octets of a message that an event told of.
    pub fn body(&self, body: Body) -> &[u8] {
        self.received.get(body.start..body.end).unwrap_or_default()
    }

    /// Goes on with a connection whose OPEN came: KEEPALIVE is sent and the agreed timers run (§8.2.2, OpenSent, Event 19).
    pub fn confirm(&mut self, now: Time) {
        let Some(negotiated) = self
            .negotiated
            .as_ref()
            .filter(|_| self.phase == Phase::OpenReceived)
        else {
            return;
        };
        self.phase = Phase::OpenConfirm;
        let (hold, keepalive) = (negotiated.hold_time, negotiated.keepalive);
        self.send_keepalive();
        match keepalive {
            0 => self.timers.stop(Timer::Keepalive),
            secs => {
                let at = now + self.jitter.spread(Duration::from_secs(secs.into()));
                self.timers.set(Timer::Keepalive, at);
            }
        }
        match hold {
            0 => self.timers.stop(Timer::Hold),
            secs => self
                .timers
                .set(Timer::Hold, now + Duration::from_secs(secs.into())),
        }
    }

    /// Ends the connection with `notification`, unless no OPEN was sent yet: then without a word (RFC 4271 §8.1.1,
    /// SendNOTIFICATIONwithoutOPEN is off).
    pub fn close(&mut self, notification: Notification, detail: impl Into<String>) {
        if self.phase == Phase::Closed {
            return;
        }
        if self.phase == Phase::DelayOpen {
            return self.end(CloseReason::Silent("closed before the OPEN exchange"));
        }
        let notification = self.hardened(notification);
        notification.encode(&mut self.transmit);
        self.counters.messages_out += 1;
        self.counters.notifications_out += 1;
        self.end(CloseReason::Sent {
            notification,
            detail: detail.into(),
        });
    }

    /// `notification` as a Hard Reset, where it says that the session is not meant to come back soon and the peer would otherwise keep our routes.
    fn hardened(&self, notification: Notification) -> Notification {
        let restart = self
            .negotiated
            .as_ref()
            .and_then(|terms| terms.graceful_restart.as_ref());
        // RFC 8538 §5.1.
        let final_words = matches!(
            notification.code(),
            NotificationCode::Cease(
                CeaseError::MaximumNumberOfPrefixesReached
                    | CeaseError::AdministrativeShutdown
                    | CeaseError::PeerDeconfigured
            )
        );
        if final_words && self.phase == Phase::Established && restart.is_some_and(|terms| terms.notification)
        {
            notification.into_hard_reset()
        } else {
            notification
        }
    }

    /// Ends the connection without a NOTIFICATION.
    pub fn close_silently(&mut self, why: &'static str) {
        self.end(CloseReason::Silent(why));
    }

    /// Ends the connection because the peer restarted and opened another one.
    pub fn supersede(&mut self) {
        self.end(CloseReason::PeerRestarted);
    }

    /// Queues one encoded ROUTE-REFRESH on an Established session.
    pub fn send_refresh(&mut self, encoded: &[u8]) {
        if self.phase == Phase::Established {
            self.transmit.extend_from_slice(encoded);
            self.counters.messages_out += 1;
            self.counters.route_refreshes_out += 1;
        }
    }

    /// Whether more bytes may be handed to the transport: the last ones are gone.
    pub fn can_transmit(&self) -> bool {
        self.outstanding == 0 && self.phase != Phase::Closed
    }

    /// Moves what the connection has to say to the end of `out`.
    pub fn take_transmit(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.transmit);
        self.keepalive_unsent = false;
    }

    /// `count` bytes go to the transport now; `updates` UPDATE messages are among them.
    pub fn note_handed_out(&mut self, count: usize, updates: u64, now: Time) {
        self.outstanding += count;
        self.counters.bytes_out += count as u64;
        self.counters.updates_out += updates;
        self.counters.messages_out += updates;
        if self.phase == Phase::Established {
            self.timers.set(Timer::SendHold, now + self.send_hold_time());
        }
    }

    /// The transport took `count` bytes of what it was given.
    pub fn handle_transmitted(&mut self, count: usize, now: Time) {
        self.outstanding = self.outstanding.saturating_sub(count);
        if self.outstanding == 0 {
            self.timers.stop(Timer::SendHold);
        } else if self.phase == Phase::Established {
            self.timers.set(Timer::SendHold, now + self.send_hold_time());
        }
    }

    /// The state as RFC 4271 names it; a closed connection counts as Idle.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::DelayOpen => State::Active,
            Phase::OpenSent | Phase::OpenReceived => State::OpenSent,
            Phase::OpenConfirm => State::OpenConfirm,
            Phase::Established => State::Established,
            Phase::Closed => State::Idle,
        }
    }

    /// What both sides agreed on, once the peer's OPEN was accepted.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// What both sides said that they can, ours first.
    pub fn capabilities(&self) -> (&Capabilities, &Capabilities) {
        (&self.settings.open.capabilities, &self.their_capabilities)
    }

    /// The timers of this connection.
    pub fn timers(&self) -> &TimerTable {
        &self.timers
    }

    /// Messages and bytes of this connection.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Octets received that are no whole message yet.
    pub fn unread(&self) -> &[u8] {
        self.received.get(self.consumed..).unwrap_or_default()
    }

    /// Counts what RFC 7606 made of an UPDATE.
    pub fn note_update_errors(&mut self, treated_as_withdraw: u64, discarded: u64) {
        self.counters.treated_as_withdraw += treated_as_withdraw;
        self.counters.attributes_discarded += discarded;
    }

    fn handle_message(&mut self, message_type: MessageType, body: Body, now: Time) -> Option<Event> {
        match (self.phase, message_type) {
            (_, MessageType::Notification) => self.handle_notification(body),
            (Phase::OpenSent | Phase::DelayOpen, MessageType::Open) => return self.handle_open(body, now),
            (Phase::OpenConfirm, MessageType::Keepalive) => {
                self.phase = Phase::Established;
                self.restart_hold(now);
                return Some(Event::Established);
            }
            (Phase::Established, MessageType::Keepalive) => {
                self.restart_hold(now);
                return Some(Event::Keepalive);
            }
            (Phase::Established, MessageType::Update) => {
                self.restart_hold(now);
                return Some(Event::Update(body));
            }
            (Phase::Established, MessageType::RouteRefresh) => {
                self.restart_hold(now);
                return Some(Event::RouteRefresh(body));
            }
            (phase, other) => self.unexpected(phase, other),
        }
        self.closed.take().map(Event::Closed)
    }

    fn handle_open(&mut self, body: Body, now: Time) -> Option<Event> {
        let decoded = Open::decode(self.body(body));
        let agreed = decoded.and_then(|theirs| {
            check_role(&self.settings.open, &theirs, self.settings.strict_role)?;
            let terms = negotiate(&self.settings.open, &theirs, &self.settings.remote_as)?;
            Ok((terms, theirs.capabilities))
        });
        match agreed {
            Ok((negotiated, capabilities)) => {
                self.their_capabilities = capabilities;
                // Event 20: the peer's OPEN came while ours was held back.
                if self.phase == Phase::DelayOpen {
                    self.timers.stop(Timer::DelayOpen);
                    self.send_open(now);
                }
                self.negotiated = Some(negotiated);
                self.phase = Phase::OpenReceived;
                Some(Event::Open)
            }
            Err(error) => {
                self.refuse(&error);
                self.closed.take().map(Event::Closed)
            }
        }
    }

    fn handle_notification(&mut self, body: Body) {
        match Notification::decode(self.body(body)) {
            Ok(notification) => self.end(CloseReason::Received(notification)),
            // RFC 4271 §6.4: errors in a NOTIFICATION are not answered.
            Err(_) => self.end(CloseReason::Silent("received a malformed NOTIFICATION")),
        }
    }

    fn unexpected(&mut self, phase: Phase, message: MessageType) {
        let error = match phase {
            Phase::OpenSent | Phase::OpenReceived | Phase::DelayOpen => FsmError::UnexpectedMessageInOpenSent,
            Phase::OpenConfirm => FsmError::UnexpectedMessageInOpenConfirm,
            Phase::Established | Phase::Closed => FsmError::UnexpectedMessageInEstablished,
        };
        // RFC 6608 §3: the data is the type of the message that was not expected.
        let notification = Notification::new(NotificationCode::FiniteStateMachine(error), &[message as u8]);
        self.close(notification, format!("{message:?} in {}", self.state().name()));
    }

    /// Ends the connection for something the peer sent.
    pub fn refuse(&mut self, error: &WireError) {
        self.close(error.notification().clone(), error.detail());
    }

    fn send_open(&mut self, now: Time) {
        if let Err(error) = self.settings.open.encode(&mut self.transmit) {
            return self.end(CloseReason::Transport(format!(
                "our OPEN cannot be encoded: {error}"
            )));
        }
        self.counters.messages_out += 1;
        self.counters.opens_out += 1;
        self.phase = Phase::OpenSent;
        self.timers.set(Timer::Hold, now + OPEN_HOLD_TIME);
    }

    fn send_keepalive(&mut self) {
        if !self.keepalive_unsent {
            frame::encode_keepalive(&mut self.transmit);
            self.keepalive_unsent = true;
            self.counters.messages_out += 1;
            self.counters.keepalives_out += 1;
        }
    }

    fn keepalive(&mut self, now: Time) {
        self.send_keepalive();
        if let Some(secs) = self
            .negotiated
            .as_ref()
            .map(|n| n.keepalive)
            .filter(|secs| *secs > 0)
        {
            let at = now + self.jitter.spread(Duration::from_secs(secs.into()));
            self.timers.set(Timer::Keepalive, at);
        }
    }

    fn restart_hold(&mut self, now: Time) {
        if let Some(secs) = self
            .negotiated
            .as_ref()
            .map(|n| n.hold_time)
            .filter(|secs| *secs > 0)
        {
            self.timers
                .set(Timer::Hold, now + Duration::from_secs(secs.into()));
        }
    }

    fn send_hold_time(&self) -> Duration {
        if let Some(configured) = self.settings.send_hold_time {
            return configured;
        }
        let hold = self.negotiated.as_ref().map_or(0, |n| n.hold_time);
        MIN_SEND_HOLD_TIME.max(Duration::from_secs(2 * u64::from(hold)))
    }

    fn end(&mut self, reason: CloseReason) {
        if self.phase == Phase::Closed {
            return;
        }
        let was_established = self.phase == Phase::Established;
        self.phase = Phase::Closed;
        self.timers.stop_all();
        self.closed = Some(Closed {
            reason,
            was_established,
        });
    }
}
