//! Speakers on links of virtual time: no sockets, no clock, no waiting. Every run of the same test is the same run.
//!
//! [`World::step`] moves to the next thing that happens anywhere; [`World::run_until`] goes on until a condition holds and
//! fails loudly when virtual time or a number of steps runs out first, so that a livelock is a failure and not a hang.

// Each test file uses the part it needs.
#![allow(dead_code, reason = "shared by test files that each use a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use calidris_bgp::family::Prefix;
use calidris_bgp::route::Origination;
use calidris_bgp::session::{ConnId, State};
use calidris_bgp::speaker::{Action, Farewell, LogEvent};
use calidris_bgp::status::{PeerStatus, RouteFilter, RouteStatus};
use calidris_bgp::{PeerConfig, Speaker, SpeakerConfig, Time};

/// How long an attempt to connect takes at most, as in the driver.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Steps after which a run counts as stuck.
const MAX_STEPS: usize = 200_000;

/// One end of a connection.
type End = (usize, ConnId);

/// Something under way between speakers.
#[derive(Debug)]
enum Flight {
    Syn {
        from: End,
        local: SocketAddr,
        remote: SocketAddr,
    },
    SynAck {
        to: End,
        local: SocketAddr,
        remote: SocketAddr,
        peer: End,
    },
    Refused {
        to: End,
    },
    Bytes {
        from: End,
        to: End,
        bytes: Vec<u8>,
    },
    Fin {
        to: End,
    },
}

/// A speaker in the world.
pub(crate) struct Node {
    pub(crate) speaker: Option<Speaker>,
    pub(crate) address: IpAddr,
    /// More addresses of it.
    pub(crate) aliases: Vec<IpAddr>,
    pub(crate) config: SpeakerConfig,
    pub(crate) log: Vec<LogEvent>,
    seed: u64,
}

/// The number of every interface with a link-local address.
pub(crate) const LINK: u32 = 7;

impl Node {
    fn has(&self, address: IpAddr) -> bool {
        self.address == address || self.aliases.contains(&address)
    }

    /// Where a connection to `remote` comes from.
    fn local_for(&self, remote: IpAddr, port: u16) -> SocketAddr {
        let own = self.aliases.iter().chain([&self.address]);
        let local = own.copied().find(|own| own.is_ipv4() == remote.is_ipv4());
        match local.unwrap_or(self.address) {
            IpAddr::V6(local) if local.is_unicast_link_local() => {
                std::net::SocketAddrV6::new(local, port, 0, LINK).into()
            }
            local => SocketAddr::new(local, port),
        }
    }
}

/// All speakers, what is between them, and the present moment.
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    latency: Duration,
    flights: BTreeMap<(Time, u64), Flight>,
    sequence: u64,
    pipes: BTreeMap<End, End>,
    /// Pairs of nodes between which everything is lost without a word.
    cut: BTreeSet<(usize, usize)>,
    /// Bytes that were lost on cut links and will be sent again.
    held: BTreeMap<(usize, usize), Vec<Flight>>,
    /// Nodes that read nothing: what is sent to them is never taken by the transport.
    pub(crate) stuck: BTreeSet<usize>,
    next_port: u16,
    /// Nodes that were added and have not acted yet.
    fresh: Vec<usize>,
}

impl World {
    pub(crate) fn new(latency: Duration) -> Self {
        Self {
            now: Time::ZERO,
            nodes: Vec::new(),
            latency,
            flights: BTreeMap::new(),
            sequence: 0,
            pipes: BTreeMap::new(),
            cut: BTreeSet::new(),
            held: BTreeMap::new(),
            stuck: BTreeSet::new(),
            next_port: 40_000,
            fresh: Vec::new(),
        }
    }

    /// Adds a speaker that starts now.
    pub(crate) fn add(&mut self, address: &str, config: SpeakerConfig) -> usize {
        let index = self.nodes.len();
        let seed = 1000 + index as u64;
        let speaker = Speaker::new(config.clone(), false, seed, self.now).expect("configuration");
        let address = address.parse().expect("address");
        self.nodes.push(Node {
            speaker: Some(speaker),
            address,
            aliases: Vec::new(),
            config,
            log: Vec::new(),
            seed,
        });
        self.fresh.push(index);
        index
    }

    /// Lets the speakers added since the last step act: all of them at the same moment.
    fn pump_fresh(&mut self) {
        for node in std::mem::take(&mut self.fresh) {
            self.pump(node);
        }
    }

    pub(crate) fn speaker(&mut self, node: usize) -> &mut Speaker {
        self.nodes[node].speaker.as_mut().expect("the node runs")
    }

    /// Calls a speaker and carries out what it wants.
    pub(crate) fn call<T>(&mut self, node: usize, call: impl FnOnce(&mut Speaker, Time) -> T) -> T {
        let now = self.now;
        let result = call(self.speaker(node), now);
        self.pump(node);
        result
    }

    pub(crate) fn originate(&mut self, node: usize, prefixes: &[&str]) {
        let routes: BTreeMap<Prefix, Origination> = prefixes
            .iter()
            .map(|p| (p.parse().expect("prefix"), Origination::default()))
            .collect();
        self.call(node, |speaker, now| speaker.originate(routes, now));
    }

    /// The process dies as by SIGKILL: its kernel closes the connections.
    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].speaker = None;
        let ends: Vec<End> = self.pipes.keys().filter(|end| end.0 == node).copied().collect();
        for end in ends {
            self.close_pipe(end);
        }
    }

    /// The process starts again after [`World::kill`].
    pub(crate) fn restart(&mut self, node: usize) {
        self.nodes[node].seed += 100;
        let (config, seed) = (self.nodes[node].config.clone(), self.nodes[node].seed);
        self.nodes[node].speaker = Some(Speaker::new(config, true, seed, self.now).expect("configuration"));
        self.pump(node);
    }

    /// From now on nothing passes between two nodes, and nobody is told. What connections carry is sent again after [`World::mend`].
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    pub(crate) fn mend(&mut self, a: usize, b: usize) {
        let link = (a.min(b), a.max(b));
        self.cut.remove(&link);
        for flight in self.held.remove(&link).unwrap_or_default() {
            self.sequence += 1;
            self.flights
                .insert((self.now + self.latency, self.sequence), flight);
        }
    }

    /// Every connection between two nodes is reset.
    pub(crate) fn reset_connections(&mut self, a: usize, b: usize) {
        let ends: Vec<End> = self
            .pipes
            .iter()
            .filter(|(one, other)| one.0 == a && other.0 == b)
            .flat_map(|(one, other)| [*one, *other])
            .collect();
        for end in ends {
            self.pipes.remove(&end);
            if self.nodes[end.0].speaker.is_some() {
                self.call(end.0, |speaker, now| {
                    speaker.handle_transport_closed(end.1, "reset", now);
                });
            }
        }
    }

    pub(crate) fn graceful_stop(&mut self, node: usize) {
        self.call(node, |speaker, now| speaker.shutdown(&Farewell::ForRestart, now));
        self.nodes[node].speaker = None;
    }

    /// Moves to the next event anywhere. `false` when nothing will ever happen again.
    pub(crate) fn step(&mut self) -> bool {
        self.pump_fresh();
        let flight = self.flights.keys().next().map(|(at, _)| *at);
        let timer = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(i, node)| Some((node.speaker.as_ref()?.poll_timeout()?.0, i)))
            .min();
        match (flight, timer) {
            (Some(at), timer) if timer.is_none_or(|(due, _)| at <= due) => {
                self.now = self.now.max(at);
                let (_, flight) = self.flights.pop_first().expect("there is one");
                self.arrive(flight);
            }
            (_, Some((due, node))) => {
                self.now = self.now.max(due);
                self.call(node, Speaker::handle_timeout);
            }
            (Some(_), None) => unreachable!("handled by the first arm"),
            (None, None) => return false,
        }
        true
    }

    /// Steps until `condition` holds.
    #[track_caller]
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> bool,
    ) {
        let deadline = self.now + limit;
        for _ in 0..MAX_STEPS {
            if condition(self) {
                return;
            }
            if self.now > deadline || !self.step() {
                break;
            }
        }
        let states: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                node.speaker
                    .as_ref()
                    .map(|s| (node.address, s.status(self.now).peers))
            })
            .collect();
        panic!("never came about: {what}; now {:?}; {states:#?}", self.now);
    }

    /// Steps for a time.
    pub(crate) fn run_for(&mut self, time: Duration) {
        self.pump_fresh();
        let end = self.now + time;
        for _ in 0..MAX_STEPS {
            let flight = self.flights.keys().next().map(|(at, _)| *at);
            let timer = self
                .nodes
                .iter()
                .filter_map(|node| Some(node.speaker.as_ref()?.poll_timeout()?.0))
                .min();
            if flight
                .into_iter()
                .chain(timer)
                .min()
                .is_none_or(|next| next > end)
            {
                self.now = end;
                return;
            }
            self.step();
        }
        panic!("more than {MAX_STEPS} steps in {time:?}: livelock?");
    }

    pub(crate) fn peer(&mut self, node: usize, name: &str) -> PeerStatus {
        let now = self.now;
        let status = self.speaker(node).status(now);
        status
            .peers
            .into_iter()
            .find(|peer| peer.name == name)
            .expect("peer")
    }

    pub(crate) fn established(&mut self, node: usize, name: &str) -> bool {
        self.peer(node, name).state == State::Established
    }

    /// The route of a prefix, if there is any candidate.
    pub(crate) fn route(&mut self, node: usize, prefix: &str) -> Option<RouteStatus> {
        let filter = RouteFilter {
            prefix: Some(prefix.parse().expect("prefix")),
            ..RouteFilter::default()
        };
        let now = self.now;
        self.speaker(node).routes(&filter, now).pop()
    }

    /// Whether a node has a best route to a prefix.
    pub(crate) fn has_best(&mut self, node: usize, prefix: &str) -> bool {
        self.route(node, prefix)
            .is_some_and(|route| route.decided_by.is_some())
    }

    fn pump(&mut self, node: usize) {
        let Some(speaker) = self.nodes[node].speaker.as_mut() else {
            return;
        };
        let mut actions = Vec::new();
        while let Some(action) = speaker.poll_action() {
            actions.push(action);
        }
        for action in actions {
            self.act(node, action);
        }
        let now = self.now;
        let Some(speaker) = self.nodes[node].speaker.as_mut() else {
            return;
        };
        let mut sent = Vec::new();
        for conn in speaker.poll_writable() {
            let reader = self.pipes.get(&(node, conn)).map(|peer| peer.0);
            while let Some(bytes) = speaker.poll_transmit(conn, now) {
                if reader.is_some_and(|reader| self.stuck.contains(&reader)) {
                    break;
                }
                speaker.handle_transmitted(conn, bytes.len(), now);
                sent.push((conn, bytes));
            }
        }
        let events: Vec<LogEvent> = std::iter::from_fn(|| speaker.poll_event()).collect();
        self.nodes[node].log.extend(events);
        for (conn, bytes) in sent {
            if let Some(to) = self.pipes.get(&(node, conn)).copied() {
                self.fly(
                    node,
                    to.0,
                    Flight::Bytes {
                        from: (node, conn),
                        to,
                        bytes,
                    },
                );
            }
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Connect { conn, remote, .. } => {
                let local = self.nodes[node].local_for(remote.ip(), self.next_port);
                self.next_port += 1;
                let from = (node, conn);
                self.sequence += 1;
                let timeout = (self.now + CONNECT_TIMEOUT, self.sequence);
                self.flights.insert(timeout, Flight::Refused { to: from });
                match self.nodes.iter().position(|other| other.has(remote.ip())) {
                    Some(target) => self.fly(node, target, Flight::Syn { from, local, remote }),
                    None => self.fly(node, node, Flight::Refused { to: from }),
                }
            }
            Action::Close { conn, last_words } => {
                if let Some(to) = self.pipes.get(&(node, conn)).copied() {
                    if !last_words.is_empty() {
                        self.fly(
                            node,
                            to.0,
                            Flight::Bytes {
                                from: (node, conn),
                                to,
                                bytes: last_words,
                            },
                        );
                    }
                    self.close_pipe((node, conn));
                }
            }
        }
    }

    fn close_pipe(&mut self, end: End) {
        if let Some(to) = self.pipes.remove(&end) {
            self.fly(end.0, to.0, Flight::Fin { to });
        }
    }

    fn fly(&mut self, from: usize, to: usize, flight: Flight) {
        let link = (from.min(to), from.max(to));
        if self.cut.contains(&link) {
            // TCP sends again what got no answer; a FIN is given up soon.
            if matches!(flight, Flight::Bytes { .. }) {
                self.held.entry(link).or_default().push(flight);
            }
            return;
        }
        self.sequence += 1;
        self.flights
            .insert((self.now + self.latency, self.sequence), flight);
    }

    fn arrive(&mut self, flight: Flight) {
        match flight {
            Flight::Syn { from, local, remote } => {
                let target = self
                    .nodes
                    .iter()
                    .position(|node| node.has(remote.ip()))
                    .expect("checked");
                let accepted = self.nodes[target].speaker.is_some().then(|| {
                    let now = self.now;
                    self.speaker(target).handle_accepted(remote, local, now)
                });
                if let Some(Ok(conn)) = accepted {
                    self.pipes.insert((target, conn), from);
                    let peer = (target, conn);
                    self.fly(
                        target,
                        from.0,
                        Flight::SynAck {
                            to: from,
                            local,
                            remote,
                            peer,
                        },
                    );
                } else {
                    self.fly(target, from.0, Flight::Refused { to: from });
                }
                self.pump(target);
            }
            Flight::SynAck {
                to,
                local,
                remote,
                peer,
            } if self.nodes[to.0].speaker.is_some() => {
                self.pipes.insert(to, peer);
                self.call(to.0, |speaker, now| {
                    speaker.handle_connected(to.1, local, remote, now);
                });
            }
            Flight::Refused { to } if self.nodes[to.0].speaker.is_some() => {
                self.call(to.0, |speaker, now| {
                    speaker.handle_connect_failed(to.1, "refused", now);
                });
            }
            Flight::Bytes { to, bytes, .. }
                if self.nodes[to.0].speaker.is_some() && self.pipes.contains_key(&to) =>
            {
                self.call(to.0, |speaker, now| speaker.handle_data(to.1, &bytes, now));
            }
            Flight::Fin { to } => {
                self.pipes.remove(&to);
                if self.nodes[to.0].speaker.is_some() {
                    self.call(to.0, |speaker, now| {
                        speaker.handle_transport_closed(to.1, "closed by peer", now);
                    });
                }
            }
            // The kernel of a connection that is gone answers with a reset.
            Flight::Bytes { from, to, .. } => self.fly(to.0, from.0, Flight::Fin { to: from }),
            Flight::SynAck { .. } | Flight::Refused { .. } => {}
        }
    }
}

/// A speaker of `asn` with identifier 10.255.0.`id`.
pub(crate) fn speaker(asn: u32, id: u8, peers: Vec<PeerConfig>) -> SpeakerConfig {
    SpeakerConfig {
        peers,
        ..SpeakerConfig::new(asn, [10, 255, 0, id].into())
    }
}

/// A peer that lets everything pass in both directions.
pub(crate) fn open_peer(name: &str, address: &str, asn: u32) -> PeerConfig {
    let mut peer = PeerConfig::new(name, address.parse().expect("address"), asn);
    peer.import = Some(calidris_bgp::policy::Policy::accept_all());
    peer.export = Some(calidris_bgp::policy::Policy::accept_all());
    peer
}
