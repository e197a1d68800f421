//! `[bgp]` and `[[bgp.peers]]`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::time::Duration;

use calidris_bgp::wire::attr::{Community, LargeCommunity};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::policy::{RoutePolicy, without_host_bits};
use super::secret::{SecretError, read_secret};
use super::{duration, is_unicast, within};

/// The longest restart time RFC 4724 §3 can carry, in seconds.
const MAX_RESTART_TIME: u64 = 4095;
/// The longest stale time RFC 9494 §3 can carry, in seconds.
const MAX_STALE_TIME: u64 = (1 << 24) - 1;

/// `[bgp]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Bgp {
    /// Our autonomous system.
    pub as_number: u32,
    /// Our BGP Identifier; the node's IPv4 address when absent.
    pub router_id: Option<Ipv4Addr>,
    /// The cluster we reflect for; the BGP Identifier when absent.
    pub cluster_id: Option<Ipv4Addr>,
    /// TCP port peers connect to.
    #[serde(default = "bgp_port")]
    pub listen_port: u16,
    /// Addresses peers connect to.
    #[serde(default = "every_address")]
    pub listen_addresses: Vec<IpAddr>,
    /// Equally good routes used together, at most.
    #[serde(default = "multipath")]
    pub multipath: u8,
    /// Longest wait for peers after the start.
    #[serde(default = "two_minutes", deserialize_with = "duration::deserialize")]
    pub sync_timeout: Duration,
    /// Prefixes announced in any case.
    #[serde(default)]
    pub routes: Vec<StaticRoute>,
    /// The peers.
    #[serde(default)]
    pub peers: Vec<Peer>,
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

/// `[[bgp.peers]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Peer {
    /// Unique name.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// Its TCP port.
    #[serde(default = "bgp_port")]
    pub port: u16,
    /// Its AS.
    pub as_number: u32,
    /// The address we connect from.
    pub local_address: Option<IpAddr>,
    /// Whether we only accept.
    #[serde(default)]
    pub passive: bool,
    /// File whose first line is the TCP-MD5 key.
    pub password_file: Option<PathBuf>,
    /// Hold time we propose.
    #[serde(default = "ninety_seconds", deserialize_with = "duration::deserialize")]
    pub hold_time: Duration,
    /// Time between attempts to connect.
    #[serde(default = "five_seconds", deserialize_with = "duration::deserialize")]
    pub connect_retry: Duration,
    /// Address families.
    #[serde(default = "both_families")]
    pub families: BTreeSet<PeerFamily>,
    /// Whether we take several paths to a prefix from it (RFC 7911).
    #[serde(default)]
    pub add_path_receive: bool,
    /// Which of several paths to a prefix we announce to it (RFC 7911); the best alone when absent.
    pub add_path_send: Option<AddPathSend>,
    /// Next hop in our announcements.
    #[serde(default)]
    pub next_hop: NextHop,
    /// Whether we reflect routes to it.
    #[serde(default)]
    pub route_reflector_client: bool,
    /// How many hops away an external peer may be.
    pub multihop: Option<u8>,
    /// GTSM: how many hops away the peer is at most.
    pub ttl_security: Option<u8>,
    /// How long it keeps our routes while we restart; zero: not at all.
    #[serde(default = "two_minutes", deserialize_with = "duration::deserialize")]
    pub restart_time: Duration,
    /// Whether routes survive NOTIFICATIONs too (RFC 8538).
    #[serde(default = "yes")]
    pub restart_through_notification: bool,
    /// How much longer it keeps our routes as its last choice (RFC 9494).
    #[serde(default, deserialize_with = "duration::deserialize")]
    pub long_lived_stale_time: Duration,
    /// How much longer we keep its routes as our last choice, at most.
    #[serde(default, deserialize_with = "duration::deserialize")]
    pub long_lived_keep: Duration,
    /// Whether it hears of stale routes though it does not know RFC 9494.
    #[serde(default)]
    pub long_lived_to_unaware: bool,
    /// Another AS than ours that we are to it.
    pub local_as: Option<u32>,
    /// Whether it then does not see our own AS at all.
    #[serde(default)]
    pub hide_own_as: bool,
    /// How often our AS may be in a path it sends.
    #[serde(default)]
    pub allow_own_as: u8,
    /// Whether paths it sends must begin with its AS.
    #[serde(default = "yes")]
    pub enforce_first_as: bool,
    /// Whether our AS stands in place of its own in paths we send.
    #[serde(default)]
    pub as_override: bool,
    /// What becomes of private AS numbers in paths we send.
    pub remove_private_as: Option<PrivateAs>,
    /// Whether the session will go down soon.
    #[serde(default)]
    pub graceful_shutdown: bool,
    /// Whether its BLACKHOLE community is honoured.
    #[serde(default)]
    pub blackhole: bool,
    /// What we are to it (RFC 9234).
    pub role: Option<Role>,
    /// Whether it must name a role too.
    #[serde(default)]
    pub role_strict: bool,
    /// How many prefixes of each family it may send.
    pub max_prefixes: Option<u32>,
    /// What becomes of more.
    #[serde(default)]
    pub beyond_max_prefixes: BeyondMaxPrefixes,
    /// When a stopped session may come back; never by itself when absent.
    #[serde(default, deserialize_with = "duration::deserialize_optional")]
    pub max_prefixes_retry: Option<Duration>,
    /// How many prefixes of each family it is sent at most.
    pub max_prefixes_out: Option<u32>,
    /// Why the session is kept down.
    pub shutdown: Option<String>,
    /// What we take from it.
    pub import: Option<RoutePolicy>,
    /// What we announce to it.
    pub export: Option<RoutePolicy>,
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

    /// Reads every password file and gives nothing of it away: for a check before the start.
    ///
    /// # Errors
    /// The first one that cannot be had.
    pub fn read_secrets(&self) -> Result<(), SecretError> {
        self.peers
            .iter()
            .filter_map(|peer| peer.password_file.as_deref())
            .try_for_each(|path| read_secret(path).map(drop))
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
        for peer in &self.peers {
            if !names.insert(&peer.name) {
                return Err(format!(
                    "two peers are named {:?}; expected a name of its own for each",
                    peer.name
                ));
            }
            if !addresses.insert(peer.address) {
                return Err(format!(
                    "two peers have the address {}; expected one peer per address",
                    peer.address
                ));
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Bgp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bgp = Self::deserialize(deserializer)?;
        bgp.check().map_err(D::Error::custom)?;
        Ok(bgp)
    }
}

impl Peer {
    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        let refuse = |why: String| Err(format!("peer {name:?}: {why}"));
        if name.is_empty() || name.len() > 64 || name.contains(char::is_control) {
            return refuse("expected a name of 1 to 64 printable characters".to_owned());
        }
        if self.as_number == 0 {
            return refuse("as_number is 0; expected 1 to 4294967295".to_owned());
        }
        if self.local_as.is_some_and(|asn| asn == 0 || asn == self.as_number) {
            return refuse("local_as: expected neither 0 nor the AS of the peer".to_owned());
        }
        if self.port == 0 {
            return refuse("port is 0; expected 1 to 65535".to_owned());
        }
        if !is_unicast(self.address) {
            return refuse(format!("{} is not the address of a host", self.address));
        }
        if self
            .local_address
            .is_some_and(|local| local.is_ipv4() != self.address.is_ipv4())
        {
            return refuse("address and local_address are of different IP versions".to_owned());
        }
        let hold_time = self.hold_time.as_secs();
        if self.hold_time.subsec_nanos() != 0 || hold_time == 1 || hold_time == 2 || hold_time > 65_535 {
            return refuse(
                "hold_time: expected 0s (never expires) or whole seconds from 3s to 65535s".to_owned(),
            );
        }
        if self.connect_retry < Duration::from_secs(1) {
            return refuse("connect_retry is below 1s".to_owned());
        }
        if self.restart_time.as_secs() > MAX_RESTART_TIME {
            return refuse(format!("restart_time is above {MAX_RESTART_TIME}s"));
        }
        if self.long_lived_stale_time.as_secs() > MAX_STALE_TIME {
            return refuse(format!("long_lived_stale_time is above {MAX_STALE_TIME}s"));
        }
        if self.families.is_empty() {
            return refuse("families is empty; expected \"ipv4\", \"ipv6\" or both".to_owned());
        }
        if self.multihop.is_some() && self.ttl_security.is_some() {
            return refuse("multihop and ttl_security exclude each other; expected one of them".to_owned());
        }
        if self.multihop == Some(0) || self.ttl_security == Some(0) {
            return refuse("multihop and ttl_security: expected 1 to 255".to_owned());
        }
        if self.import == Some(RoutePolicy::OwnBlocks) {
            return refuse(
                "import = \"own-blocks\" has no meaning; expected \"accept\", \"reject\" or rules".to_owned(),
            );
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let peer = Self::deserialize(deserializer)?;
        peer.check().map_err(D::Error::custom)?;
        Ok(peer)
    }
}

fn yes() -> bool {
    true
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

fn multipath() -> u8 {
    8
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn ninety_seconds() -> Duration {
    Duration::from_secs(90)
}

fn two_minutes() -> Duration {
    Duration::from_secs(120)
}

fn both_families() -> BTreeSet<PeerFamily> {
    BTreeSet::from([PeerFamily::Ipv4, PeerFamily::Ipv6])
}
