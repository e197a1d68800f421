//! Capabilities (RFC 5492): what a speaker says in OPEN that it can do.
//!
//! A capability that is unknown, or whose value does not have the form its specification gives, is kept as
//! [`Capability::Unknown`] and otherwise ignored, as RFC 5492 section 3 demands; only lengths that run out of the
//! message are errors. Lists keep the order of the wire, so decoding and encoding are inverse.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::cursor::Cursor;
use crate::family::AfiSafi;

/// One capability.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// 1: routes of this family (RFC 4760 section 8).
    Multiprotocol(AfiSafi),
    /// 2: ROUTE-REFRESH (RFC 2918).
    RouteRefresh,
    /// 5: next hops of another family (RFC 8950).
    ExtendedNextHop(Vec<ExtendedNextHop>),
    /// 6: messages up to 65535 octets (RFC 8654).
    ExtendedMessage,
    /// 9: the place in the customer/provider hierarchy (RFC 9234).
    Role(Role),
    /// 64: graceful restart (RFC 4724, 8538).
    GracefulRestart(GracefulRestart),
    /// 65: AS numbers of four octets, and the sender's own (RFC 6793).
    FourOctetAs(u32),
    /// 69: several paths of one prefix (RFC 7911).
    AddPath(Vec<AddPath>),
    /// 70: marked begin and end of a refresh (RFC 7313).
    EnhancedRouteRefresh,
    /// 71: stale routes kept for long (RFC 9494).
    LongLivedGracefulRestart(Vec<LongLivedGracefulRestart>),
    /// 73: the speaker's host and domain name (draft-walton-bgp-hostname-capability); kept as octets since the text is a stranger's.
    Fqdn {
        /// Host name, at most 255 octets.
        host: Vec<u8>,
        /// Domain name, at most 255 octets.
        domain: Vec<u8>,
    },
    /// Any other, as it came.
    Unknown {
        /// The capability code.
        code: u8,
        /// The capability value.
        value: Vec<u8>,
    },
}

/// One entry of the extended next hop capability (RFC 8950 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ExtendedNextHop {
    /// The family of the routes.
    pub family: AfiSafi,
    /// The address family of the next hop.
    pub next_hop_afi: u16,
}

/// BGP roles (RFC 9234 section 4.1): what the sender of the capability is to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// 0: sells transit to the peer.
    Provider,
    /// 1: a route server.
    RouteServer,
    /// 2: a client of the route server.
    RouteServerClient,
    /// 3: buys transit from the peer.
    Customer,
    /// 4: a lateral peer.
    Peer,
    /// A value without assignment; it matches no role.
    Unassigned(u8),
}

/// The graceful restart capability (RFC 4724 section 3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct GracefulRestart {
    /// R bit: the sender has just restarted.
    pub restart_state: bool,
    /// N bit: also NOTIFICATION and hold timer expiry are survived (RFC 8538 section 2).
    pub notification: bool,
    /// Seconds until the sender expects to be back, at most 4095.
    pub restart_time: u16,
    /// The families it applies to.
    pub families: Vec<GracefulRestartFamily>,
}

/// One family of the graceful restart capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct GracefulRestartFamily {
    /// The family.
    pub family: AfiSafi,
    /// F bit: forwarding state was kept through the restart.
    pub forwarding_preserved: bool,
}

/// One family of the long-lived graceful restart capability (RFC 9494 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LongLivedGracefulRestart {
    /// The family.
    pub family: AfiSafi,
    /// F bit: forwarding state was kept through the restart.
    pub forwarding_preserved: bool,
    /// Seconds stale routes may be kept, at most 2^24 - 1.
    pub stale_time: u32,
}

/// One family of the ADD-PATH capability (RFC 7911 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AddPath {
    /// The family.
    pub family: AfiSafi,
    /// The directions, seen from the sender of the capability.
    pub direction: AddPathDirection,
}

/// Directions of ADD-PATH, seen from the sender of the capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AddPathDirection {
    /// 1: wants to receive several paths.
    Receive,
    /// 2: is able to send several paths.
    Send,
    /// 3: both.
    Both,
}

impl AddPathDirection {
    /// Whether the sender of the capability can receive several paths.
    pub fn receives(self) -> bool {
        matches!(self, Self::Receive | Self::Both)
    }

    /// Whether the sender of the capability can send several paths.
    pub fn sends(self) -> bool {
        matches!(self, Self::Send | Self::Both)
    }
}

/// Two role capabilities that contradict each other: OPEN Message Error, Role Mismatch (RFC 9234 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer announces two different roles, {first:?} and {second:?}")]
pub struct RoleConflict {
    /// The role in the first capability.
    pub first: Role,
    /// The first one that differs.
    pub second: Role,
}

/// The capabilities of an OPEN, in the order of the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// Capabilities to announce.
    pub fn new(capabilities: Vec<Capability>) -> Self {
        Self(capabilities)
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Capability> {
        self.0.iter()
    }

    /// Adds one at the end.
    pub fn push(&mut self, capability: Capability) {
        self.0.push(capability);
    }

    /// Whether routes of `family` are spoken. A peer without any multiprotocol capability speaks IPv4 unicast (RFC 4760 section 8).
    pub fn multiprotocol(&self, family: AfiSafi) -> bool {
        let mut named = self.families().peekable();
        if named.peek().is_none() {
            return family == AfiSafi::IPV4_UNICAST;
        }
        named.any(|other| other == family)
    }

    /// The families of the multiprotocol capabilities.
    pub fn families(&self) -> impl Iterator<Item = AfiSafi> + '_ {
        self.0.iter().filter_map(|capability| match capability {
            Capability::Multiprotocol(family) => Some(*family),
            _ => None,
        })
    }

    /// Whether ROUTE-REFRESH is understood.
    pub fn route_refresh(&self) -> bool {
        self.0.contains(&Capability::RouteRefresh)
    }

    /// Whether begin and end of a refresh are marked.
    pub fn enhanced_route_refresh(&self) -> bool {
        self.0.contains(&Capability::EnhancedRouteRefresh)
    }

    /// Whether messages of more than 4096 octets are accepted.
    pub fn extended_message(&self) -> bool {
        self.0.contains(&Capability::ExtendedMessage)
    }

    /// The four-octet AS number; the last one counts.
    pub fn four_octet_as(&self) -> Option<u32> {
        self.0.iter().rev().find_map(|capability| match capability {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        })
    }

    /// Whether routes of `family` may have next hops of the address family `next_hop_afi`.
    pub fn extended_next_hop(&self, family: AfiSafi, next_hop_afi: u16) -> bool {
        let wanted = ExtendedNextHop { family, next_hop_afi };
        self.0.iter().any(|capability| match capability {
            Capability::ExtendedNextHop(entries) => entries.contains(&wanted),
            _ => false,
        })
    }

    /// The directions of ADD-PATH for `family`; the first entry counts.
    pub fn add_path(&self, family: AfiSafi) -> Option<AddPathDirection> {
        let mut entries = self.0.iter().flat_map(|capability| match capability {
            Capability::AddPath(entries) => entries.as_slice(),
            _ => &[],
        });
        entries
            .find(|entry| entry.family == family)
            .map(|entry| entry.direction)
    }

    /// The graceful restart capability; the last one counts (RFC 4724 section 3).
    pub fn graceful_restart(&self) -> Option<&GracefulRestart> {
        self.0.iter().rev().find_map(|capability| match capability {
            Capability::GracefulRestart(restart) => Some(restart),
            _ => None,
        })
    }

    /// The entries of the long-lived graceful restart capability. It counts only beside a graceful restart capability (RFC 9494 section 3).
    pub fn long_lived_graceful_restart(&self) -> Option<&[LongLivedGracefulRestart]> {
        self.graceful_restart()?;
        self.0.iter().rev().find_map(|capability| match capability {
            Capability::LongLivedGracefulRestart(entries) => Some(entries.as_slice()),
            _ => None,
        })
    }

    /// The role the sender has.
    ///
    /// # Errors
    /// When several capabilities name different roles.
    pub fn role(&self) -> Result<Option<Role>, RoleConflict> {
        let mut roles = self.0.iter().filter_map(|capability| match capability {
            Capability::Role(role) => Some(*role),
            _ => None,
        });
        let Some(first) = roles.next() else {
            return Ok(None);
        };
        match roles.find(|role| *role != first) {
            Some(second) => Err(RoleConflict { first, second }),
            None => Ok(Some(first)),
        }
    }

    /// Reads the value of one capabilities parameter and adds what is in it. `None` when a length runs out of the value.
    pub(crate) fn decode_into(&mut self, value: &[u8]) -> Option<()> {
        let mut cursor = Cursor::new(value);
        while !cursor.is_empty() {
            let code = cursor.u8()?;
            let length = cursor.u8()?;
            self.0
                .push(Capability::decode(code, cursor.take(usize::from(length))?));
        }
        Some(())
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Multiprotocol(family) => write!(f, "{family}"),
            Self::RouteRefresh => f.write_str("route refresh"),
            Self::ExtendedNextHop(entries) => {
                f.write_str("extended next hop")?;
                let mut entries = entries.iter();
                entries.try_for_each(|entry| write!(f, " {} by afi {}", entry.family, entry.next_hop_afi))
            }
            Self::ExtendedMessage => f.write_str("extended messages"),
            Self::Role(role) => write!(f, "role {role:?}"),
            Self::GracefulRestart(restart) => {
                write!(f, "graceful restart {}s", restart.restart_time)?;
                let flags = [(restart.restart_state, " R"), (restart.notification, " N")];
                let mut flags = flags.iter().filter(|(set, _)| *set);
                flags.try_for_each(|(_, flag)| f.write_str(flag))?;
                restart.families.iter().try_for_each(|entry| {
                    let forwarding = if entry.forwarding_preserved { " F" } else { "" };
                    write!(f, " {}{forwarding}", entry.family)
                })
            }
            Self::FourOctetAs(asn) => write!(f, "4-octet AS {asn}"),
            Self::AddPath(entries) => {
                f.write_str("add-path")?;
                let mut entries = entries.iter();
                entries.try_for_each(|entry| write!(f, " {} {:?}", entry.family, entry.direction))
            }
            Self::EnhancedRouteRefresh => f.write_str("enhanced route refresh"),
            Self::LongLivedGracefulRestart(entries) => {
                f.write_str("long-lived graceful restart")?;
                let mut entries = entries.iter();
                entries.try_for_each(|entry| write!(f, " {} {}s", entry.family, entry.stale_time))
            }
            // The names are the peer's: escaped.
            Self::Fqdn { host, domain } => {
                write!(f, "host {} domain {}", host.escape_ascii(), domain.escape_ascii())
            }
            Self::Unknown { code, value } => write!(f, "capability {code} with {} octets", value.len()),
        }
    }
}

impl Capability {
    /// The capability code (IANA "Capability Codes").
    pub fn code(&self) -> u8 {
        match self {
            Self::Multiprotocol(_) => 1,
            Self::RouteRefresh => 2,
            Self::ExtendedNextHop(_) => 5,
            Self::ExtendedMessage => 6,
            Self::Role(_) => 9,
            Self::GracefulRestart(_) => 64,
            Self::FourOctetAs(_) => 65,
            Self::AddPath(_) => 69,
            Self::EnhancedRouteRefresh => 70,
            Self::LongLivedGracefulRestart(_) => 71,
            Self::Fqdn { .. } => 73,
            Self::Unknown { code, .. } => *code,
        }
    }

    fn decode(code: u8, value: &[u8]) -> Self {
        Self::decode_known(code, value).unwrap_or_else(|| Self::Unknown {
            code,
            value: value.to_vec(),
        })
    }

    /// `None` when the code is unknown or the value does not have its form.
    fn decode_known(code: u8, value: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(value);
        let capability = match code {
            1 => {
                let (afi, _reserved, safi) = (cursor.u16()?, cursor.u8()?, cursor.u8()?);
                Self::Multiprotocol(AfiSafi { afi, safi })
            }
            2 => Self::RouteRefresh,
            5 => Self::ExtendedNextHop(entries(&mut cursor, |cursor| {
                // The SAFI takes two octets here (RFC 8950 section 4).
                let (afi, safi, next_hop_afi) = (cursor.u16()?, cursor.u16()?, cursor.u16()?);
                Some(ExtendedNextHop {
                    family: AfiSafi {
                        afi,
                        safi: u8::try_from(safi).ok()?,
                    },
                    next_hop_afi,
                })
            })?),
            6 => Self::ExtendedMessage,
            9 => Self::Role(Role::from_value(cursor.u8()?)),
            64 => Self::GracefulRestart(GracefulRestart::decode(&mut cursor)?),
            65 => Self::FourOctetAs(cursor.u32()?),
            69 => Self::AddPath(entries(&mut cursor, |cursor| {
                let family = family(cursor)?;
                Some(AddPath {
                    family,
                    direction: AddPathDirection::from_value(cursor.u8()?)?,
                })
            })?),
            70 => Self::EnhancedRouteRefresh,
            71 => Self::LongLivedGracefulRestart(entries(&mut cursor, |cursor| {
                let (family, flags, [a, b, c]) = (family(cursor)?, cursor.u8()?, cursor.array()?);
                let stale_time = u32::from_be_bytes([0, a, b, c]);
                Some(LongLivedGracefulRestart {
                    family,
                    forwarding_preserved: flags & 0x80 != 0,
                    stale_time,
                })
            })?),
            73 => {
                let host = string(&mut cursor)?;
                Self::Fqdn {
                    host,
                    domain: string(&mut cursor)?,
                }
            }
            _ => return None,
        };
        cursor.is_empty().then_some(capability)
    }

    /// Appends code, length and value. `None`, and nothing appended, when the value exceeds 255 octets.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Option<()> {
        let mut value = Vec::new();
        self.encode_value(&mut value);
        let length = u8::try_from(value.len()).ok()?;
        out.extend_from_slice(&[self.code(), length]);
        out.extend_from_slice(&value);
        Some(())
    }

    fn encode_value(&self, out: &mut Vec<u8>) {
        match self {
            Self::RouteRefresh | Self::ExtendedMessage | Self::EnhancedRouteRefresh => {}
            Self::Multiprotocol(family) => {
                out.extend_from_slice(&family.afi.to_be_bytes());
                out.extend_from_slice(&[0, family.safi]);
            }
            Self::ExtendedNextHop(entries) => {
                for entry in entries {
                    out.extend_from_slice(&entry.family.afi.to_be_bytes());
                    out.extend_from_slice(&[0, entry.family.safi]);
                    out.extend_from_slice(&entry.next_hop_afi.to_be_bytes());
                }
            }
            Self::Role(role) => out.push(role.value()),
            Self::GracefulRestart(restart) => restart.encode_value(out),
            Self::FourOctetAs(asn) => out.extend_from_slice(&asn.to_be_bytes()),
            Self::AddPath(entries) => {
                for entry in entries {
                    push_family(entry.family, out);
                    out.push(entry.direction.value());
                }
            }
            Self::LongLivedGracefulRestart(entries) => {
                for entry in entries {
                    push_family(entry.family, out);
                    let [_, a, b, c] = entry.stale_time.min(0x00ff_ffff).to_be_bytes();
                    out.extend_from_slice(&[if entry.forwarding_preserved { 0x80 } else { 0 }, a, b, c]);
                }
            }
            Self::Fqdn { host, domain } => {
                for name in [host, domain] {
                    let name = name.get(..usize::from(u8::MAX)).unwrap_or(name);
                    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
                    out.extend_from_slice(name);
                }
            }
            Self::Unknown { value, .. } => out.extend_from_slice(value),
        }
    }
}

impl GracefulRestart {
    fn decode(cursor: &mut Cursor<'_>) -> Option<Self> {
        let head = cursor.u16()?;
        let families = entries(cursor, |cursor| {
            let family = family(cursor)?;
            Some(GracefulRestartFamily {
                family,
                forwarding_preserved: cursor.u8()? & 0x80 != 0,
            })
        })?;
        Some(Self {
            restart_state: head & 0x8000 != 0,
            notification: head & 0x4000 != 0,
            restart_time: head & 0x0fff,
            families,
        })
    }

    fn encode_value(&self, out: &mut Vec<u8>) {
        let restart_state = if self.restart_state { 0x8000 } else { 0 };
        let notification = if self.notification { 0x4000 } else { 0 };
        let head: u16 = restart_state | notification | self.restart_time.min(0x0fff);
        out.extend_from_slice(&head.to_be_bytes());
        for entry in &self.families {
            push_family(entry.family, out);
            out.push(if entry.forwarding_preserved { 0x80 } else { 0 });
        }
    }
}

impl Role {
    fn from_value(value: u8) -> Self {
        match value {
            0 => Self::Provider,
            1 => Self::RouteServer,
            2 => Self::RouteServerClient,
            3 => Self::Customer,
            4 => Self::Peer,
            _ => Self::Unassigned(value),
        }
    }

    /// The value on the wire.
    pub fn value(self) -> u8 {
        match self {
            Self::Provider => 0,
            Self::RouteServer => 1,
            Self::RouteServerClient => 2,
            Self::Customer => 3,
            Self::Peer => 4,
            Self::Unassigned(value) => value,
        }
    }

    /// Whether two speakers with these roles may peer (RFC 9234 section 4.2, table 2).
    pub fn matches(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Provider, Self::Customer)
                | (Self::Customer, Self::Provider)
                | (Self::RouteServer, Self::RouteServerClient)
                | (Self::RouteServerClient, Self::RouteServer)
                | (Self::Peer, Self::Peer)
        )
    }
}

impl AddPathDirection {
    fn from_value(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Receive),
            2 => Some(Self::Send),
            3 => Some(Self::Both),
            _ => None,
        }
    }

    fn value(self) -> u8 {
        match self {
            Self::Receive => 1,
            Self::Send => 2,
            Self::Both => 3,
        }
    }
}

/// Reads entries until the value ends. `None` when the last one is incomplete or one has no meaning.
fn entries<'a, T>(cursor: &mut Cursor<'a>, read: impl Fn(&mut Cursor<'a>) -> Option<T>) -> Option<Vec<T>> {
    let mut entries = Vec::new();
    while !cursor.is_empty() {
        entries.push(read(cursor)?);
    }
    Some(entries)
}

fn family(cursor: &mut Cursor<'_>) -> Option<AfiSafi> {
    Some(AfiSafi {
        afi: cursor.u16()?,
        safi: cursor.u8()?,
    })
}

fn push_family(family: AfiSafi, out: &mut Vec<u8>) {
    out.extend_from_slice(&family.afi.to_be_bytes());
    out.push(family.safi);
}

fn string(cursor: &mut Cursor<'_>) -> Option<Vec<u8>> {
    let length = cursor.u8()?;
    cursor.take(usize::from(length)).map(<[u8]>::to_vec)
}
