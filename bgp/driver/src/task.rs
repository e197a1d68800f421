//! The task that owns the speaker: wait, feed, act, flush.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use calidris_bgp::session::ConnId;
use calidris_bgp::speaker::{Action, Farewell, LogEvent};
use calidris_bgp::{Speaker, Time};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::event::{Event, Found};
use crate::neighbor::Neighbors;
use crate::socket::SocketOptions;
use crate::{Command, DriverConfig, Notice, Shutdown, StartError, connect, connection, listener};

/// Events that may wait for the owner; readers wait beyond that, so that TCP slows the peers down.
const EVENTS: usize = 64;

/// Events and commands handled before the speaker's timers and transmissions get their turn.
const TURN: usize = 32;

/// Changed routes handed out at a time.
const CHANGES: usize = 8192;

/// Timers that fire later than this were held up by something other than load.
const STALL: Duration = Duration::from_secs(1);

/// How long readers may read after a stall.
const CATCH_UP: Duration = Duration::from_millis(200);

/// How long a shutdown waits for the last words to go out.
const FAREWELL: Duration = Duration::from_secs(2);

/// Opens the listening sockets and spawns the task.
pub(crate) fn start(
    config: DriverConfig,
    inbox: mpsc::Receiver<Command>,
    notify: watch::Sender<Notice>,
) -> Result<(), StartError> {
    let started = clock();
    let speaker = Speaker::new(config.speaker, config.restarting, config.seed, Time::ZERO)?;
    let mut listeners = listener::Listeners::open(&config.listen)?;
    listeners.set_keys(speaker.md5_keys());
    let (events_in, events) = mpsc::channel(EVENTS);
    let accepting = listeners.accept(&events_in);
    let mut task = Task {
        speaker,
        started,
        listeners,
        accepting,
        events,
        events_in,
        connecting: BTreeMap::new(),
        connections: BTreeMap::new(),
        neighbors: Neighbors::default(),
        notify,
    };
    tokio::spawn(async move { task.run(inbox).await });
    Ok(())
}

struct Task {
    speaker: Speaker,
    started: Instant,
    listeners: listener::Listeners,
    accepting: Vec<JoinHandle<()>>,
    events: mpsc::Receiver<Event>,
    events_in: mpsc::Sender<Event>,
    connecting: BTreeMap<ConnId, JoinHandle<()>>,
    connections: BTreeMap<ConnId, connection::Handle>,
    neighbors: Neighbors,
    notify: watch::Sender<Notice>,
}

impl Task {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Command>) {
        self.neighbors
            .look_behind(self.speaker.interfaces(), &self.events_in);
        self.settle();
        let stop = loop {
            let until_timeout = self.until_timeout();
            tokio::select! {
                Some(event) = self.events.recv() => self.handle_events(event).await,
                command = inbox.recv() => match command {
                    Some(Command::Shutdown(how, done)) => break Some((how, done)),
                    Some(command) => self.handle_command(command),
                    None => break None,
                },
                () = tokio::time::sleep(until_timeout) => {}
            }
            self.fire_timers().await;
            self.settle();
        };
        // Without a handle nobody can say anything any more: peers may keep the routes for a successor.
        let (how, done) = stop.map_or((Shutdown::ForRestart, None), |(how, done)| (how, Some(done)));
        self.leave(how, done).await;
    }

    /// Handles `first` and what else is there already, up to one turn.
    async fn handle_events(&mut self, first: Event) {
        self.handle_event(first);
        for _ in 1..TURN {
            match self.events.try_recv() {
                Ok(event) => self.handle_event(event),
                Err(_) => return,
            }
        }
        tokio::task::yield_now().await;
    }

    /// Fires timers that are due. What peers sent counts before a timer says that they sent nothing, so what has arrived is handled first, up
    /// to one turn. After a stall of the whole process the readers get a moment, or every session would end for our own silence.
    async fn fire_timers(&mut self) {
        let now = self.now();
        let Some((due, _)) = self.speaker.poll_timeout().filter(|(at, _)| *at <= now) else {
            return;
        };
        if now.since(due) > STALL {
            warn!(late = ?now.since(due), "this process was stalled; reading what peers sent before any timer counts");
            tokio::time::sleep(CATCH_UP).await;
        }
        for _ in 0..TURN {
            let Ok(event) = self.events.try_recv() else {
                break;
            };
            self.handle_event(event);
        }
        let now = self.now();
        self.speaker.handle_timeout(now);
    }

    fn handle_event(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Accepted(stream, remote) => self.accept(stream, remote, now),
            Event::Connected(conn, result) => {
                self.connecting.remove(&conn);
                self.connected(conn, result, now);
            }
            Event::Data(conn, bytes) => self.speaker.handle_data(conn, &bytes, now),
            Event::Written(conn, count) => {
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.note_written(count);
                }
                self.speaker.handle_transmitted(conn, count, now);
            }
            Event::Lost(conn, why) => {
                self.connections.remove(&conn);
                self.speaker.handle_transport_closed(conn, &why, now);
            }
            Event::Neighbor(interface, found) => {
                self.neighbors.note(&interface, found);
                report(&mut self.speaker, &interface, found, now);
            }
        }
    }

    fn accept(&mut self, stream: TcpStream, remote: SocketAddr, now: Time) {
        let Ok(local) = stream.local_addr() else {
            return;
        };
        match self.speaker.handle_accepted(local, remote, now) {
            Ok(conn) => {
                if let Some((peer, kind)) = self.speaker.peer_of(conn) {
                    let options = SocketOptions::of(peer, kind);
                    let set = options.apply_accepted(&stream).map_err(|error| error.to_string());
                    if let Err(why) = set.and_then(|()| options.check_distance(&stream)) {
                        return self.speaker.handle_transport_closed(conn, &why, now);
                    }
                }
                self.add_connection(conn, stream);
            }
            // Dropping the stream closes it.
            Err(refused) => debug!(%remote, reason = %refused, "connection refused"),
        }
    }

    fn connected(&mut self, conn: ConnId, result: std::io::Result<TcpStream>, now: Time) {
        let ends = result.and_then(|stream| Ok((stream.local_addr()?, stream.peer_addr()?, stream)));
        match ends {
            Ok((local, remote, stream)) => {
                self.add_connection(conn, stream);
                self.speaker.handle_connected(conn, local, remote, now);
            }
            Err(error) => self.speaker.handle_connect_failed(conn, &error.to_string(), now),
        }
    }

    fn add_connection(&mut self, conn: ConnId, stream: TcpStream) {
        self.connections
            .insert(conn, connection::spawn(conn, stream, self.events_in.clone()));
    }

    fn handle_command(&mut self, command: Command) {
        let now = self.now();
        // Whoever asked may have gone away: then there is nobody to answer.
        match command {
            Command::Configure(config, reply) => {
                let result = self.speaker.configure(*config, now);
                self.follow_configuration(now);
                let _ = reply.send(result);
            }
            Command::Plan(config, reply) => {
                let _ = reply.send(self.speaker.plan(&config));
            }
            Command::Originate(routes, reply) => {
                self.speaker.originate(routes, now);
                let _ = reply.send(());
            }
            Command::Underlay(underlay, reply) => {
                self.speaker.handle_underlay(underlay);
                let _ = reply.send(());
            }
            Command::Links(links, reply) => {
                self.speaker.handle_links(links);
                let _ = reply.send(());
            }
            Command::TakeChanges(reply) => {
                let _ = reply.send(self.speaker.take_changes(CHANGES));
            }
            Command::BestRoutes(reply) => {
                let _ = reply.send(self.speaker.best_routes());
            }
            Command::Status(reply) => {
                let _ = reply.send(self.speaker.status(now));
            }
            Command::Routes(filter, cursor, reply) => {
                let _ = reply.send(self.speaker.routes_page(&filter, cursor, now));
            }
            Command::Refresh(peer, family, reply) => {
                let _ = reply.send(self.speaker.request_refresh(&peer, family));
            }
            // Taken out by the loop.
            Command::Shutdown(..) => {}
        }
    }

    /// Makes sockets in use, and what is looked for behind interfaces, those of a new configuration.
    fn follow_configuration(&mut self, now: Time) {
        for (conn, connection) in &self.connections {
            let (Some((peer, kind)), Some(socket)) = (self.speaker.peer_of(*conn), connection.socket())
            else {
                continue;
            };
            if let Err(error) = SocketOptions::of(peer, kind).apply_live(socket) {
                warn!(peer = peer.name, %error, "a connection in use cannot be changed; it goes on as it was");
            }
        }
        self.neighbors
            .look_behind(self.speaker.interfaces(), &self.events_in);
        for (interface, found) in self.neighbors.known() {
            report(&mut self.speaker, &interface, found, now);
        }
    }

    /// Does what the speaker wants done, sends what it has to send, tells who watches.
    fn settle(&mut self) {
        while let Some(action) = self.speaker.poll_action() {
            self.act(action);
        }
        self.listeners.set_keys(self.speaker.md5_keys());
        let now = self.now();
        for conn in self.speaker.poll_writable() {
            if let Some(connection) = self.connections.get_mut(&conn)
                && connection.is_idle()
                && let Some(bytes) = self.speaker.poll_transmit(conn, now)
            {
                connection.send(bytes);
            }
        }
        while let Some(event) = self.speaker.poll_event() {
            log(event);
        }
        let notice = Notice {
            routes_changed: self.speaker.has_changes(),
            in_sync: self.speaker.in_sync(),
        };
        self.notify
            .send_if_modified(|old| std::mem::replace(old, notice) != notice);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { conn, remote, local } => {
                let Some((peer, kind)) = self.speaker.peer_of(conn) else {
                    return;
                };
                let target = connect::Target {
                    remote,
                    local,
                    options: SocketOptions::of(peer, kind),
                };
                let attempt = connect::spawn(conn, target, self.events_in.clone());
                self.connecting.insert(conn, attempt);
            }
            Action::Close { conn, last_words } => {
                if let Some(attempt) = self.connecting.remove(&conn) {
                    attempt.abort();
                }
                if let Some(connection) = self.connections.remove(&conn) {
                    connection.close(last_words);
                }
            }
        }
    }

    /// Says goodbye and waits, for a bounded time, until it is said.
    async fn leave(&mut self, how: Shutdown, done: Option<oneshot::Sender<()>>) {
        let farewell = match how {
            Shutdown::ForRestart => Farewell::ForRestart,
            Shutdown::Cease { text } => Farewell::Cease(text),
        };
        for task in self
            .accepting
            .drain(..)
            .chain(std::mem::take(&mut self.connecting).into_values())
        {
            task.abort();
        }
        let now = self.now();
        self.speaker.shutdown(&farewell, now);
        let mut closing = Vec::new();
        while let Some(action) = self.speaker.poll_action() {
            if let Action::Close { conn, last_words } = action
                && let Some(connection) = self.connections.remove(&conn)
            {
                closing.push(connection.close(last_words));
            }
        }
        let closed = async {
            for connection in closing {
                let _ = connection.await;
            }
        };
        if tokio::time::timeout(FAREWELL, closed).await.is_err() {
            debug!("a peer did not take the last words in time");
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    fn until_timeout(&self) -> Duration {
        match self.speaker.poll_timeout() {
            Some((at, _)) => at.since(self.now()),
            None => Duration::from_secs(3600),
        }
    }

    fn now(&self) -> Time {
        Time::from_start(clock().saturating_duration_since(self.started))
    }
}

/// Tells the speaker what is behind an interface.
fn report(speaker: &mut Speaker, interface: &str, found: Found, now: Time) {
    match found {
        Found::Nothing => speaker.handle_interface(interface, None, now),
        Found::Interface(index) => speaker.handle_interface(interface, Some(index), now),
        Found::Router(index, address) => {
            speaker.handle_interface(interface, Some(index), now);
            speaker.handle_neighbor(interface, address, now);
        }
    }
}

fn log(event: LogEvent) {
    match event {
        LogEvent::Up { peer } => info!(peer, "session established"),
        LogEvent::Down { peer, closed } if closed.was_established => {
            info!(peer, reason = %closed.reason, "session ended");
        }
        LogEvent::Down { peer, closed } => debug!(peer, reason = %closed.reason, "connection ended"),
        LogEvent::UpdateErrors { peer, text } => warn!(peer, error = text, "malformed UPDATE survived"),
        LogEvent::PrefixLimit {
            peer,
            family,
            held,
            max,
        } => warn!(peer, %family, held, max, "the peer is near its prefix limit, or beyond"),
        LogEvent::StaleRoutesRemoved { peer } => {
            warn!(peer, "the peer did not come back in time: its routes are gone");
        }
        LogEvent::InSync => info!("all peers have sent their tables, or their time is over"),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place of the driver that reads the clock"
)]
fn clock() -> Instant {
    Instant::now()
}
