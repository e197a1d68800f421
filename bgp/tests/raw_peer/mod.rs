//! A peer that is nothing but bytes: for what our own speaker would never say, and to see exactly what it sends.

// Each test file uses the part it needs.
#![allow(dead_code, reason = "shared by test files that each use a part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use calidris_bgp::config::ConnectMode;
use calidris_bgp::session::{ConnId, RefusedConnection};
use calidris_bgp::wire::capability::{Capabilities, Capability};
use calidris_bgp::wire::context::EncodeContext;
use calidris_bgp::wire::frame::{Frame, MessageLimit, MessageType, encode_keepalive};
use calidris_bgp::wire::open::Open;
use calidris_bgp::{PeerConfig, Speaker, SpeakerConfig, Time};

/// The AS of the peer.
pub(crate) const PEER_AS: u32 = 65002;

/// A speaker whose only peer, 10.0.0.2, is the test.
pub(crate) struct RawPeer {
    pub(crate) speaker: Speaker,
    pub(crate) now: Time,
    conn: ConnId,
}

/// That peer's configuration: everything passes, and it connects to us.
pub(crate) fn peer_config() -> PeerConfig {
    let mut peer = PeerConfig::new("raw", [10, 0, 0, 2].into(), PEER_AS);
    peer.connect = ConnectMode::Passive;
    peer.import = Some(calidris_bgp::policy::Policy::accept_all());
    peer.export = Some(calidris_bgp::policy::Policy::accept_all());
    peer
}

/// Capabilities every peer of these tests has, and `more`.
pub(crate) fn open(more: Vec<Capability>) -> Open {
    let mut capabilities = vec![
        Capability::Multiprotocol(calidris_bgp::family::AfiSafi::IPV4_UNICAST),
        Capability::RouteRefresh,
        Capability::FourOctetAs(PEER_AS),
    ];
    capabilities.extend(more);
    Open::new(
        PEER_AS,
        90,
        Ipv4Addr::new(10, 255, 0, 2),
        Capabilities::new(capabilities),
    )
}

/// How the peer writes UPDATEs of IPv4 unicast.
pub(crate) fn encode_context() -> EncodeContext {
    let mut context = EncodeContext {
        four_octet_as: true,
        ..EncodeContext::default()
    };
    context.ipv4_unicast.negotiated = true;
    context
}

impl RawPeer {
    /// A speaker of AS 65001 that listens; nobody has connected.
    pub(crate) fn new(peer: PeerConfig) -> Self {
        let mut config = SpeakerConfig::new(65001, Ipv4Addr::new(10, 255, 0, 1));
        config.peers.push(peer);
        let mut raw = Self {
            speaker: Speaker::new(config, false, 1, Time::ZERO).expect("configuration"),
            now: Time::ZERO,
            conn: ConnId { peer: 0, serial: 0 },
        };
        raw.speaker.originate(std::collections::BTreeMap::new(), raw.now);
        raw
    }

    /// Connects, and says nothing yet.
    pub(crate) fn knock(&mut self) -> Result<(), RefusedConnection> {
        let ends = ("10.0.0.1:179", "10.0.0.2:40000");
        let parse = |text: &str| text.parse::<SocketAddr>().expect("address");
        self.conn = self
            .speaker
            .handle_accepted(parse(ends.0), parse(ends.1), self.now)?;
        Ok(())
    }

    /// Connects and exchanges OPENs; returns what the speaker sent.
    pub(crate) fn connect(&mut self, open: &Open) -> Vec<(MessageType, Vec<u8>)> {
        self.knock().expect("accepted");
        let mut bytes = Vec::new();
        open.encode(&mut bytes).expect("OPEN");
        encode_keepalive(&mut bytes);
        self.send(&bytes)
    }

    /// The peer says `bytes`; returns what the speaker sends then.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Vec<(MessageType, Vec<u8>)> {
        self.speaker.handle_data(self.conn, bytes, self.now);
        self.take()
    }

    /// The peer says `bytes` and reads nothing.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        self.speaker.handle_data(self.conn, bytes, self.now);
    }

    /// How many octets the speaker would send at once.
    pub(crate) fn unsent(&mut self) -> usize {
        let chunk = self.speaker.poll_transmit(self.conn, self.now);
        chunk.map_or(0, |bytes| bytes.len())
    }

    /// Lets time pass, at the speaker's own pace; returns what it sends meanwhile.
    pub(crate) fn wait(&mut self, time: Duration) -> Vec<(MessageType, Vec<u8>)> {
        let end = self.now + time;
        let mut sent = Vec::new();
        while let Some((at, _)) = self.speaker.poll_timeout().filter(|(at, _)| *at <= end) {
            self.now = at;
            self.speaker.handle_timeout(at);
            sent.extend(self.take());
        }
        self.now = end;
        sent
    }

    /// The connection is lost.
    pub(crate) fn cut(&mut self) {
        self.speaker.handle_transport_closed(self.conn, "reset", self.now);
    }

    /// What the speaker sends now, last words included.
    pub(crate) fn take(&mut self) -> Vec<(MessageType, Vec<u8>)> {
        let mut bytes = Vec::new();
        while let Some(more) = self.speaker.poll_transmit(self.conn, self.now) {
            self.speaker.handle_transmitted(self.conn, more.len(), self.now);
            bytes.extend(more);
        }
        while let Some(action) = self.speaker.poll_action() {
            if let calidris_bgp::speaker::Action::Close { last_words, .. } = action {
                bytes.extend(last_words);
            }
        }
        messages(&bytes)
    }
}

fn messages(mut bytes: &[u8]) -> Vec<(MessageType, Vec<u8>)> {
    let mut messages = Vec::new();
    while let Some(frame) = Frame::parse(bytes, MessageLimit::Extended).expect("frame") {
        messages.push((frame.message_type, frame.body.to_vec()));
        bytes = &bytes[frame.total_len()..];
    }
    messages
}
