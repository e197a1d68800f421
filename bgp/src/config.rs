//! What the operator decides: the speaker and its peers.
//!
//! A [`SpeakerConfig`] is a whole: the speaker is given the complete wish each time and finds out itself what changed
//! ([`Impact`]). Only what RFC 4271 makes the identity of a session (addresses, AS numbers, router identifier, transport) resets
//! one; everything else is applied to the running sessions.

mod add_path;
mod dynamic;
mod error;
mod impact;
mod limit;
mod remote_as;
mod restart;
mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::family::AfiSafi;
use crate::policy::{MAX_TERMS, Policy};
pub use crate::wire::capability::Role;

pub use add_path::{AddPathConfig, AddPathSend};
pub use dynamic::DynamicPeers;
pub use error::ConfigError;
pub use impact::{Change, Effect, Impact, PeerImpact, SessionImpact};
pub(crate) use limit::Level;
pub use limit::{BeyondLimit, PrefixLimit};
pub use remote_as::RemoteAs;
pub use restart::{GracefulRestartConfig, LongLivedConfig, StaleExport};
pub use transport::{Distance, TransportConfig};

/// Everything the speaker is told by its operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeakerConfig {
    /// Our autonomous system, 1 to 4294967295.
    pub local_as: u32,
    /// Our BGP Identifier (RFC 6286: not zero, unique within the AS).
    pub router_id: Ipv4Addr,
    /// The cluster we reflect for (RFC 4456 §7); the router identifier when `None`.
    pub cluster_id: Option<Ipv4Addr>,
    /// Our address as next hop of IPv4 routes on sessions over IPv6.
    pub next_hop_ipv4: Option<Ipv4Addr>,
    /// Our address as next hop of IPv6 routes on sessions over IPv4.
    pub next_hop_ipv6: Option<Ipv6Addr>,
    /// The peers, each with a name and an address of its own.
    pub peers: Vec<PeerConfig>,
    /// Ranges of addresses from which more peers may connect.
    pub dynamic: Vec<DynamicPeers>,
    /// How the best of several routes is found.
    pub decision: DecisionConfig,
    /// How long after the start, at most, the speaker counts as "still learning": it bounds the wait for peers that never come
    /// (see [`crate::Speaker::in_sync`]) and the Selection_Deferral_Timer of RFC 4724 §4.1.
    pub sync_timeout: Duration,
}

impl SpeakerConfig {
    /// A speaker without peers and with defaults everywhere else.
    pub fn new(local_as: u32, router_id: Ipv4Addr) -> Self {
        Self {
            local_as,
            router_id,
            cluster_id: None,
            next_hop_ipv4: None,
            next_hop_ipv6: None,
            peers: Vec::new(),
            dynamic: Vec::new(),
            decision: DecisionConfig::default(),
            sync_timeout: Duration::from_secs(120),
        }
    }

    /// Checks what no session could live with.
    ///
    /// # Errors
    /// The first thing that is wrong, with the peer it is wrong in.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.local_as == 0 {
            return Err(ConfigError::LocalAsZero);
        }
        if self.router_id.is_unspecified() {
            return Err(ConfigError::RouterIdZero);
        }
        let mut names = BTreeSet::new();
        let mut addresses = BTreeMap::new();
        let mut interfaces = BTreeMap::new();
        for peer in &self.peers {
            let name = peer.name.clone();
            if !names.insert(&peer.name) {
                return Err(ConfigError::DuplicateName { name });
            }
            if let Some(interface) = &peer.interface {
                if let Some(other) = interfaces.insert(interface, &peer.name) {
                    return Err(ConfigError::DuplicateInterface {
                        name,
                        other: other.clone(),
                        interface: interface.clone(),
                    });
                }
            } else if let Some(other) = addresses.insert(peer.address, &peer.name) {
                return Err(ConfigError::DuplicateAddress {
                    name,
                    other: other.clone(),
                    address: peer.address,
                });
            }
            peer.check()?;
        }
        let mut ranges = BTreeMap::new();
        self.check_passwords()?;
        for range in &self.dynamic {
            let name = range.name.clone();
            if !names.insert(&range.name) {
                return Err(ConfigError::DuplicateName { name });
            }
            if let Some(other) = ranges.insert(range.range, &range.name) {
                return Err(ConfigError::DuplicateRange {
                    name,
                    other: other.clone(),
                    range: range.range,
                });
            }
            range.check()?;
        }
        Ok(())
    }

    /// The kernel demands signatures of a whole range: no peer inside can do without.
    fn check_passwords(&self) -> Result<(), ConfigError> {
        for peer in self.peers.iter().filter(|peer| !peer.transport.is_signed()) {
            let signed = |range: &&DynamicPeers| range.template.transport.is_signed();
            if let Some(range) = self
                .dynamic
                .iter()
                .filter(signed)
                .find(|range| range.covers(peer.address))
            {
                return Err(ConfigError::UnsignedInRange {
                    name: peer.name.clone(),
                    range: range.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// Whether a policy asks by which links routes leave.
    pub(crate) fn link_names(&self) -> LinkNames {
        let ranges = self.dynamic.iter().map(|range| &range.template);
        let peers = self.peers.iter().chain(ranges);
        let mut policies = peers.flat_map(|peer| [&peer.import, &peer.export]).flatten();
        if policies.any(Policy::depends_on_link) {
            LinkNames::Noted
        } else {
            LinkNames::Ignored
        }
    }

    /// The range that makes a peer of whoever connects from `address`: the longest.
    pub fn dynamic_at(&self, address: IpAddr) -> Option<&DynamicPeers> {
        self.dynamic
            .iter()
            .filter(|range| range.covers(address))
            .max_by_key(|range| range.range.length())
    }
}

/// Whether the names of links are noted in routes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LinkNames {
    /// No policy asks for them.
    #[default]
    Ignored,
    /// They are.
    Noted,
}

/// How the best of several routes is found (RFC 4271 §9.1.2.2 and what operators add to it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionConfig {
    /// The LOCAL_PREF of routes that came without one.
    pub default_local_pref: u32,
    /// Compare MULTI_EXIT_DISC also between routes of different neighbouring ASes.
    pub always_compare_med: bool,
    /// The MULTI_EXIT_DISC of routes that came without one: 0, the best, as RFC 4271 §9.1.2.2 c has it, or `u32::MAX`, the worst.
    pub missing_med: u32,
    /// Among otherwise equal routes of EBGP peers prefer the one known longest to the lowest router identifier.
    pub prefer_oldest: bool,
    /// How many equally good routes are used together, 1 to 64.
    pub multipath_limit: u8,
}

impl Default for DecisionConfig {
    fn default() -> Self {
        Self {
            default_local_pref: 100,
            always_compare_med: false,
            missing_med: 0,
            prefer_oldest: false,
            multipath_limit: 1,
        }
    }
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Name, unique among the peers, in logs and in [`crate::status`].
    pub name: String,
    /// Address of the peer, unique among the peers.
    pub address: IpAddr,
    /// Interface of a link-local `address`, as the kernel numbers it; 0 otherwise.
    pub scope_id: u32,
    /// The interface behind which the peer is found by its router advertisements: an "unnumbered" peer. `address` is then unspecified until it is found,
    /// see [`crate::Speaker::handle_neighbor`].
    pub interface: Option<String>,
    /// TCP port of the peer.
    pub port: u16,
    /// AS of the peer. Equal to ours makes the session IBGP. Where only `open_as` says which it may be: 0 until the peer has said.
    pub remote_as: u32,
    /// Which AS the peer may be in, when more than one will do.
    pub open_as: Option<RemoteAs>,
    /// The address we connect from; the kernel chooses when `None`.
    pub local_address: Option<IpAddr>,
    /// Who opens the connection.
    pub connect: ConnectMode,
    /// Address families offered to the peer.
    pub families: BTreeSet<AfiSafi>,
    /// Offer IPv4 routes with IPv6 next hops (RFC 8950); for sessions over IPv6.
    pub extended_next_hop: bool,
    /// Offer enhanced route refresh (RFC 7313). Off for a peer that offers it too and fails when it comes to it.
    pub enhanced_refresh: bool,
    /// Hold time we propose, in seconds: 0 (never expires) or at least 3 (RFC 4271 §4.2).
    pub hold_time: u16,
    /// How long between attempts to connect, before jitter.
    pub connect_retry: Duration,
    /// Wait this long for the peer's OPEN before sending ours (RFC 4271 §8.1.1 DelayOpen); `None` sends at once.
    pub delay_open: Option<Duration>,
    /// The first wait in Idle after a failure; doubles with every further one up to `idle_hold_max`.
    pub idle_hold: Duration,
    /// The longest wait in Idle.
    pub idle_hold_max: Duration,
    /// How long the peer may take nothing of what we send (RFC 9687); `None`: 8 minutes, or twice the hold time if that is longer.
    pub send_hold_time: Option<Duration>,
    /// Several paths to one prefix (RFC 7911), in all families.
    pub add_path: AddPathConfig,
    /// Whether the peer is a client of us as route reflector (RFC 4456). IBGP only.
    pub route_reflector_client: bool,
    /// We are a route server to this peer (RFC 7947): routes of other external peers reach it with AS_PATH, next hop and MED as they came. EBGP only.
    pub route_server_client: bool,
    /// Next hop in what we announce to the peer.
    pub next_hop: NextHopMode,
    /// What we take from the peer. `None`: everything of an IBGP peer, nothing of an EBGP peer (RFC 8212).
    pub import: Option<Policy>,
    /// What we announce to the peer. `None`: everything to an IBGP peer, nothing to an EBGP peer (RFC 8212).
    pub export: Option<Policy>,
    /// Weight of the peer's routes, compared before everything else; higher wins. What we originate has
    /// [`ORIGINATED_WEIGHT`](crate::rib::ORIGINATED_WEIGHT).
    pub weight: u16,
    /// How often our own AS may occur in a path of the peer.
    pub allow_own_as: u8,
    /// Another AS than the speaker's that we are to this peer (RFC 7705). Makes the session EBGP, unless it is the peer's own: then it is IBGP as if that
    /// were the speaker's AS (RFC 7705 §4.2).
    pub local_as: Option<LocalAs>,
    /// Puts our AS in place of the peer's own in what we announce to it, so that sites of one AS hear of each other through us.
    /// EBGP only.
    pub as_override: bool,
    /// What becomes of private AS numbers (RFC 6996) in what we announce to the peer; `None` leaves them. The peer's own stays, or loops
    /// would go unseen. EBGP only.
    pub remove_private_as: Option<PrivateAs>,
    /// Refuse paths of an EBGP peer that do not begin with its AS (RFC 4271 §6.3). Off for route servers (RFC 7947 §2.2.2.1).
    pub enforce_first_as: bool,
    /// What we are to this EBGP peer (RFC 9234); `None` announces no role and leaves ONLY_TO_CUSTOMER as it is.
    pub role: Option<RoleConfig>,
    /// The priority of routes travels in LOCAL_PREF, as between Calico's nodes (see [`crate::priority`]): what an IBGP peer sends has the priority that its
    /// LOCAL_PREF says, and a priority that a policy sets, or that a route of ours has, is said in LOCAL_PREF.
    pub priority_in_local_pref: bool,
    /// The session will go down soon (RFC 8326): what we announce is marked GRACEFUL_SHUTDOWN (EBGP) or gets LOCAL_PREF 0 (IBGP), and what we
    /// take gets LOCAL_PREF 0.
    pub graceful_shutdown: bool,
    /// BLACKHOLE is agreed on with this peer (RFC 7999 §3.3): routes that carry it get NO_EXPORT, and packets to them are dropped
    /// ([`crate::route::BestRoute::blackhole`]). Without it the community means nothing.
    pub blackhole: bool,
    /// How many prefixes the peer may announce; any number when `None`.
    pub prefix_limit_in: Option<PrefixLimit>,
    /// How many prefixes of each family the peer is told at most; more are held back until others go.
    pub prefix_limit_out: Option<u32>,
    /// Keeps the session down; the peer is told so in these words (RFC 9003), which may be empty.
    pub shutdown: Option<String>,
    /// Graceful restart; `None` switches it off (RFC 4724).
    pub graceful_restart: Option<GracefulRestartConfig>,
    /// What the TCP connection needs.
    pub transport: TransportConfig,
}

impl PeerConfig {
    /// A peer with the defaults: IPv4 and IPv6 unicast, hold time 90 s, graceful restart on, no policy.
    pub fn new(name: impl Into<String>, address: IpAddr, remote_as: u32) -> Self {
        Self {
            name: name.into(),
            address,
            scope_id: 0,
            interface: None,
            port: 179,
            remote_as,
            open_as: None,
            local_address: None,
            connect: ConnectMode::Active,
            families: BTreeSet::from([AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST]),
            extended_next_hop: false,
            enhanced_refresh: true,
            hold_time: 90,
            connect_retry: Duration::from_secs(10),
            delay_open: None,
            idle_hold: Duration::from_secs(1),
            idle_hold_max: Duration::from_secs(60),
            send_hold_time: None,
            add_path: AddPathConfig::default(),
            route_reflector_client: false,
            route_server_client: false,
            next_hop: NextHopMode::Auto,
            import: None,
            export: None,
            weight: 0,
            allow_own_as: 0,
            local_as: None,
            as_override: false,
            remove_private_as: None,
            enforce_first_as: true,
            role: None,
            priority_in_local_pref: false,
            graceful_shutdown: false,
            blackhole: false,
            prefix_limit_in: None,
            prefix_limit_out: None,
            shutdown: None,
            graceful_restart: Some(GracefulRestartConfig::default()),
            transport: TransportConfig::default(),
        }
    }

    /// The AS the peer is to name in its OPEN.
    pub fn expected_as(&self) -> RemoteAs {
        self.open_as.clone().unwrap_or(RemoteAs::Is(self.remote_as))
    }

    /// Why there is to be no session, in words for the operator; `None` when there is to be one.
    pub fn held_down(&self) -> Option<String> {
        match (&self.shutdown, &self.transport.missing_secret) {
            (Some(text), _) if text.is_empty() => Some("shut down by configuration".to_owned()),
            (Some(text), _) => Some(format!("shut down by configuration: {text}")),
            (None, Some(why)) => Some(format!("no TCP-MD5 password, so no session: {why}")),
            (None, None) => None,
        }
    }

    /// The AS we are to this peer, when the speaker's own is `speaker_as`.
    pub fn local_as(&self, speaker_as: u32) -> u32 {
        self.local_as.map_or(speaker_as, |local| local.asn)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let name = self.name.clone();
        if self.local_as.is_some_and(|local| local.asn == 0) {
            return Err(ConfigError::PeerLocalAsZero { name });
        }
        if self.remote_as == 0 && self.open_as.is_none() {
            return Err(ConfigError::RemoteAsZero { name });
        }
        if let Some(Role::Unassigned(value)) = self.role.map(|role| role.ours) {
            return Err(ConfigError::Role { name, value });
        }
        let percent = self.prefix_limit_in.map_or(100, |limit| limit.warn_percent);
        if !(1..=100).contains(&percent) {
            return Err(ConfigError::WarnPercent { name, percent });
        }
        if matches!(self.hold_time, 1 | 2) {
            return Err(ConfigError::HoldTime {
                name,
                hold_time: self.hold_time,
            });
        }
        let terms = |policy: &Option<Policy>| policy.as_ref().map_or(0, |policy| policy.terms.len());
        if terms(&self.import) > MAX_TERMS || terms(&self.export) > MAX_TERMS {
            return Err(ConfigError::TooManyTerms { name });
        }
        if self.families.is_empty() {
            return Err(ConfigError::NoFamily { name });
        }
        if self.interface.is_some() && (self.local_address.is_some() || !self.address.is_unspecified()) {
            return Err(ConfigError::AddressOfUnnumbered { name });
        }
        if self
            .local_address
            .is_some_and(|local| local.is_ipv4() != self.address.is_ipv4())
        {
            return Err(ConfigError::MixedAddresses { name });
        }
        if self
            .transport
            .md5_password
            .as_ref()
            .is_some_and(|p| p.is_empty() || p.len() > MAX_MD5_PASSWORD)
        {
            return Err(ConfigError::Password { name });
        }
        Ok(())
    }
}

/// Longest TCP-MD5 key in bytes (`TCP_MD5SIG_MAXKEYLEN` of the kernel).
const MAX_MD5_PASSWORD: usize = 80;

/// A role towards a peer (RFC 9234 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleConfig {
    /// What we are to the peer; not [`Role::Unassigned`].
    pub ours: Role,
    /// Refuse a peer that names no role of its own ("strict mode", RFC 9234 §4.2).
    pub strict: bool,
}

/// An AS we pretend to be to one peer (RFC 7705).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAs {
    /// The AS, not 0.
    pub asn: u32,
    /// Whether the peer sees the speaker's own AS behind it.
    pub shown: OwnAs,
    /// Whether it is seen in paths received from the peer, in front of them; hidden: "No Prepend Inbound" (RFC 7705 §3.2).
    pub received: OwnAs,
}

/// Whether an AS of ours is seen in paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OwnAs {
    /// It stands in them.
    #[default]
    Shown,
    /// It does not ("Replace Old AS", RFC 7705 §3.3, where it is our own).
    Hidden,
}

/// What becomes of a private AS number in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrivateAs {
    /// It is left out.
    Remove,
    /// Ours stands in its place, so that the path keeps its length.
    Replace,
}

/// Who opens the TCP connection of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectMode {
    /// We connect, and accept when the peer connects.
    Active,
    /// We only accept (RFC 4271 §8.1.1, PassiveTcpEstablishment).
    Passive,
}

/// Which next hop our announcements carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHopMode {
    /// RFC 4271 §5.1.3: ourselves to EBGP peers and for what we originate; unchanged to IBGP peers.
    Auto,
    /// Always ourselves, except for routes reflected between IBGP peers, whose next hop stays (RFC 4456 §10).
    Itself,
    /// Always as received, also to EBGP peers.
    Keep,
}
