//! What operators see of the speaker and its peers, made from the live state.

use super::{FamilyTables, PeerEntry, Speaker};
use crate::config::{ConnectMode, Distance, PeerConfig};
use crate::family::Family;
use crate::policy::{PeerKind, Policy, Verdict};
use crate::rib::{PathCounts, SourceId};
use crate::session::Peer;
use crate::status::{ConnectionStatus, FamilyStatus, LastError, NegotiatedStatus, PeerStatus, SpeakerStatus};
use crate::time::Time;
use crate::wire::capability::Capabilities;
use crate::wire::frame::MessageLimit;

impl Speaker {
    /// The speaker and its peers.
    pub fn status(&self, now: Time) -> SpeakerStatus {
        // Once for all peers: there may be a thousand, and a table of a million.
        let counts = [self.ipv4.loc_rib.counts(), self.ipv6.loc_rib.counts()];
        let mut peers: Vec<PeerStatus> = self
            .peers
            .iter()
            .map(|(index, entry)| self.peer_status(*index, entry, &counts, now))
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        SpeakerStatus {
            local_as: self.config.local_as,
            router_id: self.config.router_id,
            in_sync: self.sync.is_done(),
            restarting: self.sync.restarting(),
            prefixes: self.ipv4.loc_rib.len() + self.ipv6.loc_rib.len(),
            attribute_sets: self.attrs.len(),
            update_groups: self.ipv4.groups.iter().count() + self.ipv6.groups.iter().count(),
            peers,
        }
    }

    fn peer_status(
        &self,
        index: u32,
        entry: &PeerEntry,
        counts: &[Vec<PathCounts>; 2],
        now: Time,
    ) -> PeerStatus {
        let peer = &entry.peer;
        let mut timers = peer.running_timers(now);
        timers.extend(entry.timers.running(now));
        PeerStatus {
            name: peer.config().name.clone(),
            address: peer.config().address,
            interface: peer.config().interface.clone(),
            range: entry.range.clone(),
            held_down: peer.config().held_down(),
            remote_as: peer.config().remote_as,
            local_as: peer.config().local_as(self.config.local_as),
            kind: peer.kind(),
            connection: connection_status(peer.config()),
            state: peer.state(),
            since: now.since(peer.since()),
            established_count: peer.established_count(),
            transport: peer.transport(),
            negotiated: entry.session.as_ref().map(|terms| NegotiatedStatus {
                router_id: terms.router_id,
                hold_time: terms.hold_time,
                keepalive: terms.keepalive,
                families: terms.families.iter().copied().collect(),
                capabilities_sent: capabilities(peer, |(ours, _)| ours),
                capabilities_received: capabilities(peer, |(_, theirs)| theirs),
                add_path_receive: terms.add_path_in.iter().copied().collect(),
                add_path_send: terms.add_path_out.iter().copied().collect(),
                four_octet_as: terms.four_octet_as,
                route_refresh: terms.route_refresh,
                enhanced_route_refresh: terms.enhanced_route_refresh,
                extended_message: terms.message_limit == MessageLimit::Extended,
                graceful_restart: terms
                    .graceful_restart
                    .as_ref()
                    .map(|restart| restart.restart_time),
                extended_next_hop: terms.extended_next_hop,
                notification_survived: terms
                    .graceful_restart
                    .as_ref()
                    .is_some_and(|restart| restart.notification),
                long_lived_seconds: terms
                    .graceful_restart
                    .as_ref()
                    .and_then(|restart| restart.long_lived.as_ref())
                    .map(|entries| entries.iter().map(|e| (e.family, e.stale_time)).collect()),
            }),
            last_error: peer.last_error().map(|(closed, at)| LastError {
                by: closed.reason.by(),
                notification: closed.reason.notification(),
                text: closed.reason.to_string(),
                age: now.since(*at),
            }),
            counters: peer.counters(),
            timers,
            import: in_words(peer.config().import.as_ref(), peer.kind()),
            export: in_words(peer.config().export.as_ref(), peer.kind()),
            prefix_limit_in: peer.config().prefix_limit_in.map(|limit| limit.max),
            prefix_limit_out: peer.config().prefix_limit_out,
            families: {
                let [ipv4, ipv6] = counts;
                let families = [
                    family_status(&self.ipv4, index, entry, ipv4),
                    family_status(&self.ipv6, index, entry, ipv6),
                ];
                families.into_iter().flatten().collect()
            },
        }
    }
}

/// A family of a peer; `None` where there is nothing to say. `counts` are those of all sources.
fn family_status<F: Family>(
    tables: &FamilyTables<F>,
    index: u32,
    entry: &PeerEntry,
    counts: &[PathCounts],
) -> Option<FamilyStatus> {
    let of_peer = counts.get(SourceId::peer(index).index());
    let of_peer = of_peer.copied().unwrap_or_default();
    let progress = entry.progress.get(&F::AFI_SAFI);
    if progress.is_none() && of_peer.received == 0 {
        return None;
    }
    let group = tables.groups.of(index);
    let announced = tables.groups.announced_to(index);
    let best_of_others = counts.iter().map(|counts| counts.best).sum::<usize>() - of_peer.best;
    Some(FamilyStatus {
        family: F::AFI_SAFI,
        received: of_peer.received,
        accepted: of_peer.accepted,
        filtered: of_peer.filtered,
        rejected: of_peer.rejected,
        unreachable: of_peer.unreachable,
        stale: of_peer.stale,
        best: of_peer.best,
        announcements_in: progress.map_or(0, |progress| progress.announcements),
        withdrawals_in: progress.map_or(0, |progress| progress.withdrawals),
        announcements_out: progress.map_or(0, |progress| progress.told.announcements),
        withdrawals_out: progress.map_or(0, |progress| progress.told.withdrawals),
        update_group_size: group.map_or(0, |group| group.updates.len()),
        beyond_limit: progress.map_or(0, |progress| progress.discarded),
        announced,
        withheld: group
            .filter(|group| group.treatment.add_path.is_none())
            .map(|_| best_of_others.saturating_sub(announced)),
        own_next_hop: group.and_then(|group| group.treatment.exporter.own_next_hop(F::AFI_SAFI)),
        end_of_rib_received: progress.is_some_and(|progress| progress.end_of_rib_received),
        end_of_rib_sent: progress.is_some_and(|progress| progress.end_of_rib_sent),
    })
}

/// What a policy lets through.
fn in_words(policy: Option<&Policy>, kind: PeerKind) -> String {
    let all = |verdict| match verdict {
        Verdict::Accept => "everything",
        Verdict::Reject => "nothing",
    };
    match policy {
        None if kind == PeerKind::Ebgp => "nothing: no policy (RFC 8212)".to_owned(),
        None => "everything: no policy".to_owned(),
        Some(policy) => match policy.terms.len() {
            0 => all(policy.default).to_owned(),
            1 => format!("by 1 term, else {}", all(policy.default)),
            count => format!("by {count} terms, else {}", all(policy.default)),
        },
    }
}

/// One side's capabilities in words. A peer has at most a few; what it makes up beyond 64 is not shown.
fn capabilities<'a>(
    peer: &'a Peer,
    side: impl Fn((&'a Capabilities, &'a Capabilities)) -> &'a Capabilities,
) -> Vec<String> {
    let connection = peer.established();
    let all = connection.map(|connection| side(connection.capabilities()).iter());
    all.into_iter()
        .flatten()
        .take(64)
        .map(ToString::to_string)
        .collect()
}

fn connection_status(config: &PeerConfig) -> ConnectionStatus {
    let distance = config.transport.distance;
    ConnectionStatus {
        passive: config.connect == ConnectMode::Passive,
        md5: config.transport.is_signed(),
        gtsm_min_ttl: match distance {
            Distance::Gtsm { hops } => Some(255 - hops.clamp(1, 254) + 1),
            _ => None,
        },
        multihop: match distance {
            Distance::Multihop(hops) => Some(hops),
            _ => None,
        },
        hold_time: config.hold_time,
    }
}
