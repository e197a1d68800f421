//! What two OPENs agree on. Pure: ours and theirs in, the terms of the session out.
//!
//! RFC 4271 §4.2 and §6.2, RFC 5492 (a capability holds when both sides have it), 4760 (families), 6793 (4-octet AS), 7911 (several paths), 4724
//! (graceful restart is announced by each side about itself), 6286 (identifiers).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::config::RemoteAs;
use crate::family::{AFI_IPV6, AfiSafi};
use crate::policy::PeerKind;
use crate::wire::capability::{AddPathDirection, Capabilities, LongLivedGracefulRestart};
use crate::wire::context::{self, DecodeContext, EncodeContext, FamilyContext};
use crate::wire::error::WireError;
use crate::wire::frame::MessageLimit;
use crate::wire::notification::{NotificationCode, OpenError};
use crate::wire::open::Open;

/// The terms of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// The peer's BGP Identifier.
    pub router_id: Ipv4Addr,
    /// The peer's AS.
    pub remote_as: u32,
    /// Whether that is ours.
    pub kind: PeerKind,
    /// The smaller of both hold times, in seconds; 0 means that the session never expires.
    pub hold_time: u16,
    /// A third of it, in seconds; 0 means that no KEEPALIVEs are sent.
    pub keepalive: u16,
    /// Families both sides offered. May be empty: the session then carries nothing.
    pub families: BTreeSet<AfiSafi>,
    /// Families of which the peer may send us several paths to a prefix (RFC 7911).
    pub add_path_in: BTreeSet<AfiSafi>,
    /// Families of which we may send the peer several paths to a prefix (RFC 7911).
    pub add_path_out: BTreeSet<AfiSafi>,
    /// Both sides speak RFC 2918.
    pub route_refresh: bool,
    /// Both sides mark begin and end of a refresh (RFC 7313).
    pub enhanced_route_refresh: bool,
    /// Both sides speak RFC 6793.
    pub four_octet_as: bool,
    /// How long messages may be in both directions (RFC 8654).
    pub message_limit: MessageLimit,
    /// IPv4 routes may have IPv6 next hops in both directions (RFC 8950).
    pub extended_next_hop: bool,
    /// What the peer said about its restarts, when we offered graceful restart too.
    pub graceful_restart: Option<GracefulRestart>,
}

/// The peer's side of graceful restart (RFC 4724 §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GracefulRestart {
    /// The peer has just restarted (R bit): do not wait for its End-of-RIB before sending ours.
    pub restarting: bool,
    /// How long, in seconds, to keep its routes when it goes away.
    pub restart_time: u16,
    /// The families it keeps forwarding.
    pub families: Vec<RestartFamily>,
    /// Both sides keep routes after NOTIFICATIONs too (RFC 8538, N bit).
    pub notification: bool,
    /// For how long, and for which families, stale routes of the peer may be kept beyond its restart time; `None` when it does not know RFC 9494, or
    /// we did not say that we do.
    pub long_lived: Option<Vec<LongLivedGracefulRestart>>,
}

/// A family in the graceful restart capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartFamily {
    /// Which.
    pub family: AfiSafi,
    /// Forwarding went on through the restart (F bit).
    pub forwarding: bool,
}

impl GracefulRestart {
    /// Whether the peer names `family` at all.
    pub fn covers(&self, family: AfiSafi) -> bool {
        self.families.iter().any(|f| f.family == family)
    }

    /// What the peer asks for `family` beyond its restart time (RFC 9494).
    pub fn long_lived(&self, family: AfiSafi) -> Option<LongLivedGracefulRestart> {
        let entries = self.long_lived.as_deref().unwrap_or_default();
        entries.iter().find(|entry| entry.family == family).copied()
    }

    /// Whether the peer kept forwarding `family` through its restart.
    pub fn kept_forwarding(&self, family: AfiSafi) -> bool {
        self.families.iter().any(|f| f.family == family && f.forwarding)
    }
}

impl Negotiated {
    /// How to read the peer's UPDATEs.
    pub fn decode_context(&self) -> DecodeContext {
        DecodeContext {
            four_octet_as: self.four_octet_as,
            peer_kind: match self.kind {
                PeerKind::Ebgp => context::PeerKind::External,
                PeerKind::Ibgp => context::PeerKind::Internal,
            },
            aigp: false,
            ipv4_unicast: self.family_context(AfiSafi::IPV4_UNICAST, &self.add_path_in),
            ipv6_unicast: self.family_context(AfiSafi::IPV6_UNICAST, &self.add_path_in),
        }
    }

    /// How to write UPDATEs to the peer.
    pub fn encode_context(&self) -> EncodeContext {
        EncodeContext {
            four_octet_as: self.four_octet_as,
            message_limit: self.message_limit,
            ipv4_unicast: self.family_context(AfiSafi::IPV4_UNICAST, &self.add_path_out),
            ipv6_unicast: self.family_context(AfiSafi::IPV6_UNICAST, &self.add_path_out),
        }
    }

    fn family_context(&self, family: AfiSafi, add_path: &BTreeSet<AfiSafi>) -> FamilyContext {
        FamilyContext {
            negotiated: self.families.contains(&family),
            add_path: add_path.contains(&family),
            extended_next_hop: family == AfiSafi::IPV4_UNICAST && self.extended_next_hop,
        }
    }
}

/// Whether the peer is to us what we are to it (RFC 9234 §4.2). Without a role of ours anything goes; `strict` asks the peer for one.
///
/// # Errors
/// OPEN Message Error: Role Mismatch.
pub fn check_role(ours: &Open, theirs: &Open, strict: bool) -> Result<(), WireError> {
    let Ok(Some(mine)) = ours.capabilities.role() else {
        return Ok(());
    };
    let detail = match theirs.capabilities.role() {
        Ok(Some(role)) if mine.matches(role) => return Ok(()),
        Ok(None) if !strict => return Ok(()),
        Ok(Some(role)) => format!("the peer says it is {role:?}, and we are {mine:?}"),
        Ok(None) => format!("the peer names no role, and we are {mine:?}"),
        Err(conflict) => conflict.to_string(),
    };
    let code = NotificationCode::Open(OpenError::RoleMismatch);
    Err(WireError::new(code, detail))
}

/// The terms that follow from our OPEN and theirs; `expected` is the AS the peer is configured with.
///
/// # Errors
/// OPEN Message Error: Bad Peer AS, Bad BGP Identifier (RFC 4271 §6.2, RFC 6286 §2.2).
pub fn negotiate(ours: &Open, theirs: &Open, expected: &RemoteAs) -> Result<Negotiated, WireError> {
    if !expected.allows(theirs.asn(), ours.asn()) {
        let detail = format!("the peer says AS {}, expected {expected}", theirs.asn());
        return Err(WireError::new(
            NotificationCode::Open(OpenError::BadPeerAs),
            detail,
        ));
    }
    let kind = if theirs.asn() == ours.asn() {
        PeerKind::Ibgp
    } else {
        PeerKind::Ebgp
    };
    if kind == PeerKind::Ibgp && theirs.bgp_identifier == ours.bgp_identifier {
        let detail = format!("the peer has our own identifier {}", ours.bgp_identifier);
        return Err(WireError::new(
            NotificationCode::Open(OpenError::BadBgpIdentifier),
            detail,
        ));
    }
    let hold_time = ours.hold_time.min(theirs.hold_time);
    let (mine, peers) = (&ours.capabilities, &theirs.capabilities);
    let extended = mine.extended_message() && peers.extended_message();
    let families: BTreeSet<AfiSafi> = mine
        .families()
        .filter(|family| peers.multiprotocol(*family))
        .collect();
    Ok(Negotiated {
        router_id: theirs.bgp_identifier,
        remote_as: theirs.asn(),
        kind,
        hold_time,
        keepalive: hold_time / 3,
        add_path_in: add_path(&families, peers, mine),
        add_path_out: add_path(&families, mine, peers),
        families,
        route_refresh: mine.route_refresh() && peers.route_refresh(),
        enhanced_route_refresh: mine.enhanced_route_refresh() && peers.enhanced_route_refresh(),
        four_octet_as: mine.four_octet_as().is_some() && peers.four_octet_as().is_some(),
        message_limit: if extended {
            MessageLimit::Extended
        } else {
            MessageLimit::Standard
        },
        extended_next_hop: [mine, peers]
            .iter()
            .all(|side| side.extended_next_hop(AfiSafi::IPV4_UNICAST, AFI_IPV6)),
        graceful_restart: negotiate_restart(mine, peers),
    })
}

fn negotiate_restart(mine: &Capabilities, peers: &Capabilities) -> Option<GracefulRestart> {
    let (ours, theirs) = (mine.graceful_restart()?, peers.graceful_restart()?);
    let long_lived = mine
        .long_lived_graceful_restart()
        .and(peers.long_lived_graceful_restart());
    let families = theirs.families.iter().map(|f| RestartFamily {
        family: f.family,
        forwarding: f.forwarding_preserved,
    });
    Some(GracefulRestart {
        restarting: theirs.restart_state,
        restart_time: theirs.restart_time,
        families: families.collect(),
        notification: ours.notification && theirs.notification,
        long_lived: long_lived.map(<[_]>::to_vec),
    })
}

/// The families of which `from` may send `to` several paths to a prefix (RFC 7911 §4).
fn add_path(families: &BTreeSet<AfiSafi>, from: &Capabilities, to: &Capabilities) -> BTreeSet<AfiSafi> {
    let sends = |family| from.add_path(family).is_some_and(AddPathDirection::sends);
    let receives = |family| to.add_path(family).is_some_and(AddPathDirection::receives);
    let agreed = |family: &AfiSafi| sends(*family) && receives(*family);
    families.iter().copied().filter(agreed).collect()
}
