//! `[bgp]` without its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU8;
use std::time::Duration;

use calidris_bgp::wire::attr::{Community, LargeCommunity};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::peer::{DynamicPeers, Peer, PeerKeys};
use super::policy::without_host_bits;
use super::{duration, within};

/// `[bgp]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BgpKeys")]
pub struct Bgp {
    /// Our autonomous system.
    pub as_number: u32,
    /// Our BGP Identifier; the node's IPv4 address when absent.
    pub router_id: Option<Ipv4Addr>,
    /// The cluster we reflect for; the BGP Identifier when absent.
    pub cluster_id: Option<Ipv4Addr>,
    /// TCP port peers connect to.
    pub listen_port: u16,
    /// Addresses peers connect to.
    pub listen_addresses: Vec<IpAddr>,
    /// Equally good routes used together, at most.
    pub multipath: u8,
    /// LOCAL_PREF of routes that come without one.
    pub default_local_pref: u32,
    /// MULTI_EXIT_DISC is compared between different neighbouring ASes too.
    pub always_compare_med: bool,
    /// A route without MULTI_EXIT_DISC counts as the worst, not as the best.
    pub missing_med_worst: bool,
    /// Of otherwise equal external routes the oldest wins.
    pub prefer_oldest: bool,
    /// Longest wait for peers after the start.
    pub sync_timeout: Duration,
    /// Prefixes announced in any case.
    pub routes: Vec<StaticRoute>,
    /// The peers.
    pub peers: Vec<Peer>,
    /// Ranges of addresses from which more may connect.
    pub dynamic: Vec<DynamicPeers>,
}

/// `[bgp]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BgpKeys {
    /// Our autonomous system.
    as_number: u32,
    /// Our BGP Identifier; the node's IPv4 address when absent.
    router_id: Option<Ipv4Addr>,
    /// The cluster we reflect for; the BGP Identifier when absent.
    cluster_id: Option<Ipv4Addr>,
    /// TCP port peers connect to.
    #[serde(default = "bgp_port")]
    listen_port: u16,
    /// Addresses peers connect to.
    #[serde(default = "every_address")]
    listen_addresses: Vec<IpAddr>,
    /// Equally good routes used together, at most.
    #[serde(default = "multipath")]
    multipath: u8,
    /// LOCAL_PREF of routes that come without one.
    #[serde(default = "local_pref")]
    default_local_pref: u32,
    /// MULTI_EXIT_DISC is compared between different neighbouring ASes too.
    #[serde(default)]
    always_compare_med: bool,
    /// A route without MULTI_EXIT_DISC counts as the worst.
    #[serde(default)]
    missing_med_worst: bool,
    /// Of otherwise equal external routes the oldest wins.
    #[serde(default)]
    prefer_oldest: bool,
    /// Longest wait for peers after the start.
    #[serde(default = "two_minutes", deserialize_with = "duration::deserialize")]
    sync_timeout: Duration,
    /// Prefixes announced in any case.
    #[serde(default)]
    routes: Vec<StaticRoute>,
    /// The peers.
    #[serde(default)]
    peers: Vec<PeerKeys>,
    /// Ranges of addresses from which more may connect.
    #[serde(default)]
    dynamic: Vec<PeerKeys>,
    /// What several of both have in common.
    #[serde(default)]
    templates: Vec<PeerKeys>,
}

/// `[[bgp.routes]]`: a prefix that we announce as our own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticRoute {
    /// The prefix, host bits zero.
    #[serde(deserialize_with = "network")]
    pub prefix: IpNetwork,
    /// Next hop; ourselves when absent.
    pub next_hop: Option<IpAddr>,
    /// LOCAL_PREF towards internal peers.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Communities (RFC 1997).
    #[serde(default)]
    pub communities: Vec<Community>,
    /// Large communities (RFC 8092).
    #[serde(default)]
    pub large_communities: Vec<LargeCommunity>,
}

/// An address family exchanged with a peer (unicast).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Next hop in what we announce.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NextHop {
    /// As RFC 4271 §5.1.3 has it.
    #[default]
    Auto,
    /// Always this node.
    #[serde(rename = "self")]
    Itself,
    /// As received.
    Keep,
}

/// Which of several paths are announced: `"all"`, or so many of the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected \"all\" or a number from 1 to 255")]
pub enum AddPathSend {
    /// All that may be used.
    All(AllPaths),
    /// So many.
    Best(NonZeroU8),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllPaths {
    /// It.
    All,
}

/// What becomes of private AS numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrivateAs {
    /// They are left out.
    Remove,
    /// Ours stands in their place.
    Replace,
}

/// What becomes of prefixes beyond `max_prefixes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BeyondMaxPrefixes {
    /// They are used; the log says so.
    Warn,
    /// They are ignored.
    Discard,
    /// The session ends.
    #[default]
    Stop,
}

/// What we are to a peer in another AS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// We sell it transit.
    Provider,
    /// It sells us transit.
    Customer,
    /// Neither pays.
    Peer,
    /// We are a route server it uses.
    RouteServer,
    /// It is a route server we use.
    RouteServerClient,
}

impl Bgp {
    /// Where to listen.
    pub fn listen(&self) -> Vec<SocketAddr> {
        self.listen_addresses
            .iter()
            .map(|&address| SocketAddr::new(address, self.listen_port))
            .collect()
    }

    /// The passwords of peers that cannot be had, a line each: such peers stay without a session.
    pub fn missing_secrets(&self) -> Vec<String> {
        let all = self
            .peers
            .iter()
            .chain(self.dynamic.iter().map(|range| &range.peer));
        all.filter_map(|peer| Some(format!("peer {:?}: {}", peer.name, peer.password().err()?)))
            .collect()
    }

    /// The passwords of all peers, or why they cannot be had.
    pub fn passwords(&self) -> impl Iterator<Item = Result<Option<String>, String>> + '_ {
        let ranges = self.dynamic.iter().map(|range| &range.peer);
        let all = self.peers.iter().chain(ranges);
        all.map(|peer| peer.password().map_err(|error| error.to_string()))
    }

    fn check(&self) -> Result<(), String> {
        if self.as_number == 0 {
            return Err("as_number is 0; expected 1 to 4294967295".to_owned());
        }
        for (name, id) in [("router_id", self.router_id), ("cluster_id", self.cluster_id)] {
            if id.is_some_and(|id| id.is_unspecified()) {
                return Err(format!("{name} is 0.0.0.0; expected any other address"));
            }
        }
        within(self.multipath, 1, 64).map_err(|why| format!("multipath: {why}"))?;
        let mut prefixes = BTreeSet::new();
        for route in &self.routes {
            if !prefixes.insert(route.prefix) {
                return Err(format!(
                    "two routes have the prefix {}; expected one of each",
                    route.prefix
                ));
            }
        }
        let mut names = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        let mut interfaces = BTreeSet::new();
        for peer in &self.peers {
            if !names.insert(&peer.name) {
                return Err(format!(
                    "two peers are named {:?}; expected a name of its own for each",
                    peer.name
                ));
            }
            if let Some(address) = peer.address.filter(|address| !addresses.insert(*address)) {
                return Err(format!(
                    "two peers have the address {address}; expected one peer per address"
                ));
            }
            if let Some(interface) = peer.interface.as_ref().filter(|name| !interfaces.insert(*name)) {
                return Err(format!(
                    "two peers have the interface {interface:?}; expected one peer per interface"
                ));
            }
        }
        for range in &self.dynamic {
            if !names.insert(&range.peer.name) {
                return Err(format!(
                    "two peers are named {:?}; expected a name of its own for each",
                    range.peer.name
                ));
            }
        }
        Ok(())
    }
}

impl TryFrom<BgpKeys> for Bgp {
    type Error = String;

    fn try_from(keys: BgpKeys) -> Result<Self, String> {
        let templates = resolve_templates(keys.templates)?;
        let inherit = |keys: PeerKeys| match &keys.template {
            None => Ok(keys),
            Some(name) => match templates.get(name) {
                Some(template) => Ok(keys.inherit(template)),
                None => Err(format!("{:?}: there is no template {name:?}", keys.name)),
            },
        };
        let peers = keys.peers.into_iter().map(|peer| inherit(peer)?.into_peer());
        let dynamic = keys
            .dynamic
            .into_iter()
            .map(|range| inherit(range)?.into_dynamic());
        let bgp = Self {
            peers: peers.collect::<Result<_, _>>()?,
            dynamic: dynamic.collect::<Result<_, _>>()?,
            as_number: keys.as_number,
            router_id: keys.router_id,
            cluster_id: keys.cluster_id,
            listen_port: keys.listen_port,
            listen_addresses: keys.listen_addresses,
            multipath: keys.multipath,
            default_local_pref: keys.default_local_pref,
            always_compare_med: keys.always_compare_med,
            missing_med_worst: keys.missing_med_worst,
            prefer_oldest: keys.prefer_oldest,
            sync_timeout: keys.sync_timeout,
            routes: keys.routes,
        };
        bgp.check()?;
        Ok(bgp)
    }
}

/// Templates by name, each with what it inherits from one before it.
fn resolve_templates(templates: Vec<PeerKeys>) -> Result<BTreeMap<String, PeerKeys>, String> {
    let mut resolved: BTreeMap<String, PeerKeys> = BTreeMap::new();
    for template in templates {
        template.check_template()?;
        let name = template.name.clone();
        let whole = match &template.template {
            None => template,
            Some(other) => match resolved.get(other) {
                Some(base) => template.inherit(base),
                None => {
                    return Err(format!(
                        "template {name:?}: there is no template {other:?} before it"
                    ));
                }
            },
        };
        if resolved.insert(name.clone(), whole).is_some() {
            return Err(format!(
                "two templates are named {name:?}; expected a name of its own for each"
            ));
        }
    }
    Ok(resolved)
}

fn network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNetwork, D::Error> {
    let prefix = IpNetwork::deserialize(deserializer)?;
    without_host_bits(prefix).map_err(D::Error::custom)
}

fn bgp_port() -> u16 {
    179
}

fn every_address() -> Vec<IpAddr> {
    vec![IpAddr::from([0, 0, 0, 0]), IpAddr::from([0_u16; 8])]
}

fn local_pref() -> u32 {
    100
}

fn multipath() -> u8 {
    8
}

fn two_minutes() -> Duration {
    Duration::from_secs(120)
}
