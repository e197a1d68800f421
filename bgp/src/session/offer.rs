//! What we say in OPEN: the capabilities that follow from a peer's configuration (RFC 5492).

use crate::config::{PeerConfig, Role};
use crate::family::{AFI_IPV6, AfiSafi};
use crate::session::peer::LocalSpeaker;
use crate::wire::capability::{
    AddPath, Capabilities, Capability, ExtendedNextHop, GracefulRestart, GracefulRestartFamily,
    LongLivedGracefulRestart,
};
use crate::wire::open::Open;

/// Our OPEN to a peer. `role` is ours where it counts: between ASes (RFC 9234 §4.1).
pub(super) fn offer(config: &PeerConfig, local: &LocalSpeaker, role: Option<Role>) -> Open {
    let local_as = config.local_as(local.asn);
    let mut capabilities = Capabilities::default();
    for family in &config.families {
        capabilities.push(Capability::Multiprotocol(*family));
    }
    if config.extended_next_hop && config.families.contains(&AfiSafi::IPV4_UNICAST) {
        capabilities.push(Capability::ExtendedNextHop(vec![ExtendedNextHop {
            family: AfiSafi::IPV4_UNICAST,
            next_hop_afi: AFI_IPV6,
        }]));
    }
    capabilities.push(Capability::RouteRefresh);
    if config.enhanced_refresh {
        capabilities.push(Capability::EnhancedRouteRefresh);
    }
    capabilities.push(Capability::ExtendedMessage);
    capabilities.push(Capability::FourOctetAs(local_as));
    if let Some(direction) = config.add_path.direction() {
        let entry = |family: &_| AddPath {
            family: *family,
            direction,
        };
        capabilities.push(Capability::AddPath(config.families.iter().map(entry).collect()));
    }
    if let Some(role) = role {
        capabilities.push(Capability::Role(role));
    }
    if let Some(restart) = &config.graceful_restart {
        let family = |family: &_| GracefulRestartFamily {
            family: *family,
            forwarding_preserved: local.forwarding,
        };
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            restart_state: local.restarting,
            notification: restart.notification,
            restart_time: restart.restart_time.min(4095),
            families: config.families.iter().map(family).collect(),
        }));
        // Without families it still says that we know what stale routes are (RFC 9494 §4.3).
        let asked = Some(restart.long_lived.stale_time).filter(|secs| *secs > 0);
        let families = asked.iter().flat_map(|stale_time| {
            config.families.iter().map(|family| LongLivedGracefulRestart {
                family: *family,
                forwarding_preserved: local.forwarding,
                stale_time: *stale_time,
            })
        });
        capabilities.push(Capability::LongLivedGracefulRestart(families.collect()));
    }
    Open::new(local_as, config.hold_time, local.router_id, capabilities)
}
