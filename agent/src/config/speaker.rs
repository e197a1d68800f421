//! How `[bgp]` becomes the speaker's configuration.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use calidris_bgp::config::{
    AddPathConfig, AddPathSend, BeyondLimit, ConnectMode, DecisionConfig, Distance, GracefulRestartConfig,
    LocalAs, LongLivedConfig, NextHopMode, OwnAs, PeerConfig, PrefixLimit, PrivateAs, RemoteAs, RoleConfig,
    SpeakerConfig, StaleExport, TransportConfig,
};
use calidris_bgp::family::{AfiSafi, Prefix};
use calidris_bgp::route::Origination;

use super::secret::{SecretError, read_secret, secret_of_environment};
use super::{AsNumbers, BeyondMaxPrefixes, Bgp, NextHop, Peer, PeerFamily, RoutePolicy, StaticRoute};

impl Bgp {
    /// The speaker's configuration. Reads the passwords; a peer whose password cannot be had is held down.
    pub fn speaker(&self, router_id: Ipv4Addr) -> SpeakerConfig {
        let dynamic = |range: &super::DynamicPeers| calidris_bgp::config::DynamicPeers {
            name: range.peer.name.clone(),
            range: Prefix::from(range.range),
            max_peers: range.max_peers,
            template: range.peer.to_speaker(self.as_number),
        };
        SpeakerConfig {
            cluster_id: self.cluster_id,
            peers: self
                .peers
                .iter()
                .map(|peer| peer.to_speaker(self.as_number))
                .collect(),
            dynamic: self.dynamic.iter().map(dynamic).collect(),
            decision: DecisionConfig {
                default_local_pref: self.default_local_pref,
                always_compare_med: self.always_compare_med,
                missing_med: if self.missing_med_worst { u32::MAX } else { 0 },
                prefer_oldest: self.prefer_oldest,
                multipath_limit: self.multipath,
            },
            sync_timeout: self.sync_timeout,
            ..SpeakerConfig::new(self.as_number, router_id)
        }
    }
}

impl Bgp {
    /// The configured routes as the speaker takes them.
    pub fn originations(&self) -> BTreeMap<Prefix, Origination> {
        let origination = |route: &StaticRoute| Origination {
            next_hop: route.next_hop,
            local_pref: route.local_pref,
            med: route.med,
            communities: route.communities.clone(),
            large_communities: route.large_communities.clone(),
            ..Origination::default()
        };
        self.routes
            .iter()
            .map(|route| (Prefix::from(route.prefix), origination(route)))
            .collect()
    }
}

impl Peer {
    fn to_speaker(&self, our_as: u32) -> PeerConfig {
        let (remote_as, open_as) = match &self.as_number {
            Some(AsNumbers::One(asn)) => (*asn, None),
            Some(AsNumbers::Internal) => (self.local_as.unwrap_or(our_as), None),
            Some(AsNumbers::Within(ranges)) => (0, Some(RemoteAs::Within(ranges.clone()))),
            Some(AsNumbers::External) | None => (0, Some(RemoteAs::External)),
        };
        let (md5_password, missing_secret) = match self.password() {
            Ok(password) => (password, None),
            Err(error) => (None, Some(error.to_string())),
        };
        // A peer found behind an interface has its address from there.
        let address = self.address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        PeerConfig {
            interface: self.interface.clone(),
            open_as,
            delay_open: self.delay_open,
            idle_hold: self.idle_hold,
            idle_hold_max: self.idle_hold_max.max(self.idle_hold),
            send_hold_time: self.send_hold_time,
            extended_next_hop: self.extended_next_hop.unwrap_or(self.interface.is_some()),
            enhanced_refresh: self.enhanced_refresh,
            port: self.port,
            local_address: self.local_address,
            connect: if self.passive {
                ConnectMode::Passive
            } else {
                ConnectMode::Active
            },
            families: self.families.iter().map(|&family| family.to_afi_safi()).collect(),
            hold_time: u16::try_from(self.hold_time.as_secs()).unwrap_or(u16::MAX),
            connect_retry: self.connect_retry,
            add_path: AddPathConfig {
                receive: self.add_path_receive,
                send: self.add_path_send.map(|send| match send {
                    super::AddPathSend::All(_) => AddPathSend::All,
                    super::AddPathSend::Best(limit) => AddPathSend::Best(limit),
                }),
            },
            route_reflector_client: self.route_reflector_client,
            route_server_client: self.route_server_client,
            next_hop: match self.next_hop {
                NextHop::Auto => NextHopMode::Auto,
                NextHop::Itself => NextHopMode::Itself,
                NextHop::Keep => NextHopMode::Keep,
            },
            local_as: self.local_as.map(|asn| LocalAs {
                asn,
                shown: visible(self.hide_own_as),
                received: visible(self.hide_local_as),
            }),
            allow_own_as: self.allow_own_as,
            enforce_first_as: self.enforce_first_as,
            as_override: self.as_override,
            remove_private_as: self.remove_private_as.map(|private| match private {
                super::PrivateAs::Remove => PrivateAs::Remove,
                super::PrivateAs::Replace => PrivateAs::Replace,
            }),
            weight: self.weight,
            priority_in_local_pref: self.priority_in_local_pref,
            graceful_shutdown: self.graceful_shutdown,
            blackhole: self.blackhole,
            role: self.role.map(|role| RoleConfig {
                ours: role.to_speaker(),
                strict: self.role_strict,
            }),
            prefix_limit_in: self.max_prefixes.map(|max| PrefixLimit {
                max,
                warn_percent: 80,
                beyond: match self.beyond_max_prefixes {
                    BeyondMaxPrefixes::Warn => BeyondLimit::Warn,
                    BeyondMaxPrefixes::Discard => BeyondLimit::Discard,
                    BeyondMaxPrefixes::Stop => BeyondLimit::Stop {
                        retry_after: self.max_prefixes_retry,
                    },
                },
            }),
            prefix_limit_out: self.max_prefixes_out,
            shutdown: self.shutdown.clone(),
            import: self.import.as_ref().map(RoutePolicy::to_policy),
            export: self.export.as_ref().map(RoutePolicy::to_policy),
            graceful_restart: self.graceful_restart(),
            transport: TransportConfig {
                md5_password,
                missing_secret,
                distance: match (self.multihop, self.ttl_security) {
                    (_, Some(hops)) => Distance::Gtsm { hops },
                    (Some(hops), None) => Distance::Multihop(hops),
                    (None, None) => Distance::Auto,
                },
            },
            ..PeerConfig::new(self.name.as_str(), address, remote_as)
        }
    }

    /// The password, if there is to be one.
    pub(super) fn password(&self) -> Result<Option<String>, SecretError> {
        match (&self.password_file, &self.password_env) {
            (Some(path), _) => read_secret(path).map(Some),
            (None, Some(name)) => secret_of_environment(name).map(Some),
            (None, None) => Ok(None),
        }
    }
}

impl Peer {
    /// `None` when nothing is to be kept on either side.
    fn graceful_restart(&self) -> Option<GracefulRestartConfig> {
        let is_wanted = [
            self.restart_time,
            self.long_lived_stale_time,
            self.long_lived_keep,
        ]
        .iter()
        .any(|time| !time.is_zero());
        is_wanted.then(|| GracefulRestartConfig {
            restart_time: u16::try_from(self.restart_time.as_secs()).unwrap_or(u16::MAX),
            notification: self.restart_through_notification,
            long_lived: LongLivedConfig {
                stale_time: u32::try_from(self.long_lived_stale_time.as_secs()).unwrap_or(u32::MAX),
                keep: self.long_lived_keep,
                export: if self.long_lived_to_unaware {
                    StaleExport::Depreference
                } else {
                    StaleExport::Withhold
                },
            },
            ..GracefulRestartConfig::default()
        })
    }
}

fn visible(hidden: bool) -> OwnAs {
    if hidden { OwnAs::Hidden } else { OwnAs::Shown }
}

impl super::Role {
    fn to_speaker(self) -> calidris_bgp::config::Role {
        use calidris_bgp::config::Role;
        match self {
            Self::Provider => Role::Provider,
            Self::Customer => Role::Customer,
            Self::Peer => Role::Peer,
            Self::RouteServer => Role::RouteServer,
            Self::RouteServerClient => Role::RouteServerClient,
        }
    }
}

impl PeerFamily {
    fn to_afi_safi(self) -> AfiSafi {
        match self {
            Self::Ipv4 => AfiSafi::IPV4_UNICAST,
            Self::Ipv6 => AfiSafi::IPV6_UNICAST,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use calidris_bgp::policy::{Policy, Verdict};

    use super::*;
    use crate::config::Config;

    #[test]
    fn policies_become_the_speakers() {
        assert_eq!(RoutePolicy::Accept.to_policy(), Policy::accept_all());
        assert_eq!(RoutePolicy::Reject.to_policy(), Policy::reject_all());
        let own = RoutePolicy::OwnBlocks.to_policy();
        assert_eq!((own.terms.len(), own.default), (1, Verdict::Reject));
    }

    #[test]
    fn the_example_is_a_configuration_the_speaker_takes() {
        let config = Config::parse(
            include_str!("../../../deploy/calidris.toml"),
            Path::new("calidris.toml"),
        )
        .unwrap();
        let speaker = config.bgp.as_ref().unwrap().speaker(config.router_id().unwrap());
        speaker.check().unwrap();
        assert_eq!(speaker.peers[0].hold_time, 90);
        assert_eq!(speaker.sync_timeout, Duration::from_secs(120));
        assert_eq!(
            speaker.peers[1].import.as_ref().map(|policy| policy.terms.len()),
            Some(2)
        );
    }
}
