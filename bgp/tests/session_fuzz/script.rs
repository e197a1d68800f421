//! What the hostile peer does next, drawn from a seed.

use std::net::Ipv4Addr;
use std::time::Duration;

use calidris_bgp::family::AfiSafi;
use calidris_bgp::session::ConnId;
use calidris_bgp::wire::capability::{Capabilities, Capability, GracefulRestart, GracefulRestartFamily};
use calidris_bgp::wire::frame::encode_keepalive;
use calidris_bgp::wire::notification::{CeaseError, Notification};
use calidris_bgp::wire::open::Open;
use calidris_bgp::wire::refresh::{RefreshSubtype, RouteRefresh};

/// The AS of the hostile peer.
pub(crate) const HOSTILE_AS: u32 = 65002;

/// Distinct prefixes it may announce.
pub(crate) const PREFIXES: usize = 64;

/// Something done.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// It opens a connection.
    Connect,
    /// It takes the connection we opened, or refuses it.
    Answer(ConnId, bool),
    /// It says something on a connection, in so many pieces.
    Say(ConnId, Said, usize),
    /// It ends a connection.
    Hang(ConnId),
    /// It stops reading what we send, or reads again.
    Read(bool),
    /// Time passes.
    Wait(Duration),
}

/// Something said, with what the model must know of it. The octets are last.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// An acceptable OPEN.
    Open {
        hold: u16,
        graceful: bool,
        bytes: Vec<u8>,
    },
    /// An OPEN that must be refused with this subcode.
    BadOpen(u8, Vec<u8>),
    Keepalive,
    /// An UPDATE that leaves the session alone, though perhaps not its routes.
    Update(Vec<u8>),
    /// An UPDATE that must end the session with this subcode.
    FatalUpdate(u8, Vec<u8>),
    Refresh(Vec<u8>),
    Notification(Vec<u8>),
    /// A header that must be refused with this subcode.
    BadHeader(u8, Vec<u8>),
    /// Octets of which the model knows nothing.
    Noise(Vec<u8>),
}

impl Said {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Open { bytes, .. }
            | Self::BadOpen(_, bytes)
            | Self::Update(bytes)
            | Self::FatalUpdate(_, bytes)
            | Self::Refresh(bytes)
            | Self::Notification(bytes)
            | Self::BadHeader(_, bytes)
            | Self::Noise(bytes) => bytes.clone(),
            Self::Keepalive => encoded(encode_keepalive),
        }
    }
}

/// What the script sees of the arena.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Connections that are up, and whether they are Established.
    pub(crate) up: Vec<(ConnId, crate::model::Phase)>,
    /// Connections that we asked for and nobody has answered.
    pub(crate) asked: Vec<ConnId>,
}

/// SplitMix64.
pub(crate) struct Script(u64);

impl Script {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next act. Well-behaved more often than not, so that sessions come up and there is something to break.
    pub(crate) fn next(&mut self, view: &View) -> Act {
        if let Some(&conn) = view.asked.first()
            && self.one_in(2)
        {
            return Act::Answer(conn, !self.one_in(4));
        }
        if view.up.is_empty() || self.one_in(14) {
            return if self.one_in(2) { Act::Connect } else { self.wait() };
        }
        let (conn, phase) = view.up[self.below(view.up.len())];
        match self.below(20) {
            0 => Act::Hang(conn),
            1 => self.wait(),
            2 => Act::Read(self.one_in(2)),
            3..=12 => Act::Say(conn, self.fitting(phase), 1 + self.below(4)),
            _ => Act::Say(conn, self.anything(), 1 + self.below(4)),
        }
    }

    fn wait(&mut self) -> Act {
        let millis = [1, 500, 1_000, 5_000, 12_000, 31_000, 120_000, 300_000][self.below(8)];
        Act::Wait(Duration::from_millis(millis))
    }

    /// What leads on in a phase.
    fn fitting(&mut self, phase: crate::model::Phase) -> Said {
        match phase {
            crate::model::Phase::OpenSent => self.open(),
            crate::model::Phase::OpenConfirm => Said::Keepalive,
            crate::model::Phase::Established => match self.below(5) {
                0 => Said::Keepalive,
                1 => self.refresh(),
                _ => self.update(),
            },
        }
    }

    fn anything(&mut self) -> Said {
        match self.below(12) {
            0 => self.open(),
            1 => self.bad_open(),
            2 => Said::Keepalive,
            3..=5 => self.update(),
            6 => self.fatal_update(),
            7 => self.refresh(),
            8 => Said::Notification(encoded(|out| {
                Notification::cease_with_text(CeaseError::AdministrativeReset, "again").encode(out);
            })),
            9 => self.bad_header(),
            _ => self.noise(),
        }
    }

    fn open(&mut self) -> Said {
        let hold = [0, 3, 9, 30, 180, u16::MAX][self.below(6)];
        let graceful = self.one_in(4);
        let bytes = encoded(|out| self.valid_open(hold, graceful).encode(out).unwrap());
        Said::Open {
            hold,
            graceful,
            bytes,
        }
    }

    fn valid_open(&mut self, hold: u16, graceful: bool) -> Open {
        let mut capabilities = vec![
            Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
            Capability::RouteRefresh,
            Capability::FourOctetAs(HOSTILE_AS),
        ];
        if self.one_in(2) {
            capabilities.push(Capability::EnhancedRouteRefresh);
        }
        if graceful {
            capabilities.push(Capability::GracefulRestart(GracefulRestart {
                restart_state: self.one_in(2),
                notification: false,
                restart_time: [0, 1, 120, 4095][self.below(4)],
                families: vec![GracefulRestartFamily {
                    family: AfiSafi::IPV4_UNICAST,
                    forwarding_preserved: self.one_in(2),
                }],
            }));
        }
        // Below or above ours: both outcomes of a collision.
        let router_id = Ipv4Addr::new([9, 11][self.below(2)], 0, 0, 2);
        Open::new(HOSTILE_AS, hold, router_id, Capabilities::new(capabilities))
    }

    fn bad_open(&mut self) -> Said {
        let mut bytes = encoded(|out| self.valid_open(90, false).encode(out).unwrap());
        // Version, AS, hold time, identifier, length of the parameters, then the parameters.
        let subcode = match self.below(6) {
            0 => {
                bytes[19] = [0, 3, 5, 255][self.below(4)];
                1
            }
            1 => {
                // The AS is that of the capability, which comes last or before what is optional.
                bytes = encoded(|out| {
                    let capabilities = Capabilities::new(vec![Capability::FourOctetAs(65009)]);
                    Open::new(65009, 90, Ipv4Addr::new(9, 0, 0, 2), capabilities)
                        .encode(out)
                        .unwrap();
                });
                2
            }
            2 => {
                bytes[24..28].fill(0);
                3
            }
            3 => {
                bytes[23] = 1 + u8::from(self.one_in(2));
                bytes[22] = 0;
                6
            }
            4 => {
                // A parameter that is none.
                bytes[29] = [1, 3, 77][self.below(3)];
                4
            }
            _ => {
                bytes[28] = bytes[28].wrapping_add(1);
                0
            }
        };
        Said::BadOpen(subcode, bytes)
    }

    fn update(&mut self) -> Said {
        let prefix = u8::try_from(self.below(PREFIXES)).unwrap();
        let nlri = [24, 10, 7, prefix];
        if self.one_in(4) {
            return Said::Update(message(2, &[&[0, 4][..], &nlri, &[0, 0]].concat()));
        }
        let mut attributes = vec![
            0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xea, 0x40, 3, 4, 10, 0, 0, 2,
        ];
        match self.below(6) {
            0 => attributes.extend([0x80, 4, 4, 0, 0, 0, self.octet()]),
            1 => attributes.extend([0xc0, 8, 4, 0xfd, 0xea, 0, self.octet()]),
            // RFC 7606: treat-as-withdraw, attribute discard, and an attribute nobody knows.
            2 => attributes.extend([0xc0, 8, 3, 0xfd, 0xea, 0]),
            3 => attributes.extend([0x40, 6, 1, 0]),
            4 => attributes.extend([0xc0, 99, 2, 1, self.octet()]),
            _ => {}
        }
        Said::Update(message(2, &update_body(&attributes, &nlri)))
    }

    fn fatal_update(&mut self) -> Said {
        let good = [
            0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xea, 0x40, 3, 4, 10, 0, 0, 2,
        ];
        match self.below(4) {
            // Withdrawn routes longer than the message; attributes longer than the message.
            0 => Said::FatalUpdate(1, message(2, &[0, 9, 0, 0])),
            1 => Said::FatalUpdate(1, message(2, &[0, 0, 0, 9])),
            // A prefix of 33 bits: RFC 7606 §5.3 leaves it to RFC 4271 §6.3, Invalid Network Field.
            2 => Said::FatalUpdate(10, message(2, &update_body(&good, &[33, 10, 0, 0, 0, 0]))),
            // A well-known attribute that nobody knows: Unrecognized Well-known Attribute.
            _ => Said::FatalUpdate(
                2,
                message(
                    2,
                    &update_body(&[&good[..], &[0x40, 99, 1, 0]].concat(), &[8, 10]),
                ),
            ),
        }
    }

    fn refresh(&mut self) -> Said {
        let family = [AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST][self.below(2)];
        let subtype = [
            RefreshSubtype::Request,
            RefreshSubtype::BeginOfRefresh,
            RefreshSubtype::EndOfRefresh,
        ][self.below(3)];
        Said::Refresh(encoded(|out| RouteRefresh { family, subtype }.encode(out)))
    }

    fn bad_header(&mut self) -> Said {
        let mut bytes = encoded(encode_keepalive);
        let subcode = match self.below(3) {
            0 => {
                bytes[self.below(16)] = 0;
                1
            }
            1 => {
                let length: u16 = [0, 18, 20, 4097, u16::MAX][self.below(5)];
                bytes[16..18].copy_from_slice(&length.to_be_bytes());
                2
            }
            _ => {
                bytes[18] = [0, 6, 255][self.below(3)];
                3
            }
        };
        Said::BadHeader(subcode, bytes)
    }

    /// A message with something wrong anywhere, or half of one, or nothing of the kind.
    fn noise(&mut self) -> Said {
        let mut bytes = match self.below(4) {
            0 => self.open().bytes(),
            1 => self.update().bytes(),
            2 => self.refresh().bytes(),
            _ => (0..self.below(200)).map(|_| self.octet()).collect(),
        };
        for _ in 0..=self.below(3) {
            if !bytes.is_empty() {
                let at = self.below(bytes.len());
                bytes[at] = self.octet();
            }
        }
        if self.one_in(3) {
            bytes.truncate(self.below(bytes.len() + 1));
        }
        Said::Noise(bytes)
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn octet(&mut self) -> u8 {
        self.number().to_be_bytes()[0]
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend(u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}

fn update_body(attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    [&[0, 0][..], &length, attributes, nlri].concat()
}
