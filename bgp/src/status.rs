//! What an operator can learn from the speaker: peers, routes, and why.
//!
//! Plain values, serialisable both ways, with names instead of indices. Times are ages (durations up to the moment of
//! asking), in JSON numbers of seconds under names that end in `_seconds`.

mod seconds;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::family::{AfiSafi, Prefix};
use crate::policy::{PeerKind, SourceKind};
use crate::rib::{Refusal, Step, Withheld};
use crate::route::NextHop;
use crate::session::{State, Timer};

pub use crate::attributes_summary::AttributesSummary;
pub use crate::session::{Counters, EndedBy};

/// The speaker at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeakerStatus {
    /// Our AS.
    pub local_as: u32,
    /// Our BGP Identifier.
    pub router_id: Ipv4Addr,
    /// Whether every peer has sent its table, or its time to do so is over.
    pub in_sync: bool,
    /// Whether this speaker still tells its peers that it restarted (RFC 4724, Restart State bit).
    pub restarting: bool,
    /// Prefixes known, with and without a best route.
    pub prefixes: usize,
    /// Distinct attribute sets held.
    pub attribute_sets: usize,
    /// Groups of peers that are told the same, computed and encoded once; over all families.
    pub update_groups: usize,
    /// The peers, by name.
    pub peers: Vec<PeerStatus>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its configured name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The interface behind which it is, or is to be found, where it is named by that.
    #[serde(default)]
    pub interface: Option<String>,
    /// The range of addresses that made it a peer.
    #[serde(default)]
    pub range: Option<String>,
    /// Why it is kept without a session.
    #[serde(default)]
    pub held_down: Option<String>,
    /// Its AS; 0 when it has not said yet which of those it may be in.
    pub remote_as: u32,
    /// What we are to it.
    #[serde(default)]
    pub local_as: u32,
    /// Whether it is in our AS.
    pub kind: PeerKind,
    /// How its connection is made.
    #[serde(default)]
    pub connection: ConnectionStatus,
    /// State of the session as RFC 4271 §8.2.2 names it.
    pub state: State,
    /// How long the session has been in that state.
    #[serde(rename = "since_seconds", with = "seconds")]
    pub since: Duration,
    /// How often the session was Established.
    pub established_count: u64,
    /// Both ends of the TCP connection, ours first.
    pub transport: Option<(SocketAddr, SocketAddr)>,
    /// What both sides agreed on, while Established.
    pub negotiated: Option<NegotiatedStatus>,
    /// Why the last session or attempt ended.
    pub last_error: Option<LastError>,
    /// Messages and routes.
    pub counters: Counters,
    /// Running timers and how long until each fires.
    #[serde(rename = "timers_seconds", with = "seconds::of_timers")]
    pub timers: Vec<(Timer, Duration)>,
    /// What is taken from the peer, in words.
    #[serde(default)]
    pub import: String,
    /// What the peer is told, in words.
    #[serde(default)]
    pub export: String,
    /// How many prefixes of a family the peer may announce.
    #[serde(default)]
    pub prefix_limit_in: Option<u32>,
    /// How many prefixes of a family it is told.
    #[serde(default)]
    pub prefix_limit_out: Option<u32>,
    /// Per family: routes received and accepted, and announced.
    pub families: Vec<FamilyStatus>,
}

/// What the configuration says about the connection of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// We only accept.
    pub passive: bool,
    /// Segments are signed (RFC 2385).
    pub md5: bool,
    /// The least TTL of what it sends (RFC 5082).
    pub gtsm_min_ttl: Option<u8>,
    /// How many hops away it may be.
    pub multihop: Option<u8>,
    /// Seconds without a message that we propose.
    pub hold_time: u16,
}

/// The outcome of the OPEN exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NegotiatedStatus {
    /// The peer's BGP Identifier.
    pub router_id: Ipv4Addr,
    /// Seconds; 0 means the session never expires.
    pub hold_time: u16,
    /// Seconds between our KEEPALIVEs; 0 means none.
    pub keepalive: u16,
    /// Families both sides offered.
    pub families: Vec<AfiSafi>,
    /// What we said that we can, in words.
    #[serde(default)]
    pub capabilities_sent: Vec<String>,
    /// What the peer said that it can, in words.
    #[serde(default)]
    pub capabilities_received: Vec<String>,
    /// Families of which the peer may send us several paths to a prefix (RFC 7911).
    pub add_path_receive: Vec<AfiSafi>,
    /// Families of which we may send it several paths to a prefix (RFC 7911).
    pub add_path_send: Vec<AfiSafi>,
    /// RFC 6793.
    pub four_octet_as: bool,
    /// RFC 2918.
    pub route_refresh: bool,
    /// RFC 7313.
    pub enhanced_route_refresh: bool,
    /// RFC 8654.
    pub extended_message: bool,
    /// The peer's restart time in seconds, if it can restart gracefully (RFC 4724).
    pub graceful_restart: Option<u16>,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    #[serde(default)]
    pub extended_next_hop: bool,
    /// Both sides keep routes through NOTIFICATIONs (RFC 8538).
    #[serde(default)]
    pub notification_survived: bool,
    /// How long the peer asks for its stale routes to be kept beyond that, per family in seconds; `None` when it does not know RFC 9494.
    #[serde(default)]
    pub long_lived_seconds: Option<BTreeMap<AfiSafi, u32>>,
}

/// Why a session ended, in both sides' words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// Who ended it.
    pub by: EndedBy,
    /// What happened.
    pub text: String,
    /// Code and subcode of the NOTIFICATION, if there was one.
    #[serde(default)]
    pub notification: Option<(u8, u8)>,
    /// How long ago.
    #[serde(rename = "age_seconds", with = "seconds")]
    pub age: Duration,
}

/// A family of an Established session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyStatus {
    /// Which.
    pub family: AfiSafi,
    /// Routes in the Adj-RIB-In.
    pub received: usize,
    /// Of these, routes the import policy let through.
    pub accepted: usize,
    /// Of these, routes it did not.
    #[serde(default)]
    pub filtered: usize,
    /// Of these, routes refused before any policy: loops, next hops that are none.
    #[serde(default)]
    pub rejected: usize,
    /// Of these, routes that are accepted and have no way to their next hop.
    #[serde(default)]
    pub unreachable: usize,
    /// Of these, routes kept from before the peer's restart.
    pub stale: usize,
    /// Of these, routes that are the best to their prefix.
    #[serde(default)]
    pub best: usize,
    /// How often a route was not stored because of the prefix limit.
    pub beyond_limit: u64,
    /// Prefixes announced to us in this session, each time counted.
    #[serde(default)]
    pub announcements_in: u64,
    /// Prefixes withdrawn from us in this session, each time counted.
    #[serde(default)]
    pub withdrawals_in: u64,
    /// Prefixes announced to the peer in this session, each time counted.
    #[serde(default)]
    pub announcements_out: u64,
    /// Prefixes withdrawn from it in this session, each time counted.
    #[serde(default)]
    pub withdrawals_out: u64,
    /// Peers that are told the same as this one, itself included: UPDATEs are made once for all of them.
    #[serde(default)]
    pub update_group_size: usize,
    /// Routes in the Adj-RIB-Out.
    pub announced: usize,
    /// Best routes of others that it is not told of: export policy and what else keeps routes from a peer, or they are still to be sent. `None` where it
    /// is told of several to a prefix.
    #[serde(default)]
    pub withheld: Option<usize>,
    /// What it is told as next hop where that is us.
    #[serde(default)]
    pub own_next_hop: Option<IpAddr>,
    /// Whether the peer's End-of-RIB came.
    pub end_of_rib_received: bool,
    /// Whether ours went out.
    pub end_of_rib_sent: bool,
}

/// Which routes to show. What is absent does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteFilter {
    /// Only this prefix, with what every peer is told of it and why not ([`RouteStatus::exports`]).
    pub prefix: Option<Prefix>,
    /// Only the longest prefix with a best route that covers this address, with what every peer is told of it.
    pub address: Option<IpAddr>,
    /// Only prefixes inside this one.
    pub within: Option<Prefix>,
    /// Only prefixes with a candidate from the peer of this name.
    pub from: Option<String>,
    /// Only prefixes announced to the peer of this name, with what it was told.
    pub to: Option<String>,
    /// At most this many prefixes in one call; 0 means [`RouteFilter::MAX`].
    pub limit: usize,
}

impl RouteFilter {
    /// Prefixes in the answer to one call of [`crate::Speaker::routes`] at most, whatever was asked.
    pub const MAX: usize = 100_000;
}

/// Part of the routes that a filter lets through (see [`crate::Speaker::routes_page`]).
#[derive(Debug, Clone, PartialEq)]
pub struct RoutePage {
    /// Routes, in no order that means anything.
    pub routes: Vec<RouteStatus>,
    /// Where the rest begins; `None` when there is none.
    pub next: Option<RouteCursor>,
}

/// A place in the tables, for [`crate::Speaker::routes_page`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteCursor(pub(crate) Place);

/// A slot in the table of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Ipv4(usize),
    Ipv6(usize),
}

impl RouteCursor {
    /// Before the first route.
    pub const START: Self = Self(Place::Ipv4(0));
}

/// A prefix with everything known about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// The prefix.
    pub prefix: Prefix,
    /// All routes to it, the best first, then other usable ones, then those refused.
    pub candidates: Vec<CandidateStatus>,
    /// The step of the decision process that left one route.
    pub decided_by: Option<Step>,
    /// Names of the peers it is announced to.
    pub announced_to: Vec<String>,
    /// What single peers are told of it, where the filter asked for that.
    pub exports: Vec<ExportStatus>,
}

/// What one peer with an Established session is told of a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    /// Name of the peer.
    pub to: String,
    /// What it was last told, or is being told: one route, several with ADD-PATH, none.
    pub announced: Vec<AnnouncedPath>,
    /// Why the best route is not for it.
    pub withheld: Option<Withheld>,
    /// Terms of the export policy that matched, in order: those that changed the route and the one that decided.
    pub terms: Vec<String>,
}

/// What a peer is told of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedPath {
    /// The path identifier, where there are several (RFC 7911).
    pub path_id: Option<u32>,
    /// The attributes.
    pub attributes: AttributesSummary,
}

/// One route to a prefix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandidateStatus {
    /// Name of the peer it is from; `None` when we originate it.
    pub from: Option<String>,
    /// The identifier its peer gave it (RFC 7911); 0 without ADD-PATH.
    pub path_id: u32,
    /// The identifier under which peers with ADD-PATH hear of it.
    pub local_id: u16,
    /// How it came here.
    pub source: SourceKind,
    /// Best, equally good, worse, or refused.
    pub standing: Standing,
    /// What it costs to get to its next hop; `None` when there is no way, or nobody said what lies below BGP.
    pub next_hop_cost: Option<u32>,
    /// The neighbours that its packets go to.
    #[serde(default)]
    pub via: Vec<NextHop>,
    /// Weight of its peer.
    #[serde(default)]
    pub weight: u16,
    /// BGP Identifier of its peer.
    #[serde(default)]
    pub peer_router_id: Option<Ipv4Addr>,
    /// Its attributes: after import policy, or as received when refused.
    pub attributes: AttributesSummary,
    /// Its attributes as received, where import policy changed them.
    pub received: Option<AttributesSummary>,
    /// Terms of the import policy that matched, in order: those that changed the route and the one that decided.
    pub terms: Vec<String>,
    /// How long we have known it.
    #[serde(rename = "age_seconds", with = "seconds")]
    pub age: Duration,
    /// Kept from before the peer's restart.
    pub stale: bool,
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The best route.
    Best,
    /// As good as the best; used together with it.
    Multipath,
    /// Lost to the best at this step.
    Lost(Step),
    /// There is no way to its next hop.
    Unreachable,
    /// Not used.
    Refused {
        /// Why.
        reason: Refusal,
        /// The policy term that refused it.
        term: Option<String>,
    },
}
