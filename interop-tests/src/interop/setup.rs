//! What a peer is to do in a case, in no daemon's language.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use ipnetwork::IpNetwork;

/// A speaker of the case that is not ours.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its autonomous system.
    pub asn: u32,
    /// Its BGP Identifier.
    pub router_id: Ipv4Addr,
    /// Whom it speaks with.
    pub sessions: Vec<Session>,
    /// What it announces.
    pub routes: Vec<Announced>,
    /// Whether routes it learns go to the kernel.
    pub kernel: Kernel,
    /// Its IPv6 address, the next hop of IPv6 routes that it announces over IPv4.
    pub next_hop_v6: Ipv6Addr,
}

/// Whether learnt routes are used for forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// They are programmed.
    Programmed,
    /// They stay in the daemon's table.
    Untouched,
}

/// One neighbour of a peer.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its name: a word of letters.
    pub name: &'static str,
    /// Where the neighbour is.
    pub remote: Remote,
    /// The peer's own address towards it, which it also listens on.
    pub local: Option<IpAddr>,
    /// The neighbour's AS.
    pub remote_as: u32,
    /// Who opens the connection.
    pub opening: Opening,
    /// Address families.
    pub families: Vec<Family>,
    /// Seconds offered.
    pub hold_time: u16,
    /// TCP-MD5 key (RFC 2385).
    pub password: Option<&'static str>,
    /// RFC 5082, with the neighbour one hop away.
    pub gtsm: bool,
    /// Restart time in seconds (RFC 4724).
    pub graceful_restart: Option<u16>,
    /// Long-lived stale time in seconds (RFC 9494).
    pub long_lived: Option<u32>,
    /// Several paths in both directions (RFC 7911).
    pub add_path: bool,
    /// IPv4 routes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// What the peer is to its neighbour (RFC 9234).
    pub role: Option<&'static str>,
    /// Prefixes it takes, after which it ends the session.
    pub max_prefixes: Option<u32>,
    /// Whether it knows 4-octet AS numbers (RFC 6793).
    pub as_width: AsWidth,
    /// Whether the peer reflects routes to this neighbour (RFC 4456).
    pub reflector_client: bool,
}

/// Where a neighbour is.
#[derive(Clone, Debug)]
pub enum Remote {
    /// There.
    Address(IpAddr),
    /// Wherever in this prefix it connects from.
    Range(IpNetwork),
    /// On the other end of this interface, found by router advertisements.
    Interface(&'static str),
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Range(range) => range.fmt(f),
            Self::Interface(interface) => f.write_str(interface),
        }
    }
}

/// Who opens the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Whoever the daemon thinks fit.
    Either,
    /// The neighbour.
    Passive,
    /// The peer too, whatever the neighbour does.
    Eager,
}

/// An address family, unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// `ipv4` or `ipv6`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// The family of a prefix.
    #[must_use]
    pub fn of(prefix: IpNetwork) -> Self {
        if prefix.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}

/// How wide AS numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsWidth {
    /// As since RFC 6793.
    FourOctets,
    /// As before.
    TwoOctets,
}

/// A prefix that a peer announces, with itself as next hop.
#[derive(Clone, Debug)]
pub struct Announced {
    /// The prefix.
    pub prefix: IpNetwork,
    /// Communities (RFC 1997): high and low half.
    pub communities: Vec<(u16, u16)>,
    /// Route targets (RFC 4360): AS and number.
    pub route_targets: Vec<(u16, u32)>,
    /// Large communities (RFC 8092).
    pub large_communities: Vec<(u32, u32, u32)>,
}

impl Announced {
    /// A prefix without communities.
    #[must_use]
    pub fn plain(prefix: IpNetwork) -> Self {
        Self {
            prefix,
            communities: Vec::new(),
            route_targets: Vec::new(),
            large_communities: Vec::new(),
        }
    }

    /// Its communities in words: `1:2`.
    #[must_use]
    pub fn community_words(&self) -> Vec<String> {
        self.communities
            .iter()
            .map(|(high, low)| format!("{high}:{low}"))
            .collect()
    }

    /// Its route targets in words: `1:2`.
    #[must_use]
    pub fn route_target_words(&self) -> Vec<String> {
        self.route_targets
            .iter()
            .map(|(asn, number)| format!("{asn}:{number}"))
            .collect()
    }

    /// Its large communities in words: `1:2:3`.
    #[must_use]
    pub fn large_community_words(&self) -> Vec<String> {
        self.large_communities
            .iter()
            .map(|(a, b, c)| format!("{a}:{b}:{c}"))
            .collect()
    }

    /// Its communities that routers obey (RFC 1997), in words: a daemon that obeys them for its own routes too has to add them on the way out.
    #[must_use]
    pub fn well_known_words(&self) -> Vec<String> {
        let words = self.community_words().into_iter();
        words.filter(|words| words.starts_with("65535:")).collect()
    }

    /// Its other communities, in words.
    #[must_use]
    pub fn plain_community_words(&self) -> Vec<String> {
        let words = self.community_words().into_iter();
        words.filter(|words| !words.starts_with("65535:")).collect()
    }

    /// Whether it has communities of any kind.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.communities.is_empty() && self.route_targets.is_empty() && self.large_communities.is_empty()
    }
}

impl Setup {
    /// The session of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn session(&self, name: &str) -> anyhow::Result<&Session> {
        self.sessions
            .iter()
            .find(|session| session.name == name)
            .with_context(|| format!("the peer has no session {name}"))
    }

    /// Adds a prefix to what is announced, in place of what was announced with it before.
    pub fn announce(&mut self, route: &Announced) {
        self.withdraw(route.prefix);
        self.routes.push(route.clone());
    }

    /// Takes a prefix out of what is announced.
    pub fn withdraw(&mut self, prefix: IpNetwork) {
        self.routes.retain(|route| route.prefix != prefix);
    }

    /// The families of any session.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let mut families: Vec<Family> = self.sessions.iter().flat_map(|s| s.families.clone()).collect();
        families.sort();
        families.dedup();
        families
    }

    /// The next hop to name with an announced prefix: for IPv6 over IPv4, where daemons do not find one by themselves.
    #[must_use]
    pub fn explicit_next_hop(&self, prefix: IpNetwork) -> Option<Ipv6Addr> {
        let over_v4 = |session: &Session| session.local.is_some_and(|local| local.is_ipv4());
        (prefix.is_ipv6() && self.sessions.iter().any(over_v4)).then_some(self.next_hop_v6)
    }

    /// The announced prefixes of a family.
    pub fn routes_of(&self, family: Family) -> impl Iterator<Item = &Announced> {
        self.routes
            .iter()
            .filter(move |route| Family::of(route.prefix) == family)
    }
}

impl Session {
    /// The address of a neighbour that has a fixed one.
    ///
    /// # Errors
    /// For any other neighbour.
    pub fn address(&self) -> anyhow::Result<IpAddr> {
        match self.remote {
            Remote::Address(address) => Ok(address),
            _ => anyhow::bail!("session {} has no fixed address", self.name),
        }
    }
}
