//! The speaker under attack, the honest peer beside, and the judgement after each act.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use calidris_bgp::config::ConnectMode;
use calidris_bgp::family::AfiSafi;
use calidris_bgp::policy::Policy;
use calidris_bgp::route::Origination;
use calidris_bgp::session::{ConnId, State};
use calidris_bgp::speaker::Action;
use calidris_bgp::status::{PeerStatus, RouteFilter};
use calidris_bgp::wire::capability::{Capabilities, Capability};
use calidris_bgp::wire::frame::{Frame, MessageLimit, MessageType, encode_keepalive};
use calidris_bgp::wire::open::Open;
use calidris_bgp::{PeerConfig, Speaker, SpeakerConfig, Time};

use crate::model::{Link, OUR_HOLD, Phase, Reaction};
use crate::script::{Act, HOSTILE_AS, PREFIXES, Said, View};

/// Actions, and log events, that one act may lead to.
const MOST_AT_ONCE: usize = 24;
/// Octets that one act may make the speaker say: the whole table is a few messages.
const MOST_OCTETS: usize = 16 * 1024;

/// How often the scripts came where they ought to come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reached {
    established: usize,
    notifications: usize,
    collisions: usize,
    hold_timers: usize,
    ends: usize,
    noise: usize,
}

impl Reached {
    pub(crate) fn add(&mut self, other: Self) {
        self.established += other.established;
        self.notifications += other.notifications;
        self.collisions += other.collisions;
        self.hold_timers += other.hold_timers;
        self.ends += other.ends;
        self.noise += other.noise;
    }

    pub(crate) fn all(&self) -> [(&'static str, usize); 6] {
        [
            ("Established", self.established),
            ("NOTIFICATION", self.notifications),
            ("collision", self.collisions),
            ("hold timer", self.hold_timers),
            ("end without a word", self.ends),
            ("noise", self.noise),
        ]
    }
}

/// What the speaker did in answer to one act.
#[derive(Debug, Default)]
struct Answer {
    /// Code and subcode, by connection.
    notified: BTreeMap<ConnId, (u8, u8)>,
    closed: Vec<ConnId>,
    octets: usize,
}

pub(crate) struct Arena {
    speaker: Speaker,
    now: Time,
    links: Vec<Link>,
    asked: Vec<ConnId>,
    witness: ConnId,
    reading: bool,
    baseline: (usize, usize),
    port: u16,
    reached: Reached,
    trace: Vec<String>,
}

impl Arena {
    pub(crate) fn new(seed: u64) -> Self {
        let mut config = SpeakerConfig::new(65001, Ipv4Addr::new(10, 0, 0, 1));
        config
            .peers
            .push(peer("hostile", 2, HOSTILE_AS, ConnectMode::Active));
        config.peers.push(peer("witness", 3, 65003, ConnectMode::Passive));
        let mut speaker = Speaker::new(config, false, seed, Time::ZERO).expect("configuration");
        let own = ["192.0.2.0/24", "198.51.100.0/24"]
            .map(|prefix| (prefix.parse().expect("prefix"), Origination::default()));
        speaker.originate(BTreeMap::from(own), Time::ZERO);
        let ends = (address(1, 179), address(3, 40_000));
        let witness = speaker
            .handle_accepted(ends.0, ends.1, Time::ZERO)
            .expect("the witness is let in");
        let mut arena = Self {
            speaker,
            now: Time::ZERO,
            links: Vec::new(),
            asked: Vec::new(),
            witness,
            reading: true,
            baseline: (0, 0),
            port: 40_000,
            reached: Reached::default(),
            trace: Vec::new(),
        };
        let mut bytes = Vec::new();
        let capabilities = vec![
            Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
            Capability::FourOctetAs(65003),
        ];
        let open = Open::new(
            65003,
            0,
            Ipv4Addr::new(10, 0, 0, 3),
            Capabilities::new(capabilities),
        );
        open.encode(&mut bytes).expect("OPEN");
        encode_keepalive(&mut bytes);
        // 203.0.113.0/24, by way of 65003.
        bytes.extend([0xff; 16]);
        bytes.extend([
            0, 47, 2, 0, 0, 0, 20, 0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xeb, 0x40, 3, 4, 10, 0, 0, 3,
        ]);
        bytes.extend([24, 203, 0, 113]);
        arena.speaker.handle_data(witness, &bytes, Time::ZERO);
        arena.collect();
        arena.baseline = arena.speaker.table_sizes();
        assert_eq!(arena.baseline.1, 3, "two routes of ours and the witness's");
        arena
    }

    pub(crate) fn view(&self) -> View {
        View {
            up: self.links.iter().map(|link| (link.conn, link.phase)).collect(),
            asked: self.asked.clone(),
        }
    }

    /// Does it, and judges what the speaker makes of it.
    pub(crate) fn perform(&mut self, act: &Act) {
        self.trace.push(format!("{:?} {act:?}", self.now));
        match act {
            Act::Connect => self.connect(),
            Act::Answer(conn, true) => {
                self.asked.retain(|asked| asked != conn);
                self.port += 1;
                let ends = (address(1, self.port), address(2, 179));
                self.links.push(Link::new(*conn, self.now));
                self.speaker.handle_connected(*conn, ends.0, ends.1, self.now);
                self.settle(None);
            }
            Act::Answer(conn, false) => {
                self.asked.retain(|asked| asked != conn);
                self.speaker.handle_connect_failed(*conn, "refused", self.now);
                self.settle(None);
            }
            Act::Say(conn, said, pieces) => self.say(*conn, said, *pieces),
            Act::Hang(conn) => {
                self.links.retain(|link| link.conn != *conn);
                self.speaker
                    .handle_transport_closed(*conn, "closed by the peer", self.now);
                self.settle(None);
            }
            Act::Read(reading) => {
                self.reading = *reading;
                self.settle(None);
            }
            Act::Wait(time) => self.wait(*time),
        }
        self.check();
    }

    /// All over: nothing of the hostile peer is left, and an ordinary session with it comes up. Returns what was reached.
    pub(crate) fn end(mut self) -> Reached {
        self.reading = true;
        for link in std::mem::take(&mut self.links) {
            self.speaker
                .handle_transport_closed(link.conn, "the end", self.now);
        }
        self.settle(None);
        self.wait(Duration::from_secs(3 * 3600));
        assert_ne!(self.hostile().state, State::Established, "{}", self.story());
        assert_eq!(
            self.speaker.table_sizes(),
            self.baseline,
            "something is left: {}",
            self.story()
        );
        for _ in 0..50 {
            self.connect();
            if let Some(link) = self.links.last() {
                let conn = link.conn;
                self.link(conn).murky = true;
                let mut bytes = Vec::new();
                let capabilities = Capabilities::new(vec![Capability::FourOctetAs(HOSTILE_AS)]);
                let open = Open::new(HOSTILE_AS, 90, Ipv4Addr::new(9, 0, 0, 2), capabilities);
                open.encode(&mut bytes).expect("OPEN");
                encode_keepalive(&mut bytes);
                self.speaker.handle_data(conn, &bytes, self.now);
                let _answer = self.collect();
            }
            if self.hostile().state == State::Established {
                return self.reached;
            }
            self.links.clear();
            self.wait(Duration::from_secs(60));
        }
        panic!("no session comes up any more: {}", self.story());
    }

    fn connect(&mut self) {
        self.port += 1;
        let ends = (address(1, 179), address(2, self.port));
        let accepted = self.speaker.handle_accepted(ends.0, ends.1, self.now);
        if let Ok(conn) = accepted {
            // A connection of the peer's own on which it never said anything gives way to its next one.
            self.links.push(Link::new(conn, self.now));
            self.settle(Some((conn, Reaction::Stays(Phase::OpenSent))));
        } else {
            self.settle(None);
        }
    }

    fn say(&mut self, conn: ConnId, said: &Said, pieces: usize) {
        let rival = |link: &&Link| link.conn != conn && (link.phase >= Phase::OpenConfirm || link.murky);
        let others = self.links.iter().filter(rival).count() > 0;
        let Some(link) = self.links.iter().find(|link| link.conn == conn) else {
            return;
        };
        let mut reaction = link.reaction(said, others);
        // Against a rival in a state that nobody knows either may win.
        let unknown = self.links.iter().any(|link| link.conn != conn && link.murky);
        if reaction == Reaction::Collides && unknown {
            reaction = Reaction::Anything;
            self.link(conn).murky = true;
        }
        let bytes = said.bytes();
        let size = bytes.len().div_ceil(pieces).max(1);
        if matches!(said, Said::Noise(_)) {
            self.reached.noise += 1;
            self.link(conn).murky = true;
        }
        // The new phase counts before the answer is judged: KEEPALIVE follows OPEN at once.
        if let Reaction::Stays(phase) = reaction {
            let now = self.now;
            self.link(conn).advance(said, phase, now);
            self.reached.established +=
                usize::from(phase == Phase::Established && matches!(said, Said::Keepalive));
        } else if reaction == Reaction::Collides {
            let now = self.now;
            self.link(conn).advance(said, Phase::OpenConfirm, now);
        }
        for piece in bytes.chunks(size) {
            self.speaker.handle_data(conn, piece, self.now);
        }
        self.settle(Some((conn, reaction)));
    }

    /// Lets time pass, timer by timer.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        for step in 0.. {
            assert!(step < 200_000, "the timers never come to rest: {}", self.story());
            match self.speaker.poll_timeout() {
                Some((at, _)) if at <= end => {
                    self.now = self.now.max(at);
                    self.speaker.handle_timeout(self.now);
                    self.settle(None);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// Collects what the speaker says and does, and judges it; `expected` is what must happen on a connection.
    fn settle(&mut self, expected: Option<(ConnId, Reaction)>) {
        let answer = self.collect();
        let story = || format!("{answer:?}, expected {expected:?}");
        for (conn, numbers) in &answer.notified {
            assert!(
                answer.closed.contains(conn),
                "{numbers:?} without an end: {} {}",
                story(),
                self.story()
            );
        }
        if let Some((conn, reaction)) = expected {
            let notified = answer.notified.get(&conn).copied();
            let closed = answer.closed.contains(&conn);
            let right = match reaction {
                Reaction::Stays(_) => !closed,
                Reaction::Notifies(code, subcode) => closed && notified == Some((code, subcode)),
                Reaction::Ends => closed && notified.is_none(),
                Reaction::Collides => answer.closed.len() == 1,
                Reaction::Anything => true,
            };
            assert!(right, "{} {}", story(), self.story());
            self.reached.notifications += usize::from(notified.is_some());
            self.reached.ends += usize::from(reaction == Reaction::Ends);
        }
        for &conn in &answer.closed {
            self.judge_end(conn, answer.notified.get(&conn).copied(), expected);
        }
        self.links.retain(|link| !answer.closed.contains(&link.conn));
    }

    /// An end that the act did not ask for must have a reason of its own.
    fn judge_end(&mut self, conn: ConnId, notified: Option<(u8, u8)>, expected: Option<(ConnId, Reaction)>) {
        assert_ne!(
            conn,
            self.witness,
            "the witness lost its session: {}",
            self.story()
        );
        let Some(link) = self.links.iter().find(|link| link.conn == conn).cloned() else {
            return;
        };
        let silent = link.deadline.is_some_and(|deadline| deadline <= self.now);
        match (notified, expected) {
            (Some((4, 0)), _) => {
                assert!(
                    silent || link.murky,
                    "the hold timer fired early on {link:?}: {}",
                    self.story()
                );
                self.reached.hold_timers += 1;
            }
            // Another connection won, or became Established.
            (Some((6, 7)), Some(_)) => {
                assert!(self.links.len() > 1, "a collision of one: {}", self.story());
                self.reached.collisions += 1;
            }
            (_, Some((on, _))) if on == conn => {}
            // The peer restarted, or opened another connection before it said a word on this one.
            (None, Some(_)) => {
                let superseded = link.graceful || link.murky || link.phase == Phase::OpenSent;
                assert!(superseded, "{link:?} ended without a word: {}", self.story());
            }
            (notified, expected) => {
                panic!(
                    "{link:?} ended with {notified:?}, expected {expected:?}: {}",
                    self.story()
                )
            }
        }
    }

    /// Everything the speaker has to say and to do now.
    fn collect(&mut self) -> Answer {
        let mut answer = Answer::default();
        let mut said: Vec<(ConnId, Vec<u8>)> = Vec::new();
        for conn in self.speaker.connections().collect::<Vec<_>>() {
            if conn != self.witness && !self.reading {
                continue;
            }
            while let Some(bytes) = self.speaker.poll_transmit(conn, self.now) {
                self.speaker.handle_transmitted(conn, bytes.len(), self.now);
                said.push((conn, bytes));
            }
        }
        let mut actions = 0;
        while let Some(action) = self.speaker.poll_action() {
            actions += 1;
            match action {
                Action::Connect { conn, .. } => self.asked.push(conn),
                Action::Close { conn, last_words } => {
                    self.asked.retain(|asked| *asked != conn);
                    answer.closed.push(conn);
                    said.push((conn, last_words));
                }
            }
        }
        let events = std::iter::from_fn(|| self.speaker.poll_event()).count();
        assert!(
            actions <= MOST_AT_ONCE && events <= MOST_AT_ONCE,
            "{actions} actions, {events} events: {}",
            self.story()
        );
        for (conn, bytes) in said {
            answer.octets += bytes.len();
            self.hear(conn, &bytes, &mut answer);
        }
        assert!(
            answer.octets <= MOST_OCTETS,
            "{} octets at once: {}",
            answer.octets,
            self.story()
        );
        answer
    }

    fn hear(&mut self, conn: ConnId, mut bytes: &[u8], answer: &mut Answer) {
        while let Some(frame) =
            Frame::parse(bytes, MessageLimit::Extended).expect("the speaker frames its messages")
        {
            if let Some(link) = self.links.iter_mut().find(|link| link.conn == conn) {
                link.hear(frame.message_type);
            }
            if let (MessageType::Notification, [code, subcode, ..]) = (frame.message_type, frame.body) {
                answer.notified.insert(conn, (*code, *subcode));
            }
            bytes = bytes.get(frame.total_len()..).unwrap_or_default();
        }
        assert!(bytes.is_empty(), "half a message: {bytes:?} {}", self.story());
    }

    /// What holds after every act.
    fn check(&mut self) {
        let hostile = self.hostile();
        let known: Vec<_> = self.links.iter().filter(|link| !link.murky).collect();
        for link in &known {
            let late = link.deadline.is_some_and(|deadline| deadline < self.now);
            assert!(!late, "{link:?} outlived its hold time: {}", self.story());
        }
        if known.len() == self.links.len() {
            let established = self
                .links
                .iter()
                .filter(|link| link.phase == Phase::Established)
                .count();
            assert!(established <= 1, "two sessions: {}", self.story());
            assert_eq!(
                hostile.state == State::Established,
                established == 1,
                "{hostile:?} {}",
                self.story()
            );
        }
        let up: Vec<ConnId> = self
            .speaker
            .connections()
            .filter(|conn| *conn != self.witness)
            .collect();
        for conn in &up {
            assert!(
                self.links.iter().any(|link| link.conn == *conn),
                "{conn:?} is not known: {}",
                self.story()
            );
        }
        assert!(up.len() <= 2, "{up:?}: {}", self.story());
        let (sets, prefixes) = self.speaker.table_sizes();
        assert!(
            prefixes <= self.baseline.1 + 2 * PREFIXES + 8,
            "{prefixes} prefixes: {}",
            self.story()
        );
        assert!(
            sets <= self.baseline.0 + 4 * PREFIXES + 16,
            "{sets} attribute sets: {}",
            self.story()
        );
        let witness = self.status("witness");
        assert!(
            witness.state == State::Established && witness.established_count == 1,
            "{witness:?} {}",
            self.story()
        );
        let filter = RouteFilter {
            prefix: Some("203.0.113.0/24".parse().expect("prefix")),
            ..RouteFilter::default()
        };
        let route = self
            .speaker
            .routes(&filter, self.now)
            .pop()
            .expect("the witness's route");
        assert!(route.decided_by.is_some(), "{route:?} {}", self.story());
    }

    fn link(&mut self, conn: ConnId) -> &mut Link {
        self.links
            .iter_mut()
            .find(|link| link.conn == conn)
            .expect("a known connection")
    }

    fn hostile(&self) -> PeerStatus {
        self.status("hostile")
    }

    fn status(&self, name: &str) -> PeerStatus {
        let peers = self.speaker.status(self.now).peers;
        peers.into_iter().find(|peer| peer.name == name).expect("peer")
    }

    /// The last acts.
    fn story(&self) -> String {
        let from = self.trace.len().saturating_sub(12);
        format!("\n{:?}\n{}", self.links, self.trace[from..].join("\n"))
    }
}

fn peer(name: &str, host: u8, asn: u32, connect: ConnectMode) -> PeerConfig {
    let mut peer = PeerConfig::new(name, [10, 0, 0, host].into(), asn);
    peer.connect = connect;
    peer.hold_time = OUR_HOLD;
    peer.import = Some(Policy::accept_all());
    peer.export = Some(Policy::accept_all());
    peer
}

fn address(host: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, host), port).into()
}
