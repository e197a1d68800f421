//! Peers as an operator writes them: `[[bgp.peers]]`, `[[bgp.dynamic]]`, and `[[bgp.templates]]` from which both inherit.
//!
//! All three are sections of the same optional keys ([`PeerKeys`]). A key that a section does not have comes from its template, else it has its
//! default: that makes a [`Peer`]. What is wrong within a section is told with its line, what is wrong only together with a template with the
//! line of `[bgp]`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::as_numbers::AsNumbers;
use super::bgp::{AddPathSend, BeyondMaxPrefixes, NextHop, PeerFamily, PrivateAs, Role};
use super::policy::RoutePolicy;
use super::{duration, is_unicast};

/// The longest restart time RFC 4724 §3 can carry, in seconds.
const MAX_RESTART_TIME: u64 = 4095;
/// The longest stale time RFC 9494 §3 can carry, in seconds.
const MAX_STALE_TIME: u64 = (1 << 24) - 1;

/// Declares every key of a peer once: what a section may say, what it inherits, and what holds when nobody says anything.
macro_rules! peer_keys {
    (
        with default { $($(#[$meta:meta])* $name:ident: $type:ty = $default:expr;)* }
        without { $($(#[$opt_meta:meta])* $opt:ident: $opt_type:ty;)* }
    ) => {
        /// A section: the keys it has.
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, remote = "Self")]
        pub(super) struct PeerKeys {
            /// Unique name.
            pub(super) name: String,
            /// The template that adds what this section does not say.
            pub(super) template: Option<String>,
            /// Where the peer is.
            pub(super) address: Option<IpAddr>,
            /// The interface behind which the peer is found.
            pub(super) interface: Option<String>,
            /// Where peers may connect from.
            pub(super) range: Option<IpNetwork>,
            /// How many of them there may be at a time.
            pub(super) max_peers: Option<u32>,
            $($(#[$meta])* pub(super) $name: Option<$type>,)*
            $($(#[$opt_meta])* pub(super) $opt: Option<$opt_type>,)*
        }

        /// A peer with every key decided.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Peer {
            /// Unique name.
            pub name: String,
            /// Where it is; `None` for those found behind an interface, and those of a range.
            pub address: Option<IpAddr>,
            /// The interface behind which it is found.
            pub interface: Option<String>,
            $(#[doc = concat!("`", stringify!($name), "`")] pub $name: $type,)*
            $(#[doc = concat!("`", stringify!($opt), "`")] pub $opt: Option<$opt_type>,)*
        }

        impl PeerKeys {
            /// These keys, and those of `template` that are not among them.
            pub(super) fn inherit(self, template: &Self) -> Self {
                Self {
                    $($name: self.$name.or_else(|| template.$name.clone()),)*
                    $($opt: self.$opt.or_else(|| template.$opt.clone()),)*
                    ..self
                }
            }

            fn decide(self) -> Peer {
                Peer {
                    name: self.name,
                    address: self.address,
                    interface: self.interface,
                    $($name: self.$name.unwrap_or_else(|| $default),)*
                    $($opt: self.$opt,)*
                }
            }
        }
    };
}

peer_keys! {
    with default {
        port: u16 = 179;
        passive: bool = false;
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        hold_time: Duration = Duration::from_secs(90);
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        connect_retry: Duration = Duration::from_secs(5);
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        idle_hold: Duration = Duration::from_secs(1);
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        idle_hold_max: Duration = Duration::from_secs(60);
        families: BTreeSet<PeerFamily> = BTreeSet::from([PeerFamily::Ipv4, PeerFamily::Ipv6]);
        enhanced_refresh: bool = true;
        add_path_receive: bool = false;
        route_server_client: bool = false;
        next_hop: NextHop = NextHop::Auto;
        route_reflector_client: bool = false;
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        restart_time: Duration = Duration::from_secs(120);
        restart_through_notification: bool = true;
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        long_lived_stale_time: Duration = Duration::ZERO;
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        long_lived_keep: Duration = Duration::ZERO;
        long_lived_to_unaware: bool = false;
        hide_own_as: bool = false;
        hide_local_as: bool = false;
        weight: u16 = 0;
        allow_own_as: u8 = 0;
        enforce_first_as: bool = true;
        as_override: bool = false;
        priority_in_local_pref: bool = false;
        graceful_shutdown: bool = false;
        blackhole: bool = false;
        role_strict: bool = false;
        beyond_max_prefixes: BeyondMaxPrefixes = BeyondMaxPrefixes::default();
    }
    without {
        as_number: AsNumbers;
        local_address: IpAddr;
        password_file: PathBuf;
        password_env: String;
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        delay_open: Duration;
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        send_hold_time: Duration;
        add_path_send: AddPathSend;
        multihop: u8;
        ttl_security: u8;
        extended_next_hop: bool;
        local_as: u32;
        remove_private_as: PrivateAs;
        role: Role;
        max_prefixes: u32;
        #[serde(default, deserialize_with = "duration::deserialize_optional")]
        max_prefixes_retry: Duration;
        max_prefixes_out: u32;
        shutdown: String;
        import: RoutePolicy;
        export: RoutePolicy;
    }
}

/// Peers that may connect from a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicPeers {
    /// Where they connect from, host bits zero.
    pub range: IpNetwork,
    /// How many at a time, 1 or more.
    pub max_peers: u32,
    /// What holds for each.
    pub peer: Peer,
}

/// How many peers a range has unless told otherwise.
const MAX_PEERS: u32 = 100;

impl PeerKeys {
    /// What stands by itself as `[[bgp.peers]]`.
    pub(super) fn into_peer(self) -> Result<Peer, String> {
        let name = self.name.clone();
        let refuse = |why: &str| Err(format!("peer {name:?}: {why}"));
        self.check().map_err(|why| format!("peer {name:?}: {why}"))?;
        if self.range.is_some() || self.max_peers.is_some() {
            return refuse("range and max_peers belong to [[bgp.dynamic]]");
        }
        if self.address.is_some() == self.interface.is_some() {
            return refuse("expected either address or interface");
        }
        if self.as_number.is_none() {
            return refuse("as_number is missing");
        }
        Ok(self.decide())
    }

    /// What stands by itself as `[[bgp.dynamic]]`.
    pub(super) fn into_dynamic(self) -> Result<DynamicPeers, String> {
        let name = self.name.clone();
        let refuse = |why: &str| Err(format!("dynamic peers {name:?}: {why}"));
        self.check()
            .map_err(|why| format!("dynamic peers {name:?}: {why}"))?;
        if self.address.is_some() || self.interface.is_some() {
            return refuse("address and interface belong to [[bgp.peers]]");
        }
        let Some(range) = self.range else {
            return refuse("range is missing");
        };
        if self.as_number.is_none() {
            return refuse("as_number is missing");
        }
        Ok(DynamicPeers {
            range: super::policy::without_host_bits(range)
                .map_err(|why| format!("dynamic peers {name:?}: {why}"))?,
            max_peers: self.max_peers.unwrap_or(MAX_PEERS),
            peer: self.decide(),
        })
    }

    /// What is part of others as `[[bgp.templates]]`.
    pub(super) fn check_template(&self) -> Result<(), String> {
        if self.address.is_some()
            || self.interface.is_some()
            || self.range.is_some()
            || self.max_peers.is_some()
        {
            return Err(format!(
                "template {:?}: address, interface, range and max_peers are no matter of a template",
                self.name
            ));
        }
        Ok(())
    }

    /// What is wrong whatever a template adds.
    fn check(&self) -> Result<(), String> {
        let refuse = |why: &str| Err(why.to_owned());
        if self.name.is_empty() || self.name.len() > 64 || self.name.contains(char::is_control) {
            return refuse("expected a name of 1 to 64 printable characters");
        }
        if self.local_as == Some(0) {
            return refuse("local_as is 0; expected 1 to 4294967295");
        }
        if self.port == Some(0) {
            return refuse("port is 0; expected 1 to 65535");
        }
        if let Some(address) = self.address.filter(|address| !is_unicast(*address)) {
            return Err(format!("{address} is not the address of a host"));
        }
        if let (Some(local), Some(address)) = (self.local_address, self.address)
            && local.is_ipv4() != address.is_ipv4()
        {
            return refuse("address and local_address are of different IP versions");
        }
        if self.password_file.is_some() && self.password_env.is_some() {
            return refuse("password_file and password_env exclude each other; expected one of them");
        }
        if self.max_peers == Some(0) {
            return refuse("max_peers is 0; expected at least 1");
        }
        self.check_times()?;
        if self.families.as_ref().is_some_and(BTreeSet::is_empty) {
            return refuse("families is empty; expected \"ipv4\", \"ipv6\" or both");
        }
        if self.multihop.is_some() && self.ttl_security.is_some() {
            return refuse("multihop and ttl_security exclude each other; expected one of them");
        }
        if self.multihop == Some(0) || self.ttl_security == Some(0) {
            return refuse("multihop and ttl_security: expected 1 to 255");
        }
        if self.import == Some(RoutePolicy::OwnBlocks) {
            return refuse(
                "import = \"own-blocks\" has no meaning; expected \"accept\", \"reject\" or rules",
            );
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), String> {
        let hold_time = self.hold_time.unwrap_or_default();
        let seconds = hold_time.as_secs();
        if hold_time.subsec_nanos() != 0 || seconds == 1 || seconds == 2 || seconds > 65_535 {
            return Err(
                "hold_time: expected 0s (never expires) or whole seconds from 3s to 65535s".to_owned(),
            );
        }
        let second = Duration::from_secs(1);
        let at_least = |name: &str, time: Option<Duration>| match time {
            Some(time) if time < second => Err(format!("{name} is below 1s")),
            _ => Ok(()),
        };
        at_least("connect_retry", self.connect_retry)?;
        at_least("idle_hold", self.idle_hold)?;
        at_least("send_hold_time", self.send_hold_time)?;
        if let (Some(first), Some(longest)) = (self.idle_hold, self.idle_hold_max)
            && longest < first
        {
            return Err("idle_hold_max is below idle_hold".to_owned());
        }
        let longest = |name: &str, time: Option<Duration>, max: u64| match time {
            Some(time) if time.as_secs() > max => Err(format!("{name} is above {max}s")),
            _ => Ok(()),
        };
        longest("restart_time", self.restart_time, MAX_RESTART_TIME)?;
        longest(
            "long_lived_stale_time",
            self.long_lived_stale_time,
            MAX_STALE_TIME,
        )
    }
}

impl<'de> Deserialize<'de> for PeerKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let keys = Self::deserialize(deserializer)?;
        keys.check()
            .map_err(|why| D::Error::custom(format!("{:?}: {why}", keys.name)))?;
        Ok(keys)
    }
}
